// What one step of Adam and its variants does, by the reference kernels.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/scalars.h"
#include "tests/kernels/kernel_inputs.h"
#include "tests/kernels/single_step.h"

namespace adamant::kernels {
namespace {

constexpr AdamHyperparameters kDefaults = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

AdamHyperparameters WithDecay(double weight_decay) {
  AdamHyperparameters hyperparameters = kDefaults;
  hyperparameters.weight_decay = weight_decay;
  return hyperparameters;
}

float Below(float x) { return std::nextafter(x, 0.0f); }

void ExpectSame(const Element& expected, const Element& actual) {
  EXPECT_EQ(expected.p, actual.p);
  EXPECT_EQ(expected.slots[0], actual.slots[0]);
  EXPECT_EQ(expected.slots[1], actual.slots[1]);
}

TEST(AdamTest, FirstStepMovesByTheLearningRateAgainstTheGradient) {
  const UpdateScalars scalars = MakeAdamScalars(kDefaults, 1, {});

  for (float g : {1e-3f, 0.5f, 1.0f, 1e3f, 1e15f}) {
    EXPECT_NEAR(Step(kAdam, scalars, g, {}).p, -1e-3, 2e-8) << g;
    EXPECT_NEAR(Step(kAdam, scalars, -g, {}).p, 1e-3, 2e-8) << g;
  }
}

TEST(AdamTest, EpsStandsOutsideOfTheRootAfterBiasCorrection) {
  AdamHyperparameters hyperparameters = kDefaults;
  hyperparameters.eps = 1;

  // m / bc1 = sqrt(v / bc2) = 1, so that half of the learning rate is left.
  EXPECT_NEAR(Step(kAdam, MakeAdamScalars(hyperparameters, 1, {}), 1.0f, {}).p, -0.5e-3, 1e-9);
}

TEST(AdamTest, LearningRateZeroMovesTheMomentsOnly) {
  AdamHyperparameters hyperparameters = WithDecay(0.5);
  hyperparameters.learning_rate = 0;

  for (Update update : {kAdam, kAdamW}) {
    const Element x = Step(update, MakeAdamScalars(hyperparameters, 7, {}), 3.0f, {.p = 1.25f, .slots = {0.5f, 0.5f}});

    EXPECT_EQ(x.p, 1.25f);
    EXPECT_EQ(x.slots[0], std::fma(0.9f, 0.5f, 0.1f * 3.0f));
    EXPECT_EQ(x.slots[1], std::fma(0.999f, 0.5f, 0.001f * 9.0f));
  }
}

TEST(AdamTest, RoundsWhereTheEquationsSay) {
  AdamHyperparameters hyperparameters = WithDecay(0.1);
  hyperparameters.learning_rate = 1e3;  // so that no bit of what is learned is lost
  const UpdateScalars s = MakeAdamScalars(hyperparameters, 5, {.scale = -0.7f});
  RandomFloats random(PrintedSeed());
  for (int i = 0; i < 1000; ++i) {
    const float raw = random.Signed(1e-3, 1e3);
    const Element start = {.p = random.Signed(1e-3, 1e3),
                           .slots = {random.Signed(1e-3, 1e3), std::fabs(random.Signed(1e-6, 1e6))}};
    const float g = std::fma(s.weight_decay, start.p, raw * s.scale);
    const float m = std::fma(s.beta1, start.slots[0], s.omb1 * g);
    const float v = std::fma(s.beta2, start.slots[1], s.omb2 * (g * g));
    const float u = m / std::fma(std::sqrt(v), s.inv_sqrt_bc2, s.eps);

    ExpectSame({.p = std::fma(-s.step_size, u, start.p), .slots = {m, v}}, Step(kAdamL2, s, raw, start));
  }
}

TEST(AdamTest, ScaleMultipliesTheGradientAndItsSignReversesTheStep) {
  const Element start = {.p = 1, .slots = {0.25f, 0.5f}};

  const Element scaled = Step(kAdam, MakeAdamScalars(kDefaults, 5, {.scale = -0.5f}), 3.0f, start);

  ExpectSame(Step(kAdam, MakeAdamScalars(kDefaults, 5, {}), -1.5f, start), scaled);
}

TEST(AdamTest, AGradientBeyondTheClipCountsAsTheClipAfterScaling) {
  const Element start = {.p = 1, .slots = {0.25f, 0.5f}};
  const UpdateScalars unclipped = MakeAdamScalars(kDefaults, 5, {});
  const UpdateScalars clipped = MakeAdamScalars(kDefaults, 5, {.scale = -2, .clip = 3});

  for (const auto& [raw, expected] : {std::pair(1.5f, -3.0f), std::pair(1.5001f, -3.0f), std::pair(-1e30f, 3.0f),
                                      std::pair(kInfinity, -3.0f), std::pair(1.25f, -2.5f), std::pair(-1.0f, 2.0f)}) {
    ExpectSame(Step(kAdam, unclipped, expected, start), Step(kAdam, clipped, raw, start));
  }
}

TEST(AdamTest, AGradientAtTheThresholdIsLearnedAndOneBelowItIsZero) {
  for (float scale : {1.0f, -0.125f, 0x1p40f, 0x1p100f}) {
    for (double beta2 : {0.0, 0.999, 1 - 0x1p-20}) {
      SCOPED_TRACE(testing::Message() << "scale " << scale << " beta2 " << beta2);
      AdamHyperparameters hyperparameters = kDefaults;
      hyperparameters.beta2 = beta2;
      const UpdateScalars scalars = MakeAdamScalars(hyperparameters, 1, {.scale = scale});

      const Element at = Step(kAdam, scalars, scalars.g_lo, {});
      const Element below = Step(kAdam, scalars, Below(scalars.g_lo), {.p = 2, .slots = {}});

      EXPECT_GE(std::fabs(at.slots[0]), 0x1p-126f);
      EXPECT_GE(at.slots[1], 0x1p-126f);
      ExpectSame({.p = 2, .slots = {}}, below);
    }
  }
}

TEST(AdamTest, MomentsBelowTheSmallestNormalFloatBecomePositiveZero) {
  AdamHyperparameters hyperparameters = kDefaults;
  hyperparameters.beta1 = hyperparameters.beta2 = 0.5;
  const UpdateScalars scalars = MakeAdamScalars(hyperparameters, 100, {});

  const Element kept = Step(kAdam, scalars, 0.0f, {.p = 0, .slots = {-0x1p-125f, 0x1p-125f}});
  const Element dead = Step(kAdam, scalars, 0.0f, {.p = 0, .slots = {-0x1.fffffcp-126f, 0x1.fffffcp-126f}});

  EXPECT_EQ(kept.slots[0], -0x1p-126f);
  EXPECT_EQ(kept.slots[1], 0x1p-126f);
  EXPECT_EQ(std::bit_cast<uint32_t>(dead.slots[0]), 0u);
  EXPECT_EQ(std::bit_cast<uint32_t>(dead.slots[1]), 0u);
}

TEST(AdamL2Test, DecayIsLearnedAsAGradientAfterScalingAndClipping) {
  const Element start = {.p = -4, .slots = {0.25f, 0.5f}};

  // The gradient is -2 * 5, clipped to -3, and the decay is 0.25 * -4.
  const Element decayed = Step(kAdamL2, MakeAdamScalars(WithDecay(0.25), 5, {.scale = -2, .clip = 3}), 5.0f, start);

  ExpectSame(Step(kAdam, MakeAdamScalars(kDefaults, 5, {}), -4.0f, start), decayed);
}

TEST(AdamL2Test, ASumBelowTheThresholdIsZero) {
  const UpdateScalars scalars = MakeAdamScalars(WithDecay(0.5), 1, {});

  const Element at = Step(kAdamL2, scalars, 0, {.p = 2 * scalars.g_min, .slots = {}});
  const Element below = Step(kAdamL2, scalars, 0, {.p = 2 * Below(scalars.g_min), .slots = {}});
  // The gradient alone would be learned.
  const Element cancelled = Step(kAdamL2, scalars, 1, {.p = -2, .slots = {}});

  EXPECT_GE(at.slots[0], 0x1p-126f);
  EXPECT_GE(at.slots[1], 0x1p-126f);
  ExpectSame({.p = 2 * Below(scalars.g_min), .slots = {}}, below);
  ExpectSame({.p = -2, .slots = {}}, cancelled);
}

TEST(AdamL2Test, ASumIsLimitedSoThatItsSquareIsFinite) {
  const Element start = {};
  const Element expected = Step(kAdam, MakeAdamScalars(kDefaults, 1, {}), 0x1p63f, start);
  ASSERT_TRUE(std::isfinite(expected.slots[1]));

  for (float p : {0x1p63f, 0x1p100f, kInfinity}) {
    const Element positive = Step(kAdamL2, MakeAdamScalars(WithDecay(1), 1, {}), 1, {.p = p, .slots = {}});
    const Element negative = Step(kAdamL2, MakeAdamScalars(WithDecay(1), 1, {}), -1, {.p = -p, .slots = {}});

    EXPECT_EQ(positive.slots[0], expected.slots[0]) << p;
    EXPECT_EQ(negative.slots[0], -expected.slots[0]) << p;
    EXPECT_EQ(positive.slots[1], expected.slots[1]) << p;
    EXPECT_EQ(negative.slots[1], expected.slots[1]) << p;
  }
}

TEST(AdamL2Test, ANanOfAParameterIsLearned) {
  const Element x = Step(kAdamL2, MakeAdamScalars(WithDecay(1), 1, {}), 1, {.p = kNan, .slots = {}});

  EXPECT_TRUE(std::isnan(x.slots[0]));
  EXPECT_TRUE(std::isnan(x.slots[1]));
}

TEST(AdamWTest, DecayGoesPastTheMomentsAndDoesNotDependOnTheirBias) {
  for (int64_t t : {1, 10, 100000}) {
    AdamHyperparameters hyperparameters = WithDecay(0.25);
    hyperparameters.learning_rate = 0.5;

    const Element x = Step(kAdamW, MakeAdamScalars(hyperparameters, t, {}), 0, {.p = -2, .slots = {}});

    EXPECT_NEAR(x.p, -2 * (1 - 0.125), 2e-7) << t;
    EXPECT_EQ(x.slots[0], 0) << t;
    EXPECT_EQ(x.slots[1], 0) << t;
  }
}

TEST(AdamWTest, MomentsAreThoseOfAdam) {
  const Element start = {.p = 1, .slots = {0.25f, 0.5f}};

  const Element expected = Step(kAdam, MakeAdamScalars(kDefaults, 5, {}), 3.0f, start);
  const Element actual = Step(kAdamW, MakeAdamScalars(WithDecay(0.1), 5, {}), 3.0f, start);

  EXPECT_EQ(actual.slots[0], expected.slots[0]);
  EXPECT_EQ(actual.slots[1], expected.slots[1]);
  EXPECT_NEAR(actual.p, expected.p - 1e-3 * 0.1, 1e-7);
}

TEST(AdamWTest, RoundsWhereTheEquationsSay) {
  AdamHyperparameters hyperparameters = WithDecay(0.1);
  hyperparameters.learning_rate = 1e3;  // so that no bit of what is learned is lost
  const UpdateScalars s = MakeAdamScalars(hyperparameters, 5, {});
  RandomFloats random(PrintedSeed());
  for (int i = 0; i < 1000; ++i) {
    const Element start = {.p = random.Signed(1e-3, 1e3), .slots = {random.Signed(1e-3, 1e3), 1}};

    const Element x = Step(kAdamW, s, 1, start);

    const float learned = x.slots[0] / std::fma(std::sqrt(x.slots[1]), s.inv_sqrt_bc2, s.eps);
    EXPECT_EQ(x.p, std::fma(-s.step_size, std::fma(s.wd_bc1, start.p, learned), start.p));
  }
}

TEST(AdamWTest, AParameterOfNextToNothingDoesNotDecay) {
  AdamHyperparameters hyperparameters = WithDecay(1);
  hyperparameters.learning_rate = 0.5;
  const UpdateScalars scalars = MakeAdamScalars(hyperparameters, int64_t{1} << 40, {});

  for (float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(Step(kAdamW, scalars, 0, {.p = sign * 0x1p-100f, .slots = {}}).p, sign * 0x1p-101f);
    EXPECT_EQ(Step(kAdamW, scalars, 0, {.p = sign * Below(0x1p-100f), .slots = {}}).p, sign * Below(0x1p-100f));
  }
}

TEST(AmsgradTest, DividesByTheLargestSecondMomentSoFar) {
  const UpdateScalars scalars = MakeAdamScalars(kDefaults, 5, {});

  const Element fallen = Step(kAdamAmsgrad, scalars, 1, {.p = 1, .slots = {0.25f, 0.5f, 2.0f}});
  const Element risen = Step(kAdamAmsgrad, scalars, 1, {.p = 1, .slots = {0.25f, 0.5f, 0.25f}});

  const Element adam = Step(kAdam, scalars, 1, {.p = 1, .slots = {0.25f, 0.5f}});
  EXPECT_EQ(fallen.slots[1], adam.slots[1]);
  EXPECT_EQ(fallen.slots[2], 2);
  EXPECT_NEAR(fallen.p, 1 - (1 - adam.p) * std::sqrt(adam.slots[1] / 2), 1e-7);
  ExpectSame(adam, risen);
  EXPECT_EQ(risen.slots[2], adam.slots[1]);
}

TEST(AmsgradTest, ANanIsNotTheLargest) {
  const Element x = Step(kAdamAmsgrad, MakeAdamScalars(kDefaults, 5, {}), 1, {.p = 1, .slots = {0.25f, kNan, 2.0f}});

  EXPECT_EQ(x.slots[2], 2);
  EXPECT_TRUE(std::isfinite(x.p));
}

}  // namespace
}  // namespace adamant::kernels
