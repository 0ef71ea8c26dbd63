// A read from its request to its blocks.
#include "server/core/reading.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/parameter_set.h"

namespace adamant::core {
namespace {

// The slots that a request asks for. Error: INVALID_ARGUMENT for one that there is not, or twice.
absl::StatusOr<std::vector<v1::Slot>> RequestedSlots(const v1::ReadTensorsRequest& request) {
  std::vector<v1::Slot> slots;
  for (int i = 0; i < request.slots_size(); ++i) {
    const v1::Slot slot = request.slots(i);
    const bool known = slot == v1::SLOT_PARAMETER || slot == v1::SLOT_EXP_AVG || slot == v1::SLOT_EXP_AVG_SQ;
    if (!known || absl::c_linear_search(slots, slot)) {
      return InvalidField(absl::StrCat("slots[", i, "]"),
                          "SLOT_PARAMETER, SLOT_EXP_AVG or SLOT_EXP_AVG_SQ, each at most once", EnumName(slot));
    }
    slots.push_back(slot);
  }
  if (slots.empty()) slots.push_back(v1::SLOT_PARAMETER);
  return slots;
}

bool IsMoment(v1::Slot slot) { return slot != v1::SLOT_PARAMETER; }

}  // namespace

Reading::Reading(std::shared_ptr<ParameterSet> set) : set_(std::move(set)), schema_(set_->schema_) {}

void ParameterSet::BeginRead(const v1::ReadTensorsRequest& request, ReadDone done) {
  absl::StatusOr<std::vector<v1::Slot>> slots = RequestedSlots(request);
  if (!slots.ok()) {
    done(slots.status());
    return;
  }
  std::unique_ptr<Reading> reading(new Reading(shared_from_this()));
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = CheckExists();
    if (status.ok() && request.has_incarnation()) status = CheckIncarnation(request.incarnation(), "incarnation");
    if (status.ok()) {
      const bool moments = absl::c_any_of(*slots, IsMoment);
      // What was published before a commit failed stays readable.
      if (state_ != v1::PARAMETER_SET_STATE_POISONED || moments) status = CheckReady();
      if (status.ok() && moments && committing_) {
        waiting_reads_.emplace_back([self = shared_from_this(), request, done = std::move(done)]() mutable {
          self->BeginRead(request, std::move(done));
        });
        return;
      }
    }
    if (status.ok()) status = FillReading(request, *std::move(slots), reading.get());
  }
  if (!status.ok()) {
    done(std::move(status));
  } else {
    done(std::move(reading));
  }
}

absl::Status ParameterSet::FillReading(const v1::ReadTensorsRequest& request, std::vector<v1::Slot> slots,
                                       Reading* reading) const {
  reading->header_.set_incarnation(incarnation_);
  reading->header_.set_step(step_);
  reading->header_.set_state(state_);
  if (request.has_if_newer_than_step() && step_ <= request.if_newer_than_step()) {
    reading->header_.set_not_modified(true);
    return absl::OkStatus();
  }
  absl::StatusOr<Grant> grant = resources_.read->TryReserve(ArrayBytes() * static_cast<int64_t>(slots.size()));
  if (!grant.ok() && !request.may_abort()) return grant.status();
  reading->slots_ = std::move(slots);
  if (!grant.ok()) return absl::OkStatus();
  reading->holds_ = true;
  reading->grant_ = *std::move(grant);
  if (absl::c_linear_search(reading->slots_, v1::SLOT_PARAMETER)) reading->snapshot_ = snapshot_;
  if (absl::c_linear_search(reading->slots_, v1::SLOT_EXP_AVG)) reading->exp_avg_ = exp_avg_;
  if (absl::c_linear_search(reading->slots_, v1::SLOT_EXP_AVG_SQ)) reading->exp_avg_sq_ = exp_avg_sq_;
  return absl::OkStatus();
}

absl::StatusOr<BlockList> Reading::Acquire(v1::Slot slot, int64_t begin, int64_t end) const {
  const auto cut = [&](const BlockList& blocks) {
    if (begin == end) return BlockList();
    return BlockList(blocks.begin() + begin / kBlockElements, blocks.begin() + (end - 1) / kBlockElements + 1);
  };
  if (holds_) {
    return cut(slot == v1::SLOT_PARAMETER ? snapshot_->blocks() : slot == v1::SLOT_EXP_AVG ? exp_avg_ : exp_avg_sq_);
  }
  MutexLock lock(&set_->mutex_);
  const bool same = set_->incarnation_ == header_.incarnation() && set_->step_ == header_.step() &&
                    set_->state_ == header_.state() && !set_->deleted_;
  if (!same || (IsMoment(slot) && set_->committing_)) {
    return set_->MakeError(
        absl::StatusCode::kAborted, v1::ERROR_REASON_SNAPSHOT_GONE,
        absl::StrCat("the set has moved on from step ", header_.step(), ", and there was no room to keep that"));
  }
  return cut(slot == v1::SLOT_PARAMETER ? set_->snapshot_->blocks()
             : slot == v1::SLOT_EXP_AVG ? set_->exp_avg_
                                        : set_->exp_avg_sq_);
}

}  // namespace adamant::core
