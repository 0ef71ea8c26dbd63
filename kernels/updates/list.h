// The equations of every Update.
#ifndef ADAMANT_KERNELS_UPDATES_LIST_H_
#define ADAMANT_KERNELS_UPDATES_LIST_H_

#include "kernels/update.h"
#include "kernels/updates/adam.h"
#include "kernels/updates/sgd.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

template <typename... U>
struct UpdateList {
  // Whether they may be in the order of Update: as many, with as many slots each.
  static constexpr bool HasSlotCounts() {
    if (sizeof...(U) != kUpdates) return false;
    const int slots[] = {U::kSlots...};
    for (int update = 0; update < kUpdates; ++update) {
      if (slots[update] != kSlotCounts[update]) return false;
    }
    return true;
  }
};

// In lanes of `V`, by Update.
template <typename V>
using EveryUpdate = UpdateList<Adam<V, Decay::kNone, false>,        // kAdam
                               Adam<V, Decay::kCoupled, false>,     // kAdamL2
                               Adam<V, Decay::kDecoupled, false>,   // kAdamW
                               Adam<V, Decay::kNone, true>,         // kAdamAmsgrad
                               Adam<V, Decay::kCoupled, true>,      // kAdamL2Amsgrad
                               Adam<V, Decay::kDecoupled, true>,    // kAdamWAmsgrad
                               Sgd<V, false, Momentum::kNone>,      // kSgd
                               Sgd<V, true, Momentum::kNone>,       // kSgdL2
                               Sgd<V, false, Momentum::kPlain>,     // kMomentum
                               Sgd<V, true, Momentum::kPlain>,      // kMomentumL2
                               Sgd<V, false, Momentum::kNesterov>,  // kNesterov
                               Sgd<V, true, Momentum::kNesterov>>;  // kNesterovL2

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_UPDATES_LIST_H_
