// The 16-bit formats that gradients may come in and replies may go out in, and the conversions between them and fp32.
//
// Thread-safe: there is no state.
#ifndef ADAMANT_KERNELS_FORMATS_H_
#define ADAMANT_KERNELS_FORMATS_H_

#include <cstdint>

namespace adamant::kernels {

// As indices of tables. In memory an element is two bytes, little-endian.
enum Format16 : int {
  kBfloat16,  // the upper half of a binary32
  kFloat16,   // IEEE 754 binary16
  kFormats16
};

// Widens the `n` elements at `from`, which has any alignment, to [to, to + n). Every value is kept, denormals, zeros of
// either sign and infinities among them; a NaN stays one, with its sign. The two arrays do not overlap. Nothing of the
// floating-point environment is used or changed.
using WidenFunction = void (*)(const void* from, float* to, int64_t n);

// Narrows [from, from + n) to the nearest elements at `to`, which has any alignment; halfway between two, to the one
// whose last bit is 0. Denormals are kept, as they are and as results. A NaN becomes 0x7FC0 (bfloat16) or 0x7E00
// (float16) with its sign. Returns how many finite numbers became infinite: those from 0x1.FFp127 or 0x1.FFEp15
// (65,520) on. The two arrays do not overlap. Requires: n < 2^32. Nothing of the floating-point environment is used or
// changed.
using NarrowFunction = int64_t (*)(const float* from, void* to, int64_t n);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_FORMATS_H_
