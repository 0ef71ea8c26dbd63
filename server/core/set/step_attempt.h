// One delivery of one step, from its header to the moment in which it is complete.
#ifndef ADAMANT_SERVER_CORE_SET_STEP_ATTEMPT_H_
#define ADAMANT_SERVER_CORE_SET_STEP_ATTEMPT_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adamant/v1/step.pb.h"
#include "kernels/update.h"
#include "server/core/backend/row_work.h"
#include "server/core/journal.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/lender.h"
#include "server/core/memory/snapshot.h"
#include "server/core/set/attempt.h"
#include "server/core/set/listener.h"
#include "server/core/set/round.h"
#include "server/core/set/staging.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

struct SetRep;
class StepAttempt;

// Parameters that a step answers with, and what they live in. Whoever holds memory of the snapshot holds these, too:
// they pay for it.
struct StepParameters {
  // The tensors that the reply has whole: those that the step brought so. Their elements are in `snapshot`.
  std::shared_ptr<const TensorSelection> selection;
  // In this order, so that blocks come back before what pays for them.
  std::shared_ptr<const SetRep> set;  // whose state stays charged while its blocks are in use
  Grant grant;
  std::shared_ptr<const RoundMemory::Share> share;  // of a round, instead
  // Has only the blocks that `selection` needs. Null where the step asked for no parameters.
  std::shared_ptr<const Snapshot> snapshot;
  // Rows of others, with their parameters: those that the step brought. Null where it brought none or asked for no
  // parameters, and in the answer to a request that is remembered.
  std::shared_ptr<const RowWork> rows;
  // What narrows it where it travels in 16 bits.
  const kernels::KernelTable* host_kernels;
};

// What became of a step.
struct StepReply {
  v1::StepResult result;
  std::shared_ptr<const StepParameters> parameters;
};

class StepListener : public Listener<StepReply> {
 public:
  // Says that the first `blocks` blocks of what `attempt` will answer with are computed, and do not change any more.
  // Whether the step is applied is not known before OnOutcome, which then brings the same parameters. Called from any
  // thread, perhaps from several at the same time and out of order, for some of the blocks or none, and by chance after
  // OnOutcome, when it is to be ignored.
  virtual void OnComputed(const StepAttempt* /*attempt*/, const std::shared_ptr<const StepParameters>& /*parameters*/,
                          int64_t /*blocks*/) {}
};

// Made by ParameterSet::NewStep. Start comes first and once; Add and Complete after OnAdmitted, by one thread at a
// time, until Complete or an error has ended the attempt; the rest at any time, from any thread. Destroying the last
// reference cancels, and takes the set's mutex: whoever holds that hands references on, and drops none. Cancel
// withdraws a step that is not complete, whose memory returns when the last reference goes; after Complete the step
// commits all the same.
class StepAttempt final : public Attempt<StepListener>, public std::enable_shared_from_this<StepAttempt> {
 public:
  using Header = v1::StepHeader;

  StepAttempt(std::shared_ptr<SetRep> set, const v1::StepHeader& header, std::shared_ptr<StepListener> listener);
  ~StepAttempt();

  // Delivers the header. Answers through the listener, perhaps before this returns: OnAdmitted when the gradient may
  // come, or OnOutcome with what is wrong with the header, or with RESOURCE_EXHAUSTED when there was no room in time.
  void Start();

  // Takes one chunk of the gradient; `copy` is called, if at all, before it returns. After an error (see Staging::Add;
  // fields are relative to the chunk) the attempt is over, and the set as it was. An attempt that others have ended
  // takes chunks all the same, to no effect.
  absl::Status Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy);
  // The same for a chunk that says which rows its elements are (see Staging::AddRows).
  absl::Status AddRows(v1::Slot slot, int32_t tensor, int64_t offset, int64_t row_count, RowSource rows, int64_t count,
                       ChunkSource copy);

  // OK if everything has come that Complete asks for; else INCOMPLETE, and the attempt goes on. For the thread that
  // delivers.
  absl::Status CheckComplete() const;

  // Says that the last message has come. On OK this is the point of no return: the step takes its turn, whatever
  // becomes of the client, and OnOutcome follows, perhaps before this returns. If the attempt is over already, because
  // others have ended it or it was cancelled, this returns OK as well, and nothing follows. Error: INCOMPLETE; the
  // attempt is over.
  absl::Status Complete();

  // What turns chunks of 16 bits into floats.
  const kernels::KernelTable& host_kernels() const;

  const v1::StepHeader& header() const { return header_; }
  uint64_t header_hash() const { return header_hash_; }
  // The set's when the step began; a write, which draws another one, ends the attempt. Guarded by the set's mutex.
  uint64_t incarnation() const { return incarnation_; }
  // The tensors that the step brings whole, as the set was configured when it began, at `config_revision`. Constant
  // once it has begun.
  const std::shared_ptr<const TensorSelection>& selection() const { return selection_; }
  int64_t config_revision() const { return config_revision_; }

  // ---- For the round that the attempt waits in.
  // Its contribution may arrive: `share` pays for that.
  void Arrive(std::shared_ptr<const RoundMemory::Share> share);
  // The round is over. The contribution may arrive, and comes to nothing.
  void ArriveToNoEffect();

  // ---- For a step that is applied again.
  // In place of Start and all that follows: it stands for an attempt that became part of that step, in which the set
  // was as this says.
  void StandIn(std::shared_ptr<const TensorSelection> selection, uint64_t incarnation, int64_t config_revision) {
    selection_ = std::move(selection);
    incarnation_ = incarnation;
    config_revision_ = config_revision;
  }

  // ---- For the turn, once the attempt is complete.
  // Whether there is a gradient: not if the request was remembered by the time that the step was admitted, or its round
  // was over, or has it.
  bool has_gradient() const { return gradient_.has_value(); }
  // The gradient, if there is one; in a round with what pays for it.
  PaidGradient TakeGradient() { return {std::move(share_), std::move(gradient_)}; }
  // Where it has been put down in part; null where it has not.
  std::unique_ptr<SetJournal::Room> TakeRoom() { return std::move(room_); }
  // What pays for it otherwise, and for the reply where there is none.
  Grant TakeGrant() { return std::move(grant_); }

 private:
  // Borrows an array, or, `to_no_effect`, only room for the reply.
  void Borrow(bool to_no_effect);
  void Lent(absl::StatusOr<Lender::Loan> loan, bool to_no_effect);
  // The same, when what rows are staged in has been lent, too.
  void LentAll(Lender::Loan loan, BlockList rows, bool to_no_effect);
  // Withdraws the step if what has been added was in error, which is returned.
  absl::Status Added(absl::Status status);

  const std::shared_ptr<SetRep> set_;
  const v1::StepHeader header_;
  const uint64_t header_hash_;

  // Of the thread that delivers, and after Complete of the turn.
  Grant grant_;  // before what it pays for, which comes back first
  std::shared_ptr<const RoundMemory::Share> share_;
  std::optional<Staging> gradient_;
  std::unique_ptr<SetJournal::Room> room_;

  uint64_t incarnation_ = 0;
  bool in_round_ = false;  // it was entered there
  std::shared_ptr<const TensorSelection> selection_;
  int64_t config_revision_ = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_STEP_ATTEMPT_H_
