// Checks of numbers that come from a client.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_CORE_SPEC_RANGE_H_
#define ADAMANT_SERVER_CORE_SPEC_RANGE_H_

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"

namespace adamant::core {

// Whether `value` is in [lowest, highest], all three as the kernels will see them: rounded to float. A NaN is outside
// of every range. Error: INVALID_ARGUMENT (INVALID_FIELD) naming `field`.
inline absl::Status ValidateRange(double value, double lowest, double highest, absl::string_view field) {
  const float rounded = static_cast<float>(value);
  if (rounded >= static_cast<float>(lowest) && rounded <= static_cast<float>(highest)) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("[", Spelled(lowest), ", ", Spelled(highest), "]"), Spelled(value));
}

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_RANGE_H_
