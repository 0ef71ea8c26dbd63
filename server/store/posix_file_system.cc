// The system's files.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/store/errors.h"
#include "server/store/file_system.h"

namespace adamant::store {
namespace {

// What `call` on `path` failed with.
absl::Status SystemError(absl::string_view call, absl::string_view path, int error) {
  const std::string message = absl::StrCat(call, " ", path, ": ", std::generic_category().message(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:  // of ulimit -f, too
      return DiskExhausted(message);
    case EMFILE:
    case ENFILE:
      return FilesExhausted(message);
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    default:
      return absl::InternalError(message);
  }
}

// What `call` returns once no signal has interrupted it.
template <typename Call>
auto WithoutInterruption(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// A file descriptor that is closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    // What could fail here was synced before, or nobody relies on it.
    if (number_ >= 0) close(number_);
  }

  int number() const { return number_; }

 private:
  int number_;
};

// Opens what may not be written to for reading alone if `or_reads`.
absl::StatusOr<Descriptor> OpenDescriptor(const std::string& path, int flags, bool or_reads = false) {
  int number = WithoutInterruption([&] { return open(path.c_str(), flags | O_CLOEXEC, 0666); });
  // What a file system answers that has no such thing as O_DIRECT.
  if (number < 0 && errno == EINVAL && (flags & O_DIRECT) != 0) {
    number = WithoutInterruption([&] { return open(path.c_str(), (flags & ~O_DIRECT) | O_CLOEXEC, 0666); });
  }
  if (number < 0 && or_reads && (errno == EROFS || errno == EACCES) && (flags & (O_RDWR | O_CREAT)) == O_RDWR) {
    number = WithoutInterruption([&] { return open(path.c_str(), (flags & ~O_RDWR) | O_RDONLY | O_CLOEXEC); });
  }
  if (number < 0) return SystemError("open", path, errno);
  return Descriptor(number);
}

class PosixFile : public File {
 public:
  PosixFile(std::string path, Descriptor descriptor) : path_(std::move(path)), descriptor_(std::move(descriptor)) {}

  absl::Status Write(int64_t offset, absl::Span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = WithoutInterruption(
          [&] { return pwrite(descriptor_.number(), bytes.data(), bytes.size(), static_cast<off_t>(offset)); });
      if (written < 0) return SystemError("write", path_, errno);
      bytes.remove_prefix(static_cast<size_t>(written));
      offset += written;
    }
    return absl::OkStatus();
  }

  absl::Status Read(int64_t offset, absl::Span<std::byte> bytes) const override {
    while (!bytes.empty()) {
      const ssize_t read = WithoutInterruption(
          [&] { return pread(descriptor_.number(), bytes.data(), bytes.size(), static_cast<off_t>(offset)); });
      if (read < 0) return SystemError("read", path_, errno);
      if (read == 0) {
        return absl::OutOfRangeError(absl::StrCat("read ", path_, ": it ends at byte ", offset, ", and ", bytes.size(),
                                                  " more were to be read"));
      }
      bytes.remove_prefix(static_cast<size_t>(read));
      offset += read;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Size() const override {
    struct stat about;
    if (fstat(descriptor_.number(), &about) < 0) return SystemError("stat", path_, errno);
    return about.st_size;
  }

  absl::Status Allocate(int64_t size) override {
    if (size == 0) return absl::OkStatus();
    int error;
    do {
      error = posix_fallocate(descriptor_.number(), 0, size);
    } while (error == EINTR);
    return error == 0 ? absl::OkStatus() : SystemError("allocate", path_, error);
  }

  absl::Status Sync() override {
    // Not again after EINTR: a sync that failed is not to be repeated, and fdatasync does not say that this one did
    // not.
    if (fdatasync(descriptor_.number()) < 0) return SystemError("sync", path_, errno);
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const Descriptor descriptor_;
};

// The lock is the open file's, not the process's: the process itself is kept out, too, and the lock is gone with the
// descriptor.
class PosixLock : public FileSystem::Lock {
 public:
  explicit PosixLock(Descriptor descriptor) : descriptor_(std::move(descriptor)) {}

 private:
  const Descriptor descriptor_;
};

class PosixFiles : public FileSystem {
 public:
  explicit PosixFiles(bool or_reads) : or_reads_(or_reads) {}

  absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path, Access access) override {
    return OpenFile(path, access, O_CREAT | O_TRUNC);
  }

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, Access access) override {
    return OpenFile(path, access, 0);
  }

  absl::Status MakeDirectory(const std::string& path) override {
    if (mkdir(path.c_str(), 0777) == 0) return absl::OkStatus();
    const int error = errno;
    struct stat about;
    if (error == EEXIST && stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode)) return absl::OkStatus();
    return SystemError("mkdir", path, error);
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) < 0) return SystemError("rename", absl::StrCat(from, " to ", to), errno);
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    if (unlink(path.c_str()) < 0 && errno != ENOENT) return SystemError("unlink", path, errno);
    return absl::OkStatus();
  }

  absl::Status RemoveAll(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    return error ? SystemError("remove all of", path, error.value()) : absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& path) const override {
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
      names.push_back(entry->path().filename());
    }
    if (error) return SystemError("list", path, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status SyncDirectory(const std::string& path) override {
    absl::StatusOr<Descriptor> descriptor = OpenDescriptor(path, O_RDONLY | O_DIRECTORY);
    if (!descriptor.ok()) return descriptor.status();
    if (fsync(descriptor->number()) < 0) return SystemError("sync", path, errno);
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> FreeBytes(const std::string& path) const override {
    struct statvfs about;
    if (WithoutInterruption([&] { return statvfs(path.c_str(), &about); }) < 0) {
      return SystemError("statvfs", path, errno);
    }
    return static_cast<int64_t>(about.f_bavail) * static_cast<int64_t>(about.f_frsize);
  }

  absl::StatusOr<std::unique_ptr<Lock>> TakeLock(const std::string& path) override {
    absl::StatusOr<Descriptor> descriptor = OpenDescriptor(path, O_RDWR | O_CREAT);
    if (!descriptor.ok()) return descriptor.status();
    if (WithoutInterruption([&] { return flock(descriptor->number(), LOCK_EX | LOCK_NB); }) < 0) {
      if (errno != EWOULDBLOCK) return SystemError("lock", path, errno);
      char text[32] = {};
      int process = 0;
      const bool known = pread(descriptor->number(), text, sizeof text - 1, 0) > 0 && absl::SimpleAtoi(text, &process);
      return absl::FailedPreconditionError(
          absl::StrCat(path, " is locked by ", known ? absl::StrCat("process ", process) : "another process"));
    }
    // For those who find it locked: if it does not get there, they are told less.
    const std::string process = absl::StrCat(getpid(), "\n");
    if (ftruncate(descriptor->number(), 0) == 0) {
      [[maybe_unused]] const ssize_t written = pwrite(descriptor->number(), process.data(), process.size(), 0);
    }
    return std::make_unique<PosixLock>(*std::move(descriptor));
  }

 private:
  absl::StatusOr<std::unique_ptr<File>> OpenFile(const std::string& path, Access access, int flags) const {
    absl::StatusOr<Descriptor> descriptor =
        OpenDescriptor(path, O_RDWR | flags | (access == Access::kDirect ? O_DIRECT : 0), or_reads_);
    if (!descriptor.ok()) return descriptor.status();
    return std::make_unique<PosixFile>(path, *std::move(descriptor));
  }

  const bool or_reads_;
};

}  // namespace

FileSystem* PosixFileSystem() {
  static auto* const file_system = new PosixFiles(/*or_reads=*/false);
  return file_system;
}

FileSystem* PosixFileSystemToRead() {
  static auto* const file_system = new PosixFiles(/*or_reads=*/true);
  return file_system;
}

}  // namespace adamant::store
