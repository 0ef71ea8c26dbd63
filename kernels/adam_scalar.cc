// The reference: the update of adam.h, one element at a time. Every other instruction set gives its bits.
#include <cfloat>

#include "kernels/adam.h"
#include "kernels/instruction_sets.h"

namespace adamant::kernels {
namespace {

static_assert(FLT_EVAL_METHOD == 0, "an intermediate wider than float is rounded twice");

float Flush(float x) { return __builtin_fabsf(x) < 0x1p-126f ? 0.0f : x; }

// Takes m, v and p from one step to the next, and returns p.
float Update(const AdamScalars& s, float g, float* m, float* v, float p) {
  g = __builtin_fabsf(g) >= s.g_lo ? g * s.scale : 0.0f;
  *m = Flush(__builtin_fmaf(s.beta1, *m, s.omb1 * g));
  *v = Flush(__builtin_fmaf(s.beta2, *v, s.omb2 * (g * g)));
  const float d = __builtin_fmaf(__builtin_sqrtf(*v), s.inv_sqrt_bc2, s.eps);
  return __builtin_fmaf(-s.step_size, *m / d, p);
}

}  // namespace

void AdamScalar(const AdamScalars& scalars, const AdamSpan& span) {
  for (int64_t i = 0; i < span.size; ++i) {
    float m = span.m_in[i];
    float v = span.v_in[i];
    span.p_out[i] = Update(scalars, span.g[i], &m, &v, span.p_in[i]);
    span.m_out[i] = m;
    span.v_out[i] = v;
  }
}

}  // namespace adamant::kernels
