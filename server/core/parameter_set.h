// A named parameter set: the only writer of its own state.
//
// Whatever changes the state (a step, a write, a delete) waits in one queue and takes a turn: turns run one at a time,
// in the order in which they were complete. Within its turn an operation checks what must hold, changes everything or
// nothing, and publishes. Readers take references, under the mutex, to blocks that are never written while they are
// held.
#ifndef ADAMANT_SERVER_CORE_PARAMETER_SET_H_
#define ADAMANT_SERVER_CORE_PARAMETER_SET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "adamant/v1/error.pb.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "server/core/backend.h"
#include "server/core/block.h"
#include "server/core/budget.h"
#include "server/core/clock.h"
#include "server/core/compute_pool.h"
#include "server/core/configuration.h"
#include "server/core/mutex.h"
#include "server/core/reading.h"
#include "server/core/replay.h"
#include "server/core/schema.h"
#include "server/core/snapshot.h"
#include "server/core/step_attempt.h"
#include "server/core/turn_queue.h"
#include "server/core/write_attempt.h"

namespace adamant::core {

// A step whose blocks take at most this many bytes is paid by the call that brings it, and runs on the thread that
// brings it: starting others would cost more than the work (64 Ki parameters take 32 us).
inline constexpr int64_t kSmallStepBytes = int64_t{1} << 20;

// What all sets of a server share. Everything outlives the sets.
struct Resources {
  Clock* clock;
  Budget* state;     // what sets hold for good
  Budget* inflight;  // what steps and writes under way hold
  Budget* read;      // what readers hold
  BlockPool* pool;
  ComputePool* compute;
  Backend* backend;
  absl::Duration admission_wait;  // how long a step may wait for room in `inflight`
};

// Thread-safe. Held by std::shared_ptr: by the registry, and by everything under way; its state stays charged until the
// last one lets go.
class ParameterSet : public std::enable_shared_from_this<ParameterSet> {
 public:
  // A set as `spec` says, at step 0. Errors: INVALID_ARGUMENT naming the field; FAILED_PRECONDITION (TOO_LARGE) for a
  // set that `resources` could never hold or step; RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED) when there is no room for it
  // now.
  static absl::StatusOr<std::shared_ptr<ParameterSet>> Create(const Resources& resources,
                                                              const v1::ParameterSetSpec& spec);
  ~ParameterSet();
  ParameterSet(const ParameterSet&) = delete;
  ParameterSet& operator=(const ParameterSet&) = delete;

  const std::string& name() const { return name_; }
  const Schema& schema() const { return *schema_; }
  v1::ParameterSet Describe() const;
  // OK if `spec` asks for what this set is, all defaults resolved. Errors: INVALID_ARGUMENT naming the field, if no set
  // could be as it says; ALREADY_EXISTS (SPEC_MISMATCH) with the first field that differs.
  absl::Status CheckSpec(const v1::ParameterSetSpec& spec) const;
  // Names of the groups, in order: what Schema::Tensor::group counts.
  std::vector<std::string> GroupNames() const;
  bool deleted() const;

  // A step, and a write, that are yet to be started. What becomes of them goes to `listener`.
  std::shared_ptr<StepAttempt> NewStep(const v1::StepHeader& header, std::shared_ptr<StepListener> listener);
  std::shared_ptr<WriteAttempt> NewWrite(const v1::WriteHeader& header, std::shared_ptr<WriteListener> listener);

  // Begins a read. Calls `done` once, perhaps before this returns; later only if it waits for the end of a commit that
  // is writing what it wants.
  using ReadDone = absl::AnyInvocable<void(absl::StatusOr<std::unique_ptr<Reading>>)>;
  void BeginRead(const v1::ReadTensorsRequest& request, ReadDone done);

  // Takes a turn; from it on everything is NOT_FOUND. `done` is called once, perhaps before this returns, after
  // `forget`, which is called only on success and frees the name.
  void Delete(absl::optional<uint64_t> incarnation, absl::AnyInvocable<void()> forget,
              absl::AnyInvocable<void(absl::Status)> done);

  absl::StatusOr<v1::GetStepResultResponse> FindStepResult(const v1::GetStepResultRequest& request) const;

 private:
  friend class StepAttempt;
  friend class WriteAttempt;
  friend class Reading;
  struct Commit;
  struct Finding;
  struct TakenState;

  ParameterSet(const Resources& resources, std::string name, std::shared_ptr<const Schema> schema,
               std::shared_ptr<const Configuration> configuration, v1::Initialization initialization,
               Grant state_grant);

  // A step's way (step_attempt.cc): header, admission ...
  absl::Status CheckStepHeader(const StepAttempt& attempt) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<const ReplayMemory::Entry*> FindReplay(const StepAttempt& attempt) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status StepMismatch(const v1::StepHeader& header) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::shared_ptr<StepAttempt>> FindSuperseded(const StepAttempt& by) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BeginStep(const std::shared_ptr<StepAttempt>& attempt);
  void Admit(const std::shared_ptr<StepAttempt>& attempt);
  void Admitted(const std::shared_ptr<StepAttempt>& attempt, absl::StatusOr<Grant> grant);
  // ... turn and commit (step_commit.cc).
  void StepTurn(const std::shared_ptr<StepAttempt>& attempt, TurnQueue::Turn turn);
  absl::StatusOr<absl::optional<StepReply>> Decide(StepAttempt* attempt, const Finding& finding)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<Commit> BeginCommit(const std::shared_ptr<StepAttempt>& attempt, const Finding& finding)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ComputeBlock(Commit* commit, int64_t block) const;
  // `block` is computed. Tells the listener, now and then.
  void TellComputed(Commit* commit, int64_t block);
  void Publish(Commit* commit);
  void GiveUp(Commit* commit, absl::Status status);
  std::shared_ptr<const StepParameters> ReplyParameters(std::shared_ptr<const Snapshot> snapshot,
                                                        StepAttempt* attempt) const;
  StepReply MakeReply(const v1::StepResult& result, std::shared_ptr<const StepParameters> parameters) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // A write's way (write_attempt.cc).
  void BeginWrite(const std::shared_ptr<WriteAttempt>& attempt);
  absl::Status CheckWrite(WriteAttempt* attempt, std::vector<std::shared_ptr<WriteAttempt>>* older)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WaitToWrite(WriteAttempt* attempt, std::vector<std::shared_ptr<WriteAttempt>>* older)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DirectWriteTurn(const std::shared_ptr<WriteAttempt>& attempt);
  TakenState TakeState(bool with_moments) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PutBack(TakenState taken) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReturnBlocks(WriteAttempt* attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeStaging(const std::shared_ptr<WriteAttempt>& attempt, absl::StatusOr<Grant> grant);
  // Ends a write to which nothing is being added, and lets the next one begin.
  void FailWrite(WriteAttempt* attempt, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  void WriteCommitTurn(const std::shared_ptr<WriteAttempt>& attempt);

  // A read's way (reading.cc).
  absl::Status FillReading(const v1::ReadTensorsRequest& request, std::vector<v1::Slot> slots, Reading* reading) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // `blocks` with every one that somebody else holds replaced by a fresh one. Whoever holds them has paid for that.
  // Error: RESOURCE_EXHAUSTED if the system has no memory.
  absl::StatusOr<BlockList> ReplaceHeld(const BlockList& blocks) const;

  // An attempt's life (attempt_life.h). It waits, arrives, is complete, and is over; or is over before.
  //
  // Notes what it waits for, so that its end ends the wait. If it is over already, so is the wait.
  template <typename Attempt>
  void SetWait(Attempt* attempt, Budget::WaitId wait) ABSL_LOCKS_EXCLUDED(mutex_);
  // It may arrive, and its listener is told so, unless it is over.
  template <typename Attempt>
  void SetAdmitted(Attempt* attempt) ABSL_LOCKS_EXCLUDED(mutex_);
  // It has arrived whole. Returns false if it is over: its listener has heard why.
  template <typename Attempt>
  bool SetComplete(Attempt* attempt) ABSL_LOCKS_EXCLUDED(mutex_);
  // Its listener wants to hear no more. It is over unless it is complete.
  template <typename Attempt>
  void Withdraw(Attempt* attempt) ABSL_LOCKS_EXCLUDED(mutex_);
  // It is over, whoever ends it, and its listener is told unless it was before. Those who end the attempts of others
  // leave what is complete to its turn.
  enum class Ending { kInAnyCase, kUnlessComplete };
  template <typename Attempt, typename Result>
  void End(Attempt* attempt, Result result, Ending ending = Ending::kInAnyCase) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends what has not arrived whole and comes too late: everything of a set that was deleted, or else the steps of an
  // earlier incarnation.
  void EndLate(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether the set answers steps: NOT_FOUND, DATA_LOSS (POISONED), FAILED_PRECONDITION (UNINITIALIZED).
  absl::Status CheckReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckExists() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What the client demands at `field`: this incarnation, or schema, and no other.
  absl::Status CheckIncarnation(uint64_t demanded, absl::string_view field) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckFingerprint(uint64_t demanded, absl::string_view field) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // An error that says where the set stands, and which field of the request it is about, if one.
  absl::Status MakeError(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message,
                         absl::string_view field = "") const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What becomes of what began before the set was written: ABORTED (INCARNATION_MISMATCH).
  absl::Status Rewritten() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // In [1, 2^53), so that a client whose numbers are doubles keeps it exactly.
  uint64_t DrawIncarnation() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t ArrayBytes() const { return schema_->flat_size() * static_cast<int64_t>(sizeof(float)); }
  // What a step, or a staged write, holds until it commits.
  int64_t StagingBytes() const { return ArrayBytes() + Coverage::MemoryBytes(schema_->tensors().size()); }
  bool IsSmall() const { return ArrayBytes() <= kSmallStepBytes; }

  const Resources resources_;
  const std::string name_;
  const std::shared_ptr<const Schema> schema_;
  const absl::Time create_time_;
  const v1::Initialization initialization_;
  const Grant state_grant_;
  // A block's elements by group, for each block.
  const std::vector<std::vector<BlockUpdate::Range>> ranges_;

  const std::shared_ptr<TurnQueue> turns_;

  mutable Mutex mutex_;

  std::shared_ptr<const Configuration> configuration_ ABSL_GUARDED_BY(mutex_);
  v1::ParameterSetState state_ ABSL_GUARDED_BY(mutex_);
  bool deleted_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t incarnation_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t step_ ABSL_GUARDED_BY(mutex_) = 0;
  // The parameters; null in a set that is UNINITIALIZED. Its blocks are then in `unpublished_`, or a direct write has
  // them.
  std::shared_ptr<const Snapshot> snapshot_ ABSL_GUARDED_BY(mutex_);
  BlockList unpublished_ ABSL_GUARDED_BY(mutex_);
  // The moments. Empty while a commit or a direct write has taken them: they are not to be had then.
  BlockList exp_avg_ ABSL_GUARDED_BY(mutex_);
  BlockList exp_avg_sq_ ABSL_GUARDED_BY(mutex_);
  // Whether a commit has the moments.
  bool committing_ ABSL_GUARDED_BY(mutex_) = false;
  // Whether the moments mean something: a full write that broke, or a commit that failed, leaves them lost.
  bool moments_valid_ ABSL_GUARDED_BY(mutex_) = true;

  ReplayMemory replay_ ABSL_GUARDED_BY(mutex_);
  // The request that made the incarnation; empty if none has a name.
  std::string write_request_id_ ABSL_GUARDED_BY(mutex_);
  uint64_t write_header_hash_ ABSL_GUARDED_BY(mutex_) = 0;

  // Steps that are admitted or wait for it, whole or not, until they are over. They take themselves out.
  absl::flat_hash_set<StepAttempt*> attempts_ ABSL_GUARDED_BY(mutex_);
  // Writes, repeated ones among them, until they are over. They take themselves out, here and below.
  absl::flat_hash_set<WriteAttempt*> writes_ ABSL_GUARDED_BY(mutex_);
  // The write under way, and the one that waits for its end; or null.
  WriteAttempt* write_ ABSL_GUARDED_BY(mutex_) = nullptr;
  WriteAttempt* next_write_ ABSL_GUARDED_BY(mutex_) = nullptr;
  // Reads that wait for the commit to end.
  std::vector<absl::AnyInvocable<void()>> waiting_reads_ ABSL_GUARDED_BY(mutex_);

  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_PARAMETER_SET_H_
