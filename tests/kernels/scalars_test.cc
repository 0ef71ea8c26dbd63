// The scalars of a step against the equations in higher precision.
#include "kernels/scalars.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

namespace adamant::kernels {
namespace {

constexpr AdamHyperparameters kAdamDefaults = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kAtLast = int64_t{1} << 40;  // so late that bias corrections have ended

TEST(AdamScalarsTest, AreTheExactValuesRoundedOnce) {
  using Betas = std::pair<double, double>;
  for (const auto& [beta1, beta2] : {Betas(0.9, 0.999), Betas(0.95, 0.99), Betas(0, 0), Betas(0.5, 1 - 0x1p-20)}) {
    const AdamHyperparameters hyperparameters = {
        .learning_rate = 1e-3, .beta1 = beta1, .beta2 = beta2, .eps = 1e-8, .weight_decay = 0.03};
    long double power1 = 1;
    long double power2 = 1;
    int64_t t = 0;
    for (int64_t checked : {1, 2, 3, 10, 1000, 123457, 10'000'000}) {
      SCOPED_TRACE(testing::Message() << "beta1 " << beta1 << " beta2 " << beta2 << " t " << checked);
      for (; t < checked; ++t) {
        power1 *= beta1;
        power2 *= beta2;
      }

      const UpdateScalars scalars = MakeAdamScalars(hyperparameters, t, {.scale = -1, .clip = 3});

      EXPECT_EQ(scalars.step_size, static_cast<float>(static_cast<long double>(1e-3) / (1 - power1)));
      EXPECT_EQ(scalars.inv_sqrt_bc2, static_cast<float>(1 / std::sqrt(1 - power2)));
      EXPECT_EQ(scalars.beta1, static_cast<float>(beta1));
      EXPECT_EQ(scalars.beta2, static_cast<float>(beta2));
      EXPECT_EQ(scalars.omb1, static_cast<float>(1 - static_cast<long double>(beta1)));
      EXPECT_EQ(scalars.omb2, static_cast<float>(1 - static_cast<long double>(beta2)));
      EXPECT_EQ(scalars.eps, 1e-8f);
      EXPECT_EQ(scalars.weight_decay, 0.03f);
      EXPECT_EQ(scalars.wd_bc1, static_cast<float>(static_cast<long double>(0.03) * (1 - power1)));
      EXPECT_EQ(scalars.scale, -1);
      EXPECT_EQ(scalars.clip, 3);
    }
  }
}

TEST(AdamScalarsTest, BiasCorrectionsEnd) {
  AdamHyperparameters hyperparameters = kAdamDefaults;
  hyperparameters.weight_decay = 0.01;

  const UpdateScalars scalars = MakeAdamScalars(hyperparameters, kAtLast, {});

  EXPECT_EQ(scalars.step_size, 1e-3f);
  EXPECT_EQ(scalars.inv_sqrt_bc2, 1.0f);
  EXPECT_EQ(scalars.wd_bc1, 0.01f);
}

TEST(AdamScalarsTest, AStepSizeOrADecayBelowTheSmallestNormalFloatIsZero) {
  AdamHyperparameters hyperparameters = kAdamDefaults;

  hyperparameters.learning_rate = hyperparameters.weight_decay = 0x1p-126;
  EXPECT_EQ(MakeAdamScalars(hyperparameters, kAtLast, {}).step_size, 0x1p-126f);
  EXPECT_EQ(MakeAdamScalars(hyperparameters, kAtLast, {}).wd_bc1, 0x1p-126f);
  hyperparameters.learning_rate = hyperparameters.weight_decay = 0x1.fffffcp-127;
  EXPECT_EQ(MakeAdamScalars(hyperparameters, kAtLast, {}).step_size, 0.0f);
  EXPECT_EQ(MakeAdamScalars(hyperparameters, kAtLast, {}).wd_bc1, 0.0f);
}

TEST(AdamScalarsTest, GradientThresholdFollowsTheScaleDownToTheSmallestNormalFloat) {
  const auto scalars = [](float scale) { return MakeAdamScalars(kAdamDefaults, 1, {.scale = scale}); };
  const long double g_min = std::sqrt(0x1p-125l / (1 - static_cast<long double>(0.999)));

  EXPECT_EQ(scalars(1.0f).g_lo, static_cast<float>(g_min));
  EXPECT_EQ(scalars(-0.25f).g_lo, static_cast<float>(g_min * 4));
  EXPECT_EQ(scalars(0x1p60f).g_lo, static_cast<float>(g_min * 0x1p-60l));
  EXPECT_EQ(scalars(0x1p100f).g_lo, 0x1p-126f);
  EXPECT_EQ(scalars(0x1p100f).g_min, static_cast<float>(g_min));
}

TEST(AdamScalarsTest, SmallestEpsIsWhatKeepsAFlushedSecondMomentFromMagnifying) {
  EXPECT_EQ(MinEps(0.999), 1e-16);
  EXPECT_EQ(MinEps(0.0), 1e-16);
  EXPECT_DOUBLE_EQ(MinEps(1 - 0x1p-20), 0x1p-53 * std::sqrt(2.0));
}

TEST(SgdScalarsTest, AreTheHyperparametersRoundedOnce) {
  const SgdHyperparameters hyperparameters = {
      .learning_rate = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.03};

  const UpdateScalars scalars = MakeSgdScalars(hyperparameters, 2, {.scale = -4, .clip = 3});

  EXPECT_EQ(scalars.step_size, 0.1f);
  EXPECT_EQ(scalars.weight_decay, 0.03f);
  EXPECT_EQ(scalars.momentum, 0.9f);
  EXPECT_EQ(scalars.buffer_decay, 0.9f);
  EXPECT_EQ(scalars.omd, 0.7f);
  EXPECT_EQ(scalars.scale, -4);
  EXPECT_EQ(scalars.clip, 3);
}

TEST(SgdScalarsTest, TheFirstUpdateTakesTheWholeGradientIntoTheBufferAndNothingElse) {
  const SgdHyperparameters hyperparameters = {.learning_rate = 0.1, .momentum = 0.9, .dampening = 0.3};

  const UpdateScalars scalars = MakeSgdScalars(hyperparameters, 1, {});

  EXPECT_EQ(scalars.buffer_decay, 0);
  EXPECT_EQ(scalars.omd, 1);
  EXPECT_EQ(scalars.momentum, 0.9f);
}

TEST(SgdScalarsTest, AStepSizeBelowTheSmallestNormalFloatIsZero) {
  EXPECT_EQ(MakeSgdScalars({.learning_rate = 0x1p-126}, 1, {}).step_size, 0x1p-126f);
  EXPECT_EQ(MakeSgdScalars({.learning_rate = 0x1.fffffcp-127}, 1, {}).step_size, 0.0f);
}

TEST(SgdScalarsTest, GradientThresholdIsTheSmallestNormalFloatBeforeAndAfterScaling) {
  const auto scalars = [](float scale) { return MakeSgdScalars({.learning_rate = 1}, 1, {.scale = scale}); };

  EXPECT_EQ(scalars(1.0f).g_lo, 0x1p-126f);
  EXPECT_EQ(scalars(-0.25f).g_lo, 0x1p-124f);
  EXPECT_EQ(scalars(4.0f).g_lo, 0x1p-126f);
  EXPECT_EQ(scalars(-0.25f).g_min, 0x1p-126f);
}

TEST(GradientTransformTest, ByDefaultAGradientStaysAsItIs) {
  const UpdateScalars scalars = MakeSgdScalars({.learning_rate = 1}, 1, {});

  EXPECT_EQ(scalars.scale, 1);
  EXPECT_EQ(scalars.clip, kInfinity);
}

}  // namespace
}  // namespace adamant::kernels
