#include "server/store/errors.h"

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/error/error.h"

namespace adamant::store {

namespace {

absl::Status Exhausted(v1::ErrorReason reason, absl::string_view message) {
  // Neither disks nor limits are cleaned up in milliseconds. Spread out, so that clients who were refused together do
  // not come back together.
  absl::InsecureBitGen random;
  const absl::Duration delay = absl::Seconds(2) * absl::Uniform(random, 0.5, 1.5);
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, reason, message), delay);
}

}  // namespace

absl::Status DiskExhausted(absl::string_view message) { return Exhausted(v1::ERROR_REASON_DISK_EXHAUSTED, message); }

absl::Status FilesExhausted(absl::string_view message) {
  return Exhausted(v1::ERROR_REASON_BUDGET_EXHAUSTED, absl::StrCat(message, ": see ulimit -n"));
}

absl::Status Damaged(absl::string_view message) {
  return Error(absl::StatusCode::kDataLoss, v1::ERROR_REASON_DAMAGED, message);
}

absl::Status StoreFailed(absl::string_view message) {
  return Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_STORE_FAILED, message);
}

bool IsUndone(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsAborted(status) || absl::IsCancelled(status) ||
         absl::IsFailedPrecondition(status);
}

}  // namespace adamant::store
