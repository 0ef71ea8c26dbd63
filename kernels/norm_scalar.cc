// The reference: the measure of norm.h, one element at a time. Every other instruction set gives its bits.
#include <bit>

#include "kernels/instruction_sets.h"
#include "kernels/norm.h"

namespace adamant::kernels {
namespace {

double SumLeaf(const float* g, int64_t size) {
  double lanes[kNormLanes] = {};
  for (int64_t i = 0; i < size; ++i) lanes[i % kNormLanes] += static_cast<double>(g[i]) * g[i];
  for (int half = kNormLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

}  // namespace

GradientStats MeasureScalar(const float* g, int64_t size) {
  double sum = 0;
  for (int64_t begin = 0; begin < size; begin += kNormLeaf) {
    sum += SumLeaf(g + begin, size - begin < kNormLeaf ? size - begin : kNormLeaf);
  }
  uint32_t max_magnitude_bits = 0;
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(g[i]) & 0x7FFFFFFF;
    if (bits > max_magnitude_bits) max_magnitude_bits = bits;
  }
  return {sum, max_magnitude_bits};
}

}  // namespace adamant::kernels
