// The scalars of one step, in double: bias corrections, step size and the gradient below which nothing is learned.
#include "kernels/scalars.h"

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

float Flush(double x) { return std::fabs(static_cast<float>(x)) < 0x1p-126f ? 0.0f : static_cast<float>(x); }

// The scalars that every optimizer has. A gradient counts as zero where its magnitude is below `g_min` after scaling.
UpdateScalars CommonScalars(const GradientTransform& transform, double g_min, double step_size, double weight_decay) {
  return {
      .scale = transform.scale,
      .clip = transform.clip,
      .g_lo = static_cast<float>(std::max(g_min / std::fabs(static_cast<double>(transform.scale)), 0x1p-126)),
      .step_size = Flush(step_size),
      .weight_decay = static_cast<float>(weight_decay),
      .g_min = static_cast<float>(g_min),
  };
}

}  // namespace

UpdateScalars MakeAdamScalars(const AdamHyperparameters& hyperparameters, int64_t t,
                              const GradientTransform& transform) {
  const auto& [learning_rate, beta1, beta2, eps, weight_decay] = hyperparameters;
  const double bc1 = 1 - Power(beta1, t);
  const double bc2 = 1 - Power(beta2, t);
  UpdateScalars scalars = CommonScalars(transform, MinGradient(1 - beta2), learning_rate / bc1, weight_decay);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.omb1 = static_cast<float>(1 - beta1);
  scalars.beta2 = static_cast<float>(beta2);
  scalars.omb2 = static_cast<float>(1 - beta2);
  scalars.inv_sqrt_bc2 = static_cast<float>(1 / std::sqrt(bc2));
  scalars.eps = static_cast<float>(eps);
  scalars.wd_bc1 = Flush(weight_decay * bc1);
  return scalars;
}

UpdateScalars MakeSgdScalars(const SgdHyperparameters& hyperparameters, int64_t t, const GradientTransform& transform) {
  const auto& [learning_rate, momentum, dampening, weight_decay] = hyperparameters;
  const bool first = t == 1;
  UpdateScalars scalars = CommonScalars(transform, 0x1p-126, learning_rate, weight_decay);
  scalars.momentum = static_cast<float>(momentum);
  scalars.buffer_decay = first ? 0 : static_cast<float>(momentum);
  scalars.omd = first ? 1 : static_cast<float>(1 - dampening);
  return scalars;
}

double MinEps(double beta2) { return std::max(1e-16, MinGradient(1 - beta2)); }

}  // namespace adamant::kernels
