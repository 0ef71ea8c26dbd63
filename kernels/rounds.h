// The sum of the gradients that several workers contribute to one step.
//
// Thread-safe: there is no state.
#ifndef ADAMANT_KERNELS_ROUNDS_H_
#define ADAMANT_KERNELS_ROUNDS_H_

#include <cstdint>

namespace adamant::kernels {

// Takes a contribution [g, g + n) into [sum, sum + n): sum = k * g if it is the `first`, which `sum` then need not be
// initialized for, else sum = fma(k, g, sum). Each is rounded once, denormals kept: the same bits for every instruction
// set and however a run is cut; any NaN equals any NaN. `sum` may be exactly the array `g`; otherwise they do not
// overlap. Nothing of the floating-point environment is used or changed.
using FoldFunction = void (*)(float k, const float* g, float* sum, int64_t n, bool first);

// How many contributions TrimmedMean combines at most.
inline constexpr int kMaxContributions = 64;

// One of them: [g, g + n), all finite, which counts `k` times.
struct ScaledGradient {
  float k;
  const float* g;
};

// Combines `count` contributions to [out, out + n), element by element: of the products k * g, each rounded once, the
// mean of those that are left without the `trim` largest and the `trim` smallest. They are added in ascending order, in
// double, and the quotient is rounded: the order of the contributions does not matter. Yin et al., 2018, definition 2;
// with a `trim` of (count - 1) / 2 it is the median, or the mean of the two in the middle. `out` may be exactly one of
// the contributions; otherwise they do not overlap. Requires: 2 * trim < count <= kMaxContributions; the environment is
// the default one.
void TrimmedMean(const ScaledGradient* contributions, int count, int trim, float* out, int64_t n);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_ROUNDS_H_
