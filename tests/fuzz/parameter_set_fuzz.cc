// A whole parameter set against the sequential model: each byte of an input is one choice of a schedule.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/core/set_schedule.h"

namespace {

class ByteChoices final : public adamant::core::Choices {
 public:
  ByteChoices(const uint8_t* begin, const uint8_t* end) : next_(begin), end_(end) {}

  uint32_t Choose(uint32_t n) override { return next_ == end_ ? 0 : *next_++ % n; }
  bool more() override { return next_ != end_; }

 private:
  const uint8_t* next_;
  const uint8_t* const end_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ByteChoices choices(data, data + size);
  const std::string difference =
      adamant::core::RunSchedule(adamant::core::SetSize::kSmall, adamant::core::Device::kProcessor, &choices);
  if (!difference.empty()) {
    std::cerr << "The set and the model disagree: " << difference << std::endl;
    std::abort();
  }
  return 0;
}
