// One step of one parameter by the reference kernels.
#ifndef ADAMANT_TESTS_KERNELS_SINGLE_STEP_H_
#define ADAMANT_TESTS_KERNELS_SINGLE_STEP_H_

#include "kernels/dispatch.h"
#include "kernels/update.h"

namespace adamant::kernels {

struct Element {
  float p;
  float slots[kMaxSlots];  // in the order of kSlotCounts
};

inline Element Step(Update update, const UpdateScalars& scalars, float g, Element x) {
  UpdateSpan span = {.size = 1, .g = &g, .p_in = &x.p, .p_out = &x.p, .slots = {}};
  for (int k = 0; k < kSlotCounts[update]; ++k) span.slots[k] = {&x.slots[k], &x.slots[k]};
  FindKernels("scalar")->update[update](scalars, span);
  return x;
}

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_KERNELS_SINGLE_STEP_H_
