// A step from its header to the moment in which it is complete.
#include "server/core/step_attempt.h"

#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/attempt_life.h"
#include "server/core/parameter_set.h"

namespace adamant::core {
namespace {

absl::Status InvalidField(absl::string_view message, absl::string_view field) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD, message, field);
}

// What can be said of a header without knowing the set.
absl::Status ValidateHeader(const v1::StepHeader& header) {
  if (header.request_id().empty()) {
    if (header.has_attempt()) return InvalidField("attempt: needs a request_id", "header.attempt");
  } else {
    if (absl::Status status = ValidateRequestId(header.request_id(), "header.request_id"); !status.ok()) return status;
    if (!header.has_expected_step()) {
      return InvalidField("expected_step: a request_id needs one", "header.expected_step");
    }
  }
  if (header.has_attempt() && header.attempt() < 1) {
    return InvalidField(absl::StrCat("attempt: expected 1 or more, got ", header.attempt()), "header.attempt");
  }
  if (header.has_expected_step() && header.expected_step() < 0) {
    return InvalidField(absl::StrCat("expected_step: expected 0 or more, got ", header.expected_step()),
                        "header.expected_step");
  }
  return absl::OkStatus();
}

int32_t AttemptNumber(const v1::StepHeader& header) { return header.has_attempt() ? header.attempt() : 1; }

}  // namespace

absl::Status ValidateRequestId(absl::string_view request_id, absl::string_view field) {
  const bool printable = absl::c_all_of(request_id, [](char c) { return c >= ' ' && c <= '~'; });
  if (!request_id.empty() && request_id.size() <= kMaxRequestIdBytes && printable) return absl::OkStatus();
  return InvalidField(absl::StrCat("request_id: expected 1 to ", kMaxRequestIdBytes,
                                   " printable ASCII characters, got ", request_id.size(), " bytes"),
                      field);
}

StepAttempt::StepAttempt(std::shared_ptr<ParameterSet> set, const v1::StepHeader& header,
                         std::shared_ptr<StepListener> listener)
    : set_(std::move(set)), header_(header), header_hash_(HashHeader(header)), listener_(std::move(listener)) {}

StepAttempt::~StepAttempt() {
  MutexLock lock(&set_->mutex_);
  set_->attempts_.erase(this);
}

void StepAttempt::Start() { set_->BeginStep(shared_from_this()); }

absl::Status StepAttempt::Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy) {
  if (!staging_.has_value()) return absl::OkStatus();
  absl::Status status = slot == v1::SLOT_UNSPECIFIED ? staging_->Add(tensor, offset, count, copy)
                                                     : InvalidField("slot: a gradient has none", "chunks.slot");
  if (!status.ok()) Cancel();
  return status;
}

absl::Status StepAttempt::CheckComplete() const {
  return staging_.has_value() ? staging_->CheckComplete() : absl::OkStatus();
}

const std::string& StepAttempt::set_name() const { return set_->name(); }

absl::Status StepAttempt::Complete() {
  if (absl::Status status = CheckComplete(); !status.ok()) {
    Cancel();
    return status;
  }
  if (!set_->SetComplete(this)) return absl::OkStatus();
  set_->Enqueue([set = set_, attempt = shared_from_this()] { return set->StepTurn(attempt); });
  return absl::OkStatus();
}

void StepAttempt::Cancel() { set_->Withdraw(this); }

std::shared_ptr<StepAttempt> ParameterSet::NewStep(const v1::StepHeader& header,
                                                   std::shared_ptr<StepListener> listener) {
  // Not std::make_shared: the constructor is private.
  return std::shared_ptr<StepAttempt>(new StepAttempt(shared_from_this(), header, std::move(listener)));
}

void ParameterSet::BeginStep(const std::shared_ptr<StepAttempt>& attempt) {
  const v1::StepHeader& header = attempt->header_;
  std::vector<std::shared_ptr<StepAttempt>> superseded;
  absl::Status superseded_status;
  absl::Status status = ValidateHeader(header);
  if (status.ok()) {
    MutexLock lock(&mutex_);
    status = CheckStepHeader(*attempt);
    if (status.ok()) {
      attempt->incarnation_ = incarnation_;
      superseded = FindSuperseded(*attempt);
      superseded_status = MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                                    absl::StrCat("request_id ", header.request_id(), ": a newer attempt took over"));
      attempts_.insert(attempt.get());
    }
  }
  if (!status.ok()) {
    End(attempt.get(), std::move(status));
    return;
  }
  // One that is complete commits first, and the newer one finds its result.
  for (const std::shared_ptr<StepAttempt>& older : superseded) {
    End(older.get(), superseded_status, Ending::kUnlessComplete);
  }
  Admit(attempt);
}

absl::Status ParameterSet::CheckStepHeader(const StepAttempt& attempt) const {
  const v1::StepHeader& header = attempt.header_;
  if (absl::Status status = CheckReady(); !status.ok()) return status;
  absl::StatusOr<const ReplayMemory::Entry*> replay = FindReplay(attempt);
  if (!replay.ok()) return replay.status();
  if (*replay != nullptr) return absl::OkStatus();

  absl::Status status;
  if (header.has_incarnation()) status = CheckIncarnation(header.incarnation());
  if (status.ok() && header.has_schema_fingerprint()) status = CheckFingerprint(header.schema_fingerprint());
  // A step that is ahead of the set may be just in time at its turn.
  if (status.ok() && header.has_expected_step() && header.expected_step() < step_) status = StepMismatch(header);
  if (!status.ok()) return status;

  for (const StepAttempt* other : attempts_) {
    if (!header.request_id().empty() && other->header_.request_id() == header.request_id() &&
        other->state_ != StepAttempt::State::kOver && AttemptNumber(other->header_) > AttemptNumber(header)) {
      return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                       absl::StrCat("request_id ", header.request_id(), ": attempt ", AttemptNumber(other->header_),
                                    " is under way, this is attempt ", AttemptNumber(header)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const ReplayMemory::Entry*> ParameterSet::FindReplay(const StepAttempt& attempt) const {
  const std::string& request_id = attempt.header_.request_id();
  const ReplayMemory::Entry* entry = request_id.empty() ? nullptr : replay_.Find(request_id);
  if (entry != nullptr && entry->header_hash != attempt.header_hash_) {
    return MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED,
                     absl::StrCat("request_id ", request_id, " was applied before, with another header"));
  }
  return entry;
}

absl::Status ParameterSet::StepMismatch(const v1::StepHeader& header) const {
  // A request that old would not be remembered if it had been applied.
  const bool unknown =
      !header.request_id().empty() && AttemptNumber(header) > 1 && step_ - header.expected_step() > kRememberedSteps;
  return MakeError(absl::StatusCode::kAborted,
                   unknown ? v1::ERROR_REASON_OUTCOME_UNKNOWN : v1::ERROR_REASON_STEP_MISMATCH,
                   absl::StrCat("expected_step ", header.expected_step(), ", but the set is at step ", step_,
                                unknown ? ": whether an earlier attempt was applied is not known any more" : ""));
}

std::vector<std::shared_ptr<StepAttempt>> ParameterSet::FindSuperseded(const StepAttempt& by) const {
  std::vector<std::shared_ptr<StepAttempt>> superseded;
  if (by.header_.request_id().empty()) return superseded;
  for (StepAttempt* other : attempts_) {
    if (other->header_.request_id() != by.header_.request_id()) continue;
    if (std::shared_ptr<StepAttempt> alive = other->weak_from_this().lock()) superseded.push_back(std::move(alive));
  }
  return superseded;
}

void ParameterSet::Admit(const std::shared_ptr<StepAttempt>& attempt) {
  if (IsSmall()) {
    Admitted(attempt, Grant());
    return;
  }
  const Budget::WaitId wait = resources_.inflight->Reserve(
      ArrayBytes(), resources_.admission_wait,
      [this, attempt](absl::StatusOr<Grant> grant) { Admitted(attempt, std::move(grant)); });
  SetWait(attempt.get(), wait);
}

void ParameterSet::Admitted(const std::shared_ptr<StepAttempt>& attempt, absl::StatusOr<Grant> grant) {
  if (!grant.ok()) {
    End(attempt.get(), std::move(grant).status());
    return;
  }
  bool replay;
  {
    MutexLock lock(&mutex_);
    replay = !attempt->header_.request_id().empty() && replay_.Find(attempt->header_.request_id()) != nullptr;
  }
  if (!replay) {
    absl::StatusOr<BlockList> blocks = resources_.pool->Take(schema_->flat_size());
    if (!blocks.ok()) {
      End(attempt.get(), std::move(blocks).status());
      return;
    }
    attempt->staging_.emplace(schema_, *std::move(blocks), resources_.backend->measure());
  }
  attempt->grant_ = *std::move(grant);
  SetAdmitted(attempt.get());
}

}  // namespace adamant::core
