#include "server/store/halves.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace adamant::store {
namespace {

// As many as are looked at before the first that does not fit ends it. Their copies make loops that compilers
// vectorize.
constexpr size_t kChunk = 1024;

}  // namespace

bool Halve(absl::Span<const std::byte> floats, absl::Span<std::byte> halves) {
  uint32_t whole[kChunk];
  uint16_t upper[kChunk];
  const size_t count = floats.size() / sizeof(uint32_t);
  for (size_t first = 0; first < count; first += kChunk) {
    const size_t size = std::min(kChunk, count - first);
    std::memcpy(whole, floats.data() + first * sizeof(uint32_t), size * sizeof(uint32_t));
    uint32_t any = 0;
    for (size_t i = 0; i < size; ++i) any |= whole[i];
    if ((any & 0xffff) != 0) return false;
    for (size_t i = 0; i < size; ++i) upper[i] = static_cast<uint16_t>(whole[i] >> 16);
    std::memcpy(halves.data() + first * sizeof(uint16_t), upper, size * sizeof(uint16_t));
  }
  return true;
}

void Unhalve(absl::Span<std::byte> bytes) {
  uint32_t whole[kChunk];
  uint16_t upper[kChunk];
  // From the end: what is written lies behind all that is yet to be read.
  for (size_t end = bytes.size() / sizeof(uint32_t); end > 0;) {
    const size_t size = std::min(kChunk, end);
    end -= size;
    std::memcpy(upper, bytes.data() + end * sizeof(uint16_t), size * sizeof(uint16_t));
    for (size_t i = 0; i < size; ++i) whole[i] = static_cast<uint32_t>(upper[i]) << 16;
    std::memcpy(bytes.data() + end * sizeof(uint32_t), whole, size * sizeof(uint32_t));
  }
}

}  // namespace adamant::store
