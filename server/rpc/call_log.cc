#include "server/rpc/call_log.h"

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/log.h"

namespace adamant::rpc {

void LogEnd(absl::FunctionRef<std::string()> describe, const absl::Status& status) {
  static RateLimitedLog stalled(LogLevel::kWarning);
  static RateLimitedLog poisoned(LogLevel::kError);
  static RateLimitedLog memory(LogLevel::kWarning);
  static RateLimitedLog places(LogLevel::kWarning);
  switch (GetErrorDetail(status).reason()) {
    case v1::ERROR_REASON_STALLED:
      stalled.Write(absl::StrCat("stalled: ", describe(), ": ", status.message()));
      break;
    case v1::ERROR_REASON_POISONED:
      poisoned.Write(absl::StrCat("poisoned: ", describe(), ": ", status.message()));
      break;
    case v1::ERROR_REASON_BUDGET_EXHAUSTED:
      memory.Write(absl::StrCat("memory is short: ", describe(), ": ", status.message()));
      break;
    case v1::ERROR_REASON_TOO_MANY_STREAMS:
      places.Write(absl::StrCat("places are short: ", describe(), ": ", status.message()));
      break;
    default:
      break;
  }
}

void LogCutOff(absl::string_view description) {
  static RateLimitedLog cut_off(LogLevel::kWarning);
  cut_off.Write(absl::StrCat("cut off in the middle of a message: ", description));
}

}  // namespace adamant::rpc
