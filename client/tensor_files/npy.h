// The header of a .npy file, numpy's own format for one array.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_TENSOR_FILES_NPY_H_
#define ADAMANT_CLIENT_TENSOR_FILES_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace adamant::tensor_files {

struct NpyHeader {
  // As numpy calls it, such as `<f4`.
  std::string descr;
  // Extents, outermost first, row-major; none: a scalar.
  std::vector<int64_t> shape;
  // How many bytes stand before the elements.
  int64_t data_offset = 0;
};

// Understands the beginning of a file, of which `start` has at least the header: the whole file will do. Versions 1 to
// 3 of the format. INVALID_ARGUMENT if it is none, if it ends before its header does, or if the array is column-major.
absl::StatusOr<NpyHeader> ParseNpyHeader(absl::string_view start);

// The header of an array of little-endian fp32 elements: a multiple of 64 bytes, as numpy writes it.
std::string FormatNpyHeader(absl::Span<const int64_t> shape);

}  // namespace adamant::tensor_files

#endif  // ADAMANT_CLIENT_TENSOR_FILES_NPY_H_
