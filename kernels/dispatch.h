// The table of instruction sets, and the choice among them, made once at run time.
#ifndef ADAMANT_KERNELS_DISPATCH_H_
#define ADAMANT_KERNELS_DISPATCH_H_

#include "kernels/adam.h"
#include "kernels/norm.h"

namespace adamant::kernels {

// Everything that one instruction set offers. One table, one pair of files (adam_NAME.cc, norm_NAME.cc), one flag set.
struct KernelTable {
  const char* name;     // as in --isa: "scalar", "avx2", "avx512"
  bool (*supported)();  // whether this machine, and its operating system, can run it
  AdamFunction adam;
  MeasureFunction measure;
};

// Every table that this build contains, as [begin, end), slowest first; the first is the scalar reference and is always
// supported.
struct KernelTables {
  const KernelTable* const* begin_;
  const KernelTable* const* end_;
  const KernelTable* const* begin() const { return begin_; }
  const KernelTable* const* end() const { return end_; }
};
KernelTables AllKernels();

// The fastest table that this machine supports.
const KernelTable& BestKernels();

// The table of that name, or null when this build has none or this machine does not support it.
const KernelTable* FindKernels(const char* name);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_DISPATCH_H_
