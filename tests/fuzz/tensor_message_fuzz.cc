// The decoder of tensor messages against protobuf's own parser, on any bytes in any slices.
//
// An input is two bytes a and b, and a message, which is cut into slices of a + 1 and b + 1 bytes by turns.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <utility>

#include "tests/wire/byte_buffers.h"
#include "tests/wire/protobuf_comparison.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  size_t slice = data[0] + size_t{1};
  size_t next_slice = data[1] + size_t{1};
  const std::string message(data + 2, data + size);
  const std::string difference = adamant::wire::DifferenceFromProtobuf(adamant::wire::InSlices(message, [&] {
    std::swap(slice, next_slice);
    return next_slice;
  }));
  if (!difference.empty()) {
    std::cerr << "The decoder and protobuf disagree: " << difference << std::endl;
    std::abort();
  }
  return 0;
}
