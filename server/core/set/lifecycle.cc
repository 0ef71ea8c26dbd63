#include "server/core/set/lifecycle.h"

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::core {

absl::Status Lifecycle::CheckExists() const {
  if (!deleted_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND, "the set was deleted");
}

absl::Status Lifecycle::CheckReady() const {
  if (absl::Status status = CheckNotPoisoned(); !status.ok()) return status;
  if (state_ == v1::PARAMETER_SET_STATE_READY) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_UNINITIALIZED, "the set awaits a write");
}

absl::Status Lifecycle::CheckNotPoisoned() const {
  if (absl::Status status = CheckExists(); !status.ok()) return status;
  if (state_ != v1::PARAMETER_SET_STATE_POISONED) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED,
                   absl::StrCat(poison_, "; the set awaits a full write"));
}

absl::Status Lifecycle::CheckIncarnation(uint64_t demanded, absl::string_view field) const {
  if (demanded == incarnation_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH,
                   ExpectedGot(absl::StrCat(incarnation_), absl::StrCat(demanded)), field);
}

absl::Status Lifecycle::CheckFingerprint(uint64_t demanded, absl::string_view field) const {
  if (demanded == fingerprint_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_SCHEMA_MISMATCH,
                   ExpectedGot(absl::StrCat(fingerprint_), absl::StrCat(demanded)), field);
}

absl::Status Lifecycle::MakeError(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message,
                                  absl::string_view field) const {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_set(name_);
  detail.set_incarnation(incarnation_);
  detail.set_step(step_);
  detail.set_field(std::string(field));
  return Error(code, absl::StrCat(message, " (set ", Quoted(name_), ")"), detail);
}

absl::Status Lifecycle::Rewritten() const {
  return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH, "the set was written meanwhile");
}

void Lifecycle::Poison(std::string why) {
  poison_ = std::move(why);
  state_ = v1::PARAMETER_SET_STATE_POISONED;
  slots_valid_ = false;
}

void Lifecycle::BeginRewrite(bool full) {
  state_ = v1::PARAMETER_SET_STATE_UNINITIALIZED;
  if (full) slots_valid_ = false;
}

void Lifecycle::Rewrite(uint64_t incarnation, std::optional<int64_t> step) {
  incarnation_ = incarnation;
  state_ = v1::PARAMETER_SET_STATE_READY;
  if (!step.has_value()) return;
  step_ = *step;
  slots_valid_ = true;
}

}  // namespace adamant::core
