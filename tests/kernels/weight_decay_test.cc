// AdamW's decay at learning rates at which a fine-tuning runs, where one step's is less than a parameter's last bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/scalars.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

struct FineTuning {
  double learning_rate;
  double largest;  // magnitude of a parameter
};

class WeightDecayTest : public testing::TestWithParam<FineTuning> {};

// `count` numbers, N(0, 1).
std::vector<float> Normal(int64_t count, RandomFloats* random) {
  return Generate(count, [&] {
    return static_cast<float>(std::sqrt(-2 * std::log(1 - random->Unit())) *
                              std::cos(2 * std::numbers::pi * random->Unit()));
  });
}

TEST_P(WeightDecayTest, IsExactInTheMean) {
  constexpr int64_t kSteps = 10'000;
  constexpr int64_t kHalf = 1'500;
  constexpr double kWeightDecay = 0.01;
  const auto [learning_rate, largest] = GetParam();
  RandomFloats random(PrintedSeed());
  // Steps take their gradients from anywhere in there.
  const std::vector<float> normal = Normal(100'000, &random);
  // The second half learns the opposite of the first, so that what is learned cancels and the decay is left.
  std::vector<float> g(2 * kHalf), p(2 * kHalf), m(2 * kHalf), v(2 * kHalf);
  for (int64_t i = 0; i < kHalf; ++i) {
    p[i] = p[kHalf + i] = static_cast<float>(largest * (2 * random.Unit() - 1));
  }
  const std::vector<float> start = p;
  const UpdateSpan span = {.size = 2 * kHalf,
                           .g = g.data(),
                           .p_in = p.data(),
                           .p_out = p.data(),
                           .slots = {{m.data(), m.data()}, {v.data(), v.data()}}};
  for (int64_t t = 1; t <= kSteps; ++t) {
    const int64_t first = random.Index(static_cast<int64_t>(normal.size()) - kHalf);
    for (int64_t i = 0; i < kHalf; ++i) {
      g[i] = normal[first + i];
      g[kHalf + i] = -g[i];
    }
    const UpdateScalars scalars = MakeAdamScalars(
        {.learning_rate = learning_rate, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = kWeightDecay}, t,
        {});

    BestKernels().update[kAdamW](scalars, span);
  }

  double decayed = 0;
  double whole = 0;
  for (int64_t i = 0; i < 2 * kHalf; ++i) {
    decayed += std::copysign(1.0, start[i]) * (static_cast<double>(start[i]) - p[i]);
    whole += std::fabs(start[i]);
  }
  const double exact = whole * -std::expm1(kSteps * std::log1p(-learning_rate * kWeightDecay));
  EXPECT_NEAR(decayed / exact, 1, 0.01);
}

INSTANTIATE_TEST_SUITE_P(LearningRates, WeightDecayTest,
                         testing::Values(FineTuning{1e-4, 2}, FineTuning{1e-5, 2}, FineTuning{1e-6, 2},
                                         FineTuning{1e-6, 0.125}, FineTuning{1e-7, 0.5}));

}  // namespace
}  // namespace adamant::kernels
