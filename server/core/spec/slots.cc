#include "server/core/spec/slots.h"

#include <algorithm>
#include <iterator>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "server/core/spec/parameter_group.h"

namespace adamant::core {

const SlotInfo& InfoOf(v1::Slot slot) {
  return *std::find_if(std::begin(kSlots), std::end(kSlots),
                       [slot](const SlotInfo& info) { return info.slot == slot; });
}

absl::Span<const v1::Slot> SlotsOf(kernels::Update update) {
  static constexpr v1::Slot kOfAdam[] = {v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ, v1::SLOT_MAX_EXP_AVG_SQ};
  static constexpr v1::Slot kOfSgd[] = {v1::SLOT_MOMENTUM_BUFFER};
  const absl::Span<const v1::Slot> slots = update < kernels::kSgd ? absl::Span<const v1::Slot>(kOfAdam) : kOfSgd;
  return slots.first(kernels::kSlotCounts[update]);
}

std::vector<v1::Slot> OptimizerSlots(absl::Span<const v1::ParameterGroup> groups) {
  std::vector<v1::Slot> slots;
  for (const SlotInfo& info : kSlots) {
    const bool used = absl::c_any_of(groups, [&info](const v1::ParameterGroup& group) {
      return absl::c_linear_search(SlotsOf(UpdateOf(group)), info.slot);
    });
    if (used) slots.push_back(info.slot);
  }
  return slots;
}

SlotIndices IndexSlots(absl::Span<const v1::Slot> slots) {
  SlotIndices indices = {};
  for (int update = 0; update < kernels::kUpdates; ++update) {
    const absl::Span<const v1::Slot> needed = SlotsOf(static_cast<kernels::Update>(update));
    for (size_t i = 0; i < needed.size(); ++i) {
      indices[update][i] = static_cast<int8_t>(absl::c_find(slots, needed[i]) - slots.begin());
    }
  }
  return indices;
}

std::string OneOf(absl::Span<const v1::Slot> slots) {
  std::string names;
  for (size_t i = 0; i < slots.size(); ++i) {
    const char* const separator = i == 0 ? "" : i + 1 == slots.size() ? " or " : ", ";
    absl::StrAppend(&names, separator, v1::Slot_Name(slots[i]));
  }
  return names;
}

}  // namespace adamant::core
