// Lanes of AVX2 with FMA and F16C: eight floats. scalar.h says what each function means.
#ifndef ADAMANT_KERNELS_LANES_AVX2_H_
#define ADAMANT_KERNELS_LANES_AVX2_H_

#include <immintrin.h>

#include <cstdint>

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

struct Avx2Lanes {
  static constexpr int kWidth = 8;
  using Floats = __m256;
  using Mask = __m256i;  // all bits of a lane or none
  struct Sums {
    __m256d low, high;
  };
  using Words = __m256i;

  static Floats Broadcast(float x) { return _mm256_set1_ps(x); }

  static Mask First(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Floats Load(const float* x) { return _mm256_loadu_ps(x); }
  static Floats Load(const float* x, Mask mask) { return _mm256_maskload_ps(x, mask); }
  static void Store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
  static void Store(float* to, Floats x, Mask mask) { _mm256_maskstore_ps(to, mask, x); }
  static void Prefetch(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0); }

  static Floats Fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats Fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  static Floats Sqrt(Floats x) { return _mm256_sqrt_ps(x); }
  static Floats Abs(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static Mask AtLeast(Floats x, Floats least) { return _mm256_castps_si256(_mm256_cmp_ps(x, least, _CMP_GE_OQ)); }
  static Floats MulOrZero(Floats a, Floats b, Mask mask) {
    // The sum makes -0 of a negative `b` +0, and changes no other product.
    return _mm256_fmadd_ps(_mm256_and_ps(_mm256_castsi256_ps(mask), a), b, _mm256_setzero_ps());
  }
  static Floats ZeroBelow(Floats x, Floats least) {
    return _mm256_and_ps(_mm256_cmp_ps(Abs(x), least, _CMP_NLT_UQ), x);
  }
  static Floats Flush(Floats x) {  // |x| < 2^-126 where the exponent's bits are all zero
    const __m256i exponent = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7F800000));
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(exponent, _mm256_setzero_si256())), x);
  }
  static Floats Max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats Min(Floats a, Floats b) { return _mm256_min_ps(a, b); }

  static Sums AddSquares(Sums sums, Floats x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    return {_mm256_fmadd_pd(low, low, sums.low), _mm256_fmadd_pd(high, high, sums.high)};
  }
  static Sums Add(Sums a, Sums b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
  static double Fold(Sums sums) {
    const __m256d four = _mm256_add_pd(sums.low, sums.high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }

  static Words LargerMagnitude(Words a, Floats x) {
    return _mm256_max_epu32(a, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF)));
  }
  static uint32_t Largest(Words x) {
    const __m128i four = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i two = _mm_max_epu32(four, _mm_unpackhi_epi64(four, four));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 1))));
  }

  using Halves = __m128i;

  static Halves LoadHalves(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static void StoreHalves(void* to, Halves x) { _mm_storeu_si128(static_cast<__m128i*>(to), x); }

  static Floats FromBfloat16(Halves x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static Floats FromFloat16(Halves x) { return _mm256_cvtph_ps(x); }
  static Halves ToBfloat16(Floats x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i halves = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  }
  static Halves ToFloat16(Floats x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
  static Floats QuietNans(Floats x) {
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
    const __m256 quiet = _mm256_or_ps(_mm256_and_ps(x, _mm256_set1_ps(-0.0f)), nan);
    return _mm256_blendv_ps(x, quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }

  static Words Count(Words counts, Mask mask) { return _mm256_sub_epi32(counts, mask); }
  static uint32_t Total(Words counts) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(counts), _mm256_extracti128_si256(counts, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1))));
  }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LANES_AVX2_H_
