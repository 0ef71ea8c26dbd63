#include "tests/core/round_schedule.h"

#include <cstdint>

#include "gtest/gtest.h"
#include "tests/core/seeded_schedules.h"

namespace adamant::core {
namespace {

void RunRoundSchedules(SetSize size, uint64_t count, int length) {
  ForEachSchedule(count, [&](uint64_t seed) {
    SeededChoices choices(seed, length);
    return RunRoundSchedule(size, &choices);
  });
}

TEST(RoundScheduleTest, TenThousandSchedulesOfASmallSetEndAsTheModelDoes) {
  RunRoundSchedules(SetSize::kSmall, 10000, 100);
}

TEST(RoundScheduleTest, SchedulesOfALargeSetEndAsTheModelDoes) { RunRoundSchedules(SetSize::kLarge, 50, 60); }

}  // namespace
}  // namespace adamant::core
