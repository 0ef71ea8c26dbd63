// What steps of SGD and its variants do, by the reference kernels.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/scalars.h"
#include "tests/kernels/kernel_inputs.h"
#include "tests/kernels/single_step.h"

namespace adamant::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr SgdHyperparameters kHalves = {.learning_rate = 0.5, .momentum = 0.5, .dampening = 0.25, .weight_decay = 0.5};

float Below(float x) { return std::nextafter(x, 0.0f); }

TEST(SgdTest, MovesByTheLearningRateTimesTheScaledAndClippedGradient) {
  const UpdateScalars scalars = MakeSgdScalars(kHalves, 3, {.scale = -2, .clip = 8});

  EXPECT_EQ(Step(kSgd, scalars, 3, {.p = 1, .slots = {}}).p, 1 + 0.5f * 6);
  EXPECT_EQ(Step(kSgd, scalars, 4, {.p = 1, .slots = {}}).p, 1 + 0.5f * 8);
  EXPECT_EQ(Step(kSgd, scalars, 5, {.p = 1, .slots = {}}).p, 1 + 0.5f * 8);
  EXPECT_EQ(Step(kSgd, scalars, -kInfinity, {.p = 1, .slots = {}}).p, 1 - 0.5f * 8);
}

TEST(SgdTest, IsRoundedOnce) {
  const UpdateScalars scalars = MakeSgdScalars({.learning_rate = 1 + 0x1p-23}, 1, {});

  // The product's last bit would be lost.
  EXPECT_EQ(Step(kSgd, scalars, 1 + 0x1p-23f, {.p = 1 + 0x1p-22f, .slots = {}}).p, -0x1p-46f);
}

TEST(SgdTest, AGradientBelowTheSmallestNormalFloatIsPositiveZero) {
  for (float scale : {1.0f, -0.125f, 0x1p40f, -0x1p40f}) {
    const UpdateScalars scalars = MakeSgdScalars({.learning_rate = 0x1p30}, 1, {.scale = scale});

    EXPECT_NE(Step(kSgd, scalars, scalars.g_lo, {}).p, 0) << scale;
    const Element x = Step(kSgd, scalars, Below(scalars.g_lo), {.p = -0.0f, .slots = {}});
    EXPECT_EQ(std::bit_cast<uint32_t>(x.p), 0x80000000u) << scale;
  }
}

TEST(SgdTest, SlotsThatItDoesNotHaveStay) {
  const Element x = Step(kSgd, MakeSgdScalars(kHalves, 3, {}), 1, {.p = 1, .slots = {1, 2, 3}});

  EXPECT_EQ(x.slots[0], 1);
  EXPECT_EQ(x.slots[1], 2);
  EXPECT_EQ(x.slots[2], 3);
}

TEST(SgdL2Test, DecayAddsToTheGradientAfterScalingAndClipping) {
  const UpdateScalars scalars = MakeSgdScalars(kHalves, 3, {.scale = -2, .clip = 3});

  // -3 + 0.5 * 16 = 5.
  EXPECT_EQ(Step(kSgdL2, scalars, 100, {.p = 16, .slots = {}}).p, 16 - 0.5f * 5);
}

TEST(SgdL2Test, TheSumIsRoundedOnce) {
  const UpdateScalars scalars = MakeSgdScalars({.learning_rate = 1, .weight_decay = 1 + 0x1p-23}, 1, {});

  // The product's last bit would be lost.
  const Element x = Step(kMomentumL2, scalars, -(1 + 0x1p-22f), {.p = 1 + 0x1p-23f, .slots = {}});

  EXPECT_EQ(x.slots[0], 0x1p-46f);
}

TEST(SgdL2Test, ASumIsLimited) {
  const UpdateScalars scalars = MakeSgdScalars(kHalves, 3, {});

  EXPECT_EQ(Step(kSgdL2, scalars, 1, {.p = 0x1p80f, .slots = {}}).p, 0x1p80f - 0x1p62f);
  EXPECT_EQ(Step(kMomentumL2, scalars, 1, {.p = 0x1p80f, .slots = {}}).slots[0], 0.75f * 0x1p63f);
  EXPECT_EQ(Step(kMomentumL2, scalars, 1, {.p = -kInfinity, .slots = {}}).slots[0], -0.75f * 0x1p63f);
  EXPECT_TRUE(std::isnan(Step(kMomentumL2, scalars, 1, {.p = kNan, .slots = {}}).slots[0]));
}

TEST(SgdL2Test, AParameterDecaysUntilItsDecayWouldBeDenormal) {
  const UpdateScalars scalars = MakeSgdScalars({.learning_rate = 1, .weight_decay = 0.25}, 1, {});
  Element x = {.p = 1, .slots = {}};

  for (int t = 0; t < 1000; ++t) x = Step(kSgdL2, scalars, 0, x);

  EXPECT_GT(x.p, 0x1p-125f);
  EXPECT_LT(x.p, 0x1p-124f);
}

TEST(MomentumTest, TheFirstUpdateIsTheGradientWhateverTheBufferHeld) {
  const Element x = Step(kMomentum, MakeSgdScalars(kHalves, 1, {}), 3, {.p = 1, .slots = {17}});

  EXPECT_EQ(x.slots[0], 3);
  EXPECT_EQ(x.p, 1 - 0.5f * 3);
}

TEST(MomentumTest, LaterUpdatesAddTheDampenedGradientToTheDecayedBuffer) {
  const Element x = Step(kMomentum, MakeSgdScalars(kHalves, 2, {}), 4, {.p = 1, .slots = {6}});

  EXPECT_EQ(x.slots[0], 0.5f * 6 + 0.75f * 4);
  EXPECT_EQ(x.p, 1 - 0.5f * 6);
}

TEST(NesterovTest, RoundsWhereTheEquationsSay) {
  const UpdateScalars s = MakeSgdScalars({.learning_rate = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.1},
                                         2, {.scale = -0.7f});
  RandomFloats random(PrintedSeed());
  for (int i = 0; i < 1000; ++i) {
    const float raw = random.Signed(1e-3, 1e3);
    const Element start = {.p = random.Signed(1e-3, 1e3), .slots = {random.Signed(1e-3, 1e3)}};
    const float g = std::fma(s.weight_decay, start.p, raw * s.scale);
    const float buffer = std::fma(s.buffer_decay, start.slots[0], s.omd * g);

    const Element plain = Step(kMomentumL2, s, raw, start);
    const Element nesterov = Step(kNesterovL2, s, raw, start);

    EXPECT_EQ(plain.slots[0], buffer);
    EXPECT_EQ(plain.p, std::fma(-s.step_size, buffer, start.p));
    EXPECT_EQ(nesterov.slots[0], buffer);
    EXPECT_EQ(nesterov.p, std::fma(-s.step_size, std::fma(s.momentum, buffer, g), start.p));
  }
}

TEST(MomentumTest, ABufferBelowTheSmallestNormalFloatBecomesPositiveZero) {
  const UpdateScalars scalars = MakeSgdScalars(kHalves, 2, {});

  EXPECT_EQ(Step(kMomentum, scalars, 0, {.p = 0, .slots = {-0x1p-125f}}).slots[0], -0x1p-126f);
  const Element dead = Step(kMomentum, scalars, 0, {.p = 0, .slots = {-0x1.fffffcp-126f}});
  EXPECT_EQ(std::bit_cast<uint32_t>(dead.slots[0]), 0u);
}

TEST(MomentumL2Test, DecayGoesThroughTheBuffer) {
  const Element x = Step(kMomentumL2, MakeSgdScalars(kHalves, 2, {}), 4, {.p = 8, .slots = {6}});

  EXPECT_EQ(x.slots[0], 0.5f * 6 + 0.75f * (4 + 0.5f * 8));
  EXPECT_EQ(x.p, 8 - 0.5f * x.slots[0]);
}

TEST(NesterovTest, LooksAheadByTheNewBuffer) {
  const UpdateScalars scalars = MakeSgdScalars(kHalves, 2, {});

  const Element plain = Step(kNesterov, scalars, 4, {.p = 1, .slots = {6}});
  const Element decayed = Step(kNesterovL2, scalars, 4, {.p = 8, .slots = {6}});

  EXPECT_EQ(plain.slots[0], 6);
  EXPECT_EQ(plain.p, 1 - 0.5f * (4 + 0.5f * 6));
  EXPECT_EQ(decayed.slots[0], 9);
  EXPECT_EQ(decayed.p, 8 - 0.5f * (8 + 0.5f * 9));
}

TEST(NesterovTest, TheFirstUpdateLooksAheadToo) {
  const Element x = Step(kNesterov, MakeSgdScalars(kHalves, 1, {}), 4, {.p = 1, .slots = {17}});

  EXPECT_EQ(x.slots[0], 4);
  EXPECT_EQ(x.p, 1 - 0.5f * (4 + 0.5f * 4));
}

}  // namespace
}  // namespace adamant::kernels
