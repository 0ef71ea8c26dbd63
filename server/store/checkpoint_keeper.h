// The checkpoints that one set has: folders STEP-INCARNATION in a folder of theirs, of which the newest two are kept.
//
// Which of them the set starts from, its base, is the catalog's to say. One that was written and did not get into the
// catalog any more is a checkpoint like others: a state that the set was in.
#ifndef ADAMANT_SERVER_STORE_CHECKPOINT_KEEPER_H_
#define ADAMANT_SERVER_STORE_CHECKPOINT_KEEPER_H_

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/base/mutex.h"
#include "server/store/file_system.h"

namespace adamant::store {

inline constexpr int kKeptCheckpoints = 2;

struct KeptCheckpoint {
  std::string name;  // of its folder
  uint64_t incarnation = 0;
  int64_t step = 0;
  absl::Time create_time;
  int64_t bytes = 0;
};

// Thread-safe.
class CheckpointKeeper {
 public:
  // Looks at what is in `directory`, which is made if it is not there and whose parent is, and removes what is left of
  // checkpoints that were not finished, or half removed. Whatever else is there stays. Errors: as FileSystem has them.
  static absl::StatusOr<std::unique_ptr<CheckpointKeeper>> Open(FileSystem* file_system, const std::string& directory);

  // The newest first: those that there were at Open by their time, and what was added since, which is newer.
  std::vector<KeptCheckpoint> List() const;

  // The listed checkpoint of this state, the newest where there are several. As long as somebody has what this returns,
  // the checkpoint is not removed. Null if none is listed.
  std::shared_ptr<const KeptCheckpoint> Hold(uint64_t incarnation, int64_t step) const;

  // Those found at Open that are damaged, or of a later format, and why. They are neither listed nor removed: somebody
  // may want to look.
  const std::vector<std::pair<std::string, absl::Status>>& unusable() const { return unusable_; }

  // The folder of the checkpoint of this name.
  std::string PathOf(absl::string_view name) const;

  // The name for a checkpoint of this state that is about to be written, at PathOf it: STEP-INCARNATION, with a number
  // behind it where that was taken before.
  std::string NewName(int64_t step, uint64_t incarnation);
  // Adds what was written there to the list.
  void Add(KeptCheckpoint checkpoint);

  // Removes all listed but the newest kKeptCheckpoints, `base`, a name or empty, and those that somebody holds. What is
  // removed is nothing that looks like a checkpoint at any time, power cuts included. After an error some may be left.
  absl::Status RemoveOld(absl::string_view base);

 private:
  CheckpointKeeper(FileSystem* file_system, std::string directory);

  FileSystem* const file_system_;
  const std::string directory_;
  std::vector<std::pair<std::string, absl::Status>> unusable_;  // constant after Open

  mutable core::Mutex mutex_;
  // The newest first. Taken from here by holders under the mutex alone.
  std::vector<std::shared_ptr<const KeptCheckpoint>> checkpoints_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> names_ ABSL_GUARDED_BY(mutex_);  // that are taken, by what is there or was to be
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_CHECKPOINT_KEEPER_H_
