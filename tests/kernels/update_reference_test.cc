// The reference kernels over whole trainings, against the papers' equations in higher precision: within a bound of
// which each term is one rounding of the kernel, and what earlier ones have grown to.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/scalars.h"
#include "tests/kernels/bounded.h"
#include "tests/kernels/kernel_inputs.h"
#include "tests/kernels/update_inputs.h"

namespace adamant::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One parameter and what its optimizer remembers.
struct Element {
  Bounded p;
  Bounded slots[kMaxSlots];
  Real power1 = 1, power2 = 1;  // of the betas
  Real movement = 0;            // the length of p's way

  void Move(Bounded by) {
    movement += std::fabs(by.value);
    p = Round(p - by);
  }
};

// What an optimizer learns from. A gradient below `g_min` may count as zero.
Bounded GradientOf(const GradientTransform& transform, Real g_min, float raw) {
  const Bounded g = Round(Exactly(transform.scale) * Exactly(raw));
  // g_lo is rounded twice.
  return Clamp(ZeroBelow(g, g_min * (1 + 0x1p-22l)), transform.clip);
}

Bounded WithCoupledDecay(Bounded g, double weight_decay, Bounded p, Real g_min) {
  return ZeroBelow(Clamp(Round(Round(weight_decay) * p + g), 0x1p63l), g_min * (1 + 0x1p-22l));
}

// Adam in the paper's words, where m / bc1 and v / bc2 are the moments without bias.
void AdamStep(Update update, const AdamHyperparameters& hyperparameters, const GradientTransform& transform, float raw,
              Element* x) {
  auto& [m, v, v_max] = x->slots;
  const Real beta1 = hyperparameters.beta1;
  const Real beta2 = hyperparameters.beta2;
  x->power1 *= beta1;
  x->power2 *= beta2;
  const Real bc1 = 1 - x->power1;
  const Real bc2 = 1 - x->power2;
  const Real g_min = std::sqrt(0x1p-125l / (1 - beta2));
  Bounded g = GradientOf(transform, g_min, raw);
  if (update == kAdamL2 || update == kAdamL2Amsgrad) {
    g = WithCoupledDecay(g, hyperparameters.weight_decay, x->p, g_min);
  }

  m = Flush(Round(Round(beta1) * m + Round(Round(1 - beta1) * g)));
  v = Flush(Round(Round(beta2) * v + Round(Round(1 - beta2) * Round(g * g))));
  v_max = Max(v, v_max);
  const Bounded root = Round(SquareRoot(HasAmsgrad(update) ? v_max : v));
  const Bounded d = Round(root * Round(1 / std::sqrt(bc2)) + Round(hyperparameters.eps));
  Bounded u = Round(Quotient(m, d, hyperparameters.eps * (1 - 0x1p-22l)));
  if (update == kAdamW || update == kAdamWAmsgrad) {
    u = Round(Round(hyperparameters.weight_decay * bc1) * ZeroBelow(x->p, 0x1p-100l) + u);
  }
  x->Move(Round(hyperparameters.learning_rate / bc1) * u);
}

// SGD as PyTorch documents it.
void SgdStep(Update update, const SgdHyperparameters& hyperparameters, const GradientTransform& transform, int64_t t,
             float raw, Element* x) {
  Bounded& buffer = x->slots[0];
  const Bounded momentum = Round(hyperparameters.momentum);
  Bounded g = GradientOf(transform, 0x1p-126l, raw);
  if (update == kSgdL2 || update == kMomentumL2 || update == kNesterovL2) {
    g = WithCoupledDecay(g, hyperparameters.weight_decay, x->p, 0x1p-126l);
  }

  if (update == kSgd || update == kSgdL2) {
    x->Move(Round(hyperparameters.learning_rate) * g);
    return;
  }
  buffer =
      t == 1 ? g : Flush(Round(momentum * buffer + Round(Round(1 - static_cast<Real>(hyperparameters.dampening)) * g)));
  const bool nesterov = update == kNesterov || update == kNesterovL2;
  x->Move(Round(hyperparameters.learning_rate) * (nesterov ? Round(g + momentum * buffer) : buffer));
}

struct Training {
  const char* name;
  double weight_decay;  // of those updates that have it
  GradientTransform transform;
  double least_gradient, largest_gradient;  // magnitudes
  // What the bound on p may be in the end, relative to the length of p's way: the comparison means something.
  double relative_bound;
};

struct AdamTraining : Training {
  AdamHyperparameters hyperparameters;
};

struct SgdTraining : Training {
  SgdHyperparameters hyperparameters;
};

// Trains 50 parameters for 1,000 steps. `scalars_at(t)` and `step(t, g, element)` are the kernel's and the reference's.
template <typename ScalarsAt, typename Step>
void ExpectWithinBound(Update update, const Training& training, ScalarsAt scalars_at, Step step) {
  constexpr int kElements = 50;
  RandomFloats random(PrintedSeed());
  std::vector<float> p = Generate(kElements, [&] { return random.Signed(1e-4, 1); });
  std::vector<float> slots[kMaxSlots];
  for (std::vector<float>& slot : slots) slot.resize(kElements);
  std::vector<Element> expected(kElements);
  for (int i = 0; i < kElements; ++i) expected[i].p = Exactly(p[i]);
  for (int64_t t = 1; t <= 1000; ++t) {
    // A quarter without a gradient, so that the state decays as well as grows.
    const std::vector<float> g = Generate(kElements, [&] {
      return random.Index(4) == 0 ? 0 : random.Signed(training.least_gradient, training.largest_gradient);
    });
    UpdateSpan span = {.size = kElements, .g = g.data(), .p_in = p.data(), .p_out = p.data(), .slots = {}};
    for (int k = 0; k < kSlotCounts[update]; ++k) span.slots[k] = {slots[k].data(), slots[k].data()};

    FindKernels("scalar")->update[update](scalars_at(t), span);

    for (int i = 0; i < kElements; ++i) {
      step(t, g[i], &expected[i]);
      ASSERT_LE(std::fabs(p[i] - expected[i].p.value), expected[i].p.error) << "element " << i << " t " << t;
      for (int k = 0; k < kSlotCounts[update]; ++k) {
        const Bounded& slot = expected[i].slots[k];
        ASSERT_LE(std::fabs(slots[k][i] - slot.value), slot.error) << "element " << i << " t " << t << " slot " << k;
      }
    }
  }
  for (const Element& x : expected) {
    EXPECT_LT(x.p.error, training.relative_bound * x.movement + 1000 * 0x1p-24 * std::fabs(x.p.value));
  }
}

template <typename Parameter>
std::string Name(const testing::TestParamInfo<Parameter>& info) {
  return std::string(kUpdateNames[std::get<0>(info.param)]) + std::get<1>(info.param).name;
}

using AdamParameter = std::tuple<int, AdamTraining>;
class AdamReferenceTest : public testing::TestWithParam<AdamParameter> {};

TEST_P(AdamReferenceTest, StaysWithinTheRoundingErrorsOfThePaper) {
  const Update update = static_cast<Update>(std::get<0>(GetParam()));
  const AdamTraining& training = std::get<1>(GetParam());
  AdamHyperparameters hyperparameters = training.hyperparameters;
  hyperparameters.weight_decay = training.weight_decay;

  ExpectWithinBound(
      update, training, [&](int64_t t) { return MakeAdamScalars(hyperparameters, t, training.transform); },
      [&](int64_t, float g, Element* x) { AdamStep(update, hyperparameters, training.transform, g, x); });
}

constexpr AdamHyperparameters kDefaults = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};

INSTANTIATE_TEST_SUITE_P(
    EveryVariant, AdamReferenceTest,
    testing::Combine(
        testing::Range<int>(kAdam, kSgd),
        testing::Values(AdamTraining{{"Defaults", 1e-2, {}, 1e-3, 1e3, 5e-4}, kDefaults},
                        AdamTraining{{"Scaled", 1e-4, {-0x1.8p-16f, kInfinity}, 1e-3, 1e3, 5e-4}, kDefaults},
                        AdamTraining{{"Clipped", 1e-2, {-4, 0.7f}, 1e-3, 1e3, 1e-3}, kDefaults},
                        AdamTraining{{"LargeDecay", 1, {}, 1e-3, 1e3, 5e-4}, kDefaults},
                        AdamTraining{{"LongMemory", 1e-2, {}, 0.1, 10, 5e-4}, {1e-2, 0.99, 1 - 0x1p-20, 1e-8}},
                        AdamTraining{{"NoMemory", 1e-9, {}, 1e-12, 1e12, 5e-5}, {1e-2, 0, 0, 1e-8}},
                        AdamTraining{{"LargeEps", 1e-5, {}, 1e-3, 1e3, 5e-5}, {10, 0.9, 0.999, 1e4}},
                        AdamTraining{{"WideGradients", 1e-2, {}, 1e-12, 1e12, 5e-4}, kDefaults},
                        AdamTraining{{"GradientsNearTheThreshold", 1e-18, {}, 1e-19, 1e-15, 5e-2},
                                     {1e-3, 0.9, 0.999, 1e-16}})),
    Name<AdamParameter>);

using SgdParameter = std::tuple<int, SgdTraining>;
class SgdReferenceTest : public testing::TestWithParam<SgdParameter> {};

TEST_P(SgdReferenceTest, StaysWithinTheRoundingErrorsOfTheEquations) {
  const Update update = static_cast<Update>(std::get<0>(GetParam()));
  const SgdTraining& training = std::get<1>(GetParam());
  SgdHyperparameters hyperparameters = training.hyperparameters;
  hyperparameters.weight_decay = training.weight_decay;

  ExpectWithinBound(
      update, training, [&](int64_t t) { return MakeSgdScalars(hyperparameters, t, training.transform); },
      [&](int64_t t, float g, Element* x) { SgdStep(update, hyperparameters, training.transform, t, g, x); });
}

INSTANTIATE_TEST_SUITE_P(
    EveryVariant, SgdReferenceTest,
    testing::Combine(testing::Range<int>(kSgd, kUpdates),
                     testing::Values(SgdTraining{{"Defaults", 1e-2, {}, 1e-3, 1e3, 5e-4}, {1e-2, 0.9}},
                                     SgdTraining{{"Dampened", 1e-2, {}, 1e-3, 1e3, 5e-4}, {1e-2, 0.95, 0.3}},
                                     SgdTraining{{"Scaled", 1e-2, {-0x1.8p-16f, kInfinity}, 1e-3, 1e3, 5e-4},
                                                 {1e-2, 0.9, 0.1}},
                                     SgdTraining{{"Clipped", 1e-2, {-4, 0.7f}, 1e-3, 1e3, 1e-3}, {1e-2, 0.9, 0.1}},
                                     SgdTraining{{"LongMemory", 1e-3, {}, 0.1, 10, 5e-4}, {1e-3, 1 - 0x1p-20}},
                                     SgdTraining{{"NoMemory", 1e-2, {}, 1e-12, 1e12, 5e-4}, {1e-2, 0}})),
    Name<SgdParameter>);

}  // namespace
}  // namespace adamant::kernels
