#include "tests/power/disk_file.h"

#define FUSE_USE_VERSION 31
#include <fcntl.h>
#include <fuse.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace adamant::power {
namespace {

constexpr absl::string_view kName = "/disk";

Disk* TheDisk() { return static_cast<Disk*>(fuse_get_context()->private_data); }

int GetAttributes(const char* path, struct stat* about, fuse_file_info* /*file*/) {
  *about = {};
  about->st_nlink = 1;
  if (absl::string_view(path) == "/") {
    about->st_mode = S_IFDIR | 0700;
    return 0;
  }
  if (path != kName) return -ENOENT;
  about->st_mode = S_IFREG | 0600;
  about->st_size = TheDisk()->size();
  return 0;
}

int Open(const char* path, fuse_file_info* file) {
  if (path != kName) return -ENOENT;
  file->direct_io = 1;
  return 0;
}

int Read(const char* /*path*/, char* bytes, size_t size, off_t offset, fuse_file_info* /*file*/) {
  Disk* const disk = TheDisk();
  const int64_t n = std::clamp<int64_t>(disk->size() - offset, 0, static_cast<int64_t>(size));
  if (n > 0) disk->Read(offset, absl::MakeSpan(bytes, n));
  return static_cast<int>(n);
}

int Write(const char* /*path*/, const char* bytes, size_t size, off_t offset, fuse_file_info* /*file*/) {
  Disk* const disk = TheDisk();
  if (offset + static_cast<int64_t>(size) > disk->size()) return -ENOSPC;
  disk->Write(offset, absl::string_view(bytes, size));
  return static_cast<int>(size);
}

int Sync(const char* /*path*/, int /*data_only*/, fuse_file_info* /*file*/) {
  TheDisk()->Flush();
  return 0;
}

// Has `disk` be a file in `directory` until nobody has it any more; writes a byte to `mounted` when it is. What a
// process does that is forked for it.
void Serve(Disk* disk, const std::string& directory, int mounted) {
  fuse_operations operations = {};
  operations.getattr = &GetAttributes;
  operations.open = &Open;
  operations.read = &Read;
  operations.write = &Write;
  operations.fsync = &Sync;
  char name[] = "power";
  char* arguments[] = {name, nullptr};
  fuse_args parsed = FUSE_ARGS_INIT(1, arguments);
  fuse* const made = fuse_new(&parsed, &operations, sizeof operations, disk);
  if (made == nullptr || fuse_mount(made, directory.c_str()) != 0) return;
  // A process that ends takes down what is mounted for it alone, and only then closes its files: what is mounted on the
  // disk would wait for the disk for good.
  if (unshare(CLONE_NEWNS) != 0 || umount2(directory.c_str(), MNT_DETACH) != 0) return;
  if (write(mounted, "", 1) != 1) return;
  close(mounted);
  fuse_loop(made);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskFile>> DiskFile::Mount(Disk* disk, const std::string& directory) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::InternalError("no pipe");
  const pid_t server = fork();
  if (server == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ends[0]);
    Serve(disk, directory, ends[1]);
    _exit(0);
  }
  close(ends[1]);
  char byte;
  const bool is_mounted = server > 0 && read(ends[0], &byte, 1) == 1;
  close(ends[0]);
  if (is_mounted) return std::unique_ptr<DiskFile>(new DiskFile(server, directory));
  if (server > 0) waitpid(server, nullptr, 0);
  return absl::InternalError(absl::StrCat("FUSE does not mount ", directory));
}

DiskFile::DiskFile(pid_t server, const std::string& directory)
    : server_(server), directory_(directory), path_(absl::StrCat(directory, kName)) {}

DiskFile::~DiskFile() {
  umount2(directory_.c_str(), MNT_DETACH);
  waitpid(server_, nullptr, 0);
}

}  // namespace adamant::power
