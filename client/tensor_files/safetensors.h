// The header of a .safetensors file: what tensors it holds, of what type and shape, and where.
//
// A file is the header's length in bytes (8, little-endian), the header (JSON), and the tensors' bytes without gaps.
// What reads and writes files is tensor_file.h; this knows none, so that others may keep theirs as they like.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_TENSOR_FILES_SAFETENSORS_H_
#define ADAMANT_CLIENT_TENSOR_FILES_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace adamant::tensor_files {

// The bytes in front of the header, which say how long it is.
inline constexpr int64_t kSafetensorsPrefixBytes = 8;
// The longest header that the format allows: 100 MB.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsTensor {
  std::string name;
  // As the format calls it, such as `F32`, `F16`, `BF16` or `I64`.
  std::string dtype;
  // Extents, outermost first; none: a scalar.
  std::vector<int64_t> shape = {};
  // Its bytes are [begin, end) of those behind the header.
  int64_t begin = 0;
  int64_t end = 0;
};

struct SafetensorsHeader {
  // In the order of their bytes.
  std::vector<SafetensorsTensor> tensors;
  std::map<std::string, std::string> metadata;
};

// How many bits an element of a type has; nothing for a type that the format does not have.
std::optional<int64_t> SafetensorsBits(absl::string_view dtype);

// How long the header is, out of a file's first kSafetensorsPrefixBytes. INVALID_ARGUMENT if `prefix` is shorter than
// that, if the format does not allow such a header, or if the file, of `file_bytes`, ends before it does.
absl::StatusOr<int64_t> ParseSafetensorsPrefix(absl::string_view prefix, int64_t file_bytes);

// Understands a header behind which there are `data_bytes`. INVALID_ARGUMENT, which names the tensor, unless it is what
// the format demands: names once, types that there are, byte ranges that fit their shapes and that together are the
// `data_bytes` without gaps and overlaps, metadata that are strings. Takes memory in proportion to the header.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json, int64_t data_bytes);

// Prefix and header of a file of these tensors, whose `begin` and `end` are set here: one behind the other. Filled with
// spaces, as the format allows, so that the tensors' bytes start at a multiple of `alignment`, a positive multiple
// of 8. INVALID_ARGUMENT if a name is there twice or is no UTF-8, or if shape and type make no size; if the header
// would be longer than the format allows.
absl::StatusOr<std::string> FormatSafetensorsHeader(std::vector<SafetensorsTensor>* tensors,
                                                    const std::map<std::string, std::string>& metadata,
                                                    int64_t alignment = 8);

}  // namespace adamant::tensor_files

#endif  // ADAMANT_CLIENT_TENSOR_FILES_SAFETENSORS_H_
