#include "tests/conformance/supported_kernels.h"

#include "kernels/dispatch.h"

namespace adamant::kernels {

std::vector<const KernelTable*> SupportedKernels() {
  std::vector<const KernelTable*> supported;
  for (const KernelTable* table : AllKernels()) {
    if (table->supported()) supported.push_back(table);
  }
  return supported;
}

}  // namespace adamant::kernels
