// Stochastic gradient descent with momentum, dampening and Nesterov's variant, as in PyTorch: after Sutskever, Martens,
// Dahl & Hinton, "On the Importance of Initialization and Momentum in Deep Learning", but with the learning rate
// outside of the buffer. Slot: the buffer, where there is momentum.
#ifndef ADAMANT_KERNELS_UPDATES_SGD_H_
#define ADAMANT_KERNELS_UPDATES_SGD_H_

#include "kernels/update.h"
#include "kernels/updates/gradient.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

enum class Momentum { kNone, kPlain, kNesterov };

// One vector of parameters at a time, in lanes of `V`.
template <typename V, bool l2, Momentum kind>
struct Sgd {
  using Lanes = V;
  using Floats = typename V::Floats;
  static constexpr int kSlots = kind == Momentum::kNone ? 0 : 1;

  ADAMANT_DEVICE explicit Sgd(const UpdateScalars& s)  // each in every lane
      : gradient(s),
        step_size(V::Broadcast(s.step_size)),
        momentum(V::Broadcast(s.momentum)),
        buffer_decay(V::Broadcast(s.buffer_decay)),
        omd(V::Broadcast(s.omd)) {}

  // Takes `slots` from one step to the next, and returns what becomes of `p`. Without `clips` the clip counts as
  // infinite.
  template <bool clips>
  ADAMANT_DEVICE [[gnu::always_inline]] Floats Next(Floats raw, Floats p, Floats (&slots)[kMaxSlots]) const {
    const Floats g = gradient.template Of<clips>(raw, p);
    Floats d = g;
    if constexpr (kind != Momentum::kNone) {
      Floats& buffer = slots[0];
      buffer = V::Flush(V::Fma(buffer_decay, buffer, omd * g));
      d = kind == Momentum::kNesterov ? V::Fma(momentum, buffer, g) : buffer;
    }
    return V::Fnma(step_size, d, p);
  }

  const Gradient<V, l2> gradient;
  const Floats step_size, momentum, buffer_decay, omd;
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATES_SGD_H_
