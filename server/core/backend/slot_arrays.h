// The optimizer's arrays of one set on the device that holds them, and what a step does to them.
#ifndef ADAMANT_SERVER_CORE_BACKEND_SLOT_ARRAYS_H_
#define ADAMANT_SERVER_CORE_BACKEND_SLOT_ARRAYS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "kernels/update.h"
#include "server/core/backend/row_work.h"
#include "server/core/backend/step_work.h"
#include "server/core/base/then.h"
#include "server/core/memory/block.h"
#include "server/core/memory/snapshot.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

// A step of a set whose arrays take at most this many bytes each is paid by the call that brings it, and runs on the
// thread that has its turn, on the processor: starting others would cost more than the work (256 Ki parameters take
// some 130 us, and 64 Ki 32).
inline constexpr int64_t kSmallStepBytes = int64_t{1} << 20;

// Whether that holds for arrays, or parts of them, of so many elements.
inline bool IsSmall(int64_t elements) { return elements * static_cast<int64_t>(sizeof(float)) <= kSmallStepBytes; }

// What a set's arrays are made for.
struct ArraysLayout {
  std::shared_ptr<const Schema> schema;
  // The slots that the set's optimizers have, in the order of kSlots. The parameters are not among them: they are
  // Snapshots, in host memory on every device.
  std::vector<v1::Slot> slots;
};

// What a step does, once it is decided.
struct StepPlan {
  // A block of `after` that takes over the elements of another one.
  struct Copy {
    int64_t block;
    BlockRef from;
  };

  std::shared_ptr<const StepWork> work;
  std::vector<kernels::Recipe> recipes;  // by cohort, and behind them those of `rows`
  // Null outside of a commit. Where there are rows it has only the blocks that `work` selects, and is null if there are
  // none.
  std::shared_ptr<const Snapshot> before;
  // In the blocks that `work` selects the gradient, and block by block the new parameters, which are written over it.
  // The others are those of `before`.
  std::shared_ptr<const Snapshot> after;

  // Rows that the step changes in addition, of tensors that `work` does not select; null if there are none. Their
  // gradients are in `values`, where their new parameters are written, too. What blocks of `after` have of them is
  // changed in place once the block is as `work`, or `copies`, says: nobody reads it before `done`.
  std::shared_ptr<const RowWork> rows = nullptr;
  // Blocks that `work` does not select, ascending, which somebody else held when the step began: none of them is
  // changed itself.
  std::vector<Copy> copies = {};
};

// Some slots' elements as they were at one moment, which nobody writes to while this has them. Thread-compatible.
class SlotView {
 public:
  virtual ~SlotView() = default;
  SlotView(const SlotView&) = delete;
  SlotView& operator=(const SlotView&) = delete;

  // By slot, in the order of ArraysLayout::slots; empty where a slot was not asked for. Whoever looks at them must not
  // copy the references to blocks.
  const std::vector<BlockList>& slots() const { return slots_; }
  // Lets go of a block that nobody looks at any more, and of what is held for its sake.
  virtual void Release(size_t slot, size_t block) { slots_[slot][block] = BlockRef(); }

 protected:
  explicit SlotView(std::vector<BlockList> slots) : slots_(std::move(slots)) {}

  std::vector<BlockList> slots_;
};

// One of blocks that are the view's alone.
class CopiedSlotView final : public SlotView {
 public:
  explicit CopiedSlotView(std::vector<BlockList> slots) : SlotView(std::move(slots)) {}
};

// Thread-safe. Those that are marked [turn] are for whoever has the set's turn, and keeps it until the outcome.
class SlotArrays {
 public:
  virtual ~SlotArrays() = default;

  // [turn] Applies `plan`, which lives until `done`: computes `plan.after` and changes the slots. Calls `computed` for
  // each block that is selected as soon as its new parameters are there, from several threads and in any order. From
  // the first byte that changes until `done` nothing is allocated, but by `computed`. After an error the slots and
  // `plan.after` are indeterminate.
  virtual void Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
                     Then<absl::Status> done) = 0;

  // [turn] Views `slots`. `spares` has as many blocks for each of them, in their order, which nobody else holds and
  // which are paid for: the view keeps them, and a step that would write to a block of the view uses one of them
  // instead. It may outlive the arrays.
  virtual void View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
                    Then<absl::StatusOr<std::unique_ptr<SlotView>>> done) = 0;

  // Copies the elements [begin, end) of the flat space to `to`. Requires that the backend is on_host(), and that
  // nothing changes them meanwhile: no step is being applied, no load under way.
  virtual void Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) = 0;

  // [turn] The set has `parameters`, which live until `done`, from here on, and unless `slots` is empty what is in
  // `slots`: a block list for each slot, in the order of the layout's. On the host they are those that BeginLoad handed
  // out, and this gives them back in any case. After an error the slots are indeterminate.
  virtual void Load(const Snapshot& parameters, std::vector<BlockList> slots, Then<absl::Status> done) = 0;

  // [turn] The arrays are of `schema` from here on, which begins with the tensors that there were: what comes behind
  // them is zero. On the host `tails` has for each slot zeroed blocks in place of the last one, if that was short, and
  // for all behind it. After an error nothing has changed.
  virtual void Grow(std::shared_ptr<const Schema> schema, std::vector<BlockList> tails, Then<absl::Status> done) = 0;

  // These are for backends that are on_host().
  // [turn] Hands out the blocks that a direct write fills: all slots', whose contents are lost with that. Until Load or
  // AbandonLoad gives them back, nothing else may be called.
  virtual std::vector<BlockList> BeginLoad() = 0;
  // Gives back what BeginLoad handed out. The contents are indeterminate.
  virtual void AbandonLoad(std::vector<BlockList> slots) = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_SLOT_ARRAYS_H_
