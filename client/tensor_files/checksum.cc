// CRC-32C by ISA-L, which leaves out the two inversions that CRC-32C has.
#include "client/tensor_files/checksum.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace adamant::tensor_files {
namespace {

// As many bytes as one call of ISA-L takes: its length is an int.
constexpr size_t kMostBytes = size_t{1} << 30;

}  // namespace

uint32_t Checksum(absl::Span<const std::byte> bytes, uint32_t before) {
  uint32_t state = ~before;
  for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), kMostBytes))) {
    // It does not write, though it does not say so.
    auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
    state = crc32_iscsi(data, static_cast<int>(std::min(bytes.size(), kMostBytes)), state);
  }
  return ~state;
}

uint32_t Checksum(absl::string_view bytes, uint32_t before) {
  return Checksum(absl::Span<const std::byte>(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()), before);
}

}  // namespace adamant::tensor_files
