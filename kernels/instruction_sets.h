// What each instruction set's file, isa_NAME.cc, defines: its table, and no other symbol.
//
// These tables are for dispatch.cc, whose own add what they lack: their entries run in the default floating-point
// environment only. All others call through dispatch.h.
//
// The linker keeps one copy of an inline or template function, whichever comes first, and a copy compiled for AVX-512
// ends a program on a machine without it. So such a file defines none that a linker can see and calls none, the
// standard library's included: all code that it includes stands in unnamed namespaces.
#ifndef ADAMANT_KERNELS_INSTRUCTION_SETS_H_
#define ADAMANT_KERNELS_INSTRUCTION_SETS_H_

#include "kernels/update.h"

namespace adamant::kernels {

// How many floats ahead an update prefetches each of its inputs. Adam, on one thread with 64 Mi parameters: 66 ms
// instead of 77 without it on one machine, no difference on another, where 128 costs 8 % and 1,024 costs 3 %; 256 to
// 512 are alike. The non-temporal hint doubles the time.
constexpr int kPrefetchDistance = 384;

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_INSTRUCTION_SETS_H_
