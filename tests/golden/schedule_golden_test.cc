// Schedules beside PyTorch's schedulers: 1,000 steps of each kind, with and without a warmup, in both forms that torch
// has. In closed form it computes what is computed here, in another order: they differ by no more than 4 roundings of
// the largest that is added or subtracted on the way, which is the learning rate. Else torch goes from one step to the
// next: then there are also up to 3 roundings of the result for each step before.
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "server/core/spec/schedule.h"
#include "tests/golden/inputs.h"

namespace adamant::golden {
namespace {

class ScheduleGoldenTest : public ::testing::TestWithParam<ScheduleCase> {
 protected:
  // For each of PyTorch's values, `tolerance` says how far another may be off.
  template <typename Tolerance>
  static void ExpectNear(const google::protobuf::RepeatedField<double>& expected, Tolerance tolerance) {
    const ScheduleCase& golden = GetParam();
    for (int i = 0; i < expected.size(); ++i) {
      const int64_t step = i * golden.stride();
      EXPECT_NEAR(core::ScheduledLearningRate(golden.schedule(), golden.learning_rate(), step), expected[i],
                  tolerance(step, expected[i]))
          << "step " << step;
    }
    EXPECT_EQ(expected.size(), 1 + 999 / golden.stride());
  }
};

constexpr double kRounding = 0x1p-53;

TEST_P(ScheduleGoldenTest, IsValid) {
  EXPECT_TRUE(core::ValidateSchedule(GetParam().schedule(), GetParam().learning_rate(), "schedule").ok());
}

TEST_P(ScheduleGoldenTest, IsAsPyTorchInClosedForm) {
  ExpectNear(GetParam().closed_form(),
             [](int64_t /*step*/, double /*expected*/) { return 4 * kRounding * GetParam().learning_rate(); });
}

TEST_P(ScheduleGoldenTest, IsAsPyTorchFromStepToStep) {
  ExpectNear(GetParam().chained(), [](int64_t step, double expected) {
    return 4 * kRounding * GetParam().learning_rate() + 3 * kRounding * static_cast<double>(step) * expected;
  });
}

std::vector<ScheduleCase> AllCases() {
  const ScheduleCases cases = ReadScheduleCases();
  return {cases.cases().begin(), cases.cases().end()};
}

INSTANTIATE_TEST_SUITE_P(EveryCase, ScheduleGoldenTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& test) { return test.param.name(); });

}  // namespace
}  // namespace adamant::golden
