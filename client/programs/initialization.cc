// Uniform draws from MT19937, rounded where PyTorch rounds them.
#include "client/programs/initialization.h"

#include <cmath>
#include <random>

namespace adamant::programs {
namespace {

float Uniform(float k, std::mt19937* random) {
  const float u = static_cast<float>((*random)() & 0xffffff) * 0x1p-24f;
  return u * (k + k) - k;
}

}  // namespace

std::vector<float> InitialParameters(absl::Span<const int> widths, uint32_t seed) {
  // Seeded with one word, the standard library's generator is the one of Matsumoto and Nishimura, which PyTorch has
  // too.
  std::mt19937 random(seed);
  std::vector<float> parameters;
  for (size_t layer = 0; layer + 1 < widths.size(); ++layer) {
    const int inputs = widths[layer];
    const int outputs = widths[layer + 1];
    const float k = static_cast<float>(1 / std::sqrt(static_cast<double>(inputs)));
    for (int64_t i = 0; i < int64_t{outputs} * inputs + outputs; ++i) parameters.push_back(Uniform(k, &random));
  }
  return parameters;
}

}  // namespace adamant::programs
