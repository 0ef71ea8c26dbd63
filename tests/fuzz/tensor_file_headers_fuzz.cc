// The headers of .safetensors and .npy files, on any bytes. What is understood is whole and consistent, and comes back
// when it is formatted and understood again.
//
// An input is a byte, which says of which kind it is, and a file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/tensor_files/npy.h"
#include "client/tensor_files/safetensors.h"

namespace adamant::tensor_files {
namespace {

void Check(bool holds, const char* what) {
  if (holds) return;
  std::cerr << what << std::endl;
  std::abort();
}

void TrySafetensors(absl::string_view file) {
  const auto size = static_cast<int64_t>(file.size());
  const auto length = ParseSafetensorsPrefix(file, size);
  if (!length.ok()) return;
  Check(*length >= 0 && *length <= size - kSafetensorsPrefixBytes, "the header reaches over the file's end");
  const int64_t data_bytes = size - kSafetensorsPrefixBytes - *length;
  auto header = ParseSafetensorsHeader(file.substr(kSafetensorsPrefixBytes, *length), data_bytes);
  if (!header.ok()) {
    Check(!header.status().message().empty() && header.status().message().size() < 1024, "an error without measure");
    return;
  }
  int64_t next = 0;
  for (const SafetensorsTensor& tensor : header->tensors) {
    Check(tensor.begin == next && tensor.end >= next, "the tensors are not one behind the other");
    next = tensor.end;
    __int128 bits = *SafetensorsBits(tensor.dtype);
    for (const int64_t extent : tensor.shape) {
      Check(extent >= 0, "a negative extent");
      bits *= extent;
      Check(bits <= INT64_MAX, "more bits than can be counted");
    }
    Check(bits == __int128{8} * (tensor.end - tensor.begin), "the bytes do not fit the shape");
  }
  Check(next == data_bytes, "the tensors do not fill the file");

  std::vector<SafetensorsTensor> tensors = header->tensors;
  const auto formatted = FormatSafetensorsHeader(&tensors, header->metadata, 64);
  if (!formatted.ok()) {
    // Escapes may take more room than what they were read from, but never that much here.
    Check(false, "what was understood cannot be formatted");
  }
  Check(formatted->size() % 64 == 0, "the tensors do not begin where they should");
  const auto again = ParseSafetensorsHeader(formatted->substr(kSafetensorsPrefixBytes), data_bytes);
  Check(again.ok() && again->metadata == header->metadata && again->tensors.size() == header->tensors.size(),
        "what was formatted is understood differently");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const SafetensorsTensor& a = header->tensors[i];
    const SafetensorsTensor& b = tensors[i];
    Check(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin && a.end == b.end,
          "a tensor has changed");
  }
}

void TryNpy(absl::string_view file) {
  const auto header = ParseNpyHeader(file);
  if (!header.ok()) return;
  Check(header->data_offset <= static_cast<int64_t>(file.size()), "the elements begin behind the file's end");
  for (const int64_t extent : header->shape) Check(extent >= 0, "a negative extent");
  const auto again = ParseNpyHeader(FormatNpyHeader(header->shape));
  Check(again.ok() && again->shape == header->shape, "what was formatted is understood differently");
}

}  // namespace
}  // namespace adamant::tensor_files

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const absl::string_view file(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    adamant::tensor_files::TrySafetensors(file);
  } else {
    adamant::tensor_files::TryNpy(file);
  }
  return 0;
}
