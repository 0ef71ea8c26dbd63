// Slots in host memory, and one call of the kernel for each range of a block.
#include "server/core/backend/cpu_backend.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "server/core/base/mutex.h"

namespace adamant::core {
namespace {

using SlotLists = std::vector<BlockList>;

// The slots of a set, and what those who view them have brought.
struct Shelf {
  // `lists`, which are the only references to their blocks but for the views', with spares in place of those of
  // `blocks` that a view holds.
  SlotLists Writable(const SlotLists& lists, absl::Span<const int64_t> blocks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  BlockRef TakeSpare(size_t slot, size_t block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  Mutex mutex;
  // Nothing while a step or a write has them.
  std::optional<SlotLists> slots ABSL_GUARDED_BY(mutex);
  // Of each view: null where a step has taken one, or needs none any more.
  std::vector<SlotLists*> spares ABSL_GUARDED_BY(mutex);
};

SlotLists Shelf::Writable(const SlotLists& lists, absl::Span<const int64_t> blocks) {
  // First, since a copy counts as a holder.
  std::vector<std::vector<bool>> viewed(lists.size());
  for (size_t slot = 0; slot < lists.size(); ++slot) {
    for (const int64_t block : blocks) viewed[slot].push_back(!lists[slot][block].unique());
  }
  SlotLists writable = lists;
  for (size_t slot = 0; slot < lists.size(); ++slot) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (viewed[slot][i]) writable[slot][blocks[i]] = TakeSpare(slot, blocks[i]);
    }
  }
  return writable;
}

BlockRef Shelf::TakeSpare(size_t slot, size_t block) {
  // One is enough for all that view the block; the others', which are not needed any more, go back to the pool.
  BlockRef spare;
  for (SlotLists* of_view : spares) {
    // One that began before the set grew has none for what is new.
    if (block >= (*of_view)[slot].size()) continue;
    BlockRef taken = std::move((*of_view)[slot][block]);
    if (!spare) spare = std::move(taken);
  }
  return spare;
}

// A view of blocks that are the set's as well, until it changes them.
class HeldView final : public SlotView {
 public:
  // `spares()` is to be put on the shelf.
  HeldView(std::shared_ptr<Shelf> shelf, SlotLists slots, SlotLists spares)
      : SlotView(std::move(slots)), shelf_(std::move(shelf)), spares_(std::move(spares)) {}
  ~HeldView() override {
    // First, since a block that is in use must have a spare.
    slots_.clear();
    MutexLock lock(&shelf_->mutex);
    shelf_->spares.erase(absl::c_find(shelf_->spares, &spares_));
  }

  SlotLists* spares() { return &spares_; }

  void Release(size_t slot, size_t block) override {
    SlotView::Release(slot, block);
    BlockRef spare;  // goes back to the pool without the lock
    MutexLock lock(&shelf_->mutex);
    if (block < spares_[slot].size()) spare = std::move(spares_[slot][block]);
  }

 private:
  const std::shared_ptr<Shelf> shelf_;  // may outlive the arrays
  SlotLists spares_;                    // guarded by shelf_->mutex
};

// A view refers to the blocks themselves. A step that would write to a block of a view swaps in one of the spares that
// the view brought, so that a step neither maps memory nor fails because of a reader.
class CpuArrays final : public SlotArrays {
 public:
  // `slots` are in the order of the layout's, and nobody else's.
  CpuArrays(CpuBackend* backend, ArraysLayout layout, SlotLists slots, ComputePool* compute)
      : backend_(backend),
        layout_(std::move(layout)),
        slot_indices_(IndexSlots(layout_.slots)),
        all_(std::make_unique<const TensorSelection>(layout_.schema)),
        compute_(compute),
        shelf_(std::make_shared<Shelf>()) {
    MutexLock lock(&shelf_->mutex);
    shelf_->slots = std::move(slots);
  }

  void Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
             Then<absl::Status> done) override;
  void View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
            Then<absl::StatusOr<std::unique_ptr<SlotView>>> done) override;
  void Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) override;
  std::vector<BlockList> BeginLoad() override;
  void Load(const Snapshot& parameters, std::vector<BlockList> slots, Then<absl::Status> done) override;
  void AbandonLoad(std::vector<BlockList> slots) override;
  void Grow(std::shared_ptr<const Schema> schema, std::vector<BlockList> tails, Then<absl::Status> done) override;

 private:
  // A block that rows are to be changed in, and that takes over the elements of the one in its place before.
  struct Takeover {
    BlockRef from;
    BlockRef to;
  };
  // A step between its turn and its outcome.
  struct Pass {
    SlotLists in;  // where some blocks are viewed; else empty, and the update is in place
    SlotLists out;
    std::vector<Takeover> takeovers;
    std::atomic<bool> failed = false;
  };

  // A part has so many rows: 64 KiB of those of 64 elements.
  static constexpr size_t kPartRows = 256;

  size_t IndexOf(v1::Slot slot) const { return absl::c_find(layout_.slots, slot) - layout_.slots.begin(); }
  // Takes the slots.
  SlotLists Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shelf_->mutex);
  void PutBack(SlotLists slots);
  // The elements that a step moves, and the blocks of slots that it changes.
  static int64_t ElementsOf(const StepPlan& plan);
  static std::vector<int64_t> BlocksOf(const StepPlan& plan);
  void Begin(const StepPlan& plan, Pass* pass);
  static void TakeOver(const Takeover& takeover);
  // Computes one part of the step, unless another one has failed: a block that is selected, with the rows in it, or
  // some of the rows that are in none.
  void Compute(const StepPlan& plan, Pass* pass, int64_t part,
               const absl::AnyInvocable<void(int64_t block) const>& computed) const;
  // How many there are of the latter.
  static int64_t RowParts(const StepPlan& plan);
  // The block that is number `i` of those selected, and what some rows have in, or outside of, some blocks.
  absl::Status ComputeBlock(const StepPlan& plan, const Pass& pass, int64_t i) const;
  absl::Status ComputeRows(const StepPlan& plan, const Pass& pass, RowWork::Range rows,
                           absl::Span<const int64_t> blocks, bool within) const;
  absl::Status End(Pass* pass);

  CpuBackend* const backend_;
  ArraysLayout layout_;  // its schema is of whoever has the turn
  const SlotIndices slot_indices_;
  std::unique_ptr<const TensorSelection> all_;  // of whoever has the turn
  ComputePool* const compute_;
  const std::shared_ptr<Shelf> shelf_;
};

SlotLists CpuArrays::Take() {
  SlotLists slots = *std::move(shelf_->slots);
  shelf_->slots.reset();
  return slots;
}

void CpuArrays::PutBack(SlotLists slots) {
  MutexLock lock(&shelf_->mutex);
  shelf_->slots = std::move(slots);
}

void CpuArrays::Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
                      Then<absl::Status> done) {
  const auto blocks = static_cast<int64_t>(plan.work->selection().blocks().size());
  const int64_t parts = blocks + RowParts(plan);
  if (IsSmall(ElementsOf(plan))) {
    Pass pass;
    Begin(plan, &pass);
    for (const Takeover& takeover : pass.takeovers) TakeOver(takeover);
    for (int64_t part = 0; part < parts; ++part) Compute(plan, &pass, part, computed);
    done(End(&pass));
    return;
  }
  auto pass = std::make_shared<Pass>();
  Begin(plan, pass.get());
  auto compute = [this, &plan, pass, parts, computed = std::move(computed), done = std::move(done)]() mutable {
    compute_->Run(
        parts,
        [this, &plan, pass, computed = std::move(computed)](int64_t part) {
          Compute(plan, pass.get(), part, computed);
        },
        [this, pass, done = std::move(done)]() mutable { done(End(pass.get())); });
  };
  if (pass->takeovers.empty()) {
    compute();
  } else {
    compute_->Run(
        static_cast<int64_t>(pass->takeovers.size()), [pass](int64_t i) { TakeOver(pass->takeovers[i]); },
        std::move(compute));
  }
}

int64_t CpuArrays::ElementsOf(const StepPlan& plan) {
  int64_t elements = plan.work->selection().block_elements();
  if (plan.rows != nullptr) {
    for (const BlockRef& values : plan.rows->values) elements += values.size();
  }
  for (const StepPlan::Copy& copy : plan.copies) elements += copy.from.size();
  return elements;
}

void CpuArrays::Begin(const StepPlan& plan, Pass* pass) {
  MutexLock lock(&shelf_->mutex);
  SlotLists slots = Take();
  if (shelf_->spares.empty()) {
    pass->out = std::move(slots);
  } else {
    pass->out = shelf_->Writable(slots, BlocksOf(plan));
    pass->in = std::move(slots);
  }
  if (plan.rows == nullptr) return;
  for (const StepPlan::Copy& copy : plan.copies) {
    pass->takeovers.push_back({copy.from, plan.after->blocks()[copy.block]});
  }
  if (pass->in.empty()) return;
  plan.rows->ForEachBlock([&](int64_t block) {
    // Those are taken over by Update.
    if (absl::c_binary_search(plan.work->selection().blocks(), block)) return;
    for (size_t slot = 0; slot < pass->in.size(); ++slot) {
      const BlockRef& from = pass->in[slot][block];
      const BlockRef& to = pass->out[slot][block];
      if (from.data() != to.data()) pass->takeovers.push_back({from, to});
    }
  });
}

std::vector<int64_t> CpuArrays::BlocksOf(const StepPlan& plan) {
  const absl::Span<const int64_t> selected = plan.work->selection().blocks();
  std::vector<int64_t> blocks(selected.begin(), selected.end());
  if (plan.rows == nullptr) return blocks;
  std::vector<int64_t> of_rows;
  plan.rows->ForEachBlock([&](int64_t block) { of_rows.push_back(block); });
  std::vector<int64_t> all;
  absl::c_set_union(blocks, of_rows, std::back_inserter(all));
  return all;
}

void CpuArrays::TakeOver(const Takeover& takeover) {
  std::copy_n(takeover.from.data(), takeover.from.size(), takeover.to.mutable_data());
}

int64_t CpuArrays::RowParts(const StepPlan& plan) {
  return plan.rows == nullptr ? 0 : static_cast<int64_t>((plan.rows->rows.size() + kPartRows - 1) / kPartRows);
}

void CpuArrays::Compute(const StepPlan& plan, Pass* pass, int64_t part,
                        const absl::AnyInvocable<void(int64_t block) const>& computed) const {
  const absl::Span<const int64_t> blocks = plan.work->selection().blocks();
  const auto count = static_cast<int64_t>(blocks.size());
  if (pass->failed.load(std::memory_order_relaxed)) return;
  absl::Status status;
  if (part >= count) {
    const size_t first = static_cast<size_t>(part - count) * kPartRows;
    const RowWork::Range rows = {first, std::min(first + kPartRows, plan.rows->rows.size())};
    status = ComputeRows(plan, *pass, rows, blocks, /*within=*/false);
  } else {
    status = ComputeBlock(plan, *pass, part);
    if (status.ok() && plan.rows != nullptr) {
      status = ComputeRows(plan, *pass, plan.rows->RowsIn(blocks[part]), blocks.subspan(part, 1), /*within=*/true);
    }
    if (status.ok()) computed(blocks[part]);
  }
  if (!status.ok()) pass->failed.store(true, std::memory_order_relaxed);
}

absl::Status CpuArrays::ComputeRows(const StepPlan& plan, const Pass& pass, RowWork::Range rows,
                                    absl::Span<const int64_t> blocks, bool within) const {
  return backend_->UpdateRows({.work = plan.rows.get(),
                               .rows = rows,
                               .blocks = blocks,
                               .within = within,
                               .recipes = plan.recipes,
                               .parameters = &plan.after->blocks(),
                               .slots = pass.out,
                               .slot_indices = &slot_indices_});
}

absl::Status CpuArrays::ComputeBlock(const StepPlan& plan, const Pass& pass, int64_t i) const {
  const int64_t block = plan.work->selection().blocks()[i];
  const SlotLists& in = pass.in.empty() ? pass.out : pass.in;
  std::array<SlotBlock, std::size(kSlots)> slots;
  for (size_t slot = 0; slot < in.size(); ++slot) slots[slot] = {in[slot][block], pass.out[slot][block]};
  const BlockUpdate update = {.index = block,
                              .ranges = plan.work->ranges(i),
                              .recipes = plan.recipes,
                              .gradient = plan.after->blocks()[block],
                              .parameters = plan.before->blocks()[block],
                              .slots = absl::MakeConstSpan(slots.data(), in.size()),
                              .slot_indices = &slot_indices_};
  return backend_->Update(update);
}

absl::Status CpuArrays::End(Pass* pass) {
  // Before the next turn, or it would find them held.
  pass->in.clear();
  pass->takeovers.clear();
  PutBack(std::move(pass->out));
  return pass->failed ? absl::InternalError("the device failed") : absl::OkStatus();
}

void CpuArrays::View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
                     Then<absl::StatusOr<std::unique_ptr<SlotView>>> done) {
  SlotLists lists(layout_.slots.size());
  SlotLists spare_lists(layout_.slots.size());
  std::unique_ptr<HeldView> view;
  {
    MutexLock lock(&shelf_->mutex);
    for (size_t i = 0; i < slots.size(); ++i) {
      const size_t slot = IndexOf(slots[i]);
      lists[slot] = (*shelf_->slots)[slot];
      spare_lists[slot] = std::move(spares[i]);
    }
    view = std::make_unique<HeldView>(shelf_, std::move(lists), std::move(spare_lists));
    shelf_->spares.push_back(view->spares());
  }
  done(std::move(view));
}

void CpuArrays::Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) {
  MutexLock lock(&shelf_->mutex);
  CopyRuns((*shelf_->slots)[IndexOf(slot)], begin, end, to);
}

std::vector<BlockList> CpuArrays::BeginLoad() {
  SlotLists before;  // goes back to the pool without the lock
  MutexLock lock(&shelf_->mutex);
  before = Take();
  return shelf_->Writable(before, all_->blocks());
}

void CpuArrays::Load(const Snapshot& /*parameters*/, std::vector<BlockList> slots, Then<absl::Status> done) {
  if (!slots.empty()) PutBack(std::move(slots));
  done(absl::OkStatus());
}

void CpuArrays::Grow(std::shared_ptr<const Schema> schema, std::vector<BlockList> tails, Then<absl::Status> done) {
  {
    MutexLock lock(&shelf_->mutex);
    for (size_t slot = 0; slot < tails.size(); ++slot) {
      BlockList& blocks = (*shelf_->slots)[slot];
      const size_t whole = layout_.schema->flat_size() / kBlockElements;
      // Those who view a short last block keep it, and what they have brought in its place is too short from here on.
      for (SlotLists* const of_view : shelf_->spares) {
        if (!tails[slot].empty() && whole < (*of_view)[slot].size()) (*of_view)[slot][whole] = BlockRef();
      }
      AppendTail(std::move(tails[slot]), &blocks);
    }
  }
  layout_.schema = schema;
  all_ = std::make_unique<const TensorSelection>(std::move(schema));
  done(absl::OkStatus());
}

void CpuArrays::AbandonLoad(std::vector<BlockList> slots) { PutBack(std::move(slots)); }

// What is fetched ahead of a row: the kernels fetch the rest of a long one themselves.
constexpr int64_t kPrefetchedElements = 384;

void Prefetch(const float* elements, int64_t count) {
  constexpr int64_t kLineElements = 16;
  for (int64_t i = 0; i < count; i += kLineElements) __builtin_prefetch(elements + i, /*rw=*/1);
}

// A run of a row: its gradient, which becomes its parameters, and where these and its state are.
struct RowRun {
  int64_t size;
  float* values;
  float* parameters;
  std::array<float*, kernels::kMaxSlots> slots;
};

// Updates runs in place. Short ones are put together: what a kernel does at its beginning, and fetches beyond the end,
// is for more than a row of 64 elements, for which it would take as long as the row.
class ShortRuns {
 public:
  explicit ShortRuns(const kernels::KernelTable& kernels) : kernels_(kernels) {}

  void Update(const kernels::Recipe& recipe, const RowRun& run) {
    if (&recipe != recipe_ || size_ + run.size > kElements || count_ == runs_.size()) Finish();
    if (run.size > kElements) {
      Run(recipe, run);
      std::copy_n(run.values, run.size, run.parameters);
      return;
    }
    recipe_ = &recipe;
    std::copy_n(run.values, run.size, values_.data() + size_);
    std::copy_n(run.parameters, run.size, parameters_.data() + size_);
    for (int k = 0; k < slots(); ++k) std::copy_n(run.slots[k], run.size, slots_[k].data() + size_);
    runs_[count_++] = run;
    size_ += run.size;
  }

  // To be called behind the last.
  void Finish() {
    if (count_ == 0) return;
    RowRun all = {.size = size_, .values = values_.data(), .parameters = parameters_.data(), .slots = {}};
    for (int k = 0; k < slots(); ++k) all.slots[k] = slots_[k].data();
    Run(*recipe_, all);
    int64_t begin = 0;
    for (size_t i = 0; i < count_; ++i) {
      const RowRun& run = runs_[i];
      std::copy_n(values_.data() + begin, run.size, run.values);
      std::copy_n(values_.data() + begin, run.size, run.parameters);
      for (int k = 0; k < slots(); ++k) std::copy_n(slots_[k].data() + begin, run.size, run.slots[k]);
      begin += run.size;
    }
    size_ = 0;
    count_ = 0;
  }

 private:
  static constexpr int64_t kElements = 1024;

  int slots() const { return kernels::kSlotCounts[recipe_->update]; }

  // Writes the new parameters over the gradient.
  void Run(const kernels::Recipe& recipe, const RowRun& run) const {
    kernels::UpdateSpan span = {
        .size = run.size, .g = run.values, .p_in = run.parameters, .p_out = run.values, .slots = {}};
    for (int k = 0; k < kernels::kSlotCounts[recipe.update]; ++k) span.slots[k] = {run.slots[k], run.slots[k]};
    kernels_.update[recipe.update](recipe.scalars, span);
  }

  const kernels::KernelTable& kernels_;
  const kernels::Recipe* recipe_ = nullptr;
  // Those that are put together, and their elements one behind the other.
  std::array<RowRun, 64> runs_;
  size_t count_ = 0;
  int64_t size_ = 0;
  std::array<float, kElements> values_;
  std::array<float, kElements> parameters_;
  std::array<std::array<float, kElements>, kernels::kMaxSlots> slots_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SlotArrays>> CpuBackend::NewArrays(ArraysLayout layout, Lender* lender,
                                                                  ComputePool* compute) {
  SlotLists slots;
  for (size_t i = 0; i < layout.slots.size(); ++i) {
    absl::StatusOr<BlockList> zeroed = lender->TakeZeroed(layout.schema->flat_size());
    if (!zeroed.ok()) return zeroed.status();
    slots.push_back(*std::move(zeroed));
  }
  return std::make_unique<CpuArrays>(this, std::move(layout), std::move(slots), compute);
}

v1::Device CpuBackend::Describe() const {
  v1::Device device;
  device.set_name(name());
  device.set_description(kernels_.name);
  device.set_state(v1::DEVICE_STATE_OK);
  return device;
}

absl::Status CpuBackend::Update(const BlockUpdate& update) {
  for (const WorkRange& range : update.ranges) {
    const int64_t size = range.end - range.begin;
    uint32_t written = 0;  // slots, by bit
    if (range.cohort == WorkRange::kKept) {
      std::copy_n(update.parameters.data() + range.begin, size, update.gradient.mutable_data() + range.begin);
    } else {
      const kernels::Recipe& recipe = update.recipes[range.cohort];
      kernels::UpdateSpan span = {.size = size,
                                  .g = update.gradient.data() + range.begin,
                                  .p_in = update.parameters.data() + range.begin,
                                  .p_out = update.gradient.mutable_data() + range.begin,
                                  .slots = {}};
      for (int k = 0; k < kernels::kSlotCounts[recipe.update]; ++k) {
        const auto index = static_cast<uint8_t>((*update.slot_indices)[recipe.update][k]);
        const SlotBlock& slot = update.slots[index];
        span.slots[k] = {slot.in.data() + range.begin, slot.out.mutable_data() + range.begin};
        written |= uint32_t{1} << index;
      }
      kernels_.update[recipe.update](recipe.scalars, span);
    }
    for (size_t slot = 0; slot < update.slots.size(); ++slot) {
      const auto& [in, out] = update.slots[slot];
      if ((written >> slot & 1) != 0 || in.data() == out.data()) continue;
      std::copy_n(in.data() + range.begin, size, out.mutable_data() + range.begin);
    }
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::UpdateRows(const RowsUpdate& update) {
  const auto is_meant = [&update](int64_t block) {
    return absl::c_binary_search(update.blocks, block) == update.within;
  };
  // What follows waits for memory, and so for all of it at once.
  update.work->ForEachRow(update.rows.first, update.rows.end, [&](const RowWork::Place& place) {
    ForEachRun(place.begin, std::min(place.end, place.begin + kPrefetchedElements),
               [&](int64_t block, int64_t begin, int64_t end) {
                 if (!is_meant(block)) return;
                 Prefetch((*update.parameters)[block].data() + begin, end - begin);
                 for (const BlockList& slot : update.slots) Prefetch(slot[block].data() + begin, end - begin);
               });
  });
  ShortRuns runs(kernels_);
  update.work->ForEachRow(update.rows.first, update.rows.end, [&](const RowWork::Place& place) {
    const kernels::Recipe& recipe = update.recipes[place.tensor->recipe];
    ForEachRun(place, [&](int64_t block, int64_t begin, int64_t values_block, int64_t values_begin, int64_t count) {
      if (!is_meant(block)) return;
      RowRun run = {.size = count,
                    .values = update.work->values[values_block].mutable_data() + values_begin,
                    .parameters = (*update.parameters)[block].mutable_data() + begin,
                    .slots = {}};
      for (int k = 0; k < kernels::kSlotCounts[recipe.update]; ++k) {
        run.slots[k] = update.slots[(*update.slot_indices)[recipe.update][k]][block].mutable_data() + begin;
      }
      runs.Update(recipe, run);
    });
  });
  runs.Finish();
  return absl::OkStatus();
}

}  // namespace adamant::core
