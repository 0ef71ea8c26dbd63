// The table of instruction sets, and the choice among them, made once at run time.
#ifndef ADAMANT_KERNELS_DISPATCH_H_
#define ADAMANT_KERNELS_DISPATCH_H_

#include <span>

#include "kernels/update.h"

namespace adamant::kernels {

// Every table that this build contains, slowest first; the first is the scalar reference and is always supported.
std::span<const KernelTable* const> AllKernels();

// The fastest table that this machine supports.
const KernelTable& BestKernels();

// The table of that name, or null when this build has none or this machine does not support it.
const KernelTable* FindKernels(const char* name);

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_DISPATCH_H_
