// CRC-32C (Castagnoli), as iSCSI and leveldb have it: of what is on disk.
#ifndef ADAMANT_CLIENT_TENSOR_FILES_CHECKSUM_H_
#define ADAMANT_CLIENT_TENSOR_FILES_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace adamant::tensor_files {

// Of `bytes`; or, with the checksum of what comes before them, of both together. Of nothing it is 0.
uint32_t Checksum(absl::Span<const std::byte> bytes, uint32_t before = 0);
uint32_t Checksum(absl::string_view bytes, uint32_t before = 0);

}  // namespace adamant::tensor_files

#endif  // ADAMANT_CLIENT_TENSOR_FILES_CHECKSUM_H_
