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
  static Floats ZeroBelow(Floats x, Floats least) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(x), least, _CMP_NLT_UQ), x);
  }
  static Floats Flush(Floats x) {  // |x| < 2^-126 where the exponent's bits are all zero
    return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(_mm512_castps_si512(x), _mm512_set1_epi32(0x7F800000)), x);
  }
  static Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats Min(Floats a, Floats b) { return _mm512_min_ps(a, b); }

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

  using Halves = __m256i;

  static Halves LoadHalves(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void StoreHalves(void* to, Halves x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }

  static Floats FromBfloat16(Halves x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  static Floats FromFloat16(Halves x) { return _mm512_cvtph_ps(x); }
  static Halves ToBfloat16(Floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
  static Halves ToFloat16(Floats x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static Floats QuietNans(Floats x) {
    const __m512i sign = _mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN));
    const __m512i quiet = _mm512_or_epi32(sign, _mm512_set1_epi32(0x7FC00000));
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_castsi512_ps(quiet));
  }

  static Words Count(Words counts, Mask mask) {
    return _mm512_mask_add_epi32(counts, mask, counts, _mm512_set1_epi32(1));
  }
  static uint32_t Total(Words counts) { return static_cast<uint32_t>(_mm512_reduce_add_epi32(counts)); }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LANES_AVX512_H_
