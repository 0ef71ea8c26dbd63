// First weights, as PyTorch draws them: the same seed gives the same network there and here.
#ifndef ADAMANT_CLIENT_PROGRAMS_INITIALIZATION_H_
#define ADAMANT_CLIENT_PROGRAMS_INITIALIZATION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace adamant::programs {

// The parameters of Linear layers between `widths`, at least two of them, in the order of Mlp (mlp.h), as
// torch.nn.Linear initializes them on the CPU one after the other after torch.manual_seed(seed): MT19937, 24 random
// bits a value, uniform in [-k, k) with k = 1 / sqrt(inputs of the layer).
std::vector<float> InitialParameters(absl::Span<const int> widths, uint32_t seed);

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_INITIALIZATION_H_
