// The sum of rounds.h, over any lanes.
#ifndef ADAMANT_KERNELS_FOLD_H_
#define ADAMANT_KERNELS_FOLD_H_

#include <cstdint>

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// Calls `fold` with the index of each vector of `n` elements, and for the last with a mask of its lanes if it is not
// whole.
template <typename V, typename FoldVector>
void ForEachVector(int64_t n, FoldVector fold) {
  const int64_t whole = n / V::kWidth * V::kWidth;
  for (int64_t i = 0; i < whole; i += V::kWidth) fold(i);
  if (whole < n) fold(whole, V::First(static_cast<int>(n - whole)));
}

// A FoldFunction.
template <typename V>
void FoldRank(float k, const float* g, float* sum, int64_t n, bool first) {
  const typename V::Floats factor = V::Broadcast(k);
  if (first) {
    ForEachVector<V>(n, [=](int64_t i, auto... part) { V::Store(sum + i, factor * V::Load(g + i, part...), part...); });
  } else {
    ForEachVector<V>(n, [=](int64_t i, auto... part) {
      V::Store(sum + i, V::Fma(factor, V::Load(g + i, part...), V::Load(sum + i, part...)), part...);
    });
  }
}

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_FOLD_H_
