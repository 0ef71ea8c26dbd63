// Leads SQLite's files to the simulated disk.
#ifndef ADAMANT_TESTS_STORE_SQLITE_VFS_H_
#define ADAMANT_TESTS_STORE_SQLITE_VFS_H_

#include <sqlite3.h>

#include <string>

#include "tests/store/simulated_file_system.h"

namespace adamant::store {

// Known to SQLite by its name for as long as it lives, which is longer than any connection that uses it. Says of the
// disk what SQLite's own says of the system's, and syncs what that syncs.
class SqliteVfs {
 public:
  explicit SqliteVfs(SimulatedFileSystem* disk);
  ~SqliteVfs();
  SqliteVfs(const SqliteVfs&) = delete;
  SqliteVfs& operator=(const SqliteVfs&) = delete;

  const std::string& name() const { return name_; }

 private:
  const std::string name_;
  sqlite3_vfs vfs_;
};

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_SQLITE_VFS_H_
