// Size and sanity of a gradient, measured block by block while it is still in cache.
//
// Thread-safe: there is no state. The sum runs in one fixed order, so that it has the same bits for every instruction
// set, thread count and chunking of the gradient.
#ifndef ADAMANT_KERNELS_NORM_H_
#define ADAMANT_KERNELS_NORM_H_

#include <cstdint>

namespace adamant::kernels {

// Consecutive elements of a block that are summed together, counted from the block's first element.
inline constexpr int64_t kNormLeaf = 4096;
// Partial sums of a leaf; partial sum j takes the elements whose index is j modulo this, in ascending order.
inline constexpr int kNormLanes = 32;

struct GradientStats {
  // Sum of squares in double. Not finite where an element is not.
  double sum_of_squares = 0;
  // Bits of the largest |g|, as an unsigned integer: ordered like the magnitudes, infinity above every finite one and
  // NaN above infinity.
  uint32_t max_magnitude_bits = 0;
};

// Measures the block [g, g + size). Within a leaf the lanes fold in halves (16, 8, 4, 2, 1); leaves add in order. A
// leaf that is cut short counts as if zeros followed. Nothing of the floating-point environment is used or changed.
using MeasureFunction = GradientStats (*)(const float* g, int64_t size);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_NORM_H_
