// The Adam update of one run of parameters, and what it takes to call it.
//
// Everything here is thread-safe: there is no state but the caller's memory. Nothing here allocates, throws or fails.
//
// The arithmetic is fp32 with every operation correctly rounded and fused only where `fma` is written, so that every
// kernel in the table (dispatch.h) gives the same bits for the same input on every machine; any NaN equals any NaN.
// Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", algorithm 1 (eps outside of the root, after bias
// correction, as in PyTorch), with the two additions below that keep denormals out of the state.
//
//   g  = |g| >= g_lo ? g * scale : 0
//   m  = flush(fma(beta1, m, omb1 * g))
//   v  = flush(fma(beta2, v, omb2 * (g * g)))
//   d  = fma(sqrt(v), inv_sqrt_bc2, eps)
//   p  = fma(-step_size, m / d, p)
//
// flush(x) is +0 where |x| < 2^-126 and x elsewhere (a NaN stays one). Without it, and without `g_lo`, the moments of a
// unit that no longer learns end as denormals that never reach zero, and a step becomes 20 times slower for good.
#ifndef ADAMANT_KERNELS_ADAM_H_
#define ADAMANT_KERNELS_ADAM_H_

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

// One contiguous run of `size` elements. Inputs are read and outputs written at the same index only, so each output may
// be exactly the same array as an input: m_out == m_in, v_out == v_in, and p_out == g (a dense step: the new parameters
// take the gradient's place) or p_out == p_in. Arrays that are not the same do not overlap. No alignment is required
// beyond that of float.
struct AdamSpan {
  int64_t size;
  const float* p_in;
  const float* g;
  const float* m_in;
  const float* v_in;
  float* p_out;
  float* m_out;
  float* v_out;
};

// Applies one step to `span`. The floating-point environment of the caller (rounding mode, flush-to-zero, exception
// flags) neither changes the result nor is changed.
using AdamFunction = void (*)(const AdamScalars& scalars, const AdamSpan& span);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_ADAM_H_
