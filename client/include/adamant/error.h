// What the server says is wrong, read out of the absl::Status that a call ended with.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_ERROR_H_
#define ADAMANT_ERROR_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "adamant/v1/error.pb.h"

namespace adamant {

// Reason and place of an error: set, step, tensor, offset, field. Empty, with reason UNSPECIFIED, for an error that did
// not come from the server, such as one of the connection's.
//
//   if (GetErrorDetail(status).reason() == v1::ERROR_REASON_STEP_MISMATCH) ...
v1::ErrorDetail GetErrorDetail(const absl::Status& status);

// How long the server asks to wait before the call is tried again; nothing if it is not worth trying as it is.
// The client has honoured it already: what it returns is what remains after its own retries.
std::optional<absl::Duration> GetRetryDelay(const absl::Status& status);

}  // namespace adamant

#endif  // ADAMANT_ERROR_H_
