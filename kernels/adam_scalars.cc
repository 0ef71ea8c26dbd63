// The scalars of one step, in double: bias corrections, step size and the gradient below which nothing is learned.
#include "kernels/adam_scalars.h"

#include <algorithm>
#include <cmath>

namespace adamant::kernels {
namespace {

double Power(double base, int64_t exponent) {
  double power = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) power *= base;
    base *= base;
  }
  return power;
}

// The smallest gradient whose contribution to v, omb2 * g * g, is a normal float. Twice the smallest normal float, so
// that the roundings on the way do not matter.
double MinGradient(double omb2) { return std::sqrt(0x1p-125 / omb2); }

float Flush(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; }

}  // namespace

AdamScalars MakeAdamScalars(const AdamHyperparameters& hyperparameters, int64_t t, float scale) {
  const auto& [learning_rate, beta1, beta2, eps] = hyperparameters;
  const double bc1 = 1 - Power(beta1, t);
  const double bc2 = 1 - Power(beta2, t);
  return {
      .beta1 = static_cast<float>(beta1),
      .omb1 = static_cast<float>(1 - beta1),
      .beta2 = static_cast<float>(beta2),
      .omb2 = static_cast<float>(1 - beta2),
      .step_size = Flush(static_cast<float>(learning_rate / bc1)),
      .inv_sqrt_bc2 = static_cast<float>(1 / std::sqrt(bc2)),
      .eps = static_cast<float>(eps),
      .scale = scale,
      .g_lo = static_cast<float>(std::max(MinGradient(1 - beta2) / std::fabs(static_cast<double>(scale)), 0x1p-126)),
  };
}

double MinEps(double beta2) { return std::max(1e-16, MinGradient(1 - beta2)); }

}  // namespace adamant::kernels
