// What the log says of calls, for an operator: those that ended because of the server's limits or of a set's state, and
// those that were cut off.
//
// Thread-safe: free functions. Lines of each kind are rate-limited.
#ifndef ADAMANT_SERVER_RPC_CALL_LOG_H_
#define ADAMANT_SERVER_RPC_CALL_LOG_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace adamant::rpc {

// Logs that the call that `describe` names ended with the error `status`, if its reason is one of STALLED, POISONED,
// BUDGET_EXHAUSTED and TOO_MANY_STREAMS.
void LogEnd(absl::FunctionRef<std::string()> describe, const absl::Status& status);

// Logs that the call was cut off in the middle of a message.
void LogCutOff(absl::string_view description);

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_CALL_LOG_H_
