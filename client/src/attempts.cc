// Exponential backoff with jitter.
#include "client/src/attempts.h"

#include <algorithm>

#include "absl/random/random.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "adamant/error.h"

namespace adamant {
namespace {

bool IsRetryable(const absl::Status& failure) {
  switch (failure.code()) {
    case absl::StatusCode::kUnavailable:
      return true;
    case absl::StatusCode::kResourceExhausted:
      // Without a delay it is gRPC's word for a message that is too large.
      return GetRetryDelay(failure).has_value();
    case absl::StatusCode::kDeadlineExceeded:
      // Ours, that is; the server's own say why, and that this client is too slow would not change.
      return GetErrorDetail(failure).reason() == v1::ERROR_REASON_UNSPECIFIED;
    default:
      return false;
  }
}

absl::Status WithSuffix(const absl::Status& status, absl::string_view suffix) {
  absl::Status longer(status.code(), absl::StrCat(status.message(), suffix));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { longer.SetPayload(url, payload); });
  return longer;
}

}  // namespace

Attempts::Attempts(const ClientOptions* options)
    : options_(*options), begin_(options->now()), backoff_(options->retry.initial_backoff) {}

absl::Duration Attempts::Timeout(absl::Duration timeout) const {
  return std::max(absl::ZeroDuration(), std::min(timeout, options_.retry.total_timeout - Elapsed()));
}

absl::Status Attempts::Next(const absl::Status& failure) {
  if (!IsRetryable(failure)) return failure;
  const RetryPolicy& policy = options_.retry;
  absl::BitGen random;
  const absl::Duration drawn = backoff_ * absl::Uniform(absl::IntervalClosed, random, 1 - policy.jitter, 1.0);
  const absl::Duration wait = std::max(drawn, GetRetryDelay(failure).value_or(absl::ZeroDuration()));
  if (number_ >= policy.max_attempts || Elapsed() + wait >= policy.total_timeout) {
    return WithSuffix(failure,
                      absl::StrCat(" (gave up after ", number_, number_ == 1 ? " attempt" : " attempts", " in ",
                                   absl::FormatDuration(absl::Trunc(Elapsed(), absl::Milliseconds(1))), ")"));
  }
  if (options_.on_wait) options_.on_wait(failure);
  options_.sleep(wait);
  backoff_ = std::min(backoff_ * policy.multiplier, policy.max_backoff);
  ++number_;
  return absl::OkStatus();
}

absl::Duration Attempts::Elapsed() const { return options_.now() - begin_; }

}  // namespace adamant
