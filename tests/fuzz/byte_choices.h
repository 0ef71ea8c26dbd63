// A schedule from a fuzzer's input: each of its bytes is one choice.
#ifndef ADAMANT_TESTS_FUZZ_BYTE_CHOICES_H_
#define ADAMANT_TESTS_FUZZ_BYTE_CHOICES_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/core/set_schedule.h"

namespace adamant::core {

class ByteChoices final : public Choices {
 public:
  ByteChoices(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  uint32_t Choose(uint32_t n) override { return next_ == end_ ? 0 : *next_++ % n; }
  bool more() override { return next_ != end_; }

 private:
  const uint8_t* next_;
  const uint8_t* const end_;
};

// Ends the process if there is a difference.
inline void ExpectNone(const std::string& difference) {
  if (difference.empty()) return;
  std::cerr << "The set and the model disagree: " << difference << std::endl;
  std::abort();
}

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_FUZZ_BYTE_CHOICES_H_
