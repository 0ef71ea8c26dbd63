// The update of adam.h, eight elements at a time. Defines AdamAvx2 and no other symbol.
#include <immintrin.h>

#include "kernels/adam.h"
#include "kernels/instruction_sets.h"

namespace adamant::kernels {
namespace {

constexpr int kWidth = 8;

// AdamScalars, each in every lane.
struct Lanes {
  __m256 beta1, omb1, beta2, omb2, step_size, inv_sqrt_bc2, eps, scale, g_lo;
};

Lanes Broadcast(const AdamScalars& s) {
  return {
      .beta1 = _mm256_set1_ps(s.beta1),
      .omb1 = _mm256_set1_ps(s.omb1),
      .beta2 = _mm256_set1_ps(s.beta2),
      .omb2 = _mm256_set1_ps(s.omb2),
      .step_size = _mm256_set1_ps(s.step_size),
      .inv_sqrt_bc2 = _mm256_set1_ps(s.inv_sqrt_bc2),
      .eps = _mm256_set1_ps(s.eps),
      .scale = _mm256_set1_ps(s.scale),
      .g_lo = _mm256_set1_ps(s.g_lo),
  };
}

__m256 Magnitude(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

// |x| < 2^-126 where the exponent's bits are all zero.
__m256 Flush(__m256 x) {
  const __m256i exponent = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7F800000));
  const __m256i small = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
  return _mm256_andnot_ps(_mm256_castsi256_ps(small), x);
}

// Takes m, v and p from one step to the next, and returns p. Body and tail both inline it: called, a step takes twice
// as long. A dropped gradient may be -0 after the product where the reference has +0: no matter, since a zero m is
// flushed to +0 and a zero g changes no other.
[[gnu::always_inline]] inline __m256 Update(const Lanes& s, __m256 g, __m256* m, __m256* v, __m256 p) {
  g = _mm256_mul_ps(_mm256_and_ps(_mm256_cmp_ps(Magnitude(g), s.g_lo, _CMP_GE_OQ), g), s.scale);
  *m = Flush(_mm256_fmadd_ps(s.beta1, *m, _mm256_mul_ps(s.omb1, g)));
  *v = Flush(_mm256_fmadd_ps(s.beta2, *v, _mm256_mul_ps(s.omb2, _mm256_mul_ps(g, g))));
  const __m256 d = _mm256_fmadd_ps(_mm256_sqrt_ps(*v), s.inv_sqrt_bc2, s.eps);
  return _mm256_fnmadd_ps(s.step_size, _mm256_div_ps(*m, d), p);
}

// Past the end of the array it is an address that is never read.
void Prefetch(const float* x) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(x) + kPrefetchDistance * sizeof(float)),
               _MM_HINT_T0);
}

void UpdateWhole(const Lanes& s, const AdamSpan& span, int64_t i) {
  Prefetch(span.p_in + i);
  Prefetch(span.g + i);
  Prefetch(span.m_in + i);
  Prefetch(span.v_in + i);
  __m256 m = _mm256_loadu_ps(span.m_in + i);
  __m256 v = _mm256_loadu_ps(span.v_in + i);
  const __m256 p = Update(s, _mm256_loadu_ps(span.g + i), &m, &v, _mm256_loadu_ps(span.p_in + i));
  _mm256_storeu_ps(span.p_out + i, p);
  _mm256_storeu_ps(span.m_out + i, m);
  _mm256_storeu_ps(span.v_out + i, v);
}

// The first `count` lanes only, 0 < count < kWidth: touches no memory of the others.
void UpdatePart(const Lanes& s, const AdamSpan& span, int64_t i, int count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
  __m256 m = _mm256_maskload_ps(span.m_in + i, mask);
  __m256 v = _mm256_maskload_ps(span.v_in + i, mask);
  const __m256 p = Update(s, _mm256_maskload_ps(span.g + i, mask), &m, &v, _mm256_maskload_ps(span.p_in + i, mask));
  _mm256_maskstore_ps(span.p_out + i, mask, p);
  _mm256_maskstore_ps(span.m_out + i, mask, m);
  _mm256_maskstore_ps(span.v_out + i, mask, v);
}

}  // namespace

void AdamAvx2(const AdamScalars& scalars, const AdamSpan& caller_span) {
  const AdamSpan span = caller_span;  // a copy, so that no store can change it and its pointers stay in registers
  const Lanes s = Broadcast(scalars);
  const int64_t whole = span.size / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) UpdateWhole(s, span, i);
  if (whole < span.size) UpdatePart(s, span, whole, static_cast<int>(span.size - whole));
}

}  // namespace adamant::kernels
