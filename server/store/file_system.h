// Files as the store needs them: so little that a test can stand in for the disk, and say what each call led to.
#ifndef ADAMANT_SERVER_STORE_FILE_SYSTEM_H_
#define ADAMANT_SERVER_STORE_FILE_SYSTEM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace adamant::store {

// What O_DIRECT asks of addresses, offsets and sizes: that they are multiples of this.
inline constexpr int64_t kSectorBytes = 4096;

// One open file. Thread-safe where the ranges of two calls do not overlap.
//
// Errors, here and below: RESOURCE_EXHAUSTED (DISK_EXHAUSTED) where there is no room, NOT_FOUND where what is named is
// not there, otherwise, but where a call says so, INTERNAL. Each says which call on which file failed, and how.
class File {
 public:
  virtual ~File() = default;

  // Writes all of `bytes` at `offset`. After an error any part of the range may have any contents. What is written is
  // sure to be there after a power cut only once Sync has returned OK. Where the file is open kDirect, address, offset
  // and size are multiples of kSectorBytes, here and for Read.
  virtual absl::Status Write(int64_t offset, absl::Span<const std::byte> bytes) = 0;
  // Reads `bytes.size()` bytes at `offset`. OUT_OF_RANGE where the file ends before that.
  virtual absl::Status Read(int64_t offset, absl::Span<std::byte> bytes) const = 0;
  virtual absl::StatusOr<int64_t> Size() const = 0;
  // Reserves room on disk for the bytes [0, size), and makes the file that long if it is shorter. What was not written
  // reads as zero. After an error some of the room may be taken.
  virtual absl::Status Allocate(int64_t size) = 0;
  // Has all that was written and allocated before survive a power cut. After an error it is not known what of it does,
  // and no later Sync will tell: it is not to be called again.
  virtual absl::Status Sync() = 0;
};

// Thread-safe. Paths are absolute. Changes of names are sure to survive a power cut only once SyncDirectory of the
// folder that has them has returned OK.
class FileSystem {
 public:
  enum class Access {
    kBuffered,
    kDirect,  // past the page cache; kBuffered where a file system has no such thing
  };

  virtual ~FileSystem() = default;

  // Makes an empty file. One that is there is emptied.
  virtual absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path, Access access) = 0;
  // Opens a file that is there, for reading and writing.
  virtual absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, Access access) = 0;
  // OK as well if it is there.
  virtual absl::Status MakeDirectory(const std::string& path) = 0;
  // Takes the name `to`, if something has it, from it.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // Removes a file. OK as well if it is not there.
  virtual absl::Status Remove(const std::string& path) = 0;
  // Removes a folder and all that is in it. OK as well if it is not there.
  virtual absl::Status RemoveAll(const std::string& path) = 0;
  // The names in a folder, in order, without `.` and `..`.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& path) const = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // Bytes that may be written still, as the file system of `path` says.
  virtual absl::StatusOr<int64_t> FreeBytes(const std::string& path) const = 0;

  // Keeps others from `path`, a file that it makes if need be, until what it returns is destroyed or the process ends.
  // FAILED_PRECONDITION, naming the process if that is known, where another one has it.
  class Lock {
   public:
    virtual ~Lock() = default;
  };
  virtual absl::StatusOr<std::unique_ptr<Lock>> TakeLock(const std::string& path) = 0;
};

// The system's. Lives as long as the process.
FileSystem* PosixFileSystem();
// The same, for those who only look: a file that may not be written to is opened all the same, and its Write fails.
FileSystem* PosixFileSystemToRead();

// The folder that has `path`.
std::string ParentDirectory(const std::string& path);

// The whole of a small file. Errors as Open and Read have them; OUT_OF_RANGE, too, if it is larger than `most_bytes`.
absl::StatusOr<std::string> ReadFile(FileSystem* file_system, const std::string& path, int64_t most_bytes);
// Puts `contents` into a file of this name so that after a crash or a power cut it has either those, or what it had
// before: writes, syncs, renames, syncs the folder. The file may be left beside it as `path`.new after an error.
absl::Status ReplaceFile(FileSystem* file_system, const std::string& path, absl::string_view contents);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_FILE_SYSTEM_H_
