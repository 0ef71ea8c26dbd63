// The scalars of one step of Adam, from what a user chooses. Thread-safe: there is no state.
#ifndef ADAMANT_KERNELS_ADAM_SCALARS_H_
#define ADAMANT_KERNELS_ADAM_SCALARS_H_

#include <cstdint>

namespace adamant::kernels {

// What a user chooses, unrounded.
// Valid after rounding to float: learning_rate in [0, 2^32]; beta1 and beta2 in [0, 1 - 2^-20];
// eps in [MinEps(beta2), 2^32].
struct AdamHyperparameters {
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
};

// What the kernel needs for one step: computed in double from the unrounded hyperparameters, then rounded to float.
struct AdamScalars {
  float beta1;
  float omb1;  // 1 - beta1
  float beta2;
  float omb2;          // 1 - beta2
  float step_size;     // learning_rate / (1 - beta1^t), flushed
  float inv_sqrt_bc2;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float scale;  // multiplies the gradient: finite
  float g_lo;   // gradients below this count as zero: their square would vanish in v
};

// The scalars of the step that brings the counter from t - 1 to `t`. Requires: t >= 1, valid hyperparameters, `scale`
// finite and not 0. Powers of beta come by repeated squaring: std::pow differs between C libraries.
AdamScalars MakeAdamScalars(const AdamHyperparameters& hyperparameters, int64_t t, float scale);

// The smallest valid eps for this beta2: max(1e-16, sqrt(2^-125 / (1 - beta2))). A smaller one would let a v that was
// flushed to zero magnify an update.
double MinEps(double beta2);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_ADAM_SCALARS_H_
