// How far a parameter and its state in fp32 may be off the same in exact arithmetic.
//
// A bound follows one element from step to step beside the kernel. It knows the hyperparameters as the user gave them
// and what the kernel stored, and none of the kernel's scalars, so that it forgives no wrong one. Each term is the most
// that one rounding, or one threshold, can take or add; errors of before go on as the equation takes them on. With h(x)
// half a unit in the last place of x, and r(c) = |float(c) - c| for a constant c:
//
//   scaling      |g| r(scale) + h(g)               clip coefficients
//                |g| where |g| < g_min             gradients that are too small for v: at most lr * g_min / eps a step
//   clipping     r(clip) where it may clip, and nothing of before where it must
//   coupled      wd * error(p) + |p| r(wd) + h(g)
//   m            beta1 * error(m) + |m| r(beta1) + (1 - beta1) error(g) + |g| r(1 - beta1) + h((1 - beta1) g) + h(m)
//                2^-126 where m is zero            flushed
//   v            beta2 * error(v) + v r(beta2) + (1 - beta2) (2 |g| error(g) + error(g)^2) + g^2 r(1 - beta2)
//                + (1 - beta2) h(g^2) + h((1 - beta2) g^2) + h(v), and 2^-126 where v is zero
//                (in the end r(beta2) alone makes this up to 2^-25 / (1 - beta2) of v, and h(v) as much again)
//   largest v    the larger of error(largest v) and error(v)
//   d            error(v) / (sqrt(v) + sqrt(v - error(v))), h(sqrt(v)), both / sqrt(bc2), + sqrt(v) r(1 / sqrt(bc2))
//                + r(eps) + h(d)
//   m / d        (error(m) + |m / d| error(d)) / d + h(m / d)
//   decoupled    |p| r(wd * bc1) + h(u), and 2^-100 * wd * bc1 where |p| < 2^-100
//   buffer       momentum * error(buffer) + |buffer| r(momentum) + omd * error(g) + |g| r(omd) + h(omd * g) + h(buffer)
//                2^-126 where it is zero           flushed
//   Nesterov     error(g) + momentum * error(buffer) + |buffer| r(momentum) + h(u)
//   p            |1 - lr * wd| error(p) where the decay is decoupled, else error(p)
//                + step_size * error(u) + |u| r(step_size) + h(p)
#ifndef ADAMANT_TESTS_GOLDEN_ERROR_BOUND_H_
#define ADAMANT_TESTS_GOLDEN_ERROR_BOUND_H_

#include <cstdint>

#include "adamant/v1/parameter_set.pb.h"
#include "kernels/update.h"

namespace adamant::golden {

// A parameter and its state, or bounds of their errors.
template <typename T>
struct Element {
  T parameter;
  T slots[kernels::kMaxSlots];
};

// A step of a tensor, in exact arithmetic.
struct ExactStep {
  double learning_rate;
  double scale;  // of the gradient; negative to ascend
  double clip;   // of its elements; infinity: none
  int64_t t;     // the tensor's count of updates, this one included
};

// Takes the bounds of an element's errors on through a step of a group whose optimizer has all its defaults resolved,
// with this gradient, in which the kernel made `after` of `before`.
Element<double> NextErrors(const v1::ParameterGroup& group, const ExactStep& step, float gradient,
                           const Element<float>& before, const Element<float>& after, const Element<double>& errors);

}  // namespace adamant::golden

#endif  // ADAMANT_TESTS_GOLDEN_ERROR_BOUND_H_
