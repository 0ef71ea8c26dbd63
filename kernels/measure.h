// The measure of norm.h, over any lanes.
#ifndef ADAMANT_KERNELS_MEASURE_H_
#define ADAMANT_KERNELS_MEASURE_H_

#include <cstdint>

#include "kernels/norm.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// The sum of all lanes of `count` vectors: the upper half is added to the lower, and so on until one lane is left.
template <typename V, int count>
double Fold(typename V::Sums* sums) {
  if constexpr (count == 1) {
    return V::Fold(sums[0]);
  } else {
#pragma GCC unroll 4
    for (int k = 0; k < count / 2; ++k) sums[k] = V::Add(sums[k], sums[k + count / 2]);
    return Fold<V, count / 2>(sums);
  }
}

// The sum of one leaf, of which `size` elements are there. Takes their magnitudes into `largest`.
template <typename V>
double SumLeaf(const float* g, int64_t size, typename V::Words* largest) {
  constexpr int kVectors = kNormLanes / V::kWidth;
  typename V::Sums sums[kVectors] = {};
  const auto add = [&](int k, typename V::Floats x) {
    sums[k] = V::AddSquares(sums[k], x);
    *largest = V::LargerMagnitude(*largest, x);
  };
  int64_t i = 0;
  for (; i + kNormLanes <= size; i += kNormLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) add(k, V::Load(g + i + k * V::kWidth));
  }
  const int rest = static_cast<int>(size - i);
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) {
    if (k * V::kWidth < rest) add(k, V::Load(g + i + k * V::kWidth, V::First(rest - k * V::kWidth)));
  }
  return Fold<V, kVectors>(sums);
}

template <typename V>
GradientStats Measure(const float* g, int64_t size) {
  double sum = 0;
  typename V::Words largest = {};
  for (int64_t begin = 0; begin < size; begin += kNormLeaf) {
    sum += SumLeaf<V>(g + begin, size - begin < kNormLeaf ? size - begin : kNormLeaf, &largest);
  }
  return {sum, V::Largest(largest)};
}

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_MEASURE_H_
