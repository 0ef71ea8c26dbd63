// The measure of norm.h, eight elements at a time. Defines MeasureAvx2 and no other symbol.
#include <immintrin.h>

#include "kernels/instruction_sets.h"
#include "kernels/norm.h"

namespace adamant::kernels {
namespace {

constexpr int kWidth = 8;

// Eight of the partial sums, in order.
struct Partials {
  __m256d low, high;
};

// Adds the squares of eight elements, and takes their magnitudes into `largest`. A float's square is exact in double,
// so that the fused operation rounds as the sum alone does.
void Accumulate(__m256 g, Partials* sums, __m256i* largest) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(g));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(g, 1));
  sums->low = _mm256_fmadd_pd(low, low, sums->low);
  sums->high = _mm256_fmadd_pd(high, high, sums->high);
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(g), _mm256_set1_epi32(0x7FFFFFFF));
  *largest = _mm256_max_epu32(*largest, magnitude);
}

// The first `count` of eight elements and zeros after them: touches no memory of the others. `count` may lie outside
// of [0, 8].
__m256 LoadPart(const float* g, int count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(g, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes));
}

double Fold(const Partials& a, const Partials& b, const Partials& c, const Partials& d) {
  const Partials even = {_mm256_add_pd(a.low, c.low), _mm256_add_pd(a.high, c.high)};
  const Partials odd = {_mm256_add_pd(b.low, d.low), _mm256_add_pd(b.high, d.high)};
  const Partials eight = {_mm256_add_pd(even.low, odd.low), _mm256_add_pd(even.high, odd.high)};
  const __m256d four = _mm256_add_pd(eight.low, eight.high);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// The sum of one leaf, of which `size` elements are there.
double SumLeaf(const float* g, int64_t size, __m256i* largest) {
  const Partials zero = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  Partials a = zero, b = zero, c = zero, d = zero;
  int64_t i = 0;
  for (; i + kNormLanes <= size; i += kNormLanes) {
    Accumulate(_mm256_loadu_ps(g + i), &a, largest);
    Accumulate(_mm256_loadu_ps(g + i + kWidth), &b, largest);
    Accumulate(_mm256_loadu_ps(g + i + 2 * kWidth), &c, largest);
    Accumulate(_mm256_loadu_ps(g + i + 3 * kWidth), &d, largest);
  }
  const int rest = static_cast<int>(size - i);
  if (rest > 0) {
    Accumulate(LoadPart(g + i, rest), &a, largest);
    Accumulate(LoadPart(g + i + kWidth, rest - kWidth), &b, largest);
    Accumulate(LoadPart(g + i + 2 * kWidth, rest - 2 * kWidth), &c, largest);
    Accumulate(LoadPart(g + i + 3 * kWidth, rest - 3 * kWidth), &d, largest);
  }
  return Fold(a, b, c, d);
}

uint32_t Largest(__m256i x) {
  const __m128i four = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i two = _mm_max_epu32(four, _mm_unpackhi_epi64(four, four));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 1))));
}

}  // namespace

GradientStats MeasureAvx2(const float* g, int64_t size) {
  double sum = 0;
  __m256i largest = _mm256_setzero_si256();
  for (int64_t begin = 0; begin < size; begin += kNormLeaf) {
    sum += SumLeaf(g + begin, size - begin < kNormLeaf ? size - begin : kNormLeaf, &largest);
  }
  return {sum, Largest(largest)};
}

}  // namespace adamant::kernels
