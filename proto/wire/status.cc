// See status.h.
#include "proto/wire/status.h"

#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/error.pb.h"
#include "proto/error/error.h"

namespace adamant::wire {
namespace {

// Bounds that keep the details below 4 KiB whatever they say: 2,048 + 2 * 512, and less than 300 for all the rest.
constexpr size_t kMessageBytes = 2048;
constexpr size_t kDetailTextBytes = 512;

// The first `size` bytes of UTF-8 text, less the beginning of a character that does not fit.
absl::string_view CutText(absl::string_view text, size_t size) {
  if (size >= text.size()) return text;
  while (size > 0 && (text[size] & 0xc0) == 0x80) --size;
  return text.substr(0, size);
}

// As much of `message` as takes kMessageBytes in the header `grpc-message`, where all but printable ASCII and `%` is
// percent-encoded.
absl::string_view CutMessage(absl::string_view message) {
  size_t size = 0;
  for (size_t encoded = 0; size < message.size(); ++size) {
    const unsigned char c = message[size];
    encoded += absl::ascii_isprint(c) && c != '%' ? 1 : 3;
    if (encoded > kMessageBytes) break;
  }
  return CutText(message, size);
}

void AddDetail(absl::string_view url, std::string value, v1::ErrorStatus* details) {
  google::protobuf::Any* any = details->add_details();
  any->set_type_url(std::string(url));
  any->set_value(std::move(value));
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(CutMessage(status.message()));
  v1::ErrorStatus details;
  details.set_code(status.raw_code());
  details.set_message(message);
  if (status.GetPayload(kErrorDetailUrl).has_value()) {
    v1::ErrorDetail detail = GetErrorDetail(status);
    detail.set_set(std::string(CutText(detail.set(), kDetailTextBytes)));
    detail.set_field(std::string(CutText(detail.field(), kDetailTextBytes)));
    AddDetail(kErrorDetailUrl, detail.SerializeAsString(), &details);
  }
  if (const auto delay = status.GetPayload(kRetryInfoUrl)) {
    AddDetail(kRetryInfoUrl, std::string(*delay), &details);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message, details.SerializeAsString());
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  v1::ErrorStatus details;
  if (!details.ParseFromString(status.error_details())) return result;
  for (const google::protobuf::Any& any : details.details()) {
    result.SetPayload(any.type_url(), absl::Cord(any.value()));
  }
  return result;
}

}  // namespace adamant::wire
