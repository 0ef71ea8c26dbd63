// What tests of the store say about statuses.
#ifndef ADAMANT_TESTS_STORE_STORE_MATCHERS_H_
#define ADAMANT_TESTS_STORE_STORE_MATCHERS_H_

#include <gmock/gmock.h>

#include "tests/core/set_matchers.h"

namespace adamant::store {

inline auto IsDamaged() { return core::FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_DAMAGED); }
inline auto IsDiskExhausted() {
  return core::FailsWith(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_DISK_EXHAUSTED);
}
inline auto IsStoreFailed() { return core::FailsWith(absl::StatusCode::kUnavailable, v1::ERROR_REASON_STORE_FAILED); }

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_STORE_MATCHERS_H_
