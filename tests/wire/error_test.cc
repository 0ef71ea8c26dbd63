// Errors in absl::Status: what goes in comes out.
#include "proto/error/error.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace adamant {
namespace {

TEST(ErrorTest, CarriesCodeMessageAndDetail) {
  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_STEP_MISMATCH);
  detail.set_set("run/a");
  detail.set_incarnation(0xfedcba9876543210u);
  detail.set_step(0);

  const absl::Status status = Error(absl::StatusCode::kAborted, "the set is at step 0", detail);

  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "the set is at step 0");
  const v1::ErrorDetail carried = GetErrorDetail(status);
  EXPECT_EQ(carried.SerializeAsString(), detail.SerializeAsString());
  EXPECT_TRUE(carried.has_step());
  EXPECT_FALSE(carried.has_tensor());
}

TEST(ErrorTest, TakesAReasonAndAFieldInstead) {
  const absl::Status status = Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD, "beta1 is 1",
                                    "spec.groups[2].adam.beta1");

  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_INVALID_FIELD);
  EXPECT_EQ(GetErrorDetail(status).field(), "spec.groups[2].adam.beta1");
}

TEST(ErrorTest, StatusOfAnotherOriginHasNoDetailAndNoDelay) {
  for (const absl::Status& status : {absl::OkStatus(), absl::InternalError("lost")}) {
    EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_UNSPECIFIED);
    EXPECT_EQ(GetRetryDelay(status), absl::nullopt);
  }
}

TEST(ErrorTest, DetailThatIsNoneIsNoDetail) {
  absl::Status status = absl::InternalError("lost");
  status.SetPayload(kErrorDetailUrl, absl::Cord("\xff"));
  status.SetPayload(kRetryInfoUrl, absl::Cord("\xff"));

  EXPECT_EQ(GetErrorDetail(status).SerializeAsString(), "");
  EXPECT_EQ(GetRetryDelay(status), absl::nullopt);
}

TEST(RetryDelayTest, IsExactToTheNanosecond) {
  const absl::Status plain = Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "no room");

  for (const absl::Duration delay : {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(250),
                                     absl::Seconds(3) + absl::Nanoseconds(999999999), absl::Hours(24)}) {
    EXPECT_EQ(GetRetryDelay(WithRetryDelay(plain, delay)), delay);
  }
  EXPECT_EQ(GetRetryDelay(plain), absl::nullopt);
}

TEST(RetryDelayTest, LeavesTheRestOfTheStatus) {
  const absl::Status plain = Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "no room");

  const absl::Status status = WithRetryDelay(WithRetryDelay(plain, absl::Seconds(1)), absl::Seconds(2));

  EXPECT_EQ(status.code(), plain.code());
  EXPECT_EQ(status.message(), plain.message());
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_EQ(GetRetryDelay(status), absl::Seconds(2));
}

// The type URLs are the protocol: clients of other languages look for these very strings.
TEST(ErrorTest, PayloadsHaveTheStandardTypeUrls) {
  const absl::Status status =
      WithRetryDelay(Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING, "bye"), absl::Seconds(1));

  EXPECT_TRUE(status.GetPayload("type.googleapis.com/adamant.v1.ErrorDetail").has_value());
  EXPECT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.RetryInfo").has_value());
}

}  // namespace
}  // namespace adamant
