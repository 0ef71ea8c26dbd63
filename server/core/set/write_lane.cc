#include "server/core/set/write_lane.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/set/requests.h"
#include "server/core/set/write_attempt.h"

namespace adamant::core {

absl::StatusOr<WriteLane::Attempts> WriteLane::WaitBehind(WriteAttempt* attempt) {
  const std::string& request_id = attempt->header().request_id();
  Attempts older;
  for (WriteAttempt* one : {current_, next_}) {
    if (one == nullptr || one->over()) continue;
    if (request_id.empty() || one->header().request_id() != request_id) {
      return lifecycle_->MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS,
                                   "another write is under way");
    }
    if (HashHeader(one->header()) != HashHeader(attempt->header())) {
      return lifecycle_->MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED,
                                   ExpectedGot("a new one, or the header that it is under way with",
                                               absl::StrCat(Quoted(request_id), " with another header")),
                                   "header.request_id");
    }
    if (std::shared_ptr<WriteAttempt> alive = one->weak_from_this().lock()) older.push_back(std::move(alive));
  }
  next_ = attempt;
  return older;
}

bool WriteLane::Leave(WriteAttempt* attempt, std::shared_ptr<WriteAttempt>* next) {
  if (next_ == attempt) next_ = nullptr;
  if (current_ != attempt) return false;
  if (next_ != nullptr) *next = next_->weak_from_this().lock();
  current_ = next->get();
  next_ = nullptr;
  return true;
}

WriteLane::Attempts WriteLane::All() const {
  Attempts all;
  for (WriteAttempt* attempt : attempts_) {
    if (std::shared_ptr<WriteAttempt> alive = attempt->weak_from_this().lock()) all.push_back(std::move(alive));
  }
  return all;
}

}  // namespace adamant::core
