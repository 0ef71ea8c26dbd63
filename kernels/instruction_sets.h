// What each instruction set's files define for the table in dispatch.cc. Call them through the table only: they run in
// the default floating-point environment, which the table's entries provide, and only where the machine has their
// instructions.
//
// These are all the symbols that such a file may define. The linker keeps one copy of an inline or template function,
// whichever comes first, and a copy compiled for AVX-512 ends a program on a machine without it.
#ifndef ADAMANT_KERNELS_INSTRUCTION_SETS_H_
#define ADAMANT_KERNELS_INSTRUCTION_SETS_H_

#include <cstdint>

#include "kernels/adam.h"
#include "kernels/norm.h"

namespace adamant::kernels {

// How many floats ahead Adam prefetches each of its four inputs, on one thread with 64 Mi parameters: 66 ms instead of
// 77 without it on one machine, no difference on another, where 128 costs 8 % and 1,024 costs 3 %; 256 to 512 are
// alike. The non-temporal hint doubles the time.
constexpr int kPrefetchDistance = 384;

void AdamScalar(const AdamScalars& scalars, const AdamSpan& span);
GradientStats MeasureScalar(const float* g, int64_t size);

#if defined(__x86_64__)
void AdamAvx2(const AdamScalars& scalars, const AdamSpan& span);
GradientStats MeasureAvx2(const float* g, int64_t size);

void AdamAvx512(const AdamScalars& scalars, const AdamSpan& span);
GradientStats MeasureAvx512(const float* g, int64_t size);
#endif

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_INSTRUCTION_SETS_H_
