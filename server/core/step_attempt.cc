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

// What can be said of a header without knowing the set.
absl::Status ValidateHeader(const v1::StepHeader& header) {
  if (header.request_id().empty()) {
    if (header.has_attempt()) {
      return InvalidField("header.attempt", "none without a request_id", absl::StrCat(header.attempt()));
    }
  } else {
    if (absl::Status status = ValidateRequestId(header.request_id(), "header.request_id"); !status.ok()) return status;
    if (!header.has_expected_step()) return InvalidField("header.expected_step", "one with a request_id", "none");
  }
  if (header.has_attempt() && header.attempt() < 1) {
    return InvalidField("header.attempt", "1 or more", absl::StrCat(header.attempt()));
  }
  if (header.has_expected_step() && header.expected_step() < 0) {
    return InvalidField("header.expected_step", "0 or more", absl::StrCat(header.expected_step()));
  }
  return absl::OkStatus();
}

int32_t AttemptNumber(const v1::StepHeader& header) { return header.has_attempt() ? header.attempt() : 1; }

}  // namespace

absl::Status ValidateRequestId(absl::string_view request_id, absl::string_view field) {
  const bool printable = absl::c_all_of(request_id, [](char c) { return c >= ' ' && c <= '~'; });
  if (!request_id.empty() && request_id.size() <= kMaxRequestIdBytes && printable) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("1 to ", kMaxRequestIdBytes, " printable ASCII characters"),
                      request_id.empty() ? "none" : absl::StrCat(request_id.size(), ": ", Quoted(request_id)));
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
                                                     : InvalidField("slot", "none in a gradient", EnumName(slot));
  if (!status.ok()) Cancel();
  return status;
}

absl::Status StepAttempt::CheckComplete() const {
  return staging_.has_value() ? staging_->CheckComplete() : absl::OkStatus();
}

absl::Status StepAttempt::Complete() {
  if (absl::Status status = CheckComplete(); !status.ok()) {
    Cancel();
    return status;
  }
  if (!set_->SetComplete(this)) return absl::OkStatus();
  set_->turns_->Enqueue(
      [set = set_, attempt = shared_from_this()](TurnQueue::Turn turn) { set->StepTurn(attempt, std::move(turn)); });
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
                                    absl::StrCat("a newer attempt of ", Quoted(header.request_id()), " took over"));
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
  if (header.has_incarnation()) status = CheckIncarnation(header.incarnation(), "header.incarnation");
  if (status.ok() && header.has_schema_fingerprint()) {
    status = CheckFingerprint(header.schema_fingerprint(), "header.schema_fingerprint");
  }
  // A step that is ahead of the set may be just in time at its turn.
  if (status.ok() && header.has_expected_step() && header.expected_step() < step_) status = StepMismatch(header);
  if (!status.ok()) return status;

  for (const StepAttempt* other : attempts_) {
    if (!header.request_id().empty() && other->header_.request_id() == header.request_id() &&
        other->state_ != StepAttempt::State::kOver && AttemptNumber(other->header_) > AttemptNumber(header)) {
      return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                       ExpectedGot(absl::StrCat(AttemptNumber(other->header_), " or more, since that attempt of ",
                                                Quoted(header.request_id()), " is under way"),
                                   absl::StrCat(AttemptNumber(header))),
                       "header.attempt");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const ReplayMemory::Entry*> ParameterSet::FindReplay(const StepAttempt& attempt) const {
  const std::string& request_id = attempt.header_.request_id();
  const ReplayMemory::Entry* entry = request_id.empty() ? nullptr : replay_.Find(request_id);
  if (entry != nullptr && entry->header_hash != attempt.header_hash_) {
    return MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED,
                     ExpectedGot("a new one, or the header that it was applied with",
                                 absl::StrCat(Quoted(request_id), " with another header")),
                     "header.request_id");
  }
  return entry;
}

absl::Status ParameterSet::StepMismatch(const v1::StepHeader& header) const {
  // A request that old would not be remembered if it had been applied.
  const bool unknown =
      !header.request_id().empty() && AttemptNumber(header) > 1 && step_ - header.expected_step() > kRememberedSteps;
  return MakeError(absl::StatusCode::kAborted,
                   unknown ? v1::ERROR_REASON_OUTCOME_UNKNOWN : v1::ERROR_REASON_STEP_MISMATCH,
                   absl::StrCat(ExpectedGot(absl::StrCat(step_), absl::StrCat(header.expected_step())),
                                unknown ? "; whether an earlier attempt was applied is not known any more" : ""),
                   "header.expected_step");
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
      StagingBytes(), resources_.admission_wait,
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
