// What must hold on any file system is tested on each: a fixture with a folder, and the values of its parameter.
#ifndef ADAMANT_TESTS_STORE_EVERY_FILE_SYSTEM_H_
#define ADAMANT_TESTS_STORE_EVERY_FILE_SYSTEM_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <new>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/store/file_system.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/temporary_folder.h"

namespace adamant::store {

inline absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Memory as kDirect asks for it, zero at first.
class SectorMemory {
 public:
  explicit SectorMemory(size_t bytes)
      : data_(new (std::align_val_t{static_cast<size_t>(kSectorBytes)}) std::byte[bytes]()), size_(bytes) {}

  absl::Span<std::byte> span() { return {data_.get(), size_}; }

 private:
  struct Delete {
    void operator()(std::byte* data) const {
      operator delete[](data, std::align_val_t{static_cast<size_t>(kSectorBytes)});
    }
  };
  std::unique_ptr<std::byte[], Delete> data_;
  size_t size_;
};

class OnEveryFileSystem : public testing::TestWithParam<std::string> {
 protected:
  FileSystem* file_system() { return GetParam() == "Posix" ? PosixFileSystem() : &simulated_; }
  SimulatedFileSystem* simulated() { return &simulated_; }
  // A path in the test's folder.
  std::string Path(absl::string_view name) const {
    return (GetParam() == "Posix" ? folder_.path() : std::string()) + "/" + std::string(name);
  }
  std::string Folder() const { return GetParam() == "Posix" ? folder_.path() : "/"; }

 private:
  TemporaryFolder folder_;
  SimulatedFileSystem simulated_;
};

#define ADAMANT_ON_EVERY_FILE_SYSTEM(fixture)                                             \
  INSTANTIATE_TEST_SUITE_P(, fixture, testing::Values(std::string("Posix"), "Simulated"), \
                           [](const auto& info) { return info.param; })

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_EVERY_FILE_SYSTEM_H_
