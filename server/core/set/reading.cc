#include "server/core/set/reading.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/memory/block.h"
#include "server/core/set/set_rep.h"
#include "server/core/spec/slots.h"

namespace adamant::core {
namespace {

// The slots that a request asks for. Error: INVALID_ARGUMENT for one that there is not, or twice.
absl::StatusOr<std::vector<v1::Slot>> RequestedSlots(const v1::ReadTensorsRequest& request,
                                                     const std::vector<v1::Slot>& of_optimizer) {
  std::vector<v1::Slot> known = {v1::SLOT_PARAMETER};
  known.insert(known.end(), of_optimizer.begin(), of_optimizer.end());
  std::vector<v1::Slot> slots;
  for (int i = 0; i < request.slots_size(); ++i) {
    const v1::Slot slot = request.slots(i);
    if (!absl::c_linear_search(known, slot) || absl::c_linear_search(slots, slot)) {
      return InvalidField(absl::StrCat("slots[", i, "]"), absl::StrCat(OneOf(known), ", each at most once"),
                          EnumName(slot));
    }
    slots.push_back(slot);
  }
  if (slots.empty()) slots.push_back(v1::SLOT_PARAMETER);
  return slots;
}

std::vector<v1::Slot> OptimizerSlotsOf(std::vector<v1::Slot> slots) {
  std::erase(slots, v1::SLOT_PARAMETER);
  return slots;
}

// Whether the set can be read now. What was `published` before a commit failed stays readable.
absl::Status Check(const Lifecycle& lifecycle, const v1::ReadTensorsRequest& request, bool published,
                   bool of_optimizer) {
  absl::Status status = lifecycle.CheckExists();
  if (status.ok() && request.has_incarnation()) {
    status = lifecycle.CheckIncarnation(request.incarnation(), "incarnation");
  }
  if (status.ok() && (lifecycle.state() != v1::PARAMETER_SET_STATE_POISONED || !published || of_optimizer)) {
    status = lifecycle.CheckReady();
  }
  return status;
}

}  // namespace

void Reading::Begin(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, Done done) {
  Begin(std::move(set), request, /*at_turn=*/false, std::move(done));
}

void Reading::BeginAtTurn(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, Done done) {
  Begin(std::move(set), request, /*at_turn=*/true, std::move(done));
}

void Reading::Begin(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, bool at_turn, Done done) {
  absl::StatusOr<std::vector<v1::Slot>> slots = RequestedSlots(request, set->slots);
  if (!slots.ok()) {
    done(slots.status());
    return;
  }
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Reading> reading(new Reading(std::move(set), *std::move(slots)));
  const bool of_optimizer = !OptimizerSlotsOf(reading->slots_).empty();
  absl::Status status = reading->Refer(request, /*reserve=*/true);
  if (status.ok() && (at_turn || of_optimizer || reading->awaits_publish_) && !reading->header_.not_modified()) {
    // What is published by the turn is read, and not what is now.
    reading->snapshot_.reset();
    BorrowSpares(std::move(reading), request, /*has_turn=*/false, std::move(done));
  } else {
    Answer(std::move(reading), std::move(status), std::move(done));
  }
}

void Reading::BeginInTurn(std::shared_ptr<SetRep> set, const v1::ReadTensorsRequest& request, Done done) {
  absl::StatusOr<std::vector<v1::Slot>> slots = RequestedSlots(request, set->slots);
  if (!slots.ok()) {
    done(slots.status());
    return;
  }
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Reading> reading(new Reading(std::move(set), *std::move(slots)));
  absl::Status status = reading->Refer(request, /*reserve=*/true);
  if (status.ok()) {
    BorrowSpares(std::move(reading), request, /*has_turn=*/true, std::move(done));
  } else {
    Answer(std::move(reading), std::move(status), std::move(done));
  }
}

absl::Status Reading::Refer(const v1::ReadTensorsRequest& request, bool reserve) {
  SetRep& set = *set_;
  MutexLock lock(&set.mutex);
  const bool of_optimizer = !OptimizerSlotsOf(slots_).empty();
  const bool published = set.snapshot != nullptr;
  awaits_publish_ = set.applying && !published;
  if (absl::Status status = Check(set.lifecycle, request, published, of_optimizer); !status.ok()) return status;
  if (schema_ != nullptr && schema_ != set.schema) {
    return set.lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SNAPSHOT_GONE,
                                   "tensors were added while the read waited for its turn");
  }
  schema_ = set.schema;
  if (!request.tensors().empty() && selection_ == nullptr) {
    absl::StatusOr<std::vector<bool>> selected = SelectByIndex(*schema_, request.tensors(), "tensors");
    if (!selected.ok()) return selected.status();
    selection_ = std::make_shared<const TensorSelection>(schema_, *std::move(selected));
  }
  header_.set_incarnation(set.lifecycle.incarnation());
  header_.set_step(set.lifecycle.step());
  header_.set_state(set.lifecycle.state());
  last_digest_ = PreviousDigest(set);
  header_.clear_update_counts();
  if (!set.update_counts.equal() || set.update_counts.of(0) != set.lifecycle.step()) {
    const auto tensors = static_cast<int>(set.schema->tensors().size());
    header_.mutable_update_counts()->Reserve(tensors);
    for (int tensor = 0; tensor < tensors; ++tensor) header_.add_update_counts(set.update_counts.of(tensor));
  }
  if (request.has_if_newer_than_step() && set.lifecycle.step() <= request.if_newer_than_step()) {
    header_.set_not_modified(true);
    slots_.clear();
    return absl::OkStatus();
  }
  if (reserve) {
    // The optimizer's slots are viewed as a whole.
    const int64_t bytes = selection_ != nullptr && !of_optimizer
                              ? BlockPool::ChargedBytes(selection_->block_elements())
                              : ArrayBytes(*set.schema) * static_cast<int64_t>(slots_.size());
    absl::StatusOr<Grant> grant = set.resources.read->TryReserve(bytes);
    holds_ = grant.ok();
    const bool may_copy = request.may_abort() && (!of_optimizer || set.resources.backend->on_host());
    if (!holds_) return may_copy ? absl::OkStatus() : grant.status();
    grant_ = *std::move(grant);
  }
  if (holds_ && absl::c_linear_search(slots_, v1::SLOT_PARAMETER)) {
    snapshot_ = selection_ == nullptr || set.snapshot == nullptr ? set.snapshot : selection_->Restrict(set.snapshot);
  }
  return absl::OkStatus();
}

void Reading::BorrowSpares(std::unique_ptr<Reading> reading, const v1::ReadTensorsRequest& request, bool has_turn,
                           Done done) {
  // One list for each slot that is paid for, the parameters too: a step that runs beside the read keeps one array more
  // from coming back, and finds that one idle.
  const bool of_optimizer = !OptimizerSlotsOf(reading->slots_).empty();
  if (!reading->holds_ || !of_optimizer || reading->spares_.size() == reading->slots_.size()) {
    if (has_turn) {
      View(std::move(reading), request, std::nullopt, std::move(done));
      return;
    }
    const std::shared_ptr<SetRep> set = reading->set_;
    set->turns->Enqueue([reading = std::move(reading), request, done = std::move(done)](TurnQueue::Turn turn) mutable {
      View(std::move(reading), request, std::move(turn), std::move(done));
    });
    return;
  }
  Lender* const lender = reading->set_->resources.lender;
  const int64_t elements = reading->schema_->flat_size();
  lender->Borrow(
      /*budget=*/nullptr, 0, elements, absl::InfiniteDuration(),
      [reading = std::move(reading), request, has_turn,
       done = std::move(done)](absl::StatusOr<Lender::Loan> loan) mutable {
        if (!loan.ok()) {
          done(std::move(loan).status());
          return;
        }
        reading->spares_.push_back(std::move(loan->blocks));
        BorrowSpares(std::move(reading), request, has_turn, std::move(done));
      });
}

void Reading::View(std::unique_ptr<Reading> reading, const v1::ReadTensorsRequest& request,
                   std::optional<TurnQueue::Turn> turn, Done done) {
  absl::Status status = reading->Refer(request, /*reserve=*/false);
  const std::vector<v1::Slot> slots = OptimizerSlotsOf(reading->slots_);
  std::vector<BlockList> spares = std::move(reading->spares_);
  if (!status.ok() || !reading->holds_ || slots.empty()) {
    if (turn.has_value()) turn->EndAtOnce();
    Answer(std::move(reading), std::move(status), std::move(done));
    return;
  }
  // Those beyond lie idle from here on.
  spares.resize(slots.size());
  SlotArrays* const arrays = reading->set_->arrays.get();
  arrays->View(slots, std::move(spares),
               [reading = std::move(reading), done = std::move(done),
                turn = std::move(turn)](absl::StatusOr<std::unique_ptr<SlotView>> view) mutable {
                 absl::Status viewed = view.status();
                 if (viewed.ok()) reading->view_ = *std::move(view);
                 if (turn.has_value()) turn->EndAtOnce();
                 Answer(std::move(reading), std::move(viewed), std::move(done));
               });
}

void Reading::Answer(std::unique_ptr<Reading> reading, absl::Status status, Done done) {
  if (status.ok()) {
    done(std::move(reading));
  } else {
    done(std::move(status));
  }
}

const Schema& Reading::schema() const { return *schema_; }

absl::Span<const int64_t> Reading::sizes() const {
  return selection_ == nullptr ? schema_->sizes() : selection_->sizes();
}

const BlockList& Reading::Blocks(v1::Slot slot) const {
  if (slot == v1::SLOT_PARAMETER) return snapshot_ != nullptr ? snapshot_->blocks() : parameters_;
  return view_->slots()[absl::c_find(set_->slots, slot) - set_->slots.begin()];
}

void Reading::ReleaseBefore(v1::Slot slot, int64_t end) {
  if (slot == v1::SLOT_PARAMETER && snapshot_ != nullptr) {
    parameters_ = snapshot_->blocks();
    snapshot_.reset();
  }
  for (int64_t& block = released_[slot]; (block + 1) * kBlockElements <= end; ++block) {
    const int64_t bytes = BlockPool::ChargedBytes(Blocks(slot)[block].size());
    if (slot == v1::SLOT_PARAMETER) {
      parameters_[block] = BlockRef();
    } else {
      view_->Release(absl::c_find(set_->slots, slot) - set_->slots.begin(), block);
    }
    // Last, since it pays for what has gone.
    grant_.ShrinkTo(grant_.bytes() - bytes);
  }
}

void Reading::Visit(v1::Slot slot, int64_t begin, int64_t end,
                    absl::FunctionRef<void(const float* elements, int64_t count)> visit) const {
  const BlockList& blocks = Blocks(slot);
  ForEachRun(begin, end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
    visit(blocks[block].data() + run_begin, run_end - run_begin);
  });
}

absl::Status Reading::Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) const {
  if (holds_) {
    CopyRuns(Blocks(slot), begin, end, to);
    return absl::OkStatus();
  }
  // Steps wait for the mutex meanwhile, and so for no more than a few microseconds at a time.
  constexpr int64_t kCopiedElements = 16384;
  for (; begin < end; begin += kCopiedElements) {
    const int64_t next = std::min(end, begin + kCopiedElements);
    SetRep& set = *set_;
    MutexLock lock(&set.mutex);
    const bool same = set.lifecycle.incarnation() == header_.incarnation() && set.lifecycle.step() == header_.step() &&
                      set.lifecycle.state() == header_.state() && !set.lifecycle.deleted();
    const bool of_optimizer = slot != v1::SLOT_PARAMETER;
    if (!same || (of_optimizer && set.applying) || set.snapshot == nullptr) {
      return set.lifecycle.MakeError(
          absl::StatusCode::kAborted, v1::ERROR_REASON_SNAPSHOT_GONE,
          absl::StrCat("the set has moved on from step ", header_.step(), ", and there was no room to keep that"));
    }
    if (of_optimizer) {
      set.arrays->Copy(slot, begin, next, to);
    } else {
      CopyRuns(set.snapshot->blocks(), begin, next, to);
    }
    to += next - begin;
  }
  return absl::OkStatus();
}

}  // namespace adamant::core
