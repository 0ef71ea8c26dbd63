// What the trainer's flags mean to the server, and what they may not say.
#include "client/programs/optimizer_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace adamant::programs {
namespace {

using testing::HasSubstr;

std::string ErrorOf(const OptimizerChoice& choice, int64_t steps = 100) {
  return std::string(MakeGroup(choice, steps).status().message());
}

TEST(OptimizerChoiceTest, NothingChosenIsALearningRateAndTheServersDefaults) {
  const absl::StatusOr<v1::ParameterGroup> group = MakeGroup({}, 1);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(group->ShortDebugString(), "learning_rate: 0.001");
}

TEST(OptimizerChoiceTest, AdamwDecaysDecoupledAndByDefaultAsPytorchDoes) {
  const absl::StatusOr<v1::ParameterGroup> group = MakeGroup({.optimizer = "adamw"}, 1);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_TRUE(group->adam().decoupled_weight_decay());
  EXPECT_EQ(group->adam().weight_decay(), 0.01);
  EXPECT_EQ(MakeGroup({.optimizer = "adamw", .weight_decay = 0.0}, 1)->adam().weight_decay(), 0);
}

TEST(OptimizerChoiceTest, AdamDecaysCoupled) {
  const absl::StatusOr<v1::ParameterGroup> group = MakeGroup({.weight_decay = 0.5}, 1);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_FALSE(group->adam().decoupled_weight_decay());
  EXPECT_EQ(group->adam().weight_decay(), 0.5);
}

TEST(OptimizerChoiceTest, SgdTakesAMomentum) {
  const absl::StatusOr<v1::ParameterGroup> group = MakeGroup({.optimizer = "sgd", .momentum = 0.9}, 1);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(group->sgd().momentum(), 0.9);
  EXPECT_TRUE(MakeGroup({.optimizer = "sgd"}, 1)->has_sgd());
}

TEST(OptimizerChoiceTest, ScheduleTakesTheStepsThatTheWarmupLeaves) {
  const absl::StatusOr<v1::ParameterGroup> cosine = MakeGroup({.schedule = "cosine", .warmup_steps = 10}, 100);
  ASSERT_TRUE(cosine.ok()) << cosine.status();
  EXPECT_EQ(cosine->schedule().warmup_steps(), 10);
  EXPECT_EQ(cosine->schedule().cosine().steps(), 90);
  EXPECT_EQ(MakeGroup({.schedule = "linear"}, 100)->schedule().linear().steps(), 100);
  EXPECT_EQ(MakeGroup({.warmup_steps = 7}, 100)->schedule().decay_case(), v1::Schedule::DECAY_NOT_SET);
}

TEST(OptimizerChoiceTest, ScheduleTakesNumbersBehindItsName) {
  EXPECT_EQ(MakeGroup({.schedule = "exponential:0.99"}, 100)->schedule().exponential().gamma(), 0.99);
  EXPECT_EQ(MakeGroup({.schedule = "step:30:0.1"}, 100)->schedule().step().steps(), 30);
  EXPECT_EQ(MakeGroup({.schedule = "step:30:0.1"}, 100)->schedule().step().gamma(), 0.1);
  const absl::StatusOr<v1::ParameterGroup> polynomial =
      MakeGroup({.schedule = "polynomial:2", .warmup_steps = 10}, 100);
  ASSERT_TRUE(polynomial.ok()) << polynomial.status();
  EXPECT_EQ(polynomial->schedule().polynomial().steps(), 90);
  EXPECT_EQ(polynomial->schedule().polynomial().power(), 2);
  for (const char* wrong : {"exponential", "exponential:x", "polynomial:1:2", "step:30", "step:1.5:0.1", "cosine:2"}) {
    EXPECT_THAT(ErrorOf({.schedule = wrong}), HasSubstr(wrong));
  }
}

TEST(OptimizerChoiceTest, RefusesWhatThereIsNotAndWhatDoesNotGoTogether) {
  EXPECT_THAT(ErrorOf({.optimizer = "lion"}), HasSubstr("'lion'"));
  EXPECT_THAT(ErrorOf({.schedule = "onecycle"}), HasSubstr("'onecycle'"));
  EXPECT_THAT(ErrorOf({.momentum = 0.9}), HasSubstr("sgd"));
  EXPECT_THAT(ErrorOf({.warmup_steps = 100}), HasSubstr("warmup"));
  EXPECT_THAT(ErrorOf({.warmup_steps = -1}), HasSubstr("warmup"));
}

TEST(ParseDtypeTest, KnowsThreeNames) {
  EXPECT_EQ(*ParseDtype("float32"), v1::DTYPE_FLOAT32);
  EXPECT_EQ(*ParseDtype("bfloat16"), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(*ParseDtype("float16"), v1::DTYPE_FLOAT16);
  EXPECT_THAT(std::string(ParseDtype("int8").status().message()), HasSubstr("'int8'"));
}

}  // namespace
}  // namespace adamant::programs
