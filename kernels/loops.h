// An update of updates/ over a run of parameters: whole vectors, then what is left as part of one.
#ifndef ADAMANT_KERNELS_LOOPS_H_
#define ADAMANT_KERNELS_LOOPS_H_

#include <cstdint>

#include "kernels/instruction_sets.h"
#include "kernels/update.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// Past the end of the array it is an address that is never read.
template <typename V>
void PrefetchAhead(const float* x) {
  V::Prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(x) + kPrefetchDistance * sizeof(float)));
}

// Updates the vector that begins at element `i`: all of it, or where a mask is given as `part` the lanes of the mask
// only. Inlined for both: called, a step takes twice as long.
template <typename U, typename... Part>
[[gnu::always_inline]] inline void UpdateVector(const U& update, const UpdateSpan& span, int64_t i, Part... part) {
  using V = typename U::Lanes;
  typename V::Floats slots[U::kSlots];
#pragma GCC unroll 8
  for (int k = 0; k < U::kSlots; ++k) slots[k] = V::Load(span.slots[k].in + i, part...);
  const typename V::Floats p = update.Next(V::Load(span.g + i, part...), V::Load(span.p_in + i, part...), slots);
  V::Store(span.p_out + i, p, part...);
#pragma GCC unroll 8
  for (int k = 0; k < U::kSlots; ++k) V::Store(span.slots[k].out + i, slots[k], part...);
}

// An UpdateFunction.
template <typename U>
void Run(const AdamScalars& scalars, const UpdateSpan& caller_span) {
  using V = typename U::Lanes;
  static_assert(U::kSlots <= kMaxSlots);
  // A copy, so that no store can change it and its pointers stay in registers: 8.8 us instead of 9.9 in cache.
  const UpdateSpan span = caller_span;
  const U update(scalars);
  const int64_t whole = span.size / V::kWidth * V::kWidth;
  for (int64_t i = 0; i < whole; i += V::kWidth) {
    PrefetchAhead<V>(span.p_in + i);
    PrefetchAhead<V>(span.g + i);
#pragma GCC unroll 8
    for (int k = 0; k < U::kSlots; ++k) PrefetchAhead<V>(span.slots[k].in + i);
    UpdateVector(update, span, i);
  }
  if (whole < span.size) UpdateVector(update, span, whole, V::First(static_cast<int>(span.size - whole)));
}

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LOOPS_H_
