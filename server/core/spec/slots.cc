#include "server/core/spec/slots.h"

#include <algorithm>
#include <iterator>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"

namespace adamant::core {

const SlotInfo& InfoOf(v1::Slot slot) {
  return *std::find_if(std::begin(kSlots), std::end(kSlots),
                       [slot](const SlotInfo& info) { return info.slot == slot; });
}

std::vector<v1::Slot> OptimizerSlots(absl::Span<const v1::ParameterGroup> groups) {
  const bool adam = absl::c_any_of(groups, [](const v1::ParameterGroup& group) { return group.has_adam(); });
  if (!adam) return {};
  return {v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ};
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
