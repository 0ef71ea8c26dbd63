// Which write a set takes: one write at a time, and one that waits.
#ifndef ADAMANT_SERVER_CORE_SET_WRITE_LANE_H_
#define ADAMANT_SERVER_CORE_SET_WRITE_LANE_H_

#include <memory>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/set/lifecycle.h"

namespace adamant::core {

class WriteAttempt;

// Thread-compatible: guarded by the set's mutex.
class WriteLane {
 public:
  using Attempts = std::vector<std::shared_ptr<WriteAttempt>>;

  // `lifecycle` is the set's, and guarded by the same mutex.
  explicit WriteLane(const Lifecycle* lifecycle) : lifecycle_(lifecycle) {}

  // Whether another write than `attempt` is under way.
  bool IsTakenFrom(const WriteAttempt* attempt) const { return current_ != nullptr && current_ != attempt; }
  // `attempt` is the write under way until it leaves. Requires: !IsTakenFrom(attempt).
  void Take(WriteAttempt* attempt) { current_ = attempt; }
  // Makes `attempt` the one that writes next, if those before it are over already or of the same request, and returns
  // those, which it supersedes. Errors: ABORTED (WRITE_IN_PROGRESS), ALREADY_EXISTS (REQUEST_ID_REUSED).
  absl::StatusOr<Attempts> WaitBehind(WriteAttempt* attempt);
  // `attempt` neither writes nor waits any more. Returns true if it was the write under way, and then, in `next`, the
  // one that waited, if any, which is under way from here on: so nobody comes between the two.
  bool Leave(WriteAttempt* attempt, std::shared_ptr<WriteAttempt>* next);

  // Those that have begun, repeated ones among them, until they are gone.
  void Add(WriteAttempt* attempt) { attempts_.insert(attempt); }
  void Remove(WriteAttempt* attempt) { attempts_.erase(attempt); }
  Attempts All() const;

 private:
  const Lifecycle* const lifecycle_;

  WriteAttempt* current_ = nullptr;
  WriteAttempt* next_ = nullptr;
  absl::flat_hash_set<WriteAttempt*> attempts_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_WRITE_LANE_H_
