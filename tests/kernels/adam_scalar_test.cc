// The scalars of a step and the reference kernel, against the paper's equations in higher precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "kernels/adam_scalars.h"
#include "kernels/dispatch.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

constexpr AdamHyperparameters kDefaults = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};

struct Element {
  float p, m, v;
};

Element Step(const AdamScalars& scalars, float g, Element x) {
  const UpdateSpan span = {.size = 1, .g = &g, .p_in = &x.p, .p_out = &x.p, .slots = {{&x.m, &x.m}, {&x.v, &x.v}}};
  FindKernels("scalar")->update[kAdam](scalars, span);
  return x;
}

float Below(float x) { return std::nextafter(x, 0.0f); }

TEST(AdamScalarsTest, AreTheExactValuesRoundedOnce) {
  using Betas = std::pair<double, double>;
  for (const auto& [beta1, beta2] : {Betas(0.9, 0.999), Betas(0.95, 0.99), Betas(0, 0), Betas(0.5, 1 - 0x1p-20)}) {
    const AdamHyperparameters hyperparameters = {.learning_rate = 1e-3, .beta1 = beta1, .beta2 = beta2, .eps = 1e-8};
    long double power1 = 1;
    long double power2 = 1;
    int64_t t = 0;
    for (int64_t checked : {1, 2, 3, 10, 1000, 123457, 10'000'000}) {
      SCOPED_TRACE(testing::Message() << "beta1 " << beta1 << " beta2 " << beta2 << " t " << checked);
      for (; t < checked; ++t) {
        power1 *= beta1;
        power2 *= beta2;
      }

      const AdamScalars scalars = MakeAdamScalars(hyperparameters, t, 1.0f);

      EXPECT_EQ(scalars.step_size, static_cast<float>(static_cast<long double>(1e-3) / (1 - power1)));
      EXPECT_EQ(scalars.inv_sqrt_bc2, static_cast<float>(1 / std::sqrt(1 - power2)));
      EXPECT_EQ(scalars.beta1, static_cast<float>(beta1));
      EXPECT_EQ(scalars.beta2, static_cast<float>(beta2));
      EXPECT_EQ(scalars.omb1, static_cast<float>(1 - static_cast<long double>(beta1)));
      EXPECT_EQ(scalars.omb2, static_cast<float>(1 - static_cast<long double>(beta2)));
      EXPECT_EQ(scalars.eps, 1e-8f);
      EXPECT_EQ(scalars.scale, 1.0f);
    }
  }
}

TEST(AdamScalarsTest, BiasCorrectionsEnd) {
  const AdamScalars scalars = MakeAdamScalars(kDefaults, int64_t{1} << 40, 1.0f);

  EXPECT_EQ(scalars.step_size, 1e-3f);
  EXPECT_EQ(scalars.inv_sqrt_bc2, 1.0f);
}

TEST(AdamScalarsTest, AStepSizeBelowTheSmallestNormalFloatIsZero) {
  AdamHyperparameters hyperparameters = kDefaults;
  const int64_t t = int64_t{1} << 40;

  hyperparameters.learning_rate = 0x1p-126;
  EXPECT_EQ(MakeAdamScalars(hyperparameters, t, 1.0f).step_size, 0x1p-126f);
  hyperparameters.learning_rate = 0x1.fffffcp-127;
  EXPECT_EQ(MakeAdamScalars(hyperparameters, t, 1.0f).step_size, 0.0f);
}

TEST(AdamScalarsTest, GradientThresholdFollowsTheScaleDownToTheSmallestNormalFloat) {
  const auto g_lo = [](float scale) { return MakeAdamScalars(kDefaults, 1, scale).g_lo; };
  const long double g_min = std::sqrt(0x1p-125l / (1 - static_cast<long double>(0.999)));

  EXPECT_EQ(g_lo(1.0f), static_cast<float>(g_min));
  EXPECT_EQ(g_lo(-0.25f), static_cast<float>(g_min * 4));
  EXPECT_EQ(g_lo(0x1p60f), static_cast<float>(g_min * 0x1p-60l));
  EXPECT_EQ(g_lo(0x1p100f), 0x1p-126f);
}

TEST(AdamScalarsTest, SmallestEpsIsWhatKeepsAFlushedSecondMomentFromMagnifying) {
  EXPECT_EQ(MinEps(0.999), 1e-16);
  EXPECT_EQ(MinEps(0.0), 1e-16);
  EXPECT_DOUBLE_EQ(MinEps(1 - 0x1p-20), 0x1p-53 * std::sqrt(2.0));
}

TEST(AdamScalarTest, FirstStepMovesByTheLearningRateAgainstTheGradient) {
  const AdamScalars scalars = MakeAdamScalars(kDefaults, 1, 1.0f);

  for (float g : {1e-3f, 0.5f, 1.0f, 1e3f, 1e15f}) {
    EXPECT_NEAR(Step(scalars, g, {.p = 0, .m = 0, .v = 0}).p, -1e-3, 2e-8) << g;
    EXPECT_NEAR(Step(scalars, -g, {.p = 0, .m = 0, .v = 0}).p, 1e-3, 2e-8) << g;
  }
}

TEST(AdamScalarTest, EpsStandsOutsideOfTheRootAfterBiasCorrection) {
  AdamHyperparameters hyperparameters = kDefaults;
  hyperparameters.eps = 1;

  // m / bc1 = sqrt(v / bc2) = 1, so that half of the learning rate is left.
  EXPECT_NEAR(Step(MakeAdamScalars(hyperparameters, 1, 1.0f), 1.0f, {.p = 0, .m = 0, .v = 0}).p, -0.5e-3, 1e-9);
}

TEST(AdamScalarTest, LearningRateZeroMovesTheMomentsOnly) {
  AdamHyperparameters hyperparameters = kDefaults;
  hyperparameters.learning_rate = 0;

  const Element x = Step(MakeAdamScalars(hyperparameters, 7, 1.0f), 3.0f, {.p = 1.25f, .m = 0.5f, .v = 0.5f});

  EXPECT_EQ(x.p, 1.25f);
  EXPECT_EQ(x.m, std::fma(0.9f, 0.5f, 0.1f * 3.0f));
  EXPECT_EQ(x.v, std::fma(0.999f, 0.5f, 0.001f * 9.0f));
}

TEST(AdamScalarTest, ScaleMultipliesTheGradientAndItsSignReversesTheStep) {
  const Element start = {.p = 1, .m = 0.25f, .v = 0.5f};
  const Element expected = Step(MakeAdamScalars(kDefaults, 5, 1.0f), -1.5f, start);

  const Element actual = Step(MakeAdamScalars(kDefaults, 5, -0.5f), 3.0f, start);

  EXPECT_EQ(actual.p, expected.p);
  EXPECT_EQ(actual.m, expected.m);
  EXPECT_EQ(actual.v, expected.v);
}

TEST(AdamScalarTest, AGradientAtTheThresholdIsLearnedAndOneBelowItIsZero) {
  for (float scale : {1.0f, -0.125f, 0x1p40f, 0x1p100f}) {
    for (double beta2 : {0.0, 0.999, 1 - 0x1p-20}) {
      SCOPED_TRACE(testing::Message() << "scale " << scale << " beta2 " << beta2);
      AdamHyperparameters hyperparameters = kDefaults;
      hyperparameters.beta2 = beta2;
      const AdamScalars scalars = MakeAdamScalars(hyperparameters, 1, scale);

      const Element at = Step(scalars, scalars.g_lo, {.p = 0, .m = 0, .v = 0});
      const Element below = Step(scalars, Below(scalars.g_lo), {.p = 2, .m = 0, .v = 0});

      EXPECT_GE(std::fabs(at.m), 0x1p-126f);
      EXPECT_GE(at.v, 0x1p-126f);
      EXPECT_EQ(below.p, 2.0f);
      EXPECT_EQ(below.m, 0.0f);
      EXPECT_EQ(below.v, 0.0f);
    }
  }
}

TEST(AdamScalarTest, MomentsBelowTheSmallestNormalFloatBecomePositiveZero) {
  AdamHyperparameters hyperparameters = kDefaults;
  hyperparameters.beta1 = hyperparameters.beta2 = 0.5;
  const AdamScalars scalars = MakeAdamScalars(hyperparameters, 100, 1.0f);

  const Element kept = Step(scalars, 0.0f, {.p = 0, .m = -0x1p-125f, .v = 0x1p-125f});
  const Element dead = Step(scalars, 0.0f, {.p = 0, .m = -0x1.fffffcp-126f, .v = 0x1.fffffcp-126f});

  EXPECT_EQ(kept.m, -0x1p-126f);
  EXPECT_EQ(kept.v, 0x1p-126f);
  EXPECT_EQ(std::bit_cast<uint32_t>(dead.m), 0u);
  EXPECT_EQ(std::bit_cast<uint32_t>(dead.v), 0u);
}

// Adam in the paper's words and in long double, with a bound on how far fp32 may be from it. Each term of the bound is
// one rounding of the kernel, or one of the hyperparameters, and what earlier ones have grown to.
class Reference {
 public:
  Reference(const AdamHyperparameters& hyperparameters, float scale, float p)
      : hyperparameters_(hyperparameters), scale_(scale), p_(p) {}

  void Step(float raw_gradient) {
    const Real beta1 = hyperparameters_.beta1;
    const Real beta2 = hyperparameters_.beta2;
    power1_ *= beta1;
    power2_ *= beta2;
    const Real g = static_cast<Real>(raw_gradient) * scale_;
    // A gradient that the kernel counts as zero.
    const Real dropped = std::fabs(g) < g_min_ * (1 + kUnit) ? std::fabs(g) : 0;

    const Real m_before = m_magnitude_;
    m_ = beta1 * m_ + (1 - beta1) * g;
    m_magnitude_ = beta1 * m_magnitude_ + (1 - beta1) * std::fabs(g);
    m_error_ = beta1 * m_error_                                           // what there was
               + std::fabs(static_cast<float>(beta1) - beta1) * m_before  // beta1 rounded
               + (1 - beta1) * (3 * kUnit * std::fabs(g) + dropped)       // g * scale, omb1, omb1 * g
               + kUnit * m_magnitude_ + kSmallestNormal;                  // fma; flush
    const Real v_before = v_;
    v_ = beta2 * v_ + (1 - beta2) * g * g;
    v_error_ = beta2 * v_error_                                           // what there was
               + std::fabs(static_cast<float>(beta2) - beta2) * v_before  // beta2 rounded
               + (1 - beta2) * (5 * kUnit * g * g + dropped * dropped)  // g * scale twice, omb2, g * g, omb2 * (g * g)
               + kUnit * v_ + kSmallestNormal;                          // fma; flush

    const Real root = std::sqrt(v_);
    const Real correction = 1 / std::sqrt(1 - power2_);
    const Real d = root * correction + hyperparameters_.eps;
    const Real root_error = std::min(root > 0 ? v_error_ / root : v_error_ + 1, std::sqrt(v_error_));
    const Real d_error = (root_error + 2 * kUnit * root) * correction  // v; sqrt, inv_sqrt_bc2 rounded
                         + kUnit * hyperparameters_.eps + kUnit * d;   // eps rounded; fma
    const Real u = m_ / d;
    // The error of d can exceed it where v is next to nothing; the kernel's d is at least eps all the same.
    const Real d_least = std::max<Real>(d - d_error, hyperparameters_.eps * (1 - 2 * kUnit));
    const Real u_error = (m_error_ + std::fabs(u) * d_error) / d_least  // m and d
                         + kUnit * std::fabs(u);                        // division

    const Real step_size = hyperparameters_.learning_rate / (1 - power1_);
    p_ -= step_size * u;
    movement_ += step_size * std::fabs(u);
    p_error_ += step_size * (u_error + kUnit * std::fabs(u))  // u; step_size rounded
                + kUnit * std::fabs(p_) + kSmallestNormal;    // fma
  }

  long double p() const { return p_; }
  long double m() const { return m_; }
  long double v() const { return v_; }
  // 1 % more than the sums of the terms above for the products of errors that they leave out.
  long double p_error() const { return p_error_ * 1.01l; }
  long double m_error() const { return m_error_ * 1.01l; }
  long double v_error() const { return v_error_ * 1.01l; }
  long double movement() const { return movement_; }

 private:
  using Real = long double;
  static constexpr Real kUnit = 0x1p-24l;  // one rounding to float, relative
  static constexpr Real kSmallestNormal = 0x1p-126l;

  const AdamHyperparameters hyperparameters_;
  const Real scale_;
  const Real g_min_ = std::sqrt(0x1p-125l / (1 - static_cast<Real>(hyperparameters_.beta2)));
  Real power1_ = 1, power2_ = 1;
  Real p_, m_ = 0, v_ = 0;
  Real m_magnitude_ = 0;  // m if no gradients cancelled
  Real p_error_ = 0, m_error_ = 0, v_error_ = 0;
  Real movement_ = 0;  // length of p's way
};

struct TrainingRun {
  const char* name;
  AdamHyperparameters hyperparameters;
  float scale;
  double least_gradient, largest_gradient;  // magnitudes
  // What p_error may reach in the end, relative to the length of p's way: the comparison means something.
  double relative_bound;
};

class AdamReferenceTest : public testing::TestWithParam<TrainingRun> {};

TEST_P(AdamReferenceTest, StaysWithinTheRoundingErrorOfThePaper) {
  RandomFloats random(PrintedSeed());
  const TrainingRun& run = GetParam();
  for (int element = 0; element < 50; ++element) {
    const float start = random.Signed(1e-4, 1);
    Element x = {.p = start, .m = 0, .v = 0};
    Reference reference(run.hyperparameters, run.scale, start);
    for (int64_t t = 1; t <= 1000; ++t) {
      // A quarter without a gradient, so that moments decay as well as grow.
      const float g = random.Index(4) == 0 ? 0 : random.Signed(run.least_gradient, run.largest_gradient);
      x = Step(MakeAdamScalars(run.hyperparameters, t, run.scale), g, x);
      reference.Step(g);

      ASSERT_LE(std::fabs(x.m - reference.m()), reference.m_error()) << "element " << element << " t " << t;
      ASSERT_LE(std::fabs(x.v - reference.v()), reference.v_error()) << "element " << element << " t " << t;
      ASSERT_LE(std::fabs(x.p - reference.p()), reference.p_error()) << "element " << element << " t " << t;
    }
    EXPECT_LT(reference.p_error(), run.relative_bound * reference.movement() + 1000 * 0x1p-24 * std::fabs(x.p));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Hyperparameters, AdamReferenceTest,
    testing::Values(TrainingRun{"Defaults", kDefaults, 1.0f, 1e-3, 1e3, 5e-4},
                    TrainingRun{"Scaled", kDefaults, -0x1.8p-16f, 1e-3, 1e3, 5e-4},
                    TrainingRun{"LongMemory", {1e-2, 0.99, 1 - 0x1p-20, 1e-8}, 1.0f, 0.1, 10, 5e-4},
                    TrainingRun{"NoMemory", {1e-2, 0, 0, 1e-8}, 1.0f, 1e-12, 1e12, 5e-5},
                    TrainingRun{"LargeEps", {10, 0.9, 0.999, 1e4}, 1.0f, 1e-3, 1e3, 5e-5},
                    TrainingRun{"WideGradients", {1e-3, 0.9, 0.999, 1e-8}, 1.0f, 1e-12, 1e12, 5e-4},
                    TrainingRun{"GradientsNearTheThreshold", {1e-3, 0.9, 0.999, 1e-16}, 1.0f, 1e-19, 1e-15, 5e-2}),
    [](const testing::TestParamInfo<TrainingRun>& info) { return info.param.name; });

}  // namespace
}  // namespace adamant::kernels
