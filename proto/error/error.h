// error.proto inside of absl::Status: how every part of Adamant says what is wrong.
//
// Thread-safe: free functions without state. This is all that server/core knows of errors; the conversion to and from
// gRPC is in proto/wire/status.h.
#ifndef ADAMANT_PROTO_ERROR_ERROR_H_
#define ADAMANT_PROTO_ERROR_ERROR_H_

#include <google/protobuf/generated_enum_reflection.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "adamant/v1/error.pb.h"

namespace adamant {

// Payload type URLs, in an absl::Status and on the wire.
inline constexpr absl::string_view kErrorDetailUrl = "type.googleapis.com/adamant.v1.ErrorDetail";
inline constexpr absl::string_view kRetryInfoUrl = "type.googleapis.com/google.rpc.RetryInfo";

// A status with `detail` as its payload. Where `detail` has a field, the status's message is "`field`: message".
// Requires: `code` is not OK, `detail.reason()` is set.
absl::Status Error(absl::StatusCode code, absl::string_view message, const v1::ErrorDetail& detail);

// The same where the reason says it all, or all but the field.
absl::Status Error(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message,
                   absl::string_view field = "");

// "expected EXPECTED, got GOT": what a message says of a value. `got` is always the client's, `expected` the server's.
std::string ExpectedGot(absl::string_view expected, absl::string_view got);

// INVALID_ARGUMENT (INVALID_FIELD): "`field`: expected EXPECTED, got GOT".
absl::Status InvalidField(absl::string_view field, absl::string_view expected, absl::string_view got);

// `status`, made by Error, as an error within `path`: its field and its message name `path.field`, or `path` where it
// has no field. OK stays OK.
absl::Status Within(absl::string_view path, const absl::Status& status);

// `status` with the name of the set that the request was about in its detail, unless it has no detail, or names a set
// already. OK stays OK.
absl::Status WithSet(absl::string_view set, const absl::Status& status);

// `status` with a RetryInfo: the client may call again after `delay`.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// The detail that a status carries; empty, with reason UNSPECIFIED, if it carries none.
v1::ErrorDetail GetErrorDetail(const absl::Status& status);

// The delay that a status carries, or nothing: then the call is not worth repeating as it is.
std::optional<absl::Duration> GetRetryDelay(const absl::Status& status);

// How messages spell what a client sent.

// Text, in backticks, with what is not printable escaped; cut after 100 bytes.
std::string Quoted(absl::string_view text);

// The shortest number that reads back as the same value.
std::string Spelled(double value);
std::string Spelled(float value);

// A copy of `status` that shares no memory with it. For statuses that go to several threads: ThreadSanitizer does not
// see the reference counts of Debian's Abseil, and takes their last one for a race.
absl::Status Unshared(const absl::Status& status);

// The name of an enum's value as one types it, such as WRITE_MODE_FULL; one that this version does not know is a
// number.
template <typename Enum>
std::string EnumName(Enum value) {
  const auto* known = google::protobuf::GetEnumDescriptor<Enum>()->FindValueByNumber(value);
  return known != nullptr ? known->name() : absl::StrCat(static_cast<int>(value));
}

}  // namespace adamant

#endif  // ADAMANT_PROTO_ERROR_ERROR_H_
