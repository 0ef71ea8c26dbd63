// What makes sets outlive the process, as the domain sees it: where a set's changes are put down before they are made,
// so that they can be made again. The domain knows neither files nor how that is done.
#ifndef ADAMANT_SERVER_CORE_JOURNAL_H_
#define ADAMANT_SERVER_CORE_JOURNAL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "server/core/backend/row_work.h"
#include "server/core/base/then.h"
#include "server/core/memory/block.h"

namespace adamant::core {

class Reading;
class Schema;

// Elements that a change brings: blocks of the set's flat space, of those that `selected` names, and rows.
struct BroughtElements {
  const BlockList* blocks;             // of the whole set
  absl::Span<const int64_t> selected;  // ascending
  const RowWork* rows = nullptr;       // null: there are none
};

// A step that is to be applied: with its gradient, as it was staged, all that it takes to come to the same bits again.
struct StepRecord {
  std::vector<v1::StepHeader> headers;  // of the attempts that became the step, by rank; at least one
  std::optional<double> divisor;        // of a round: what its sum is divided by
  v1::StepResult result;                // as it will be remembered, but for its digest
  std::string previous_digest;          // of the state before it; empty if there is none
};

// A write of parameters that is to be published.
struct WriteRecord {
  v1::WriteHeader header;
  uint64_t incarnation;  // that it makes
  int64_t step;          // that the set is at
};

// An addition of tensors that is to be published.
struct GrowthRecord {
  v1::AddTensorsRequest request;
  uint64_t incarnation;  // that it makes
};

// A state that nothing before it is needed for.
struct BaseRecord {
  uint64_t incarnation;
  int64_t step;
  // The write that made the incarnation; without an id if it had none, or if no write has made it.
  v1::WriteHeader header;
};

// A step that is remembered: what answers the requests that it was made of.
struct RememberedStep {
  struct Key {
    std::string request_id;
    uint64_t header_hash;
  };
  std::vector<Key> keys;
  v1::StepResult result;
};

// A checkpoint that is read. Not thread-safe, and not for a thread that others wait for.
class StoredState {
 public:
  // Takes elements [offset, offset + size) of a tensor.
  using Take = absl::FunctionRef<absl::Status(int tensor, int64_t offset, absl::Span<const float> elements)>;

  virtual ~StoredState() = default;

  virtual int64_t step() const = 0;
  // Of the tensors that the set had then.
  virtual uint64_t schema_fingerprint() const = 0;
  // By tensor; empty: each has had `step`.
  virtual const std::vector<int64_t>& update_counts() const = 0;
  // Calls `take` for all elements of a slot: tensors by index, each one's ascending. Errors: DATA_LOSS (DAMAGED), and
  // what `take` returns.
  virtual absl::Status Read(v1::Slot slot, const Schema& schema, Take take) = 0;
};

// What is on disk of one set. Those that are marked [turn] are for whoever has the set's turn, which goes on until the
// outcome: so changes are put down in the order in which they are made. What they are given by pointer or reference
// lives until then. Thread-safe otherwise.
//
// An outcome that is OK says that the change is on disk. RESOURCE_EXHAUSTED (DISK_EXHAUSTED) says that it is not, and
// that the journal goes on, as FAILED_PRECONDITION (TOO_LARGE) does of what could not be on disk at all; UNAVAILABLE
// (STORE_FAILED) that nobody knows, and that nothing is put down any more until the process is restarted. In either
// case the change is not to be made.
class SetJournal {
 public:
  // Room for one step or write. Destroying it gives the room back, if nothing was committed with it.
  class Room {
   public:
    virtual ~Room() = default;

    // Begins to put down a block of the gradient that is complete: number `position` of those that the step brings. It
    // does not change before the step is committed, or comes to nothing. May be called by any thread, while nobody else
    // uses the room. What is not put down so is when the step is committed.
    virtual void WriteAhead(size_t position, const BlockRef& block) = 0;
  };

  virtual ~SetJournal() = default;

  // Whether steps, and writes of parameters, are put down before they are made. Otherwise CommitStep and CommitWrite
  // are not called, and TakeRoom is not, either.
  virtual bool keeps_steps() const = 0;

  // Asked before a step, or a write of whatever kind, begins: OK, or RESOURCE_EXHAUSTED (DISK_EXHAUSTED) where there is
  // room for what has begun only. Does not wait for the disk.
  virtual absl::Status CheckRoom() = 0;
  // [turn] Room for a step or a write of parameters; null where what is put down already has to be replaced by a
  // checkpoint first.
  virtual std::unique_ptr<Room> TakeRoom() = 0;
  // Room for a step that is yet to arrive; null where there is little, which is left to those who have the turn.
  virtual std::unique_ptr<Room> TakeRoomAhead() = 0;
  // [turn] Waits for the checkpoint that is under way, if one is.
  virtual void AwaitCheckpoint(Then<absl::Status> done) = 0;

  virtual void CommitStep(std::unique_ptr<Room> room, const StepRecord& record, const BroughtElements& gradient,
                          Then<absl::Status> done) = 0;  // [turn]
  virtual void CommitWrite(std::unique_ptr<Room> room, const WriteRecord& record, const BroughtElements& parameters,
                           Then<absl::Status> done) = 0;  // [turn]
  // [turn] `set` has the new configuration, as DescribeSet shows it.
  virtual void CommitConfiguration(const v1::ParameterSet& set, Then<absl::Status> done) = 0;
  // [turn] `schema` has the tensors that there will be.
  virtual void CommitGrowth(const GrowthRecord& record, std::shared_ptr<const Schema> schema,
                            Then<absl::Status> done) = 0;
  // [turn] The whole state: parameters, and as many lists as the set has slots of optimizers, in their order.
  virtual void CommitBase(const BaseRecord& record, const BlockList& parameters, absl::Span<const BlockList> slots,
                          const v1::ParameterSet& set, Then<absl::Status> done) = 0;
  // [turn] The set is deleted: nothing of it will be there.
  virtual void CommitDelete(Then<absl::Status> done) = 0;

  // Whether it is time for a checkpoint of a set that is in this state, and none is under way.
  virtual bool WantsCheckpoint(uint64_t incarnation, int64_t step) const = 0;
  // Changes with each CommitBase, and with each checkpoint that is made.
  virtual uint64_t generation() const = 0;
  // Makes a checkpoint of `state`, a reading of all slots that began in `generation`, and lets go of it; `set` is the
  // set at that time. If one is under way already, this one waits for it. Error, beside the others: ABORTED if the
  // generation is another one now: the state may be one before that of the base that there is, of which what came
  // after it is put down no more.
  virtual void Checkpoint(std::unique_ptr<Reading> state, const v1::ParameterSet& set, uint64_t generation,
                          Then<absl::Status> done) = 0;

  // The checkpoints that there are, the newest first.
  virtual std::vector<v1::Checkpoint> ListCheckpoints() const = 0;
  // One of them, which stays as long as this lives. Errors: NOT_FOUND (CHECKPOINT_NOT_FOUND); DATA_LOSS (DAMAGED).
  virtual absl::StatusOr<std::unique_ptr<StoredState>> OpenCheckpoint(uint64_t incarnation, int64_t step) = 0;

  // For a set that does not change any more, after a checkpoint: says on disk that this is what the set was, with what
  // it remembers.
  virtual void Finish(const std::vector<RememberedStep>& remembered, Then<absl::Status> done) = 0;
  // [turn] A write of parameters was made, which is not put down.
  virtual void NoteWrite(const v1::WriteHeader& header) = 0;

  // The last step of an incarnation that is sure to be there after a crash, of a set that is at `step`; nothing if
  // there is none.
  virtual std::optional<int64_t> DurableStep(uint64_t incarnation, int64_t step) const = 0;
  // Adds what the journal knows of the set: durability, last_checkpoint, restored_from.
  virtual void Describe(v1::ParameterSet* set) const = 0;
};

// Thread-safe. Outlives the journals of sets.
class Journal {
 public:
  virtual ~Journal() = default;

  // What a set is promised that asks for `durability`, or, where that is null, for nothing in particular. Error:
  // INVALID_ARGUMENT naming what of `field` is wrong.
  virtual absl::StatusOr<v1::Durability> Resolve(const v1::Durability* durability, absl::string_view field) const = 0;

  // Puts a new set down, which is on disk when this returns; null if it is promised nothing. May take long. `spec` has
  // every default resolved that makes a difference; `slots` are those of its optimizers. Errors: RESOURCE_EXHAUSTED
  // (DISK_EXHAUSTED), UNAVAILABLE (STORE_FAILED).
  virtual absl::StatusOr<std::unique_ptr<SetJournal>> CreateSet(const v1::ParameterSetSpec& spec,
                                                                std::shared_ptr<const Schema> schema,
                                                                const v1::ParameterSet& set) = 0;

  // OK, or UNAVAILABLE (STORE_FAILED), and stays so.
  virtual absl::Status CheckWorking() const = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_JOURNAL_H_
