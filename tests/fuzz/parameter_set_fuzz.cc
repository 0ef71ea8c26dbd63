// A whole parameter set against the sequential model.
#include <cstddef>
#include <cstdint>

#include "tests/core/set_schedule.h"
#include "tests/fuzz/byte_choices.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  adamant::core::ByteChoices choices(data, size);
  adamant::core::ExpectNone(
      adamant::core::RunSchedule(adamant::core::SetSize::kSmall, adamant::core::Device::kProcessor, &choices));
  return 0;
}
