// Grants, the queue behind them, and what becomes of those who give up.
#include "server/core/memory/budget.h"

#include <algorithm>
#include <atomic>
#include <deque>
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
#include "tests/kernels/kernel_inputs.h"

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

TEST_F(BudgetTest, WhoFitsPassesOneThatItsEldersKeepWaiting) {
  const Grant holder = Take(60);
  Outcome large, small;
  Reserve(100, &large);
  EXPECT_EQ(Reserve(40, &small), Budget::kNoWait);
  EXPECT_TRUE(Granted(small.result));
  EXPECT_FALSE(budget_.TryReserve(1).ok()) << "no room";
  small.result.reset();
  for (int again = 0; again < 3; ++again) EXPECT_TRUE(budget_.TryReserve(40).ok());
  EXPECT_EQ(large.calls, 0);
}

TEST_F(BudgetTest, WhoWaitsPassesToo) {
  const Grant elder = Take(60);
  Grant other = Take(40);
  Outcome large, small;
  Reserve(100, &large);
  Reserve(40, &small);
  other = Grant();
  clock_.RunDue();
  EXPECT_TRUE(Granted(small.result));
  EXPECT_EQ(large.calls, 0);
}

TEST_F(BudgetTest, NobodyPassesOneThatItsEldersLeaveRoomFor) {
  std::optional<Grant> elder = Take(60);
  Outcome large, junior, refused, late;
  Reserve(90, &large);
  Reserve(20, &junior);
  ASSERT_TRUE(Granted(junior.result));
  elder.reset();
  EXPECT_EQ(large.calls, 0) << "the junior is in its way";
  EXPECT_FALSE(budget_.TryReserve(10).ok());
  Reserve(10, &late);
  EXPECT_EQ(late.calls, 0) << "80 bytes are free, and are kept for the large one";

  junior.result.reset();
  clock_.RunDue();
  EXPECT_TRUE(Granted(large.result));
  EXPECT_TRUE(Granted(late.result));
}

TEST_F(BudgetTest, WhoWasServedLateIsAnElderOfThoseBehind) {
  std::optional<Grant> elder = Take(60);
  Outcome first, second, small;
  Reserve(90, &first);
  Reserve(100, &second);
  elder.reset();
  clock_.RunDue();
  ASSERT_TRUE(Granted(first.result));
  Reserve(10, &small);
  EXPECT_TRUE(Granted(small.result)) << "the second waits for the first in any case";
  first.result.reset();
  EXPECT_FALSE(budget_.TryReserve(10).ok()) << "and now only for the small one";
  small.result.reset();
  clock_.RunDue();
  EXPECT_TRUE(Granted(second.result));
}

TEST_F(BudgetTest, AGrantThatShrinksIsLessInTheWay) {
  Grant elder = Take(60);
  Outcome large, junior;
  Reserve(90, &large);
  Reserve(20, &junior);
  elder.ShrinkTo(11);
  EXPECT_TRUE(budget_.TryReserve(10).ok());
  elder.ShrinkTo(10);
  EXPECT_FALSE(budget_.TryReserve(10).ok());
  junior.result.reset();
  clock_.RunDue();
  EXPECT_TRUE(Granted(large.result));
}

TEST_F(BudgetTest, AMovedGrantKeepsItsAge) {
  Grant elder = Take(60);
  Outcome large, junior;
  Reserve(90, &large);
  Reserve(20, &junior);
  Grant moved = std::move(elder);
  moved = Grant(std::move(moved));
  moved = Grant();
  EXPECT_FALSE(budget_.TryReserve(10).ok());
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
  std::optional<Grant> elder = Take(60);
  Outcome large, junior, small;
  Reserve(90, &large);
  Reserve(20, &junior);
  elder.reset();
  clock_.Advance(kWait / 2);
  Reserve(10, &small);
  EXPECT_EQ(small.calls, 0);
  clock_.Advance(kWait / 2);
  EXPECT_EQ(large.calls, 1);
  EXPECT_FALSE(large.result->ok());
  EXPECT_TRUE(Granted(small.result));
}

TEST_F(BudgetTest, CancelOfTheFirstServesThoseBehind) {
  std::optional<Grant> elder = Take(60);
  Outcome large, junior, small;
  const Budget::WaitId wait = Reserve(90, &large);
  Reserve(20, &junior);
  elder.reset();
  Reserve(10, &small);
  EXPECT_EQ(small.calls, 0);
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

// A mix of reservations that each hold what they got for at most kLongest: small ones, in some mixes more than there is
// room for, some larger, and now and then the whole budget. The books are kept a second time here, by the rule's own
// words.
class AdmissionTest : public ::testing::TestWithParam<int> {
 protected:
  static constexpr int64_t kCapacity = 100;
  static constexpr absl::Duration kTick = absl::Milliseconds(1);
  static constexpr int kLongest = 20;  // ticks

  struct Reservation {
    int64_t bytes;
    int arrived;
    int granted = -1;
    int ends = -1;
    Grant grant = {};
  };

  // At `tick`; it holds what it gets for `hold` ticks.
  void Arrive(int64_t bytes, int hold) {
    const size_t index = reservations_.size();
    reservations_.push_back({bytes, tick_});
    budget_.Reserve(bytes, absl::InfiniteDuration(), [this, index, hold](absl::StatusOr<Grant> grant) {
      Reservation& reservation = reservations_[index];
      ExpectNobodyIsPassedWhoMayNotBe(index);
      reservation.granted = tick_;
      reservation.ends = tick_ + hold;
      reservation.grant = *std::move(grant);
    });
    clock_.RunDue();
  }

  // What those who came before number `index` hold.
  int64_t Elders(size_t index) const {
    int64_t bytes = 0;
    for (size_t i = 0; i < index; ++i) bytes += reservations_[i].grant.bytes();
    return bytes;
  }

  void ExpectNobodyIsPassedWhoMayNotBe(size_t by) const {
    for (size_t i = 0; i < by; ++i) {
      if (reservations_[i].granted >= 0) continue;
      EXPECT_GT(Elders(i) + reservations_[i].bytes, kCapacity) << "reservation " << by << " passed " << i;
      EXPECT_GT(reservations_[i].bytes, reservations_[by].bytes) << "of one size, the first is served first";
    }
  }

  // One at a time, and what that makes room for is granted before the next: so elders are counted as the budget does.
  void EndWhatIsDue() {
    for (Reservation& reservation : reservations_) {
      if (reservation.ends != tick_) continue;
      reservation.grant = Grant();
      clock_.RunDue();
    }
  }

  ManualClock clock_;
  Budget budget_{"inflight", kCapacity, &clock_};
  std::deque<Reservation> reservations_;
  int tick_ = 0;
};

TEST_P(AdmissionTest, EachIsServedAtMostTwoHoldsAfterAllThatWaitedAhead) {
  kernels::RandomFloats random(kernels::PrintedSeed() + GetParam());
  const auto draw = [&random](int least, int most) { return least + static_cast<int>(random.Index(most - least + 1)); };
  constexpr int kArrivals = 1000;  // ticks
  for (; tick_ < kArrivals + 2 * kLongest || budget_.used() > 0; ++tick_) {
    EndWhatIsDue();
    if (tick_ < kArrivals) {
      for (int i = draw(0, 1 + GetParam() % 4); i > 0; --i) Arrive(draw(1, 10), draw(1, kLongest));
      if (draw(0, 40) == 0) Arrive(draw(11, 99), draw(1, kLongest));
      if (draw(0, 100) == 0) Arrive(kCapacity, draw(1, kLongest));
    }
    ASSERT_LT(tick_, 1000 * kArrivals) << "somebody is never served";
    clock_.Advance(kTick);
  }
  int all_ahead_granted = 0;
  int passes = 0;
  for (const Reservation& reservation : reservations_) {
    ASSERT_GE(reservation.granted, 0);
    if (reservation.granted < all_ahead_granted) ++passes;
    EXPECT_LE(reservation.granted, std::max(reservation.arrived, all_ahead_granted) + 2 * kLongest);
    all_ahead_granted = std::max(all_ahead_granted, reservation.granted);
  }
  EXPECT_GT(passes, 0);
}

INSTANTIATE_TEST_SUITE_P(Mixes, AdmissionTest, ::testing::Range(0, 10));

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
