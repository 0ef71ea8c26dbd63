#include "proto/error/error.h"

#include <charconv>
#include <optional>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/strip.h"

namespace adamant {
namespace {

// Client's text that a message shows, in bytes.
constexpr size_t kQuotedBytes = 100;

// What a message begins with that is about a field.
std::string FieldPrefix(absl::string_view field) { return field.empty() ? "" : absl::StrCat("`", field, "`: "); }

template <typename Float>
std::string ShortestOf(Float value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
}

template <typename Message>
std::optional<Message> Payload(const absl::Status& status, absl::string_view url) {
  const auto bytes = status.GetPayload(url);
  Message message;
  if (!bytes.has_value() || !message.ParseFromString(std::string(*bytes))) return std::nullopt;
  return message;
}

}  // namespace

absl::Status Error(absl::StatusCode code, absl::string_view message, const v1::ErrorDetail& detail) {
  absl::Status status(code, absl::StrCat(FieldPrefix(detail.field()), message));
  status.SetPayload(kErrorDetailUrl, absl::Cord(detail.SerializeAsString()));
  return status;
}

absl::Status Error(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message, absl::string_view field) {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_field(std::string(field));
  return Error(code, message, detail);
}

std::string ExpectedGot(absl::string_view expected, absl::string_view got) {
  return absl::StrCat("expected ", expected, ", got ", got);
}

absl::Status InvalidField(absl::string_view field, absl::string_view expected, absl::string_view got) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD, ExpectedGot(expected, got), field);
}

absl::Status Within(absl::string_view path, const absl::Status& status) {
  if (status.ok()) return status;
  v1::ErrorDetail detail = GetErrorDetail(status);
  const absl::string_view message = absl::StripPrefix(status.message(), FieldPrefix(detail.field()));
  detail.set_field(detail.field().empty() ? std::string(path) : absl::StrCat(path, ".", detail.field()));
  return Error(status.code(), message, detail);
}

absl::Status WithSet(absl::string_view set, const absl::Status& status) {
  v1::ErrorDetail detail = GetErrorDetail(status);
  if (detail.reason() == v1::ERROR_REASON_UNSPECIFIED || !detail.set().empty() || set.empty()) return status;
  detail.set_set(std::string(set));
  absl::Status result = status;
  result.SetPayload(kErrorDetailUrl, absl::Cord(detail.SerializeAsString()));
  return result;
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

std::optional<absl::Duration> GetRetryDelay(const absl::Status& status) {
  std::optional<v1::RetryInfo> info = Payload<v1::RetryInfo>(status, kRetryInfoUrl);
  if (!info.has_value()) return std::nullopt;
  return absl::Seconds(info->retry_delay().seconds()) + absl::Nanoseconds(info->retry_delay().nanos());
}

std::string Quoted(absl::string_view text) {
  if (text.size() <= kQuotedBytes) return absl::StrCat("`", absl::Utf8SafeCHexEscape(text), "`");
  size_t size = kQuotedBytes;
  while (size > 0 && (text[size] & 0xc0) == 0x80) --size;  // not within a character
  return absl::StrCat("`", absl::Utf8SafeCHexEscape(text.substr(0, size)), "...` (", text.size(), " bytes)");
}

std::string Spelled(double value) { return ShortestOf(value); }

std::string Spelled(float value) { return ShortestOf(value); }

absl::Status Unshared(const absl::Status& status) {
  absl::Status copy(status.code(), status.message());
  status.ForEachPayload([&copy](absl::string_view url, const absl::Cord& payload) {
    copy.SetPayload(url, absl::Cord(std::string(payload)));
  });
  return copy;
}

}  // namespace adamant
