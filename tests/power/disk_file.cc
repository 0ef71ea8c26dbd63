#include "tests/power/disk_file.h"

#define FUSE_USE_VERSION 31
#include <fuse.h>
#include <sys/mount.h>
#include <sys/stat.h>

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

}  // namespace

absl::StatusOr<std::unique_ptr<DiskFile>> DiskFile::Mount(Disk* disk, const std::string& directory) {
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
  if (made == nullptr) return absl::InternalError("fuse_new failed");
  if (fuse_mount(made, directory.c_str()) != 0) {
    fuse_destroy(made);
    return absl::InternalError("fuse_mount failed");
  }
  // Not std::make_unique: the constructor is private.
  return std::unique_ptr<DiskFile>(new DiskFile(made, directory));
}

DiskFile::DiskFile(fuse* fuse, const std::string& directory)
    : fuse_(fuse), directory_(directory), path_(absl::StrCat(directory, kName)), server_([fuse] { fuse_loop(fuse); }) {}

DiskFile::~DiskFile() {
  // By the thread beside the one that answers, which ends with it; fuse_unmount finds that it was done.
  umount2(directory_.c_str(), MNT_DETACH);
  server_.join();
  fuse_unmount(fuse_);
  fuse_destroy(fuse_);
}

}  // namespace adamant::power
