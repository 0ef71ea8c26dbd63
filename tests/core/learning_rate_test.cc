// The learning rate that a schedule gives, at its edges, and every limit of a schedule. tests/golden compares whole
// schedules with PyTorch's.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "server/core/spec/schedule.h"

namespace adamant::core {
namespace {

using ::google::protobuf::TextFormat;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

constexpr double kLearningRate = 0.5;
constexpr int64_t kLast = std::numeric_limits<int64_t>::max();

v1::Schedule Parse(const std::string& text) {
  v1::Schedule schedule;
  EXPECT_TRUE(TextFormat::ParseFromString(text, &schedule)) << text;
  return schedule;
}

std::vector<double> Rates(const std::string& text, const std::vector<int64_t>& steps) {
  const v1::Schedule schedule = Parse(text);
  std::vector<double> rates;
  for (const int64_t step : steps) rates.push_back(ScheduledLearningRate(schedule, kLearningRate, step));
  return rates;
}

// One of each kind, some with a warmup or a floor.
std::vector<std::string> OneOfEach() {
  return {"",
          "warmup_steps: 10 floor: 0.25",
          "linear { steps: 100 }",
          "warmup_steps: 3 linear { steps: 100 end_factor: 0.125 } floor: 0.125",
          "cosine { steps: 100 } floor: 0.3",
          "exponential { gamma: 0.99 }",
          "warmup_steps: 7 warmup_start_factor: 0.1 step { steps: 10 gamma: 0.3 } floor: 1e-9",
          "multi_step { milestones: 10 milestones: 20 milestones: 9000000000000000 gamma: 0.1 }",
          "polynomial { steps: 100 power: 0.5 }"};
}

TEST(LearningRateTest, WithoutAnythingItIsConstant) {
  EXPECT_THAT(Rates("", {0, 1, 1000, kLast}), ElementsAre(0.5, 0.5, 0.5, 0.5));
}

TEST(LearningRateTest, WarmupRisesOnAStraightLine) {
  EXPECT_THAT(Rates("warmup_steps: 4", {0, 1, 2, 3, 4, 5}), ElementsAre(0, 0.125, 0.25, 0.375, 0.5, 0.5));
  EXPECT_THAT(Rates("warmup_steps: 2 warmup_start_factor: 0.25", {0, 1, 2}), ElementsAre(0.125, 0.3125, 0.5));
  EXPECT_THAT(Rates("warmup_steps: 2 warmup_start_factor: 1", {0, 1, 2}), ElementsAre(0.5, 0.5, 0.5));
}

TEST(LearningRateTest, DecayBeginsAfterTheWarmup) {
  EXPECT_THAT(Rates("warmup_steps: 2 linear { steps: 4 }", {0, 1, 2, 3, 4, 5, 6}),
              ElementsAre(0, 0.25, 0.5, 0.375, 0.25, 0.125, 0));
  EXPECT_THAT(Rates("warmup_steps: 2 multi_step { milestones: 1 gamma: 0.5 }", {1, 2, 3, 4}),
              ElementsAre(0.25, 0.5, 0.25, 0.25));
}

TEST(LearningRateTest, AfterItsLastStepADecayStaysWhereItIs) {
  EXPECT_THAT(Rates("linear { steps: 2 end_factor: 0.25 }", {2, 3, kLast}), ElementsAre(0.125, 0.125, 0.125));
  EXPECT_THAT(Rates("cosine { steps: 2 } floor: 0.25", {1, 2, 3, 4, kLast}),
              ElementsAre(0.375, 0.25, 0.25, 0.25, 0.25));
  EXPECT_THAT(Rates("polynomial { steps: 2 power: 2 }", {1, 2, 3, kLast}), ElementsAre(0.125, 0, 0, 0));
}

TEST(LearningRateTest, ADecayOfOneStepIsOver) {
  EXPECT_THAT(Rates("linear { steps: 1 }", {0, 1, 2}), ElementsAre(0.5, 0, 0));
  EXPECT_THAT(Rates("cosine { steps: 1 }", {0, 1, 2}), ElementsAre(0.5, 0, 0));
  EXPECT_THAT(Rates("polynomial { steps: 1 power: 0.25 }", {0, 1, 2}), ElementsAre(0.5, 0, 0));
}

TEST(LearningRateTest, GammaCountsAtStepsAndAtMilestones) {
  EXPECT_THAT(Rates("exponential { gamma: 0.5 }", {0, 1, 2, 3}), ElementsAre(0.5, 0.25, 0.125, 0.0625));
  EXPECT_THAT(Rates("step { steps: 3 gamma: 0.5 }", {0, 2, 3, 5, 6}), ElementsAre(0.5, 0.5, 0.25, 0.25, 0.125));
  EXPECT_THAT(Rates("multi_step { milestones: 2 milestones: 3 gamma: 0.5 }", {0, 1, 2, 3, 4}),
              ElementsAre(0.5, 0.5, 0.25, 0.125, 0.125));
}

TEST(LearningRateTest, TheFloorHoldsAfterTheWarmupOnly) {
  EXPECT_THAT(Rates("warmup_steps: 2 exponential { gamma: 0.5 } floor: 0.2", {0, 1, 2, 3, 4, kLast}),
              ElementsAre(0, 0.25, 0.5, 0.25, 0.2, 0.2));
  EXPECT_THAT(Rates("linear { steps: 2 } floor: 0.2", {1, 2}), ElementsAre(0.25, 0.2));
  EXPECT_THAT(Rates("cosine { steps: 2 } floor: 0.5", {0, 1, 2}), ElementsAre(0.5, 0.5, 0.5));
}

TEST(LearningRateTest, ItIsWithinItsRangeHoweverManyStepsThereWere) {
  for (const std::string& text : OneOfEach()) {
    const v1::Schedule schedule = Parse(text);
    ASSERT_TRUE(ValidateSchedule(schedule, kLearningRate, "").ok()) << text;
    for (int64_t step = 0; step < int64_t{1} << 53; step = step * 3 / 2 + 1) {
      const double floor = step < schedule.warmup_steps() ? 0 : schedule.floor();
      EXPECT_THAT(ScheduledLearningRate(schedule, kLearningRate, step), AllOf(Ge(floor), Le(kLearningRate)))
          << text << " at step " << step;
    }
  }
}

// 2^53 steps of a loop would take months.
TEST(LearningRateTest, LateStepsAreAsQuickAsEarlyOnes) {
  for (const std::string& text : OneOfEach()) {
    EXPECT_TRUE(std::isfinite(ScheduledLearningRate(Parse(text), kLearningRate, int64_t{1} << 53))) << text;
    EXPECT_TRUE(std::isfinite(ScheduledLearningRate(Parse(text), kLearningRate, kLast))) << text;
  }
  EXPECT_NEAR(Rates("exponential { gamma: 0.9999999999999999 }", {int64_t{1} << 53})[0], kLearningRate / std::exp(1),
              1e-12);
}

// 0.03 + (0.3 - 0.03) is more than 0.3 in doubles.
TEST(LearningRateTest, RoundingMakesItNoLargerThanTheGroups) {
  EXPECT_EQ(ScheduledLearningRate(Parse("cosine { steps: 10 } floor: 0.03"), 0.3, 0), 0.3);
}

TEST(LearningRateTest, OfZeroItIsZero) {
  for (const int64_t step : {0, 5, 1000}) {
    EXPECT_EQ(ScheduledLearningRate(Parse("warmup_steps: 9 cosine { steps: 9 }"), 0, step), 0);
  }
}

void ExpectInvalid(const v1::Schedule& schedule, const std::string& field, const std::string& message) {
  const absl::Status status = ValidateSchedule(schedule, kLearningRate, "spec.groups[0].schedule");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << schedule.ShortDebugString();
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_INVALID_FIELD);
  EXPECT_EQ(GetErrorDetail(status).field(), absl::StrCat("spec.groups[0].schedule.", field));
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(ScheduleTest, BothLimitsAreValid) {
  for (const char* text : {"warmup_steps: 9223372036854775807", "warmup_start_factor: 1", "floor: 0.5",
                           "linear { steps: 1 end_factor: 1 }", "linear { steps: 9223372036854775807 }",
                           "cosine { steps: 1 }", "exponential { gamma: 1 }", "exponential { gamma: 5e-324 }",
                           "step { steps: 1 gamma: 1 }", "multi_step { milestones: 1 gamma: 1 }",
                           "polynomial { steps: 1 power: 64 }", "polynomial { steps: 1 power: 5e-324 }"}) {
    EXPECT_TRUE(ValidateSchedule(Parse(text), kLearningRate, "schedule").ok()) << text;
  }
}

TEST(ScheduleTest, WhatIsOutsideIsRefusedNamingTheFieldAndTheValue) {
  const struct {
    const char *schedule, *field, *message;
  } invalid[] = {{"warmup_steps: -1", "warmup_steps", "expected at least 0, got -1"},
                 {"warmup_start_factor: -1e-300", "warmup_start_factor", "expected [0, 1], got -1e-300"},
                 {"warmup_start_factor: 1.0000000000000002", "warmup_start_factor", "got 1.0000000000000002"},
                 {"warmup_start_factor: nan", "warmup_start_factor", "got nan"},
                 {"floor: -1", "floor", "expected [0, 0.5], got -1"},
                 {"floor: 0.6", "floor", "expected [0, 0.5], got 0.6"},
                 {"floor: nan", "floor", "got nan"},
                 {"linear { }", "linear.steps", "expected at least 1, got 0"},
                 {"linear { steps: 1 end_factor: 2 }", "linear.end_factor", "expected [0, 1], got 2"},
                 {"cosine { steps: -5 }", "cosine.steps", "expected at least 1, got -5"},
                 {"exponential { }", "exponential.gamma", "expected (0, 1], got 0"},
                 {"exponential { gamma: 1.5 }", "exponential.gamma", "expected (0, 1], got 1.5"},
                 {"exponential { gamma: nan }", "exponential.gamma", "got nan"},
                 {"step { gamma: 0.5 }", "step.steps", "expected at least 1, got 0"},
                 {"step { steps: 1 gamma: -1 }", "step.gamma", "expected (0, 1], got -1"},
                 {"multi_step { gamma: 0.5 }", "multi_step.milestones", "expected 1 to 64 of them, got 0"},
                 {"multi_step { milestones: 0 gamma: 0.5 }", "multi_step.milestones[0]", "expected more than 0, got 0"},
                 {"multi_step { milestones: 7 milestones: 7 gamma: 0.5 }", "multi_step.milestones[1]",
                  "expected more than 7, got 7"},
                 {"multi_step { milestones: 7 gamma: inf }", "multi_step.gamma", "expected (0, 1], got inf"},
                 {"polynomial { power: 1 }", "polynomial.steps", "expected at least 1, got 0"},
                 {"polynomial { steps: 1 }", "polynomial.power", "expected (0, 64], got 0"},
                 {"polynomial { steps: 1 power: 64.1 }", "polynomial.power", "expected (0, 64], got 64.1"}};
  for (const auto& [schedule, field, message] : invalid) ExpectInvalid(Parse(schedule), field, message);
}

TEST(ScheduleTest, NumberOfMilestones) {
  v1::Schedule schedule;
  schedule.mutable_multi_step()->set_gamma(0.5);
  for (int i = 1; i <= 64; ++i) schedule.mutable_multi_step()->add_milestones(i);
  EXPECT_TRUE(ValidateSchedule(schedule, kLearningRate, "schedule").ok());
  schedule.mutable_multi_step()->add_milestones(65);
  ExpectInvalid(schedule, "multi_step.milestones", "expected 1 to 64 of them, got 65");
}

}  // namespace
}  // namespace adamant::core
