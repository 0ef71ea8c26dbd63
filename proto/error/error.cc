#include "proto/error/error.h"

#include <string>

#include "absl/strings/cord.h"

namespace adamant {
namespace {

template <typename Message>
absl::optional<Message> Payload(const absl::Status& status, absl::string_view url) {
  absl::optional<absl::Cord> bytes = status.GetPayload(url);
  Message message;
  if (!bytes.has_value() || !message.ParseFromString(std::string(*bytes))) return absl::nullopt;
  return message;
}

}  // namespace

absl::Status Error(absl::StatusCode code, absl::string_view message, const v1::ErrorDetail& detail) {
  absl::Status status(code, message);
  status.SetPayload(kErrorDetailUrl, absl::Cord(detail.SerializeAsString()));
  return status;
}

absl::Status Error(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message, absl::string_view field) {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_field(std::string(field));
  return Error(code, message, detail);
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  v1::RetryInfo info;
  absl::Duration rest;
  info.mutable_retry_delay()->set_seconds(absl::IDivDuration(delay, absl::Seconds(1), &rest));
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  status.SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

v1::ErrorDetail GetErrorDetail(const absl::Status& status) {
  return Payload<v1::ErrorDetail>(status, kErrorDetailUrl).value_or(v1::ErrorDetail());
}

absl::optional<absl::Duration> GetRetryDelay(const absl::Status& status) {
  absl::optional<v1::RetryInfo> info = Payload<v1::RetryInfo>(status, kRetryInfoUrl);
  if (!info.has_value()) return absl::nullopt;
  return absl::Seconds(info->retry_delay().seconds()) + absl::Nanoseconds(info->retry_delay().nanos());
}

}  // namespace adamant
