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

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_ROUNDS_H_
