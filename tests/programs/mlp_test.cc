// The network against the published losses, and against finite differences of a second implementation in double.
#include "client/programs/mlp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_format.h"
#include "client/programs/initialization.h"
#include "client/programs/regression.h"

namespace adamant::programs {
namespace {

using testing::ElementsAre;

// One step of Adam as the server defines it, with its defaults. Every operation is rounded; fused where `fma` stands.
class Adam {
 public:
  explicit Adam(size_t size) : m_(size), v_(size) {}

  void Step(absl::Span<const float> g, absl::Span<float> p) {
    beta1_power_ *= 0.9;
    beta2_power_ *= 0.999;
    const float step_size = static_cast<float>(1e-3 / (1 - beta1_power_));
    const float inv_sqrt_bc2 = static_cast<float>(1 / std::sqrt(1 - beta2_power_));
    for (size_t i = 0; i < p.size(); ++i) {
      m_[i] = std::fma(0.9f, m_[i], static_cast<float>(1 - 0.9) * g[i]);
      v_[i] = std::fma(0.999f, v_[i], static_cast<float>(1 - 0.999) * (g[i] * g[i]));
      p[i] = std::fma(-step_size, m_[i] / std::fma(std::sqrt(v_[i]), inv_sqrt_bc2, 1e-8f), p[i]);
    }
  }

 private:
  double beta1_power_ = 1;
  double beta2_power_ = 1;
  std::vector<float> m_;
  std::vector<float> v_;
};

TEST(MlpTest, TrainsToTheReferencesLossesAtSixDecimals) {
  Mlp mlp({2, 16, 1});
  const Batch batch = ReferenceSample();
  std::vector<float> parameters = InitialParameters({2, 16, 1}, 0);
  std::vector<float> gradient(parameters.size());
  Adam adam(parameters.size());
  std::vector<std::string> losses;

  for (int epoch = 1; epoch <= 50; ++epoch) {
    const float loss = mlp.LossAndGradient(parameters, batch, absl::MakeSpan(gradient));
    if (epoch % 5 == 0) losses.push_back(absl::StrFormat("%.6f", loss));
    adam.Step(gradient, absl::MakeSpan(parameters));
  }

  EXPECT_THAT(losses, ElementsAre("0.809774", "0.721449", "0.638959", "0.562460", "0.491979", "0.428558", "0.372196",
                                  "0.320848", "0.274360", "0.232563"));
}

TEST(MlpTest, NamesItsTensorsInTheOrderOfTheParameters) {
  const Mlp mlp({2, 16, 3});

  const std::vector<Mlp::Tensor> tensors = mlp.Tensors();

  ASSERT_EQ(tensors.size(), 4);
  EXPECT_EQ(tensors[0].name, "layers.0.weight");
  EXPECT_THAT(tensors[0].shape, ElementsAre(16, 2));
  EXPECT_EQ(tensors[1].name, "layers.0.bias");
  EXPECT_THAT(tensors[1].shape, ElementsAre(16));
  EXPECT_EQ(tensors[2].name, "layers.1.weight");
  EXPECT_THAT(tensors[2].shape, ElementsAre(3, 16));
  EXPECT_EQ(tensors[3].name, "layers.1.bias");
  EXPECT_THAT(tensors[3].shape, ElementsAre(3));
  EXPECT_EQ(mlp.parameter_count(), 16 * 2 + 16 + 3 * 16 + 3);
}

// The loss in double, one sample at a time.
double LossInDouble(const std::vector<int>& widths, const std::vector<double>& parameters, const Batch& batch) {
  double sum = 0;
  for (int s = 0; s < batch.samples; ++s) {
    std::vector<double> values;
    for (int i = 0; i < widths.front(); ++i) values.push_back(batch.inputs[i * batch.samples + s]);
    const double* next = parameters.data();
    for (size_t layer = 1; layer < widths.size(); ++layer) {
      const double* biases = next + widths[layer] * widths[layer - 1];
      std::vector<double> sums(biases, biases + widths[layer]);
      for (double& z : sums) {
        for (double value : values) z += *next++ * value;
        if (layer + 1 < widths.size()) z = std::max(z, 0.0);
      }
      next = biases + widths[layer];
      values = sums;
    }
    for (int k = 0; k < widths.back(); ++k) sum += std::pow(values[k] - batch.targets[k * batch.samples + s], 2);
  }
  return sum / (batch.samples * widths.back());
}

struct Network {
  std::vector<int> widths;
  int samples;
};

class MlpGradientTest : public testing::TestWithParam<Network> {};

TEST_P(MlpGradientTest, IsTheLosssSlope) {
  const auto& [widths, samples] = GetParam();
  Mlp mlp(widths);
  const Batch batch = MakeRegression(widths.front(), widths.back(), samples, 5);
  const std::vector<float> parameters = InitialParameters(widths, 7);
  std::vector<float> gradient(parameters.size(), NAN);

  const float loss = mlp.LossAndGradient(parameters, batch, absl::MakeSpan(gradient));

  std::vector<double> moved(parameters.begin(), parameters.end());
  EXPECT_NEAR(loss, LossInDouble(widths, moved, batch), 1e-6 * loss);
  for (size_t i = 0; i < parameters.size(); ++i) {
    constexpr double kDistance = 1e-6;
    moved[i] = parameters[i] + kDistance;
    const double above = LossInDouble(widths, moved, batch);
    moved[i] = parameters[i] - kDistance;
    const double below = LossInDouble(widths, moved, batch);
    moved[i] = parameters[i];
    // fp32 sums of at most a hundred terms below 1.
    EXPECT_NEAR(gradient[i], (above - below) / (2 * kDistance), 1e-5) << "parameter " << i;
  }
}

TEST_P(MlpGradientTest, DoesNotDependOnWhatTheNetworkSawBefore) {
  const auto& [widths, samples] = GetParam();
  const Batch batch = MakeRegression(widths.front(), widths.back(), samples, 5);
  const Batch other = MakeRegression(widths.front(), widths.back(), 2 * samples + 1, 6);
  const std::vector<float> parameters = InitialParameters(widths, 7);
  std::vector<float> expected(parameters.size());
  std::vector<float> gradient(parameters.size());
  const float expected_loss = Mlp(widths).LossAndGradient(parameters, batch, absl::MakeSpan(expected));
  Mlp mlp(widths);
  mlp.LossAndGradient(parameters, other, absl::MakeSpan(gradient));

  EXPECT_EQ(mlp.LossAndGradient(parameters, batch, absl::MakeSpan(gradient)), expected_loss);
  EXPECT_EQ(gradient, expected);
}

INSTANTIATE_TEST_SUITE_P(Networks, MlpGradientTest,
                         testing::Values(Network{{1, 1}, 1}, Network{{2, 16, 1}, 1}, Network{{3, 8, 5, 2}, 7},
                                         Network{{2, 6, 6, 6, 3}, 33}));

}  // namespace
}  // namespace adamant::programs
