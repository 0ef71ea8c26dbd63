// Adam: Kingma & Ba, "Adam: A Method for Stochastic Optimization", algorithm 1, with eps outside of the root and after
// bias correction, as in PyTorch. AdamW: Loshchilov & Hutter, "Decoupled Weight Decay Regularization". AMSGrad: Reddi,
// Kale & Kumar, "On the Convergence of Adam and Beyond". Slots: m, v and, with AMSGrad, the largest v so far.
#ifndef ADAMANT_KERNELS_UPDATES_ADAM_H_
#define ADAMANT_KERNELS_UPDATES_ADAM_H_

#include "kernels/update.h"
#include "kernels/updates/gradient.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// One vector of parameters at a time, in lanes of `V`.
template <typename V, Decay decay, bool amsgrad>
struct Adam {
  using Lanes = V;
  using Floats = typename V::Floats;
  static constexpr int kSlots = amsgrad ? 3 : 2;

  ADAMANT_DEVICE explicit Adam(const UpdateScalars& s)  // each in every lane
      : gradient(s),
        beta1(V::Broadcast(s.beta1)),
        omb1(V::Broadcast(s.omb1)),
        beta2(V::Broadcast(s.beta2)),
        omb2(V::Broadcast(s.omb2)),
        step_size(V::Broadcast(s.step_size)),
        inv_sqrt_bc2(V::Broadcast(s.inv_sqrt_bc2)),
        eps(V::Broadcast(s.eps)),
        wd_bc1(V::Broadcast(s.wd_bc1)) {}

  // Takes `slots` from one step to the next, and returns what becomes of `p`. Without `clips` the clip counts as
  // infinite.
  template <bool clips>
  ADAMANT_DEVICE [[gnu::always_inline]] Floats Next(Floats raw, Floats p, Floats (&slots)[kMaxSlots]) const {
    auto& [m, v, v_max] = slots;
    const Floats g = gradient.template Of<clips>(raw, p);
    m = V::Flush(V::Fma(beta1, m, omb1 * g));
    v = V::Flush(V::Fma(beta2, v, omb2 * (g * g)));
    if constexpr (amsgrad) v_max = V::Max(v, v_max);
    const Floats d = V::Fma(V::Sqrt(amsgrad ? v_max : v), inv_sqrt_bc2, eps);
    Floats u = m / d;
    // Not p * (1 - learning rate * decay): at a learning rate of 1e-6 that factor rounds to one. Here the sum with what
    // is learned is rounded once. A parameter of next to nothing does not decay, lest it end as a denormal.
    if constexpr (decay == Decay::kDecoupled) u = V::Fma(wd_bc1, V::ZeroBelow(p, V::Broadcast(0x1p-100f)), u);
    return V::Fnma(step_size, u, p);
  }

  const Gradient<V, decay == Decay::kCoupled> gradient;
  const Floats beta1, omb1, beta2, omb2, step_size, inv_sqrt_bc2, eps, wd_bc1;
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATES_ADAM_H_
