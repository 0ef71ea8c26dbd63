// The tables that the conformance suites are run for.
#ifndef ADAMANT_TESTS_CONFORMANCE_SUPPORTED_KERNELS_H_
#define ADAMANT_TESTS_CONFORMANCE_SUPPORTED_KERNELS_H_

#include <vector>

#include "kernels/update.h"

namespace adamant::kernels {

// Each of this machine's processor; or, in the program that is linked with supported_kernels_cuda.cc, that of the CUDA
// device, if there is one.
std::vector<const KernelTable*> SupportedKernels();

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_CONFORMANCE_SUPPORTED_KERNELS_H_
