#include "tests/power/mounted_disk.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace adamant::power {
namespace {

// What `what` failed with.
std::string Failure(absl::string_view what) { return absl::StrCat(what, ": ", std::generic_category().message(errno)); }

absl::Status CheckOpens(const char* path) {
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return absl::FailedPreconditionError(Failure(path));
  close(fd);
  return absl::OkStatus();
}

}  // namespace

absl::Status PrepareForMounts() {
  static const absl::Status status = [] {
    if (geteuid() != 0) return absl::FailedPreconditionError("only root can mount a disk");
    for (const char* const path : {"/dev/fuse", "/dev/loop-control"}) {
      if (absl::Status opens = CheckOpens(path); !opens.ok()) return opens;
    }
    if (unshare(CLONE_NEWNS) != 0) return absl::FailedPreconditionError(Failure("unshare"));
    if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      return absl::FailedPreconditionError(Failure("making mounts private"));
    }
    return absl::OkStatus();
  }();
  return status;
}

absl::StatusOr<std::unique_ptr<LoopDevice>> LoopDevice::Attach(const std::string& file) {
  const int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) return absl::FailedPreconditionError(Failure("/dev/loop-control"));
  const int backing = open(file.c_str(), O_RDWR | O_CLOEXEC);
  absl::StatusOr<std::unique_ptr<LoopDevice>> attached = absl::InternalError(Failure(file));
  bool is_taken = backing >= 0;
  while (is_taken) {
    is_taken = false;
    const std::string path = absl::StrCat("/dev/loop", ioctl(control, LOOP_CTL_GET_FREE));
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) {
      attached = absl::FailedPreconditionError(Failure(path));
      break;
    }
    loop_config config = {};
    config.fd = static_cast<uint32_t>(backing);
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
      attached = std::unique_ptr<LoopDevice>(new LoopDevice(path, fd));
      break;
    }
    // Somebody else was faster.
    is_taken = errno == EBUSY;
    attached = absl::FailedPreconditionError(Failure(path));
    close(fd);
  }
  if (backing >= 0) close(backing);
  close(control);
  return attached;
}

LoopDevice::LoopDevice(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

LoopDevice::~LoopDevice() { close(fd_); }

void LoopDevice::WriteBack() const { sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE); }

absl::StatusOr<std::unique_ptr<MountedDisk>> MountedDisk::Mount(const std::string& file, const std::string& type,
                                                                const std::string& directory) {
  absl::StatusOr<std::unique_ptr<LoopDevice>> device = LoopDevice::Attach(file);
  if (!device.ok()) return device.status();
  if (mount((*device)->path().c_str(), directory.c_str(), type.c_str(), 0, nullptr) != 0) {
    const bool is_unknown = errno == ENODEV;
    const std::string failure = Failure(absl::StrCat("mounting ", type));
    return is_unknown ? absl::FailedPreconditionError(failure) : absl::InternalError(failure);
  }
  return std::unique_ptr<MountedDisk>(new MountedDisk(*std::move(device), directory));
}

MountedDisk::MountedDisk(std::unique_ptr<LoopDevice> device, std::string directory)
    : device_(std::move(device)), directory_(std::move(directory)) {}

MountedDisk::~MountedDisk() {
  if (umount2(directory_.c_str(), 0) != 0) umount2(directory_.c_str(), MNT_DETACH);
}

}  // namespace adamant::power
