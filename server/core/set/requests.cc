#include "server/core/set/requests.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "proto/error/error.h"
#include "server/core/base/fingerprint.h"
#include "server/core/set/step_attempt.h"

namespace adamant::core {
namespace {

uint64_t HashMessage(const google::protobuf::MessageLite& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream output(&stream);
    output.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&output);
  }
  Fingerprint fingerprint;
  fingerprint.AddString(bytes);
  return fingerprint.value();
}

// The key of `entry` with this id, or null.
const Requests::Key* FindKey(const Requests::Entry& entry, absl::string_view request_id) {
  const auto found =
      absl::c_find_if(entry.keys, [request_id](const Requests::Key& key) { return key.request_id == request_id; });
  return found != entry.keys.end() ? &*found : nullptr;
}

}  // namespace

absl::Status Requests::Reused(absl::string_view request_id) const {
  return lifecycle_->MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED,
                               ExpectedGot("a new one, or the header that it was sent with before",
                                           absl::StrCat(Quoted(request_id), " with another header")),
                               "header.request_id");
}

absl::StatusOr<const v1::StepResult*> Requests::FindResult(const v1::StepHeader& header, uint64_t header_hash) const {
  if (header.request_id().empty()) return nullptr;
  for (const Entry& entry : steps_) {
    const Key* const key = FindKey(entry, header.request_id());
    if (key == nullptr) continue;
    if (key->header_hash != header_hash) return Reused(header.request_id());
    return &entry.result;
  }
  return nullptr;
}

const v1::StepResult* Requests::FindResult(absl::string_view request_id) const {
  const Entry* const entry = Find(request_id);
  return entry != nullptr ? &entry->result : nullptr;
}

std::shared_ptr<const TensorSelection> Requests::SelectionOf(absl::string_view request_id) const {
  const Entry* const entry = Find(request_id);
  return entry != nullptr ? entry->selection : nullptr;
}

const Requests::Entry* Requests::Find(absl::string_view request_id) const {
  if (request_id.empty()) return nullptr;
  const auto found =
      absl::c_find_if(steps_, [request_id](const Entry& entry) { return FindKey(entry, request_id) != nullptr; });
  return found != steps_.end() ? &*found : nullptr;
}

absl::Status Requests::CheckAttempt(const v1::StepHeader& header) const {
  const auto found = attempts_by_id_.find(header.request_id());
  if (found == attempts_by_id_.end()) return absl::OkStatus();
  for (const StepAttempt* other : found->second) {
    const int32_t number = AttemptNumber(other->header());
    if (other->over() || number <= AttemptNumber(header)) continue;
    return lifecycle_->MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                                 ExpectedGot(absl::StrCat(number, " or more, since that attempt of ",
                                                          Quoted(header.request_id()), " is under way"),
                                             absl::StrCat(AttemptNumber(header))),
                                 "header.attempt");
  }
  return absl::OkStatus();
}

absl::Status Requests::CheckStep(const v1::StepHeader& header, bool may_be_early) const {
  const int64_t step = lifecycle_->step();
  if (step >= kMaxStep) {
    return lifecycle_->MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
                                 absl::StrCat("steps are counted up to ", kMaxStep, ", and a double keeps no more"));
  }
  if (!header.has_expected_step() && !header.has_base_step()) return absl::OkStatus();
  if (absl::Status status = CheckRemembered(header); !status.ok()) return status;
  const bool expects = header.has_expected_step();
  const int64_t named = expects ? header.expected_step() : header.base_step();
  const bool fits = expects ? named == step || (may_be_early && named > step) : named <= step;
  return fits ? absl::OkStatus() : StepMismatch(header, v1::ERROR_REASON_STEP_MISMATCH, "");
}

absl::Status Requests::CheckRemembered(const v1::StepHeader& header) const {
  if (!header.has_expected_step() && !header.has_base_step()) return absl::OkStatus();
  const int64_t named = header.has_expected_step() ? header.expected_step() : header.base_step();
  // A request that old would not be remembered if it had been applied.
  const bool unknown =
      !header.request_id().empty() && AttemptNumber(header) > 1 && lifecycle_->step() - named > kRememberedSteps;
  if (!unknown) return absl::OkStatus();
  return StepMismatch(header, v1::ERROR_REASON_OUTCOME_UNKNOWN,
                      "; whether an earlier attempt was applied is not known any more");
}

absl::Status Requests::StepMismatch(const v1::StepHeader& header, v1::ErrorReason reason,
                                    absl::string_view more) const {
  const bool expects = header.has_expected_step();
  const int64_t named = expects ? header.expected_step() : header.base_step();
  const int64_t step = lifecycle_->step();
  return lifecycle_->MakeError(
      absl::StatusCode::kAborted, reason,
      absl::StrCat(ExpectedGot(expects ? absl::StrCat(step) : absl::StrCat("at most ", step), absl::StrCat(named)),
                   more),
      expects ? "header.expected_step" : "header.base_step");
}

std::vector<std::shared_ptr<StepAttempt>> Requests::Enter(StepAttempt* attempt) {
  std::vector<std::shared_ptr<StepAttempt>> superseded;
  attempts_.insert(attempt);
  const std::string& request_id = attempt->header().request_id();
  if (request_id.empty()) return superseded;
  std::vector<StepAttempt*>& of_request = attempts_by_id_[request_id];
  for (StepAttempt* other : of_request) {
    // A lower one that comes late finds what is remembered, and takes nothing over.
    if (AttemptNumber(other->header()) > AttemptNumber(attempt->header())) continue;
    if (std::shared_ptr<StepAttempt> alive = other->weak_from_this().lock()) superseded.push_back(std::move(alive));
  }
  of_request.push_back(attempt);
  return superseded;
}

void Requests::Leave(StepAttempt* attempt) {
  if (attempts_.erase(attempt) == 0) return;
  const auto found = attempts_by_id_.find(attempt->header().request_id());
  if (found == attempts_by_id_.end()) return;
  std::erase(found->second, attempt);
  if (found->second.empty()) attempts_by_id_.erase(found);
}

bool Requests::IsUnderWay(absl::string_view request_id) const {
  const auto found = attempts_by_id_.find(request_id);
  return found != attempts_by_id_.end() &&
         absl::c_any_of(found->second, [](const StepAttempt* attempt) { return !attempt->over(); });
}

std::vector<std::shared_ptr<StepAttempt>> Requests::FindOutdated() const {
  std::vector<std::shared_ptr<StepAttempt>> outdated;
  for (StepAttempt* attempt : attempts_) {
    if (!lifecycle_->deleted() && attempt->incarnation() == lifecycle_->incarnation()) continue;
    if (std::shared_ptr<StepAttempt> alive = attempt->weak_from_this().lock()) outdated.push_back(std::move(alive));
  }
  return outdated;
}

Requests::Remembrance Requests::Prepare(std::vector<Key> keys, const v1::StepResult& result,
                                        std::shared_ptr<const TensorSelection> selection) {
  Remembrance step;
  step.push_back({std::move(keys), result, std::move(selection)});
  return step;
}

void Requests::Remember(Remembrance step) {
  steps_.splice(steps_.end(), step);
  if (steps_.size() > kRememberedSteps) steps_.pop_front();
}

absl::StatusOr<bool> Requests::IsApplied(const v1::WriteHeader& header) const {
  // Not when what it wrote is lost: then it is to be written again.
  if (header.request_id().empty() || !MadeIncarnation(header.request_id()) || !lifecycle_->CheckReady().ok()) {
    return false;
  }
  if (HashHeader(header) != write_.header_hash) return Reused(header.request_id());
  return true;
}

void Requests::Rewrite(const v1::WriteHeader& header) {
  steps_.clear();
  write_ = {header.request_id(), HashHeader(header)};
}

uint64_t HashHeader(const v1::StepHeader& header) {
  v1::StepHeader request = header;
  request.clear_attempt();
  request.clear_reply_dtype();
  request.clear_omit_parameters();
  return HashMessage(request);
}

uint64_t HashHeader(const v1::WriteHeader& header) { return HashMessage(header); }

absl::Status ValidateRequestId(absl::string_view request_id, absl::string_view field) {
  const bool printable = absl::c_all_of(request_id, [](char c) { return c >= ' ' && c <= '~'; });
  if (!request_id.empty() && request_id.size() <= kMaxRequestIdBytes && printable) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("1 to ", kMaxRequestIdBytes, " printable ASCII characters"),
                      request_id.empty() ? "none" : absl::StrCat(request_id.size(), ": ", Quoted(request_id)));
}

}  // namespace adamant::core
