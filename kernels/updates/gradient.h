// What every update does to a gradient first: scaling, clipping and, where weight decay is coupled (L2), decay.
//
// A gradient below `g_lo` is zero before it meets a product, and a sum below `g_min` is zero too: neither reaches a
// state as a denormal. Without that the moments of a unit that no longer learns end as denormals that never reach zero,
// and a step becomes 20 times slower for good.
#ifndef ADAMANT_KERNELS_UPDATES_GRADIENT_H_
#define ADAMANT_KERNELS_UPDATES_GRADIENT_H_

#include "kernels/update.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// How weights decay: not; coupled, which adds to the gradient (L2); decoupled, which goes past it into the step (W).
enum class Decay { kNone, kCoupled, kDecoupled };

// One vector of gradients at a time, in lanes of `V`.
template <typename V, bool l2>
struct Gradient {
  using Floats = typename V::Floats;

  ADAMANT_DEVICE explicit Gradient(const UpdateScalars& s)  // each in every lane
      : scale(V::Broadcast(s.scale)),
        g_lo(V::Broadcast(s.g_lo)),
        clip(V::Broadcast(s.clip)),
        minus_clip(V::Broadcast(-s.clip)),
        weight_decay(V::Broadcast(s.weight_decay)),
        g_min(V::Broadcast(s.g_min)) {}

  // What the optimizer learns from, of a raw gradient and its parameter. Clipping at infinity changes nothing.
  template <bool clips>
  ADAMANT_DEVICE [[gnu::always_inline]] Floats Of(Floats raw, Floats p) const {
    Floats g = V::MulOrZero(raw, scale, V::AtLeast(V::Abs(raw), g_lo));
    if constexpr (clips) g = Clamp(g, minus_clip, clip);
    if constexpr (l2) {
      // The limit keeps its square finite.
      g = Clamp(V::Fma(weight_decay, p, g), V::Broadcast(-0x1p63f), V::Broadcast(0x1p63f));
      g = V::ZeroBelow(g, g_min);
    }
    return g;
  }

  const Floats scale, g_lo, clip, minus_clip, weight_decay, g_min;

 private:
  // A NaN stays one.
  ADAMANT_DEVICE [[gnu::always_inline]] static Floats Clamp(Floats x, Floats lo, Floats hi) {
    return V::Min(hi, V::Max(lo, x));
  }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATES_GRADIENT_H_
