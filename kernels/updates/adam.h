// Adam: Kingma & Ba, "Adam: A Method for Stochastic Optimization", algorithm 1, with eps outside of the root and after
// bias correction, as in PyTorch. Slots: m and v.
//
// The paper has neither `g_lo` nor Flush: they keep denormals out of the state. Without them the moments of a unit that
// no longer learns end as denormals that never reach zero, and a step becomes 20 times slower for good. A gradient
// below `g_lo` becomes a zero of either sign: that changes nothing, since a zero m is flushed to +0 and a zero g adds
// nothing else.
#ifndef ADAMANT_KERNELS_UPDATES_ADAM_H_
#define ADAMANT_KERNELS_UPDATES_ADAM_H_

#include "kernels/update.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// One vector of parameters at a time, in lanes of `V`.
template <typename V>
struct Adam {
  using Lanes = V;
  using Floats = typename V::Floats;
  static constexpr int kSlots = kSlotCounts[kAdam];

  ADAMANT_DEVICE explicit Adam(const AdamScalars& s)  // each in every lane
      : beta1(V::Broadcast(s.beta1)),
        omb1(V::Broadcast(s.omb1)),
        beta2(V::Broadcast(s.beta2)),
        omb2(V::Broadcast(s.omb2)),
        step_size(V::Broadcast(s.step_size)),
        inv_sqrt_bc2(V::Broadcast(s.inv_sqrt_bc2)),
        eps(V::Broadcast(s.eps)),
        scale(V::Broadcast(s.scale)),
        g_lo(V::Broadcast(s.g_lo)) {}

  // Takes `slots` from one step to the next, and returns what becomes of `p`.
  ADAMANT_DEVICE [[gnu::always_inline]] Floats Next(Floats g, Floats p, Floats (&slots)[kSlots]) const {
    auto& [m, v] = slots;
    g = V::MulOrZero(g, scale, V::AtLeast(V::Abs(g), g_lo));
    m = V::Flush(V::Fma(beta1, m, omb1 * g));
    v = V::Flush(V::Fma(beta2, v, omb2 * (g * g)));
    const Floats d = V::Fma(V::Sqrt(v), inv_sqrt_bc2, eps);
    return V::Fnma(step_size, m / d, p);
  }

  const Floats beta1, omb1, beta2, omb2, step_size, inv_sqrt_bc2, eps, scale, g_lo;
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATES_ADAM_H_
