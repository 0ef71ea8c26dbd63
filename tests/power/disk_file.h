// A Disk as a file that the system can use, by FUSE.
#ifndef ADAMANT_TESTS_POWER_DISK_FILE_H_
#define ADAMANT_TESTS_POWER_DISK_FILE_H_

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tests/power/disk.h"

namespace adamant::power {

// Each read, write and sync of the file is one of the disk: nothing is cached in between. Events are in the order in
// which they were answered, since one thread answers them. That is a process's of its own: a test that is killed while
// it waits for the file cannot end before it is answered. Thread-compatible.
class DiskFile {
 public:
  // Mounts a file system on `directory` that has this one file. `disk` outlives it.
  static absl::StatusOr<std::unique_ptr<DiskFile>> Mount(Disk* disk, const std::string& directory);
  // Waits until nobody has the file any more.
  ~DiskFile();
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  DiskFile(pid_t server, const std::string& directory);

  const pid_t server_;
  const std::string directory_;
  const std::string path_;
};

}  // namespace adamant::power

#endif  // ADAMANT_TESTS_POWER_DISK_FILE_H_
