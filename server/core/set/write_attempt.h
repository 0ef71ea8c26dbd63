// One delivery of one write, from its header to its reply.
#ifndef ADAMANT_SERVER_CORE_SET_WRITE_ATTEMPT_H_
#define ADAMANT_SERVER_CORE_SET_WRITE_ATTEMPT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adamant/v1/service.pb.h"
#include "kernels/update.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/lender.h"
#include "server/core/memory/snapshot.h"
#include "server/core/set/attempt.h"
#include "server/core/set/listener.h"
#include "server/core/set/staging.h"
#include "server/core/set/turn_queue.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

struct SetRep;

using WriteListener = Listener<v1::WriteTensorsResponse>;

// What kind of write an attempt is. It is undecided while it waits for the one before it.
enum class WriteKind { kUndecided, kStaged, kDirect, kReplay };

// Made by ParameterSet::NewWrite. There are two kinds, beside a replay, which finds that it was applied. A staged write
// (parameters of a set that has some, and every write of a set whose slots are not on the host) collects beside the
// state, like a step, and changes nothing before its turn. A direct write (the first, and every full one) has taken the
// set's own blocks: the set is UNINITIALIZED until it commits, and stays so if it breaks.
//
// There is one write at a time. The next may begin when it has failed or committed, or when the last reference to it is
// gone. Others are refused meanwhile, but the same request again is not: it ends the one under way (SUPERSEDED) unless
// that is complete, waits until it is gone, and then begins, or finds that it was applied.
//
// Calls as for StepAttempt, but that the write which it waited for starts it once more, on a compute thread.
class WriteAttempt final : public Attempt<WriteListener>, public std::enable_shared_from_this<WriteAttempt> {
 public:
  using Header = v1::WriteHeader;

  WriteAttempt(std::shared_ptr<SetRep> set, const v1::WriteHeader& header, std::shared_ptr<WriteListener> listener);
  ~WriteAttempt();

  // Delivers the header; answers through the listener.
  void Start();

  // Takes one chunk. Errors as Staging::Add, and VALUE_OUT_OF_RANGE with tensor and offset for a value that may not be
  // written, INVALID_FIELD for a slot that this write does not bring; fields are relative to the chunk. After an error
  // the attempt is over.
  absl::Status Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy);
  // The same for a chunk that says which rows its elements are: MALFORMED_CHUNK, since a write brings whole tensors.
  absl::Status AddRows(v1::Slot slot, int32_t tensor, int64_t offset, int64_t row_count, RowSource rows, int64_t count,
                       ChunkSource copy);

  // OK if everything has come that Complete asks for; else INCOMPLETE, and the attempt goes on. For the thread that
  // delivers.
  absl::Status CheckComplete() const;

  // Says that the last message has come. On OK the write takes its turn and OnOutcome follows, perhaps before this
  // returns. Error: INCOMPLETE; the attempt is over.
  absl::Status Complete();

  // Before Start: the write is made again, and makes this incarnation again.
  void MakeAgain(uint64_t incarnation) { incarnation_ = incarnation; }
  // Before Start: what comes is what a set had, which may be what no client can write (see
  // WriteTensorsRequest.chunks).
  void TakeAnyValues() { takes_any_values_ = true; }

  // What turns chunks of 16 bits into floats.
  const kernels::KernelTable& host_kernels() const;

  const v1::WriteHeader& header() const { return header_; }

 private:
  struct TakenState;
  // What has come of one slot.
  struct Arrival {
    v1::Slot slot;
    Staging elements;
  };

  // A staged write's beginning: borrows what it collects in, an array at a time, and pays for all with the first one.
  void AwaitLoan(std::vector<BlockList> lent);
  void Lent(std::vector<BlockList> lent, absl::StatusOr<Lender::Loan> loan);
  // A direct write's: takes the set's blocks, with others in place of those that readers hold; or puts them back.
  void TakeState(TurnQueue::Turn turn);
  void PutBack(TakenState taken);
  void AwaitContentsOfState(BlockList parameters);
  // `blocks` has a list for the parameters, and one for each slot if the write is full.
  void AwaitContents(std::vector<BlockList> blocks);
  // The turn of a complete write.
  void Commit(TurnQueue::Turn turn);
  // The parameters that a staged write leaves: what it brought, and the rest as it is.
  BlockList Merge(BlockList brought) const;
  // Has the write put down, where the set's journal does that before writes are answered. `blocks` has a list for each
  // slot of the optimizers, if the write is full.
  void Record(std::shared_ptr<const Snapshot> parameters, std::vector<BlockList> blocks, TurnQueue::Turn turn);
  // What becomes of one that was not put down.
  void GiveBack(std::shared_ptr<const Snapshot> parameters, std::vector<BlockList> blocks, const absl::Status& status);
  // Makes what it brought the set's.
  void Load(std::shared_ptr<const Snapshot> parameters, std::vector<BlockList> blocks, TurnQueue::Turn turn);
  void Publish(const absl::Status& loaded, std::shared_ptr<const Snapshot> parameters);

  // Ends the write because of what it brought, and returns `status`.
  absl::Status Refuse(absl::Status status);
  // Ends a write to which nothing is being added, and lets the next one begin.
  void Fail(absl::Status status);
  // Gives up the lane, if this is the write that has it, and has the write that waits for it begin. A direct write's
  // blocks go back to the set, which stays as it is, UNINITIALIZED. Requires: nothing is being added.
  void LetNextBegin();

  bool full() const { return header_.mode() == v1::WRITE_MODE_FULL; }

  const std::shared_ptr<SetRep> set_;
  const v1::WriteHeader header_;

  // Constant from Start on.
  bool takes_any_values_ = false;
  uint64_t incarnation_ = 0;  // that it makes; drawn in the turn, if it was not given

  // Of the thread that delivers, and after Complete of the turn.
  Grant grant_;  // before what it pays for, which comes back first
  std::vector<Arrival> arrivals_;

  // Decided, under the set's mutex, when the write begins; constant from OnAdmitted on.
  WriteKind kind_ = WriteKind::kUndecided;
  std::shared_ptr<const TensorSelection> selection_;  // that it brings
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_WRITE_ATTEMPT_H_
