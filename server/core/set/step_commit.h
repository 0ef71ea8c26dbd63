// One turn of a set that applies a step: from a complete gradient to the replies.
#ifndef ADAMANT_SERVER_CORE_SET_STEP_COMMIT_H_
#define ADAMANT_SERVER_CORE_SET_STEP_COMMIT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "adamant/v1/step.pb.h"
#include "server/core/backend/slot_arrays.h"
#include "server/core/base/mutex.h"
#include "server/core/journal.h"
#include "server/core/set/requests.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/staging.h"
#include "server/core/set/step_attempt.h"
#include "server/core/set/turn_queue.h"

namespace adamant::core {

// Phases, some of which are there in some steps only: the set's journal, where it keeps steps, has room made before the
// others, and the step put down before Apply; and where rows are to be changed in blocks that somebody holds, others
// are borrowed in their place. Each is followed by the next one on the thread on which it ended: the last of them,
// Publish, on one of the device's where that computes on threads of its own. What Publish needs is made ready by
// Decide, so that nothing fails, and nothing is allocated but by listeners that hear of the progress, between the first
// byte that changes and then.
//
// Not thread-safe, but for Computed: one phase is under way at a time.
class StepCommit : public std::enable_shared_from_this<StepCommit> {
 public:
  // What is to become a step: one complete attempt, or those that a round has counted, by rank.
  struct Input {
    std::vector<std::shared_ptr<StepAttempt>> contributors;
    // Theirs together. There is none where the request was remembered by the time that the step was admitted, and where
    // a round comes to nothing.
    PaidGradient gradient;
    // Of a round, which is closed: its number, and what its sum is to be divided by.
    std::optional<int64_t> round;
    double divisor = 1;
    // Of a round: how many contributions the gradient is made of, or the one for which there is none, since it is not
    // finite.
    int contributions = 0;
    std::optional<Round::NonFinite> non_finite;
  };

  // Applies the gradient, and answers each of the contributors; the turn is over then.
  static void Run(std::shared_ptr<SetRep> set, Input input, TurnQueue::Turn turn);

 private:
  // What becomes of a contributor: an error, an answer without a commit, or a part in the commit.
  struct Part {};
  using Decision = std::variant<absl::Status, v1::StepResult, Part>;
  // Who takes part in the commit, and what it will be told.
  struct Contributor {
    std::shared_ptr<StepAttempt> attempt;
    StepReply reply;
  };
  // What there is to know of a gradient before its step is decided.
  struct Finding {
    kernels::GradientStats stats;
    double grad_norm = 0;  // without grad_scale, and before clipping
    kernels::GradientTransform transform;
    std::optional<Staging::Place> non_finite;  // the first element that is not, or would not be once it is scaled
    std::optional<int> non_finite_rank;        // whose contribution to a round has it
  };

  StepCommit(std::shared_ptr<SetRep> set, Input input, TurnQueue::Turn turn);

  // Has room for the step in the journal, where that keeps steps.
  void TakeRoom();
  // Has room for the digest, if the step asks for one.
  void TakeDigestRoom();
  // All that follows.
  void Go();
  // Finds out what there is to know of the gradient.
  void Measure();
  // Whether it is a round that has too few contributions.
  bool failed() const { return failed_; }
  // Says what becomes of the step, and answers those who have no part in it.
  void Decide();
  Decision DecideOn(const StepAttempt& attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // What becomes of a step with such an element where the set rejects it.
  absl::Status NonFinite(const Staging::Place& place) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // Whether the step fits the configuration still: ABORTED (CONFIG_CHANGED).
  absl::Status CheckStillConfigured(const StepAttempt& attempt) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // An answer that changes nothing.
  v1::StepResult Unapplied(const StepAttempt& attempt, v1::StepOutcome outcome) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // What is sure to be there after a crash of a set that is at `step`.
  void SetDurableStep(int64_t step, v1::StepResult* result) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  void Plan(const v1::StepHeader& header) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // What Plan does for the rows that the step brings: takes the parameters out of the set, which nobody can read from
  // here to Publish, and returns them with `brought` in place of those of whole tensors. They are nobody else's but
  // where they are to be copied.
  BlockList PlanRows(const std::vector<v1::ParameterGroup>& groups, const v1::StepResult& result, BlockList brought)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // Has the blocks that are to be copied; goes on with Record then. If there is no memory for them the set stays as it
  // is.
  void BorrowCopies();
  // Has the step put down, where the journal keeps steps; applies the plan then. If it is not the set stays as it is.
  void Record();
  void Withdraw(const absl::Status& status);
  StepReply MakeReply(StepAttempt* attempt, v1::StepResult result, const std::shared_ptr<const Snapshot>& snapshot,
                      std::shared_ptr<const RowWork> rows = nullptr) const;
  // Has the arrays compute.
  void Apply();
  // Digests the new state, for the results; publishes it then.
  void Digest();
  void DigestSlots(CopyState copy);
  // Tells the contributors, now and then, how far that is.
  void Computed(int64_t block);
  std::optional<Staging>& gradient() { return input_.gradient.gradient; }
  const std::optional<Staging>& gradient() const { return input_.gradient.gradient; }
  // What those who watch are told of a step that was not applied, if anything.
  std::optional<v1::WatchParameterSetResponse> UnappliedEvent() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // What those who watch are told of a step that was applied. Before its contributors are answered.
  v1::WatchParameterSetResponse CommittedEvent() const;
  // Makes the new state the set's, and answers the contributors.
  void Publish(const absl::Status& applied);

  const std::shared_ptr<SetRep> set_;
  TurnQueue::Turn turn_;

  // Of the phase that is under way.
  Input input_;
  const bool failed_;
  std::unique_ptr<SetJournal::Room> room_;
  DigestRoom digest_room_;
  absl::Status no_room_;  // why there is none, where there has to be
  Finding finding_;
  bool skipped_ = false;  // because it is not finite
  std::vector<Contributor> contributors_;
  StepPlan plan_;
  BlockList after_;  // what will be `plan_.after`, as long as copies are missing in it
  Requests::Remembrance remembrance_;
  StepRecord record_;
  UpdateCounts update_counts_;  // after the step
  bool digests_ = false;
  LastDigest digest_;          // if it does: the one before, and then the step's
  v1::SetStatistics metrics_;  // the step's, and nothing else

  Mutex progress_mutex_;
  std::vector<bool> computed_ ABSL_GUARDED_BY(progress_mutex_);  // by block
  int64_t first_missing_ ABSL_GUARDED_BY(progress_mutex_) = 0;   // the blocks before it are computed
  int64_t last_told_ ABSL_GUARDED_BY(progress_mutex_) = 0;       // as many blocks the listeners know of
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_STEP_COMMIT_H_
