// Lanes of AVX-512F: sixteen floats, which is one cache line. scalar.h says what each function means.
#ifndef ADAMANT_KERNELS_LANES_AVX512_H_
#define ADAMANT_KERNELS_LANES_AVX512_H_

#include <immintrin.h>

#include <cstdint>

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

struct Avx512Lanes {
  static constexpr int kWidth = 16;
  using Floats = __m512;
  using Mask = __mmask16;
  struct Sums {
    __m512d low, high;
  };
  using Words = __m512i;

  static Floats Broadcast(float x) { return _mm512_set1_ps(x); }

  static Mask First(int count) {
    return _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(count),
                                   _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static Floats Load(const float* x) { return _mm512_loadu_ps(x); }
  static Floats Load(const float* x, Mask mask) { return _mm512_maskz_loadu_ps(mask, x); }
  static void Store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static void Store(float* to, Floats x, Mask mask) { _mm512_mask_storeu_ps(to, mask, x); }
  static void Prefetch(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0); }

  static Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats Fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static Floats Sqrt(Floats x) { return _mm512_sqrt_ps(x); }
  static Floats Abs(Floats x) { return _mm512_abs_ps(x); }
  static Mask AtLeast(Floats x, Floats least) { return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ); }
  static Floats MulOrZero(Floats a, Floats b, Mask mask) { return _mm512_maskz_mul_ps(mask, a, b); }
  static Floats Flush(Floats x) {  // |x| < 2^-126 where the exponent's bits are all zero
    return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(_mm512_castps_si512(x), _mm512_set1_epi32(0x7F800000)), x);
  }

  static Sums AddSquares(Sums sums, Floats x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
    return {_mm512_fmadd_pd(low, low, sums.low), _mm512_fmadd_pd(high, high, sums.high)};
  }
  static Sums Add(Sums a, Sums b) { return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)}; }
  static double Fold(Sums sums) {
    const __m512d eight = _mm512_add_pd(sums.low, sums.high);
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }

  static Words LargerMagnitude(Words a, Floats x) {
    return _mm512_max_epu32(a, _mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
  }
  static uint32_t Largest(Words x) { return static_cast<uint32_t>(_mm512_reduce_max_epu32(x)); }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LANES_AVX512_H_
