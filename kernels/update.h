// What an instruction set offers: its kernels, what each of them promises, and the table that holds them.
//
// Everything here is thread-safe: there is no state but the caller's memory. Nothing here allocates, throws or fails.
#ifndef ADAMANT_KERNELS_UPDATE_H_
#define ADAMANT_KERNELS_UPDATE_H_

#include <cstdint>

#include "kernels/formats.h"
#include "kernels/norm.h"
#include "kernels/rounds.h"
#include "kernels/scalars.h"

// Marks what a CUDA compiler makes for the device. Elsewhere it means nothing.
#ifdef __CUDACC__
#define ADAMANT_DEVICE __device__
#else
#define ADAMANT_DEVICE
#endif

namespace adamant::kernels {

// The optimizers and those of their variants that are other code, as indices of tables. updates/ has the equations,
// each once for all instruction sets. L2 and W are weight decay that is coupled to the gradient, and that is not.
enum Update : int {
  kAdam,
  kAdamL2,
  kAdamW,
  kAdamAmsgrad,
  kAdamL2Amsgrad,
  kAdamWAmsgrad,
  kSgd,
  kSgdL2,
  kMomentum,
  kMomentumL2,
  kNesterov,
  kNesterovL2,
  kUpdates
};

// How many arrays of state, its slots, each has beside the parameters, in this order: m and v of Adam, and with AMSGrad
// the largest v; the momentum buffer of SGD where it has momentum.
inline constexpr int kSlotCounts[kUpdates] = {2, 2, 2, 3, 3, 3, 0, 0, 1, 1, 1, 1};
inline constexpr int kMaxSlots = 3;

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
// equals any NaN. No slot comes out with a denormal: AMSGrad's largest v if none went in. The floating-point
// environment of the caller (rounding mode, flush-to-zero, exception flags) neither changes the result nor is changed.
using UpdateFunction = void (*)(const UpdateScalars& scalars, const UpdateSpan& span);

// How some elements are updated.
struct Recipe {
  Update update;
  UpdateScalars scalars;
};

// Everything that one instruction set offers.
struct KernelTable {
  const char* name;                 // as in --isa: "scalar", "avx2", "avx512"
  bool (*supported)();              // whether this machine, and its operating system, can run it
  UpdateFunction update[kUpdates];  // by Update
  MeasureFunction measure;
  // Of every table in dispatch.h; a test's own may lack them.
  WidenFunction widen[kFormats16] = {};    // by Format16
  NarrowFunction narrow[kFormats16] = {};  // by Format16
  FoldFunction fold = nullptr;
};

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATE_H_
