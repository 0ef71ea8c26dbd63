// Errors in absl::Status: what goes in comes out.
#include "proto/error/error.h"

#include <optional>

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
    EXPECT_EQ(GetRetryDelay(status), std::nullopt);
  }
}

TEST(ErrorTest, DetailThatIsNoneIsNoDetail) {
  absl::Status status = absl::InternalError("lost");
  status.SetPayload(kErrorDetailUrl, absl::Cord("\xff"));
  status.SetPayload(kRetryInfoUrl, absl::Cord("\xff"));

  EXPECT_EQ(GetErrorDetail(status).SerializeAsString(), "");
  EXPECT_EQ(GetRetryDelay(status), std::nullopt);
}

TEST(RetryDelayTest, IsExactToTheNanosecond) {
  const absl::Status plain = Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "no room");

  for (const absl::Duration delay : {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(250),
                                     absl::Seconds(3) + absl::Nanoseconds(999999999), absl::Hours(24)}) {
    EXPECT_EQ(GetRetryDelay(WithRetryDelay(plain, delay)), delay);
  }
  EXPECT_EQ(GetRetryDelay(plain), std::nullopt);
}

TEST(RetryDelayTest, LeavesTheRestOfTheStatus) {
  const absl::Status plain = Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "no room");

  const absl::Status status = WithRetryDelay(WithRetryDelay(plain, absl::Seconds(1)), absl::Seconds(2));

  EXPECT_EQ(status.code(), plain.code());
  EXPECT_EQ(status.message(), plain.message());
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_EQ(GetRetryDelay(status), absl::Seconds(2));
}

TEST(ErrorTest, AMessageBeginsWithTheFieldThatItIsAbout) {
  EXPECT_EQ(Error(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH, "late", "header.expected_step").message(),
            "`header.expected_step`: late");
  EXPECT_EQ(Error(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH, "late").message(), "late");

  const absl::Status status = InvalidField("page_size", "[0, 1000]", "-1");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "`page_size`: expected [0, 1000], got -1");
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_INVALID_FIELD);
  EXPECT_EQ(GetErrorDetail(status).field(), "page_size");
}

TEST(ErrorTest, WithinPutsAFieldIntoAnother) {
  const absl::Status slot = Within("chunks[3]", InvalidField("slot", "none", "9"));
  EXPECT_EQ(slot.message(), "`chunks[3].slot`: expected none, got 9");
  EXPECT_EQ(GetErrorDetail(slot).field(), "chunks[3].slot");
  EXPECT_EQ(GetErrorDetail(slot).reason(), v1::ERROR_REASON_INVALID_FIELD);

  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE);
  detail.set_tensor(7);
  const absl::Status chunk = Within("chunks[0]", Error(absl::StatusCode::kInvalidArgument, "too long", detail));
  EXPECT_EQ(chunk.message(), "`chunks[0]`: too long");
  EXPECT_EQ(GetErrorDetail(chunk).field(), "chunks[0]");
  EXPECT_EQ(GetErrorDetail(chunk).tensor(), 7);

  EXPECT_TRUE(Within("chunks[0]", absl::OkStatus()).ok());
}

TEST(ErrorTest, WithSetNamesTheSetWhereNoneIsNamed) {
  const absl::Status status = WithRetryDelay(
      Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "no room"), absl::Seconds(1));
  const absl::Status named = WithSet("a", status);
  EXPECT_EQ(GetErrorDetail(named).set(), "a");
  EXPECT_EQ(GetErrorDetail(named).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_EQ(named.message(), "no room");
  EXPECT_EQ(GetRetryDelay(named), absl::Seconds(1));

  EXPECT_EQ(GetErrorDetail(WithSet("b", named)).set(), "a");
  EXPECT_EQ(WithSet("", status), status);
  EXPECT_EQ(WithSet("a", absl::CancelledError("gone")), absl::CancelledError("gone"));
  EXPECT_TRUE(WithSet("a", absl::OkStatus()).ok());
}

TEST(SpellingTest, TextIsQuotedEscapedAndCut) {
  EXPECT_EQ(Quoted("w"), "`w`");
  EXPECT_EQ(Quoted("a\tb\x01"), "`a\\tb\\x01`");
  EXPECT_EQ(Quoted("\xC3\xA9"), "`\xC3\xA9`");
  EXPECT_EQ(Quoted(std::string(100, 'x')), "`" + std::string(100, 'x') + "`");
  EXPECT_EQ(Quoted(std::string(101, 'x')), "`" + std::string(100, 'x') + "...` (101 bytes)");
  EXPECT_EQ(Quoted(std::string(99, 'x') + "\xC3\xA9"), "`" + std::string(99, 'x') + "...` (101 bytes)");
}

TEST(SpellingTest, NumbersAreAsShortAsTheyCanBe) {
  EXPECT_EQ(Spelled(0.001), "0.001");
  EXPECT_EQ(Spelled(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(Spelled(0.001f), "0.001");
  EXPECT_EQ(Spelled(0x1p32), "4294967296");
}

TEST(SpellingTest, EnumsHaveTheNamesThatOneTypes) {
  EXPECT_EQ(EnumName(v1::ERROR_REASON_STALLED), "ERROR_REASON_STALLED");
  EXPECT_EQ(EnumName(static_cast<v1::ErrorReason>(999)), "999");
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
