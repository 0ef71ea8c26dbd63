// Both clocks: the one that runs, and the one that the other tests hold in their hands.
#include "server/core/base/clock.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/gate.h"
#include "tests/core/manual_clock.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;

TEST(SteadyClockTest, TimeNeverGoesBack) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  absl::Duration last = clock->Now();
  for (int i = 0; i < 1000; ++i) {
    const absl::Duration now = clock->Now();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(SteadyClockTest, CallsBackOnItsOwnThreadAndNotBeforeTheTime) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  const absl::Duration start = clock->Now();
  Gate called;
  std::thread::id thread;
  absl::Duration time;
  clock->Schedule(absl::Milliseconds(2), [&] {
    thread = std::this_thread::get_id();
    time = clock->Now();
    called.Open();
  });
  called.Pass();
  EXPECT_NE(thread, std::this_thread::get_id());
  EXPECT_GE(time, start + absl::Milliseconds(2));
}

TEST(SteadyClockTest, CallbacksOfOneTimeRunInOrderOfScheduling) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  Gate start;
  Gate last;
  std::vector<int> order;
  clock->Schedule(absl::ZeroDuration(), [&] { start.Pass(); });
  for (int i = 0; i < 5; ++i) {
    clock->Schedule(absl::ZeroDuration(), [&order, i] { order.push_back(i); });
  }
  clock->Schedule(absl::ZeroDuration(), [&] { last.Open(); });
  start.Open();
  last.Pass();
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3, 4));
}

TEST(SteadyClockTest, AnEarlierCallbackOvertakesALaterOne) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  Gate called;
  const Clock::TimerId far = clock->Schedule(absl::Hours(1), [] { FAIL() << "this test does not take an hour"; });
  const Clock::TimerId never = clock->Schedule(absl::InfiniteDuration(), [] { FAIL() << "infinity has passed"; });
  clock->Schedule(absl::Milliseconds(1), [&] { called.Open(); });
  called.Pass();
  EXPECT_TRUE(clock->Cancel(far));
  EXPECT_TRUE(clock->Cancel(never));
}

TEST(SteadyClockTest, WakesUpForEveryCallbackHoweverLongItWouldRest) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  for (int i = 0; i < 200; ++i) {
    // By turns with nothing and with something distant to wait for.
    const Clock::TimerId far = i % 2 == 0 ? Clock::kNoTimer : clock->Schedule(absl::Hours(1), [] {});
    Gate called;
    clock->Schedule(absl::ZeroDuration(), [&] { called.Open(); });
    called.Pass();
    clock->Cancel(far);
  }
}

TEST(SteadyClockTest, CancelDropsWhatHasNotBegunAndNothingElse) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  Gate running;
  Gate finish;
  Gate behind;
  const Clock::TimerId begun = clock->Schedule(absl::ZeroDuration(), [&] {
    running.Open();
    finish.Pass();
  });
  running.Pass();
  auto owned = std::make_shared<int>(0);
  const Clock::TimerId waiting = clock->Schedule(absl::ZeroDuration(), [owned] { ++*owned; });
  clock->Schedule(absl::ZeroDuration(), [&] { behind.Open(); });

  EXPECT_FALSE(clock->Cancel(begun));
  EXPECT_TRUE(clock->Cancel(waiting));
  EXPECT_EQ(owned.use_count(), 1);
  EXPECT_FALSE(clock->Cancel(waiting));
  EXPECT_FALSE(clock->Cancel(Clock::kNoTimer));

  finish.Open();
  behind.Pass();
  EXPECT_EQ(*owned, 0);
}

TEST(SteadyClockTest, ItsEndDropsWhatHasNotBegunAndWhatThatSchedules) {
  auto owned = std::make_shared<int>(0);
  {
    const std::unique_ptr<Clock> clock = NewSteadyClock();
    // Schedules another callback when it is dropped.
    const std::shared_ptr<void> chain(nullptr, [&clock_ref = *clock, owned](void*) {
      clock_ref.Schedule(absl::ZeroDuration(), [owned] { ++*owned; });
    });
    clock->Schedule(absl::Hours(1), [chain, owned] { ++*owned; });
  }
  EXPECT_EQ(owned.use_count(), 1);
  EXPECT_EQ(*owned, 0);
}

TEST(ManualClockTest, AdvanceRunsWhatIsDueInOrderOfTimeAndThenOfScheduling) {
  ManualClock clock;
  const absl::Duration start = clock.Now();
  std::vector<std::string> calls;
  std::vector<absl::Duration> times;
  const auto call = [&](const char* name) {
    return [&, name] {
      calls.emplace_back(name);
      times.push_back(clock.Now() - start);
    };
  };
  clock.Schedule(absl::Seconds(2), call("second 2"));
  clock.Schedule(absl::Seconds(1), call("second 1"));
  clock.Schedule(absl::Seconds(1), call("second 1, later"));
  clock.Schedule(absl::Seconds(4), call("second 4"));

  clock.Advance(absl::Seconds(3));

  EXPECT_THAT(calls, ElementsAre("second 1", "second 1, later", "second 2"));
  EXPECT_THAT(times, ElementsAre(absl::Seconds(1), absl::Seconds(1), absl::Seconds(2)));
  EXPECT_EQ(clock.Now() - start, absl::Seconds(3));
  EXPECT_EQ(clock.pending(), 1);
}

TEST(ManualClockTest, RunDueRunsWhatCallbacksSchedule) {
  ManualClock clock;
  std::vector<int> calls;
  clock.Schedule(absl::ZeroDuration(), [&] {
    calls.push_back(1);
    clock.Schedule(absl::ZeroDuration(), [&] { calls.push_back(2); });
    clock.Schedule(absl::Seconds(1), [&] { calls.push_back(3); });
  });
  EXPECT_THAT(calls, ElementsAre());
  clock.RunDue();
  EXPECT_THAT(calls, ElementsAre(1, 2));
}

TEST(ManualClockTest, CancelDropsWhatHasNotRun) {
  ManualClock clock;
  const Clock::TimerId timer = clock.Schedule(absl::ZeroDuration(), [] { FAIL(); });
  EXPECT_TRUE(clock.Cancel(timer));
  EXPECT_FALSE(clock.Cancel(timer));
  clock.RunDue();
}

}  // namespace
}  // namespace adamant::core
