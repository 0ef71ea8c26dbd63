// The conversions between fp32 and the 16-bit formats that elements may travel in. Plain loops, which compilers make
// vector instructions of: those of several instruction sets, among which the processor decides.
//
// Thread-safe: there is no state.
#ifndef ADAMANT_CLIENT_SRC_FORMATS_H_
#define ADAMANT_CLIENT_SRC_FORMATS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant {

inline bool Is16Bit(v1::Dtype dtype) { return dtype == v1::DTYPE_BFLOAT16 || dtype == v1::DTYPE_FLOAT16; }

// Rounds [from, from + n) to the nearest elements of a 16-bit `dtype`, halfway to the one whose last bit is 0, and
// writes them to `to`, little-endian and of any alignment. Denormals are kept, what is too large becomes infinite, a
// NaN the quiet one of its sign. The bits are those of the server's kernels.
void Narrow(v1::Dtype dtype, const float* from, int64_t n, void* to);

// Widens the `n` elements of a 16-bit `dtype` at `from`, little-endian and of any alignment, to [to, to + n). Exact.
void Widen(v1::Dtype dtype, const void* from, int64_t n, float* to);

// Narrow and Widen by one instruction set. All have the same bits.
struct Conversions {
  const char* name;
  void (*narrow)(v1::Dtype dtype, const float* from, int64_t n, void* to);
  void (*widen)(v1::Dtype dtype, const void* from, int64_t n, float* to);
};

// Those that this processor can run. Narrow and Widen are the last one, the fastest.
absl::Span<const Conversions> SupportedConversions();

// Rounds each element to `dtype`, of whatever width: as it would be after Narrow and Widen. Returns how many became
// infinite.
int64_t Round(v1::Dtype dtype, absl::Span<float> elements);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_FORMATS_H_
