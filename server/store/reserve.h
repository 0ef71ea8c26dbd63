// Room on the disk that is kept for the catalog, so that what has been begun can be put down when there is no other.
//
// It is a file that nothing is in. Where a commit finds no room the file is removed, and the commit tried again; from
// then on new work is refused, until there is room for the file again. Another process may come first and take what the
// file had: then the commit fails, as it does without a reserve, and changes nothing.
#ifndef ADAMANT_SERVER_STORE_RESERVE_H_
#define ADAMANT_SERVER_STORE_RESERVE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"
#include "server/store/file_system.h"

namespace adamant::store {

// Thread-safe.
class Reserve {
 public:
  // Takes `bytes` for a file of this path, if there is room for it. `pool` tries to take it again; it runs nothing any
  // more when this is destroyed.
  Reserve(FileSystem* file_system, std::string path, int64_t bytes, core::ComputePool* pool);
  Reserve(const Reserve&) = delete;
  Reserve& operator=(const Reserve&) = delete;

  // Gives the room away. False if that has happened already.
  bool Release();

  // Whether there may be new work: OK, or DISK_EXHAUSTED where the room is given away. Then it has `pool` try to take
  // it again, for the next call to find. Does not wait for the disk.
  absl::Status Check();

 private:
  enum class State {
    kKept,
    kGivenAway,
    kBeingTaken,
  };

  absl::Status Take();

  FileSystem* const file_system_;
  const std::string path_;
  const int64_t bytes_;
  core::ComputePool* const pool_;

  core::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_RESERVE_H_
