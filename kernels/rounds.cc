#include "kernels/rounds.h"

#include <algorithm>

namespace adamant::kernels {

void TrimmedMean(const ScaledGradient* contributions, int count, int trim, float* out, int64_t n) {
  float values[kMaxContributions] = {};
  const int left = count - 2 * trim;
  for (int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < count; ++c) values[c] = contributions[c].k * contributions[c].g[i];
    std::sort(values, values + count);
    double sum = 0;
    for (int c = trim; c < trim + left; ++c) sum += static_cast<double>(values[c]);
    out[i] = static_cast<float>(sum / left);
  }
}

}  // namespace adamant::kernels
