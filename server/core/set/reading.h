// One read: the arrays of one single step, for as long as the reader takes.
#ifndef ADAMANT_SERVER_CORE_SET_READING_H_
#define ADAMANT_SERVER_CORE_SET_READING_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "adamant/v1/service.pb.h"
#include "server/core/backend/slot_arrays.h"
#include "server/core/base/then.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/snapshot.h"
#include "server/core/set/turn_queue.h"
#include "server/core/spec/schema.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

struct SetRep;

// Made by ParameterSet::BeginRead. Thread-compatible. Holds what it reads, and what it was charged for that, until it
// is destroyed; unless the server had no room and the client said `may_abort`: then it holds nothing.
class Reading {
 public:
  using Done = Then<absl::StatusOr<std::unique_ptr<Reading>>>;

  // Begins the read that `request` asks for, of `set`; see ParameterSet::BeginRead.
  static void Begin(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, Done done);
  // The same, in a turn of its own whatever is read: so the state is one that no change is about to take the place of.
  static void BeginAtTurn(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, Done done);
  // The same for whoever has the set's turn, and keeps it, while no step is being applied.
  static void BeginInTurn(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, Done done);

  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  const v1::ReadHeader& header() const { return header_; }
  // That of the last step with one, of this incarnation; empty if there is none.
  const std::string& last_digest() const { return last_digest_; }
  // In the order asked for. None if the set was not modified.
  const std::vector<v1::Slot>& slots() const { return slots_; }
  const Schema& schema() const;
  const std::shared_ptr<const Schema>& shared_schema() const { return schema_; }
  // Elements of each tensor; 0 of one that was not asked for, of which nothing may be visited or copied.
  absl::Span<const int64_t> sizes() const;

  // Whether it holds what it reads; false where nothing is read, because nothing was modified.
  bool holds() const { return holds_; }
  // Calls `visit` for each run of memory that holds elements of [begin, end) of the flat space, in order. They stay as
  // they are for as long as this lives. Requires: holds().
  void Visit(v1::Slot slot, int64_t begin, int64_t end,
             absl::FunctionRef<void(const float* elements, int64_t count)> visit) const;
  // Lets go of blocks whose elements are all before `end`, and of what was charged for them. Those of the flat space
  // before it are not visited or copied any more. Requires: holds(), and reads all tensors.
  void ReleaseBefore(v1::Slot slot, int64_t end);
  // Copies the elements [begin, end) to `to`. Error: ABORTED (SNAPSHOT_GONE) where nothing is held and the set has
  // moved on.
  absl::Status Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) const;

 private:
  Reading(std::shared_ptr<SetRep> set, std::vector<v1::Slot> slots) : set_(std::move(set)), slots_(std::move(slots)) {}

  static void Begin(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, bool at_turn, Done done);
  // Has blocks mapped that a step can use in place of those that are read, and takes a turn, unless the caller has it,
  // to view the optimizer's slots.
  static void BorrowSpares(std::unique_ptr<Reading> reading, const v1::ReadTensorsRequest& request, bool has_turn,
                           Done done);
  // Views the slots, and ends the turn, if it is given one.
  static void View(std::unique_ptr<Reading> reading, const v1::ReadTensorsRequest& request,
                   std::optional<TurnQueue::Turn> turn, Done done);
  // Calls `done` with the reading, or with the error that there is.
  static void Answer(std::unique_ptr<Reading> reading, absl::Status status, Done done);
  // Makes this a read of the state that is published now: charges for it if it is to `reserve`, and refers to the
  // parameters if it is charged. Errors: what stands against the read.
  absl::Status Refer(const v1::ReadTensorsRequest& request, bool reserve);
  const BlockList& Blocks(v1::Slot slot) const;

  const std::shared_ptr<SetRep> set_;

  // Constant once the read has begun.
  v1::ReadHeader header_;
  std::string last_digest_;
  std::shared_ptr<const Schema> schema_;
  std::shared_ptr<const TensorSelection> selection_;  // null: all tensors
  std::vector<v1::Slot> slots_;
  bool holds_ = false;
  bool awaits_publish_ = false;    // a step changes rows of what is published now
  Grant grant_;                    // before what it pays for, which comes back first
  std::vector<BlockList> spares_;  // until the view has them
  std::shared_ptr<const Snapshot> snapshot_;
  BlockList parameters_;                  // in place of `snapshot_`, once some were let go of
  std::map<v1::Slot, int64_t> released_;  // the blocks of each slot that were let go of
  std::unique_ptr<SlotView> view_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_READING_H_
