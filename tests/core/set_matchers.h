// What tests of the parameter set say about statuses.
#ifndef ADAMANT_TESTS_CORE_SET_MATCHERS_H_
#define ADAMANT_TESTS_CORE_SET_MATCHERS_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adamant/v1/error.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"

namespace adamant::core {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << "which is " << StatusOf(arg);
  return arg.ok();
}

// An error of that code with that reason.
MATCHER_P2(FailsWith, code, reason, "") {
  const absl::Status& status = StatusOf(arg);
  const v1::ErrorReason actual = GetErrorDetail(status).reason();
  *result_listener << "which is " << status << " with reason " << v1::ErrorReason_Name(actual);
  return status.code() == code && actual == reason;
}

// An INVALID_ARGUMENT that names a place in the gradient.
MATCHER_P3(RefusesChunk, reason, tensor, offset, "") {
  const absl::Status& status = StatusOf(arg);
  const v1::ErrorDetail detail = GetErrorDetail(status);
  *result_listener << "which is " << status << " with " << detail.ShortDebugString();
  return absl::IsInvalidArgument(status) && detail.reason() == reason && detail.tensor() == tensor &&
         detail.offset() == offset;
}

// An INVALID_ARGUMENT that names a field of the request.
MATCHER_P(RefusesField, field, "") {
  const absl::Status& status = StatusOf(arg);
  const v1::ErrorDetail detail = GetErrorDetail(status);
  *result_listener << "which is " << status << " with " << detail.ShortDebugString();
  return absl::IsInvalidArgument(status) && detail.reason() == v1::ERROR_REASON_INVALID_FIELD &&
         detail.field() == field;
}

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SET_MATCHERS_H_
