// Which failures are followed by another attempt, when, and when no more.
#include "client/src/attempts.h"

#include <vector>

#include "adamant/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"

namespace adamant {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

class AttemptsTest : public ::testing::Test {
 protected:
  AttemptsTest() {
    options_.now = [this] { return now_; };
    options_.sleep = [this](absl::Duration wait) {
      waits_.push_back(wait);
      now_ += wait;
    };
    options_.retry.jitter = 0;
    options_.retry.initial_backoff = absl::Milliseconds(100);
    options_.retry.max_backoff = absl::Seconds(1);
    options_.retry.multiplier = 3;
    options_.retry.max_attempts = 6;
    options_.retry.total_timeout = absl::Minutes(1);
  }

  // Whether a first attempt that ended so is followed by another.
  bool IsRepeated(const absl::Status& failure) { return Attempts(&options_).Next(failure).ok(); }

  ClientOptions options_;
  absl::Duration now_ = absl::Hours(5);
  std::vector<absl::Duration> waits_;
};

TEST_F(AttemptsTest, WaitsLongerEachTimeUpToTheMaximumUntilAttemptsAreUsedUp) {
  Attempts attempts(&options_);
  while (attempts.Next(absl::UnavailableError("gone")).ok()) {
  }
  EXPECT_EQ(attempts.number(), 6);
  EXPECT_THAT(waits_, ElementsAre(absl::Milliseconds(100), absl::Milliseconds(300), absl::Milliseconds(900),
                                  absl::Seconds(1), absl::Seconds(1)));
}

TEST_F(AttemptsTest, LastErrorSaysHowLongItWasTriedAndKeepsItsDetails) {
  options_.retry.max_attempts = 2;
  Attempts attempts(&options_);
  const absl::Status failure = Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING, "draining");
  ASSERT_TRUE(attempts.Next(failure).ok());

  const absl::Status last = attempts.Next(failure);

  EXPECT_EQ(last.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(last.message(), "draining (gave up after 2 attempts in 100ms)");
  EXPECT_EQ(GetErrorDetail(last).reason(), v1::ERROR_REASON_DRAINING);
}

TEST_F(AttemptsTest, JitterShortensWaitsByNoMoreThanItsShare) {
  options_.retry.jitter = 0.25;
  options_.retry.initial_backoff = options_.retry.max_backoff = absl::Seconds(1);
  options_.retry.max_attempts = 50;
  Attempts attempts(&options_);
  while (attempts.Next(absl::UnavailableError("gone")).ok()) {
  }
  EXPECT_THAT(waits_, Each(AllOf(Ge(absl::Milliseconds(750)), Le(absl::Seconds(1)))));
  EXPECT_NE(waits_.front(), waits_.back());
}

TEST_F(AttemptsTest, TellsWhyItWaitsBeforeItDoes) {
  std::vector<absl::Status> reasons;
  options_.on_wait = [&](const absl::Status& reason) {
    EXPECT_THAT(waits_, SizeIs(reasons.size()));
    reasons.push_back(reason);
  };
  options_.retry.max_attempts = 2;
  Attempts attempts(&options_);
  ASSERT_TRUE(attempts.Next(absl::UnavailableError("gone")).ok());
  ASSERT_FALSE(attempts.Next(absl::UnavailableError("gone for good")).ok());
  EXPECT_THAT(reasons, ElementsAre(absl::UnavailableError("gone")));
}

TEST_F(AttemptsTest, GivesUpRatherThanWaitBeyondTheTotalTimeout) {
  options_.retry.total_timeout = absl::Seconds(1);
  Attempts attempts(&options_);
  ASSERT_TRUE(attempts.Next(absl::UnavailableError("gone")).ok());
  ASSERT_TRUE(attempts.Next(absl::UnavailableError("gone")).ok());

  const absl::Status last = attempts.Next(absl::UnavailableError("gone"));

  EXPECT_THAT(std::string(last.message()), HasSubstr("gave up after 3 attempts in 400ms"));
}

TEST_F(AttemptsTest, AttemptGetsWhatIsLeftOfTheTotalTimeout) {
  options_.retry.total_timeout = absl::Seconds(10);
  const Attempts attempts(&options_);
  EXPECT_EQ(attempts.Timeout(absl::Seconds(4)), absl::Seconds(4));
  now_ += absl::Seconds(7);
  EXPECT_EQ(attempts.Timeout(absl::Seconds(4)), absl::Seconds(3));
  now_ += absl::Seconds(7);
  EXPECT_EQ(attempts.Timeout(absl::Seconds(4)), absl::ZeroDuration());
}

TEST_F(AttemptsTest, ExhaustedResourcesAreWaitedForOnlyWhenTheServerSaysHowLong) {
  const absl::Status full = Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "full");
  EXPECT_FALSE(IsRepeated(full));
  EXPECT_THAT(waits_, ElementsAre());
  EXPECT_TRUE(IsRepeated(WithRetryDelay(full, absl::Seconds(3))));
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(3)));
}

TEST_F(AttemptsTest, ServersDelayDoesNotShortenABackoff) {
  EXPECT_TRUE(IsRepeated(WithRetryDelay(absl::UnavailableError("later"), absl::Milliseconds(1))));
  EXPECT_THAT(waits_, ElementsAre(absl::Milliseconds(100)));
}

TEST_F(AttemptsTest, OwnTimeoutIsRepeatedAndTheServersIsNot) {
  EXPECT_TRUE(IsRepeated(absl::DeadlineExceededError("no answer")));
  EXPECT_FALSE(IsRepeated(Error(absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED, "too slow")));
}

TEST_F(AttemptsTest, EverythingElseIsReturnedAsItIs) {
  for (absl::StatusCode code :
       {absl::StatusCode::kAborted, absl::StatusCode::kInvalidArgument, absl::StatusCode::kNotFound,
        absl::StatusCode::kAlreadyExists, absl::StatusCode::kFailedPrecondition, absl::StatusCode::kDataLoss,
        absl::StatusCode::kInternal, absl::StatusCode::kUnimplemented, absl::StatusCode::kCancelled,
        absl::StatusCode::kUnknown}) {
    const absl::Status failure(code, "no");
    EXPECT_EQ(Attempts(&options_).Next(failure), failure);
  }
  EXPECT_THAT(waits_, ElementsAre());
}

}  // namespace
}  // namespace adamant
