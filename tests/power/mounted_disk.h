// A file system on a DiskFile, as a server has it: by a loop device.
#ifndef ADAMANT_TESTS_POWER_MOUNTED_DISK_H_
#define ADAMANT_TESTS_POWER_MOUNTED_DISK_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace adamant::power {

// Takes the process out of everybody's view of the file systems, so that what it mounts is seen by itself and its
// children only, and gone with them, whatever they die of. FAILED_PRECONDITION, saying why, where the process cannot
// mount by FUSE and loop devices. To be called before there are other threads.
absl::Status PrepareForMounts();

// A block device that is a file. Thread-compatible.
class LoopDevice {
 public:
  // FAILED_PRECONDITION where there is no free device.
  static absl::StatusOr<std::unique_ptr<LoopDevice>> Attach(const std::string& file);
  // The device is free again, once nothing is mounted on it.
  ~LoopDevice();
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;

  const std::string& path() const { return path_; }
  // Begins to write what the file system has changed of itself, as the system does after a while: nothing is flushed by
  // that.
  void WriteBack() const;

 private:
  LoopDevice(std::string path, int fd);

  const std::string path_;
  const int fd_;
};

// Thread-compatible.
class MountedDisk {
 public:
  // Mounts what is in `file` on `directory`; a file system that was cut off recovers by that. FAILED_PRECONDITION where
  // the system does not know the type.
  static absl::StatusOr<std::unique_ptr<MountedDisk>> Mount(const std::string& file, const std::string& type,
                                                            const std::string& directory);
  // Nobody uses it any more.
  ~MountedDisk();
  MountedDisk(const MountedDisk&) = delete;
  MountedDisk& operator=(const MountedDisk&) = delete;

  const LoopDevice& device() const { return *device_; }

 private:
  MountedDisk(std::unique_ptr<LoopDevice> device, std::string directory);

  const std::unique_ptr<LoopDevice> device_;
  const std::string directory_;
};

}  // namespace adamant::power

#endif  // ADAMANT_TESTS_POWER_MOUNTED_DISK_H_
