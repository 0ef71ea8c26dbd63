// Loans: who maps, who is told on which thread, and what becomes of those who give up.
#include "server/core/memory/lender.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "server/core/base/clock.h"
#include "tests/core/gate.h"
#include "tests/core/manual_clock.h"
#include "tests/core/system_calls.h"

namespace adamant::core {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(1);
// Of a loan in these tests.
constexpr int64_t kElements = 2 * kBlockElements + 16;
const int64_t kBytes = BlockPool::ChargedBytes(kElements);
// Of one that waits for memory where others are lent what lies idle.
constexpr int64_t kManyElements = 8 * kBlockElements;

// What somebody got. Outlives the lender.
struct Outcome {
  Gate told;
  std::atomic<int> calls = 0;
  std::thread::id thread;
  std::optional<absl::StatusOr<Lender::Loan>> result;
  // Ends with the callback.
  std::shared_ptr<int> callback = std::make_shared<int>();

  bool callback_is_alive() const { return callback.use_count() > 1; }
  bool lent() const { return result.has_value() && result->ok(); }
};

v1::ErrorReason ReasonOf(const Outcome& outcome) { return GetErrorDetail(outcome.result->status()).reason(); }

class LenderTest : public ::testing::Test {
 protected:
  ~LenderTest() override { memory_.Open(); }

  Lender::WaitId Borrow(Outcome* outcome, int64_t elements = kElements) {
    return Borrow(&budget_, BlockPool::ChargedBytes(elements), elements, outcome);
  }

  Lender::WaitId Borrow(Budget* budget, int64_t bytes, int64_t elements, Outcome* outcome) {
    return lender_->Borrow(budget, bytes, elements, kPatience,
                           [outcome, alive = outcome->callback](absl::StatusOr<Lender::Loan> loan) {
                             outcome->thread = std::this_thread::get_id();
                             outcome->result = std::move(loan);
                             ++outcome->calls;
                             outcome->told.Open();
                           });
  }

  // As if loans of so many elements had been lent and returned before.
  void MakeIdle(int64_t elements, int count) {
    std::vector<BlockList> lists;
    for (int i = 0; i < count; ++i) lists.push_back(*pool_.Take(elements));
  }

  // From here on whoever populates memory stands still until `memory_` opens.
  void HoldMemory() {
    hook_.emplace([this] {
      populating_thread_ = std::this_thread::get_id();
      populating_.Open();
      memory_.Pass();
      return Populating::kDone;
    });
  }

  void ExpectAllCameBack() {
    budget_.AwaitUnused();
    // Returned before what pays for them.
    EXPECT_EQ(pool_.used_bytes(), 0);
  }

  std::thread::id ComputeThread() {
    Gate done;
    std::thread::id thread;
    compute_.Run(
        1,
        [&](int64_t) {
          thread = std::this_thread::get_id();
          done.Open();
        },
        [] {});
    done.Pass();
    return thread;
  }

  // Two loans fit.
  ManualClock clock_;
  Budget budget_{"inflight", 2 * kBytes, &clock_};
  BlockPool pool_;
  ComputePool compute_{1};
  std::unique_ptr<Lender> lender_ = std::make_unique<Lender>(&pool_, &compute_);

  Gate memory_;
  Gate populating_;
  std::thread::id populating_thread_;
  std::optional<PopulateHook> hook_;
};

TEST_F(LenderTest, WhatLiesIdleIsLentBeforeBorrowReturns) {
  MakeIdle(kElements, 1);
  Outcome outcome;
  EXPECT_EQ(Borrow(&outcome), Lender::kNoWait);
  ASSERT_TRUE(outcome.lent());
  EXPECT_EQ((*outcome.result)->grant.bytes(), kBytes);
  ASSERT_EQ((*outcome.result)->blocks.size(), 3u);
  EXPECT_EQ((*outcome.result)->blocks[2].size(), 16);
  EXPECT_EQ(budget_.used(), kBytes);

  outcome.result.reset();
  ExpectAllCameBack();
}

TEST_F(LenderTest, WhoHasPaidAlreadyIsLentWhatLiesIdleWithoutALock) {
  MakeIdle(kElements, 1);
  const auto owned = std::make_unique<Outcome>();
  // Gates are locked as well.
  const auto done = [&owned](absl::StatusOr<Lender::Loan> loan) { owned->result = std::move(loan); };
  const CallCounts before = CallsOfThisThread();
  EXPECT_EQ(lender_->Borrow(nullptr, 0, kElements, kPatience, done), Lender::kNoWait);
  EXPECT_EQ(CallsOfThisThread().locks, before.locks);
  EXPECT_EQ(CallsOfThisThread().advices, before.advices);
  ASSERT_TRUE(owned->lent());
  EXPECT_EQ((*owned->result)->blocks.size(), 3u);
}

TEST_F(LenderTest, NothingIsALoanToo) {
  HoldMemory();
  Outcome outcome;
  EXPECT_EQ(Borrow(&budget_, kBytes, 0, &outcome), Lender::kNoWait);
  ASSERT_TRUE(outcome.lent());
  EXPECT_TRUE((*outcome.result)->blocks.empty());
  EXPECT_EQ((*outcome.result)->grant.bytes(), kBytes);
}

TEST_F(LenderTest, WhatMustBeMappedIsMappedByAThreadOfItsOwnAndHandedOverByAComputeThread) {
  HoldMemory();
  const CallCounts before = CallsOfThisThread();
  Outcome outcome;
  EXPECT_NE(Borrow(&outcome), Lender::kNoWait);
  populating_.Pass();
  EXPECT_EQ(outcome.calls, 0);
  memory_.Open();
  outcome.told.Pass();
  ASSERT_TRUE(outcome.lent());
  EXPECT_EQ((*outcome.result)->blocks.size(), 3u);
  EXPECT_EQ((*outcome.result)->grant.bytes(), kBytes);
  EXPECT_EQ(outcome.thread, ComputeThread());
  EXPECT_NE(populating_thread_, ComputeThread());
  EXPECT_NE(populating_thread_, std::this_thread::get_id());
  EXPECT_EQ(CallsOfThisThread().mappings, before.mappings);
  EXPECT_EQ(CallsOfThisThread().advices, before.advices);
}

TEST_F(LenderTest, WhatLiesIdleIsLentWhileOthersAreMappedFor) {
  MakeIdle(kElements, 1);
  HoldMemory();
  Outcome mapped, idle;
  Borrow(nullptr, 0, kManyElements, &mapped);
  populating_.Pass();
  EXPECT_EQ(Borrow(&idle), Lender::kNoWait);
  EXPECT_TRUE(idle.lent());
  EXPECT_EQ(mapped.calls, 0);
  memory_.Open();
  mapped.told.Pass();
  EXPECT_TRUE(mapped.lent());
}

TEST_F(LenderTest, WhoWaitsForRoomIsLentWhatLiesIdleWhileOthersAreMappedFor) {
  MakeIdle(kElements, 1);
  HoldMemory();
  Grant holder = *budget_.TryReserve(2 * kBytes);
  Outcome mapped, waiting;
  Borrow(nullptr, 0, kManyElements, &mapped);
  populating_.Pass();
  EXPECT_NE(Borrow(&waiting), Lender::kNoWait);
  clock_.RunDue();
  EXPECT_EQ(waiting.calls, 0);

  holder = Grant();
  clock_.RunDue();
  waiting.told.Pass();
  EXPECT_TRUE(waiting.lent());
  EXPECT_EQ(waiting.thread, ComputeThread()) << "not the clock's, which is this one";
  EXPECT_EQ(mapped.calls, 0);
  memory_.Open();
  mapped.told.Pass();
}

TEST_F(LenderTest, TheClocksThreadMapsNothing) {
  HoldMemory();
  Grant holder = *budget_.TryReserve(2 * kBytes);
  Outcome outcome;
  Borrow(&outcome);
  holder = Grant();
  const CallCounts before = CallsOfThisThread();
  clock_.RunDue();  // would stand still
  EXPECT_EQ(CallsOfThisThread().mappings, before.mappings);
  memory_.Open();
  outcome.told.Pass();
  EXPECT_TRUE(outcome.lent());
  EXPECT_EQ((*outcome.result)->grant.bytes(), kBytes);
}

TEST_F(LenderTest, WhoWaitsForRoomIsServedWhenItComesAndPassedByThoseThatFit) {
  MakeIdle(kElements, 2);
  Grant holder = *budget_.TryReserve(kBytes + 1);
  Outcome large, small;
  Borrow(&budget_, 2 * kBytes, kElements, &large);
  Borrow(&budget_, 1, 0, &small);
  EXPECT_TRUE(small.lent());
  clock_.RunDue();
  EXPECT_EQ(large.calls, 0);
  holder = Grant();
  small.result.reset();
  clock_.RunDue();
  large.told.Pass();
  EXPECT_TRUE(large.lent());
}

TEST_F(LenderTest, WhatCanNeverFitIsRefusedAtOnce) {
  Outcome outcome;
  EXPECT_EQ(Borrow(&budget_, 2 * kBytes + 1, kElements, &outcome), Lender::kNoWait);
  ASSERT_EQ(outcome.calls, 1);
  EXPECT_EQ(ReasonOf(outcome), v1::ERROR_REASON_TOO_LARGE);
  EXPECT_EQ(pool_.held_bytes(), 0);
}

TEST_F(LenderTest, AWaitForRoomEndsWithAnErrorOnAComputeThread) {
  const Grant holder = *budget_.TryReserve(2 * kBytes);
  Outcome outcome;
  Borrow(&outcome);
  clock_.Advance(kPatience - absl::Nanoseconds(1));
  EXPECT_TRUE(outcome.callback_is_alive());
  clock_.Advance(absl::Nanoseconds(1));
  outcome.told.Pass();
  EXPECT_EQ(ReasonOf(outcome), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_TRUE(GetRetryDelay(outcome.result->status()).has_value());
  EXPECT_EQ(outcome.thread, ComputeThread());
  EXPECT_EQ(outcome.calls, 1);
  EXPECT_EQ(pool_.used_bytes(), 0);
}

TEST_F(LenderTest, NothingIsHeldByWhoeverIsToldThatTheSystemHasNoMemory) {
  hook_.emplace([] { return Populating::kRefused; });
  // Often: a compute thread may be faster or slower than the one that was refused.
  for (int i = 0; i < 100; ++i) {
    Gate told;
    lender_->Borrow(&budget_, kBytes, kElements, kPatience, [&](absl::StatusOr<Lender::Loan> loan) {
      EXPECT_EQ(GetErrorDetail(loan.status()).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
      EXPECT_TRUE(GetRetryDelay(loan.status()).has_value());
      EXPECT_EQ(budget_.used(), 0);
      EXPECT_EQ(pool_.used_bytes(), 0);
      told.Open();
    });
    told.Pass();
  }
}

TEST_F(LenderTest, WhoGivesUpWaitingForRoomIsForgotten) {
  MakeIdle(kElements, 1);
  Grant holder = *budget_.TryReserve(2 * kBytes);
  Outcome first, second;
  const Lender::WaitId wait = Borrow(&first);
  Borrow(&second);
  lender_->Cancel(wait);
  EXPECT_FALSE(first.callback_is_alive());
  holder = Grant();
  clock_.RunDue();
  second.told.Pass();
  EXPECT_TRUE(second.lent());
  EXPECT_EQ(budget_.used(), kBytes) << "of the second alone";
  EXPECT_EQ(first.calls, 0);
}

TEST_F(LenderTest, WhoGivesUpBeforeTheClockHasBroughtTheGrantHoldsNothing) {
  Grant holder = *budget_.TryReserve(2 * kBytes);
  Outcome outcome;
  const Lender::WaitId wait = Borrow(&outcome);
  holder = Grant();
  ASSERT_EQ(budget_.used(), kBytes);
  lender_->Cancel(wait);
  EXPECT_EQ(budget_.used(), 0);
  clock_.RunDue();
  EXPECT_EQ(outcome.calls, 0);
  EXPECT_FALSE(outcome.callback_is_alive());
}

TEST_F(LenderTest, WhoGivesUpBeforeHisBlocksAreMappedGivesHisRoomBackAtOnce) {
  HoldMemory();
  Outcome mapped, cancelled;
  Borrow(nullptr, 0, kElements, &mapped);
  populating_.Pass();
  const Lender::WaitId wait = Borrow(&cancelled);
  ASSERT_EQ(budget_.used(), kBytes);
  lender_->Cancel(wait);
  EXPECT_EQ(budget_.used(), 0);
  EXPECT_FALSE(cancelled.callback_is_alive());
  memory_.Open();
  mapped.told.Pass();
  EXPECT_EQ(pool_.used_bytes(), kBytes) << "of the other";
}

TEST_F(LenderTest, WhoGivesUpWhileHisBlocksAreMappedGivesBackAllWhenTheyAre) {
  HoldMemory();
  Outcome outcome;
  const Lender::WaitId wait = Borrow(&outcome);
  populating_.Pass();
  lender_->Cancel(wait);
  EXPECT_FALSE(outcome.callback_is_alive());
  EXPECT_EQ(budget_.used(), kBytes) << "there may be pages already";
  memory_.Open();
  ExpectAllCameBack();
  EXPECT_EQ(outcome.calls, 0);
  EXPECT_EQ(pool_.held_bytes(), kBytes) << "for the next";
}

TEST_F(LenderTest, WhoGivesUpWhenHisLoanIsOnItsWayGivesBackAllAtOnce) {
  MakeIdle(kElements, 1);
  Gate busy;
  compute_.Run(
      1, [&busy](int64_t) { busy.Pass(); }, [] {});
  Grant holder = *budget_.TryReserve(2 * kBytes);
  Outcome outcome;
  const Lender::WaitId wait = Borrow(&outcome);
  holder = Grant();
  clock_.RunDue();
  EXPECT_EQ(budget_.used(), kBytes);
  EXPECT_EQ(pool_.used_bytes(), kBytes);
  lender_->Cancel(wait);
  EXPECT_EQ(budget_.used(), 0);
  EXPECT_EQ(pool_.used_bytes(), 0);
  EXPECT_FALSE(outcome.callback_is_alive());
  busy.Open();
  ComputeThread();
  EXPECT_EQ(outcome.calls, 0);
}

TEST_F(LenderTest, CancelAfterTheCallIsNothing) {
  Outcome outcome;
  const Lender::WaitId wait = Borrow(&outcome);
  outcome.told.Pass();
  lender_->Cancel(wait);
  lender_->Cancel(Lender::kNoWait);
  EXPECT_TRUE(outcome.lent());
  EXPECT_EQ(budget_.used(), kBytes);
}

TEST_F(LenderTest, ItsEndDropsWhoeverWaits) {
  HoldMemory();
  Gate busy;
  compute_.Run(
      1, [&busy](int64_t) { busy.Pass(); }, [] {});
  Outcome on_its_way, mapped, queued, waiting;
  Grant holder = *budget_.TryReserve(2 * kBytes);
  Borrow(&budget_, kBytes, 0, &on_its_way);
  holder = Grant();
  clock_.RunDue();
  Borrow(nullptr, 0, kElements, &mapped);
  populating_.Pass();
  Borrow(nullptr, 0, kElements, &queued);
  holder = *budget_.TryReserve(kBytes);
  Borrow(&waiting);

  std::thread end([this] { lender_.reset(); });
  memory_.Open();
  end.join();
  for (const Outcome* outcome : {&on_its_way, &mapped, &queued, &waiting}) {
    EXPECT_EQ(outcome->calls, 0);
    EXPECT_FALSE(outcome->callback_is_alive());
  }
  EXPECT_EQ(budget_.used(), kBytes) << "of the holder";
  EXPECT_EQ(budget_.waiting(), 0);
  EXPECT_EQ(pool_.used_bytes(), 0);
  busy.Open();
  ComputeThread();
}

TEST_F(LenderTest, WhoeverCreatesASetMapsItHimself) {
  std::thread::id thread;
  hook_.emplace([&thread] {
    thread = std::this_thread::get_id();
    return Populating::kDone;
  });
  const absl::StatusOr<BlockList> blocks = lender_->TakeZeroed(kElements);
  ASSERT_TRUE(blocks.ok()) << blocks.status();
  EXPECT_EQ(thread, std::this_thread::get_id());
  for (const BlockRef& block : *blocks) {
    EXPECT_EQ(std::count(block.data(), block.data() + block.size(), 0.0f), block.size());
  }
}

// Threads that borrow, wait and give up, against the real clock and with memory that is refused now and then: every
// callback is called once or destroyed, and everything comes back.
TEST(LenderThreadsTest, EverythingComesBack) {
  const char* const given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  constexpr int kThreads = 4;
  constexpr int kLoans = 500;
  constexpr int64_t kMost = 12 * kBlockElements;

  std::atomic<uint32_t> populated = 0;
  const PopulateHook hook([&populated] { return ++populated % 5 == 0 ? Populating::kRefused : Populating::kDone; });
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  Budget budget("inflight", BlockPool::ChargedBytes(kMost), clock.get());
  BlockPool pool;
  ComputePool compute(2);
  Lender lender(&pool, &compute);
  std::atomic<int> called = 0;
  std::atomic<int> ended = 0;
  // Counts when the callback ends, called or not.
  const auto count_end = [&ended] { return std::shared_ptr<void>(nullptr, [&ended](void*) { ++ended; }); };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (int i = 0; i < kLoans; ++i) {
        const int64_t elements = 16 * (1 + static_cast<int64_t>(random() % (kMost / 16)));
        auto done = [&called, t, elements, end = count_end()](absl::StatusOr<Lender::Loan> loan) {
          ++called;
          if (!loan.ok()) {
            EXPECT_TRUE(absl::IsResourceExhausted(loan.status())) << loan.status();
            return;
          }
          EXPECT_EQ(loan->grant.bytes(), BlockPool::ChargedBytes(elements));
          for (const BlockRef& block : loan->blocks) block.mutable_data()[0] = static_cast<float>(t);
          std::this_thread::yield();
          for (const BlockRef& block : loan->blocks) EXPECT_EQ(block.data()[0], static_cast<float>(t));
        };
        const Lender::WaitId wait = lender.Borrow(&budget, BlockPool::ChargedBytes(elements), elements,
                                                  absl::Microseconds(random() % 2000), std::move(done));
        if (random() % 3 == 0) lender.Cancel(wait);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  while (ended < kThreads * kLoans) std::this_thread::yield();
  EXPECT_GT(called, 0);
  budget.AwaitUnused();
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.held_bytes(), ResidentBytes());
  EXPECT_LE(pool.held_bytes(), budget.capacity() + BlockPool::kIdleBytes);
}

}  // namespace
}  // namespace adamant::core
