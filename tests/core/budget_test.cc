// Grants, the queue behind them, and what becomes of those who give up.
#include "server/core/budget.h"

#include <atomic>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "tests/core/manual_clock.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kWait = absl::Seconds(1);

class BudgetTest : public ::testing::Test {
 protected:
  // What a reservation got.
  struct Outcome {
    int calls = 0;
    std::optional<absl::StatusOr<Grant>> result;
  };

  Budget::WaitId Reserve(int64_t bytes, Outcome* outcome) {
    return budget_.Reserve(bytes, kWait, [outcome](absl::StatusOr<Grant> result) {
      ++outcome->calls;
      outcome->result = std::move(result);
    });
  }

  Grant Take(int64_t bytes) { return *budget_.TryReserve(bytes); }

  ManualClock clock_;
  Budget budget_{"inflight", 100, &clock_};
};

bool Granted(const std::optional<absl::StatusOr<Grant>>& result) { return result.has_value() && result->ok(); }

TEST_F(BudgetTest, AGrantHoldsItsBytesUntilItEnds) {
  {
    absl::StatusOr<Grant> grant = budget_.TryReserve(60);
    ASSERT_TRUE(grant.ok());
    EXPECT_EQ(grant->bytes(), 60);
    EXPECT_EQ(budget_.used(), 60);
  }
  EXPECT_EQ(budget_.used(), 0);
}

TEST_F(BudgetTest, AGrantThatShrinksGivesTheRestToThoseWhoWait) {
  Grant grant = Take(100);
  Outcome outcome;
  Reserve(60, &outcome);
  grant.ShrinkTo(200);
  EXPECT_EQ(grant.bytes(), 100);
  grant.ShrinkTo(30);
  EXPECT_EQ(grant.bytes(), 30);
  clock_.RunDue();
  EXPECT_TRUE(Granted(outcome.result));
  EXPECT_EQ(budget_.used(), 90);
}

TEST_F(BudgetTest, AMovedGrantHoldsItsBytesOnce) {
  Grant first = Take(60);
  Grant second(std::move(first));
  EXPECT_EQ(first.bytes(), 0);  // NOLINT: a moved grant is empty
  EXPECT_EQ(second.bytes(), 60);
  EXPECT_EQ(budget_.used(), 60);

  Grant third = Take(30);
  third = std::move(second);
  EXPECT_EQ(third.bytes(), 60);
  EXPECT_EQ(budget_.used(), 60) << "the 30 bytes that were held before are free";

  Grant& same = third;
  third = std::move(same);
  EXPECT_EQ(third.bytes(), 60);
  EXPECT_EQ(budget_.used(), 60);

  third = Grant();
  EXPECT_EQ(budget_.used(), 0);
}

TEST_F(BudgetTest, AllOfTheCapacityCanBeHad) {
  const Grant grant = Take(100);
  EXPECT_EQ(budget_.used(), 100);
  EXPECT_FALSE(budget_.TryReserve(1).ok());
  EXPECT_TRUE(budget_.TryReserve(0).ok());
}

TEST_F(BudgetTest, WhatDoesNotFitNowIsRefusedWithTheNumbersAndADelay) {
  const Grant grant = Take(70);
  const absl::Status status = budget_.TryReserve(31).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_THAT(std::string(status.message()), HasSubstr("31 bytes"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("`inflight`: 70 of 100 bytes"));
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  EXPECT_EQ(budget_.used(), 70);
}

TEST_F(BudgetTest, RetryDelaysDiffer) {
  const Grant grant = Take(100);
  std::set<absl::Duration> delays;
  for (int i = 0; i < 20; ++i) {
    const absl::Duration delay = GetRetryDelay(budget_.TryReserve(1).status()).value();
    EXPECT_GE(delay, absl::Milliseconds(100));
    EXPECT_LE(delay, absl::Milliseconds(300));
    delays.insert(delay);
  }
  EXPECT_GT(delays.size(), 1u);
}

TEST_F(BudgetTest, WhatCanNeverFitIsRefusedForGood) {
  const absl::Status status = budget_.TryReserve(101).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_TOO_LARGE);
  EXPECT_FALSE(GetRetryDelay(status).has_value());

  Outcome outcome;
  EXPECT_EQ(Reserve(101, &outcome), Budget::kNoWait);
  ASSERT_EQ(outcome.calls, 1);
  EXPECT_EQ(GetErrorDetail(outcome.result->status()).reason(), v1::ERROR_REASON_TOO_LARGE);
}

TEST_F(BudgetTest, AReservationThatFitsIsGrantedAtOnce) {
  Outcome outcome;
  EXPECT_EQ(Reserve(100, &outcome), Budget::kNoWait);
  ASSERT_TRUE(Granted(outcome.result));
  EXPECT_EQ((*outcome.result)->bytes(), 100);
  EXPECT_EQ(clock_.pending(), 0);
}

TEST_F(BudgetTest, AWaitingReservationIsGrantedFromTheClockWhenRoomIsMade) {
  Grant holder = Take(60);
  Outcome outcome;
  EXPECT_NE(Reserve(50, &outcome), Budget::kNoWait);
  EXPECT_EQ(outcome.calls, 0);

  holder = Grant();
  EXPECT_EQ(outcome.calls, 0) << "not from within the release";
  EXPECT_EQ(budget_.used(), 50) << "but the bytes are taken";

  clock_.RunDue();
  ASSERT_TRUE(Granted(outcome.result));
  clock_.Advance(2 * kWait);
  EXPECT_EQ(outcome.calls, 1);
  EXPECT_EQ(clock_.pending(), 0);
}

TEST_F(BudgetTest, NobodyOvertakesThoseWhoWait) {
  Grant holder = Take(60);
  Outcome large, small;
  Reserve(90, &large);
  Reserve(10, &small);
  EXPECT_FALSE(budget_.TryReserve(10).ok());
  clock_.RunDue();
  EXPECT_EQ(large.calls + small.calls, 0);

  holder = Grant();
  clock_.RunDue();
  EXPECT_TRUE(Granted(large.result));
  EXPECT_TRUE(Granted(small.result));
}

TEST_F(BudgetTest, OneReleaseServesAllWhoFitInOrder) {
  Grant holder = Take(100);
  std::vector<int> order;
  std::vector<Grant> grants;
  for (int i = 0; i < 3; ++i) {
    budget_.Reserve(40, kWait, [&, i](absl::StatusOr<Grant> grant) {
      order.push_back(i);
      if (grant.ok()) grants.push_back(*std::move(grant));
    });
  }
  holder = Grant();
  clock_.RunDue();
  EXPECT_THAT(order, ElementsAre(0, 1));
  EXPECT_EQ(budget_.used(), 80);
  grants.clear();
  clock_.RunDue();
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
}

TEST_F(BudgetTest, AWaitEndsWithAnErrorWhenItsTimeIsOver) {
  const Grant holder = Take(60);
  Outcome outcome;
  Reserve(50, &outcome);
  clock_.Advance(kWait - absl::Nanoseconds(1));
  EXPECT_EQ(outcome.calls, 0);
  clock_.Advance(absl::Nanoseconds(1));
  ASSERT_EQ(outcome.calls, 1);
  const absl::Status status = outcome.result->status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  EXPECT_THAT(std::string(status.message()), HasSubstr("50 bytes in the budget `inflight`: 60 of 100"));
}

TEST_F(BudgetTest, TheEndOfAWaitServesThoseBehind) {
  const Grant holder = Take(60);
  Outcome large, small;
  Reserve(90, &large);
  clock_.Advance(kWait / 2);
  Reserve(10, &small);
  clock_.Advance(kWait / 2);
  EXPECT_EQ(large.calls, 1);
  EXPECT_FALSE(large.result->ok());
  EXPECT_TRUE(Granted(small.result));
}

TEST_F(BudgetTest, CancelOfTheFirstServesThoseBehind) {
  const Grant holder = Take(60);
  Outcome large, small;
  const Budget::WaitId wait = Reserve(90, &large);
  Reserve(10, &small);
  budget_.Cancel(wait);
  clock_.RunDue();
  EXPECT_TRUE(Granted(small.result));
  clock_.Advance(2 * kWait);
  EXPECT_EQ(large.calls, 0);
}

TEST_F(BudgetTest, CancelDestroysTheCallback) {
  const Grant holder = Take(60);
  const auto owned = std::make_shared<int>();
  const Budget::WaitId wait = budget_.Reserve(50, kWait, [owned](absl::StatusOr<Grant>) { FAIL(); });
  EXPECT_EQ(owned.use_count(), 2);
  budget_.Cancel(wait);
  EXPECT_EQ(owned.use_count(), 1);
  EXPECT_EQ(clock_.pending(), 0);
}

TEST_F(BudgetTest, CancelOfAGrantThatIsOnItsWayReturnsItsBytes) {
  Grant holder = Take(60);
  Outcome cancelled, next;
  const Budget::WaitId wait = Reserve(100, &cancelled);
  Reserve(100, &next);
  holder = Grant();
  ASSERT_EQ(budget_.used(), 100);

  budget_.Cancel(wait);
  clock_.RunDue();
  EXPECT_EQ(cancelled.calls, 0);
  EXPECT_TRUE(Granted(next.result));
}

TEST_F(BudgetTest, CancelAfterTheCallIsNothing) {
  Grant holder = Take(60);
  Outcome outcome;
  const Budget::WaitId wait = Reserve(50, &outcome);
  holder = Grant();
  clock_.RunDue();
  budget_.Cancel(wait);
  budget_.Cancel(Budget::kNoWait);
  EXPECT_EQ(budget_.used(), 50);
}

TEST_F(BudgetTest, ACallbackMayReserveAgain) {
  Grant holder = Take(60);
  Outcome second;
  budget_.Reserve(50, kWait, [&](absl::StatusOr<Grant> first) {
    ASSERT_TRUE(first.ok());
    Reserve(60, &second);
  });
  holder = Grant();
  clock_.RunDue();
  EXPECT_TRUE(Granted(second.result)) << "the first grant ended with its callback";
}

// Threads that reserve, wait and give up, against the real clock: every callback is called once or destroyed, and all
// bytes come back.
TEST(BudgetThreadsTest, AllBytesComeBack) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  Budget budget("inflight", 100, clock.get());
  constexpr int kThreads = 4;
  constexpr int kReservations = 500;
  std::atomic<int> ended{0};
  // Counts when the callback ends, called or not.
  const auto count_end = [&ended] { return std::shared_ptr<void>(nullptr, [&ended](void*) { ++ended; }); };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kReservations; ++i) {
        const Budget::WaitId wait = budget.Reserve(
            1 + (i * 37 + t) % 100, absl::Microseconds(i % 50), [end = count_end()](absl::StatusOr<Grant> grant) {
              EXPECT_TRUE(grant.ok() || absl::IsResourceExhausted(grant.status()));
            });
        if (i % 3 == 0) budget.Cancel(wait);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  while (ended < kThreads * kReservations) std::this_thread::yield();
  EXPECT_EQ(budget.used(), 0);
}

TEST_F(BudgetTest, AwaitUnusedReturnsWhenTheLastGrantHasEnded) {
  std::optional<Grant> grant = Take(60);
  std::atomic<int64_t> used = -1;
  std::thread waiter([&] {
    budget_.AwaitUnused();
    used = budget_.used();
  });
  grant.reset();
  waiter.join();
  EXPECT_EQ(used, 0);
}

}  // namespace
}  // namespace adamant::core
