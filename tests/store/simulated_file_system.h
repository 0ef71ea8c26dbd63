// A disk in memory whose calls can be made to fail, and whose power can be cut.
#ifndef ADAMANT_TESTS_STORE_SIMULATED_FILE_SYSTEM_H_
#define ADAMANT_TESTS_STORE_SIMULATED_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/core/base/mutex.h"
#include "server/store/file_system.h"

namespace adamant::store {

class SimulatedFile;

// It keeps to what FileSystem promises, and to nothing else. Writes and changes of names are seen at once, but last
// only once a sync of their file or folder has returned OK: a file's sync says nothing of its name, nor does a folder's
// of its own name. What was written before a sync of the file that failed
// does not last by a later one, whatever that returns, as on Linux; what is written anew does. Thread-safe.
class SimulatedFileSystem : public FileSystem {
 public:
  enum class Fault {
    kIoError,
    kNoSpace,   // of calls that need room; others of this number do not fail
    kPowerOff,  // and of all later ones: nothing is done any more
  };

  SimulatedFileSystem();
  ~SimulatedFileSystem() override;

  // Fallible calls, of files and of this, so far.
  int64_t calls() const;
  // Has the call of this number fail, where the next one has number calls() + 1. A write that fails leaves some of its
  // sectors written, one that has no space the first of them; a sync that fails makes some of them last.
  void FailCall(int64_t number, Fault fault);
  // The room for files, in bytes; at first there is more than any test needs.
  void SetCapacity(int64_t bytes);

  // The disk as it may be after its power was cut now: with all that lasts, and some, by `seed`, of what was written
  // and not synced, down to sectors of 512 bytes: each sector, size and name has what lasts or any later value. This
  // one stays as it is.
  std::unique_ptr<SimulatedFileSystem> PowerCut(uint64_t seed) const;

  // The size of a file, which is not counted as a call; -1 if it is not there.
  int64_t SizeOf(const std::string& path) const;
  // Flips a bit of a file, on the disk and in its cache.
  void FlipBit(const std::string& path, int64_t bit);

  absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path, Access access) override;
  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, Access access) override;
  absl::Status MakeDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status RemoveAll(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) const override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) const override;
  absl::StatusOr<std::unique_ptr<Lock>> TakeLock(const std::string& path) override;

  // Of a file that this has opened: makes it that long, or that short.
  static absl::Status Resize(File* file, int64_t size);

 private:
  friend class SimulatedFile;
  struct Inode;
  struct Disk;
  class HeldLock;

  const std::shared_ptr<Disk> disk_;
};

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_SIMULATED_FILE_SYSTEM_H_
