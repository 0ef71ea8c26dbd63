// The scalars of one step of a tensor, from what a user chooses. Thread-safe: there is no state.
#ifndef ADAMANT_KERNELS_SCALARS_H_
#define ADAMANT_KERNELS_SCALARS_H_

#include <cstdint>
#include <limits>

namespace adamant::kernels {

// What a user chooses, unrounded.
// Valid after rounding to float: learning_rate and weight_decay in [0, 2^32]; beta1 and beta2 in [0, 1 - 2^-20];
// eps in [MinEps(beta2), 2^32].
struct AdamHyperparameters {
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
  double weight_decay = 0;
};

// Valid after rounding to float: learning_rate and weight_decay in [0, 2^32]; momentum in [0, 1 - 2^-20]; dampening in
// [0, 1].
struct SgdHyperparameters {
  double learning_rate;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
};

// What a step does to a gradient before an optimizer sees it.
struct GradientTransform {
  float scale = 1;                                      // multiplies it: finite and not 0
  float clip = std::numeric_limits<float>::infinity();  // the most that its magnitude may be then: in (0, inf]
};

// What the kernels need for one step of a tensor: computed in double from the unrounded hyperparameters, then rounded
// to float. Those that are not an update's are 0, and ignored.
struct UpdateScalars {
  // Of all.
  float scale;         // multiplies the gradient
  float clip;          // then its magnitude is at most this
  float g_lo;          // before that, a gradient of a magnitude below this counts as zero
  float step_size;     // Adam: learning_rate / (1 - beta1^t), flushed; SGD: learning_rate, flushed
  float weight_decay;  // coupled
  float g_min;         // with coupled decay: the sum is zero where its magnitude is below this
  // Of Adam.
  float beta1 = 0;
  float omb1 = 0;  // 1 - beta1
  float beta2 = 0;
  float omb2 = 0;          // 1 - beta2
  float inv_sqrt_bc2 = 0;  // 1 / sqrt(1 - beta2^t)
  float eps = 0;
  float wd_bc1 = 0;  // weight_decay * (1 - beta1^t), flushed: decoupled
  // Of SGD.
  float momentum = 0;
  float buffer_decay = 0;  // what the buffer's old value counts: momentum, and 0 at a tensor's first update
  float omd = 0;           // 1 - dampening; 1 at a tensor's first update
};

// The scalars of the step that brings a tensor's count of updates from t - 1 to `t`. Requires: t >= 1, valid
// hyperparameters. Powers of beta come by repeated squaring: std::pow differs between C libraries.
UpdateScalars MakeAdamScalars(const AdamHyperparameters& hyperparameters, int64_t t,
                              const GradientTransform& transform);
UpdateScalars MakeSgdScalars(const SgdHyperparameters& hyperparameters, int64_t t, const GradientTransform& transform);

// The smallest valid eps for this beta2: max(1e-16, sqrt(2^-125 / (1 - beta2))). A smaller one would let a v that was
// flushed to zero magnify an update.
double MinEps(double beta2);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_SCALARS_H_
