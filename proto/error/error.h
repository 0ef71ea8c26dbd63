// error.proto inside of absl::Status: how every part of Adamant says what is wrong.
//
// Thread-safe: free functions without state. This is all that server/core knows of errors; the conversion to and from
// gRPC is in proto/wire/status.h.
#ifndef ADAMANT_PROTO_ERROR_ERROR_H_
#define ADAMANT_PROTO_ERROR_ERROR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "adamant/v1/error.pb.h"

namespace adamant {

// Payload type URLs, in an absl::Status and on the wire.
inline constexpr absl::string_view kErrorDetailUrl = "type.googleapis.com/adamant.v1.ErrorDetail";
inline constexpr absl::string_view kRetryInfoUrl = "type.googleapis.com/google.rpc.RetryInfo";

// A status with `detail` as its payload. Requires: `code` is not OK, `detail.reason()` is set.
absl::Status Error(absl::StatusCode code, absl::string_view message, const v1::ErrorDetail& detail);

// The same where the reason says it all, or all but the field.
absl::Status Error(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message,
                   absl::string_view field = "");

// `status` with a RetryInfo: the client may call again after `delay`.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// The detail that a status carries; empty, with reason UNSPECIFIED, if it carries none.
v1::ErrorDetail GetErrorDetail(const absl::Status& status);

// The delay that a status carries, or nothing: then the call is not worth repeating as it is.
absl::optional<absl::Duration> GetRetryDelay(const absl::Status& status);

}  // namespace adamant

#endif  // ADAMANT_PROTO_ERROR_ERROR_H_
