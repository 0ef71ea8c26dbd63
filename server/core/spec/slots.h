// The arrays that a set may have: the one table of what they are called and what they may hold.
#ifndef ADAMANT_SERVER_CORE_SPEC_SLOTS_H_
#define ADAMANT_SERVER_CORE_SPEC_SLOTS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "kernels/update.h"

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
                                      {v1::SLOT_EXP_AVG_SQ, 0.0f, 0x1p127f},
                                      {v1::SLOT_MAX_EXP_AVG_SQ, 0.0f, 0x1p127f},
                                      {v1::SLOT_MOMENTUM_BUFFER, -0x1p64f, 0x1p64f}};

// The entry of `slot` in kSlots. Requires: it is there.
const SlotInfo& InfoOf(v1::Slot slot);

// The slots of an update, in the order in which its kernel takes them, which is that of kSlots.
absl::Span<const v1::Slot> SlotsOf(kernels::Update update);

// The optimizers' slots of a set with these groups, resolved ones, in the order of kSlots. All of its tensors have all
// of them; those that are none of its own group's stay as they are.
std::vector<v1::Slot> OptimizerSlots(absl::Span<const v1::ParameterGroup> groups);

// Where the slots of each update stand among a set's: by update, in the order of SlotsOf. Those of updates that the set
// has no slots for are unspecified.
using SlotIndices = std::array<std::array<int8_t, kernels::kMaxSlots>, kernels::kUpdates>;
SlotIndices IndexSlots(absl::Span<const v1::Slot> slots);

// `slots` for people: "SLOT_PARAMETER, SLOT_EXP_AVG or SLOT_EXP_AVG_SQ".
std::string OneOf(absl::Span<const v1::Slot> slots);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_SLOTS_H_
