// A folder for one test.
#ifndef ADAMANT_TESTS_STORE_TEMPORARY_FOLDER_H_
#define ADAMANT_TESTS_STORE_TEMPORARY_FOLDER_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <string>

#include "server/store/file_system.h"

namespace adamant::store {

// A folder of the system's that is gone with this.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(testing::TempDir() + "store-XXXXXX") { EXPECT_NE(mkdtemp(path_.data()), nullptr); }
  ~TemporaryFolder() { EXPECT_TRUE(PosixFileSystem()->RemoveAll(path_).ok()); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_TEMPORARY_FOLDER_H_
