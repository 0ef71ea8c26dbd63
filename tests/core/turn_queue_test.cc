// Turns: one at a time, in order, on whose thread, and over when they are let go of.
#include "server/core/set/turn_queue.h"

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/gate.h"

namespace adamant::core {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

class TurnQueueTest : public ::testing::Test {
 protected:
  // Takes a turn that lasts until it is let go of.
  TurnQueue::Turn Hold() {
    std::optional<TurnQueue::Turn> held;
    queue_->Enqueue([&held](TurnQueue::Turn turn) { held = std::move(turn); });
    return *std::move(held);
  }

  // Returns once all that was enqueued before has ended.
  void AwaitEnd() {
    Gate end;
    queue_->Enqueue([&end](const TurnQueue::Turn& /*turn*/) { end.Open(); });
    end.Pass();
  }

  ComputePool pool_{2};
  std::shared_ptr<TurnQueue> queue_ = std::make_shared<TurnQueue>(&pool_);
};

TEST_F(TurnQueueTest, WorkRunsAtOnceWhereNobodyHasTheTurn) {
  bool ran = false;
  queue_->Enqueue([&ran](const TurnQueue::Turn& /*turn*/) { ran = true; });
  EXPECT_TRUE(ran);
}

TEST_F(TurnQueueTest, WorkWaitsUntilTheTurnIsLetGoOf) {
  std::optional<TurnQueue::Turn> held = Hold();
  std::atomic<bool> ran = false;
  queue_->Enqueue([&ran](const TurnQueue::Turn& /*turn*/) { ran = true; });
  EXPECT_FALSE(ran);
  held.reset();
  AwaitEnd();
  EXPECT_TRUE(ran);
}

TEST_F(TurnQueueTest, TurnMayBeHandedOnAndEndsOnAnyThread) {
  TurnQueue::Turn held = Hold();
  std::thread::id ran_on;
  queue_->Enqueue([&ran_on](const TurnQueue::Turn& /*turn*/) { ran_on = std::this_thread::get_id(); });
  std::thread::id ended_on;
  std::thread ends([&ended_on, turn = std::move(held)]() mutable {
    ended_on = std::this_thread::get_id();
    const TurnQueue::Turn ending = std::move(turn);
  });
  ends.join();
  AwaitEnd();
  // Whoever ends a turn does not run the next: a device's completion has others to attend to.
  EXPECT_NE(ran_on, std::thread::id());
  EXPECT_NE(ran_on, ended_on);
}

TEST_F(TurnQueueTest, TurnThatIsEndedAtOnceIsFollowedWhileItsWorkGoesOn) {
  std::thread::id ran_on;
  int64_t in_order = 0;
  queue_->Enqueue([&](TurnQueue::Turn turn) {
    Gate ran;
    queue_->Enqueue([&](const TurnQueue::Turn& /*turn*/) {
      ran_on = std::this_thread::get_id();
      in_order = 1;
      ran.Open();
    });
    turn.EndAtOnce();
    ran.Pass();
    // Nobody has the turn, or somebody else.
    queue_->Enqueue([&](const TurnQueue::Turn& /*turn*/) { in_order *= 2; });
    AwaitEnd();
  });
  EXPECT_NE(ran_on, std::this_thread::get_id());
  EXPECT_EQ(in_order, 2);
  AwaitEnd();
}

TEST_F(TurnQueueTest, MovedFromTurnEndsNothing) {
  TurnQueue::Turn held = Hold();
  std::atomic<bool> ran = false;
  queue_->Enqueue([&ran](const TurnQueue::Turn& /*turn*/) { ran = true; });
  {
    TurnQueue::Turn elsewhere = std::move(held);
    held = std::move(elsewhere);
  }
  EXPECT_FALSE(ran);
  { const TurnQueue::Turn ending = std::move(held); }
  AwaitEnd();
  EXPECT_TRUE(ran);
}

TEST_F(TurnQueueTest, TurnsRunInOrderAndOneAtATime) {
  constexpr int kTurns = 100;
  std::optional<TurnQueue::Turn> held = Hold();
  std::vector<int> order;
  std::vector<int> at_a_time;
  std::atomic<int> running = 0;
  for (int i = 0; i < kTurns; ++i) {
    queue_->Enqueue([&, i](TurnQueue::Turn turn) {
      at_a_time.push_back(++running);
      order.push_back(i);
      // Every third goes on elsewhere.
      if (i % 3 == 0) {
        pool_.Post([&running, turn = std::move(turn)] { --running; });
      } else {
        --running;
      }
    });
  }
  held.reset();
  AwaitEnd();
  ASSERT_EQ(order.size(), kTurns);
  for (int i = 0; i < kTurns; ++i) EXPECT_EQ(order[i], i);
  EXPECT_THAT(at_a_time, Each(1));
}

TEST_F(TurnQueueTest, CallerRunsAFewTurnsOfOthersAndNoMore) {
  constexpr int kOthers = 3 * TurnQueue::kTurnsInARow;
  std::vector<std::thread::id> threads;
  queue_->Enqueue([&](const TurnQueue::Turn& /*turn*/) {
    for (int i = 0; i < kOthers; ++i) {
      queue_->Enqueue([&](const TurnQueue::Turn& /*turn*/) { threads.push_back(std::this_thread::get_id()); });
    }
  });
  AwaitEnd();
  ASSERT_EQ(threads.size(), kOthers);
  // The caller's own turn is one of those in a row.
  for (int i = 0; i < kOthers; ++i) {
    EXPECT_EQ(threads[i] == std::this_thread::get_id(), i < TurnQueue::kTurnsInARow - 1) << i;
  }
}

TEST_F(TurnQueueTest, WorkIsDestroyedBeforeTheNextTurnBegins) {
  std::weak_ptr<int> held_by_work;
  bool held = true;
  queue_->Enqueue([&, holder = std::make_shared<int>()](const TurnQueue::Turn& /*turn*/) {
    held_by_work = holder;
    queue_->Enqueue([&held, &held_by_work](const TurnQueue::Turn& /*turn*/) { held = !held_by_work.expired(); });
  });
  EXPECT_FALSE(held);
}

TEST_F(TurnQueueTest, QueueLivesUntilItsLastTurnHasEnded) {
  std::weak_ptr<TurnQueue> alive = queue_;
  std::optional<TurnQueue::Turn> held = Hold();
  Gate ran;
  queue_->Enqueue([&ran](const TurnQueue::Turn& /*turn*/) { ran.Open(); });
  queue_.reset();
  EXPECT_FALSE(alive.expired());
  held.reset();
  ran.Pass();
}

}  // namespace
}  // namespace adamant::core
