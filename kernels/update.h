// What an instruction set offers: its kernels, what each of them promises, and the table that holds them.
//
// Everything here is thread-safe: there is no state but the caller's memory. Nothing here allocates, throws or fails.
#ifndef ADAMANT_KERNELS_UPDATE_H_
#define ADAMANT_KERNELS_UPDATE_H_

#include <cstdint>

#include "kernels/adam_scalars.h"
#include "kernels/norm.h"

// Marks what a CUDA compiler makes for the device. Elsewhere it means nothing.
#ifdef __CUDACC__
#define ADAMANT_DEVICE __device__
#else
#define ADAMANT_DEVICE
#endif

namespace adamant::kernels {

// The optimizers, as indices of tables. updates/ has the equation of each, once for all instruction sets.
enum Update : int { kAdam, kUpdates };

// How many arrays of state, its slots, each optimizer has beside the parameters. Adam: m and v, in this order.
inline constexpr int kSlotCounts[kUpdates] = {2};
inline constexpr int kMaxSlots = 2;

// One slot before a step and after it.
struct SlotSpan {
  const float* in;
  float* out;
};

// One contiguous run of `size` elements: the gradient, the parameters before the step and after it, and as many slots
// as the optimizer has; the others are ignored. Inputs are read and outputs written at the same index only, so an
// output may be exactly the same array as an input: a slot's `out` as its `in`, and `p_out` as `g` (a dense step: the
// new parameters take the gradient's place) or as `p_in`. Arrays that are not the same do not overlap. No alignment is
// required beyond that of float.
struct UpdateSpan {
  int64_t size;
  const float* g;
  const float* p_in;
  float* p_out;
  SlotSpan slots[kMaxSlots];
};

// Applies one step to `span`. The arithmetic is fp32 with every operation correctly rounded and fused only where
// updates/ say so (Fma, Fnma), so that every table gives the same bits for the same input on every machine; any NaN
// equals any NaN. The floating-point environment of the caller (rounding mode, flush-to-zero, exception flags) neither
// changes the result nor is changed.
using UpdateFunction = void (*)(const AdamScalars& scalars, const UpdateSpan& span);

// Everything that one instruction set offers.
struct KernelTable {
  const char* name;                 // as in --isa: "scalar", "avx2", "avx512"
  bool (*supported)();              // whether this machine, and its operating system, can run it
  UpdateFunction update[kUpdates];  // by Update
  MeasureFunction measure;
};

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATE_H_
