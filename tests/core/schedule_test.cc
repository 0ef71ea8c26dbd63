// Seeded random schedules of several clients against the sequential model. seeded_schedules.h says how to choose among
// them.
#include "gtest/gtest.h"
#include "tests/core/seeded_schedules.h"

namespace adamant::core {
namespace {

TEST(ScheduleTest, TenThousandSchedulesOfASmallSetEndAsTheModelDoes) {
  RunSchedules(SetSize::kSmall, Device::kProcessor, 10000, 100);
}

TEST(ScheduleTest, SchedulesOfALargeSetEndAsTheModelDoes) { RunSchedules(SetSize::kLarge, Device::kProcessor, 20, 50); }

TEST(ScheduleTest, SchedulesOnADeviceThatAnswersLaterEndAsTheModelDoes) {
  RunSchedules(SetSize::kSmall, Device::kLate, 300, 100);
}

TEST(ScheduleTest, SchedulesOnADeviceWithMemoryOfItsOwnEndAsTheModelDoes) {
  RunSchedules(SetSize::kSmall, Device::kApart, 300, 100);
}

}  // namespace
}  // namespace adamant::core
