// What may go at once and what has to wait, on a clock that the tests move.
#include "server/store/rate_limit.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/manual_clock.h"

namespace adamant::store {
namespace {

class RateLimitTest : public testing::Test {
 protected:
  // Calls Wait on a thread of its own, and returns once that waits.
  std::thread Begin(int64_t bytes, absl::Status* status) {
    const int before = clock_.pending();
    std::thread thread([this, bytes, status] {
      *status = limit_.Wait(bytes);
      ++done_;
    });
    while (clock_.pending() == before) std::this_thread::yield();
    return thread;
  }

  core::ManualClock clock_;
  RateLimit limit_{&clock_, 1000};
  std::atomic<int> done_ = 0;
};

TEST_F(RateLimitTest, TheFirstGoesAtOnceAndTheNextWhenItHasHadItsTime) {
  ASSERT_EQ(limit_.Wait(1000 + 20), absl::OkStatus());  // and what was kept, of 20 ms
  absl::Status status = absl::UnknownError("waits");
  std::thread next = Begin(1, &status);
  clock_.Advance(absl::Seconds(1) - absl::Nanoseconds(1));
  EXPECT_EQ(clock_.pending(), 1);
  EXPECT_EQ(done_, 0);
  clock_.Advance(absl::Nanoseconds(1));
  next.join();
  EXPECT_EQ(status, absl::OkStatus());
}

TEST_F(RateLimitTest, SeveralHaveTheRateTogetherInTheirOrder) {
  ASSERT_EQ(limit_.Wait(1000 + 20), absl::OkStatus());
  std::vector<absl::Status> statuses(2, absl::UnknownError("waits"));
  std::thread first = Begin(500, &statuses[0]);
  std::thread second = Begin(500, &statuses[1]);
  clock_.Advance(absl::Seconds(1));
  first.join();
  EXPECT_EQ(done_, 1);
  EXPECT_EQ(clock_.pending(), 1);
  clock_.Advance(absl::Milliseconds(499));
  EXPECT_EQ(clock_.pending(), 1);
  EXPECT_EQ(done_, 1);
  clock_.Advance(absl::Milliseconds(1));
  second.join();
  EXPECT_THAT(statuses, testing::Each(absl::OkStatus()));
}

TEST_F(RateLimitTest, OfTimeThatNobodyAskedForOnlyTheLastIsKept) {
  ASSERT_EQ(limit_.Wait(1), absl::OkStatus());
  clock_.Advance(absl::Hours(1));
  for (int i = 0; i < 20; ++i) ASSERT_EQ(limit_.Wait(1), absl::OkStatus());
  ASSERT_EQ(limit_.Wait(1), absl::OkStatus());
  absl::Status status;
  std::thread next = Begin(1, &status);
  clock_.Advance(absl::Milliseconds(1));
  next.join();
}

TEST_F(RateLimitTest, AWaitThatTookTooLongIsMadeUpFor) {
  ASSERT_EQ(limit_.Wait(100 + 20), absl::OkStatus());
  absl::Status status;
  std::thread late = Begin(10, &status);
  clock_.Stop(absl::Milliseconds(110));
  clock_.RunDue();
  late.join();
  // At its time, and not 10 ms later.
  EXPECT_EQ(limit_.Wait(10), absl::OkStatus());
}

TEST_F(RateLimitTest, StopEndsEveryWait) {
  ASSERT_EQ(limit_.Wait(1'000'000), absl::OkStatus());
  std::vector<absl::Status> statuses(2);
  std::thread first = Begin(1, &statuses[0]);
  std::thread second = Begin(1, &statuses[1]);
  const absl::Status why = absl::CancelledError("the server shuts down");
  limit_.Stop(why);
  first.join();
  second.join();
  EXPECT_THAT(statuses, testing::Each(why));
  EXPECT_EQ(limit_.Wait(1), why);
  EXPECT_EQ(clock_.pending(), 0);
}

}  // namespace
}  // namespace adamant::store
