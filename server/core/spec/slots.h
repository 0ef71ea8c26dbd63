// The arrays that a set may have: the one table of what they are called and what they may hold.
#ifndef ADAMANT_SERVER_CORE_SPEC_SLOTS_H_
#define ADAMANT_SERVER_CORE_SPEC_SLOTS_H_

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant::core {

// One of the arrays. What may be written to it is bounded so that a later step can compute with it without an overflow.
struct SlotInfo {
  v1::Slot slot;
  float lowest;
  float highest;
};

// The parameters, which every set has, and then the optimizers' slots.
inline constexpr SlotInfo kSlots[] = {{v1::SLOT_PARAMETER, -0x1p95f, 0x1p95f},
                                      {v1::SLOT_EXP_AVG, -0x1p64f, 0x1p64f},
                                      {v1::SLOT_EXP_AVG_SQ, 0.0f, 0x1p127f}};

// The entry of `slot` in kSlots. Requires: it is there.
const SlotInfo& InfoOf(v1::Slot slot);

// The optimizer's slots of a set with these groups, in the order of kSlots.
std::vector<v1::Slot> OptimizerSlots(absl::Span<const v1::ParameterGroup> groups);

// `slots` for people: "SLOT_PARAMETER, SLOT_EXP_AVG or SLOT_EXP_AVG_SQ".
std::string OneOf(absl::Span<const v1::Slot> slots);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_SLOTS_H_
