// The rounds of a set against their model.
#include <cstddef>
#include <cstdint>

#include "tests/core/round_schedule.h"
#include "tests/fuzz/byte_choices.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  adamant::core::ByteChoices choices(data, size);
  adamant::core::ExpectNone(adamant::core::RunRoundSchedule(adamant::core::SetSize::kSmall, &choices));
  return 0;
}
