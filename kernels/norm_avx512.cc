// The measure of norm.h, sixteen elements at a time. Defines MeasureAvx512 and no other symbol.
#include <immintrin.h>

#include "kernels/instruction_sets.h"
#include "kernels/norm.h"

namespace adamant::kernels {
namespace {

constexpr int kWidth = 16;

// Sixteen of the partial sums, in order.
struct Partials {
  __m512d low, high;
};

__m256 HighHalf(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }

// Adds the squares of sixteen elements, and takes their magnitudes into `largest`. A float's square is exact in double,
// so that the fused operation rounds as the sum alone does.
void Accumulate(__m512 g, Partials* sums, __m512i* largest) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(g));
  const __m512d high = _mm512_cvtps_pd(HighHalf(g));
  sums->low = _mm512_fmadd_pd(low, low, sums->low);
  sums->high = _mm512_fmadd_pd(high, high, sums->high);
  *largest = _mm512_max_epu32(*largest, _mm512_and_epi32(_mm512_castps_si512(g), _mm512_set1_epi32(0x7FFFFFFF)));
}

double Fold(const Partials& a, const Partials& b) {
  const Partials sixteen = {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)};
  const __m512d eight = _mm512_add_pd(sixteen.low, sixteen.high);
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// The sum of one leaf, of which `size` elements are there.
double SumLeaf(const float* g, int64_t size, __m512i* largest) {
  Partials a = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  Partials b = a;
  int64_t i = 0;
  for (; i + kNormLanes <= size; i += kNormLanes) {
    Accumulate(_mm512_loadu_ps(g + i), &a, largest);
    Accumulate(_mm512_loadu_ps(g + i + kWidth), &b, largest);
  }
  if (i < size) {
    const uint32_t mask = (1u << (size - i)) - 1;
    Accumulate(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), g + i), &a, largest);
    Accumulate(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> kWidth), g + i + kWidth), &b, largest);
  }
  return Fold(a, b);
}

}  // namespace

GradientStats MeasureAvx512(const float* g, int64_t size) {
  double sum = 0;
  __m512i largest = _mm512_setzero_si512();
  for (int64_t begin = 0; begin < size; begin += kNormLeaf) {
    sum += SumLeaf(g + begin, size - begin < kNormLeaf ? size - begin : kNormLeaf, &largest);
  }
  return {sum, static_cast<uint32_t>(_mm512_reduce_max_epu32(largest))};
}

}  // namespace adamant::kernels
