// What a checkpoint says of itself: MANIFEST.json.
//
// The file is `{"crc32c": "01234567", "manifest": {...}}`, byte for byte so around the inner object, of whose text the
// checksum is: so nothing in it changes unseen.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_TENSOR_FILES_MANIFEST_H_
#define ADAMANT_CLIENT_TENSOR_FILES_MANIFEST_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/tensor_files/manifest.pb.h"

namespace adamant::tensor_files {

inline constexpr char kManifestName[] = "MANIFEST.json";
inline constexpr char kParametersName[] = "parameters.safetensors";
inline constexpr char kOptimizerName[] = "optimizer.safetensors";

// The version of what is written here. An earlier one is read, a later one is not.
inline constexpr int32_t kCheckpointFormat = 1;
// How much of a file has one checksum. A part of the format.
inline constexpr int64_t kFileChecksumBytes = int64_t{1} << 20;
// The longest manifest: that of files of 20 TB.
inline constexpr int64_t kMaxManifestBytes = int64_t{256} << 20;

// What a tensor of this name is called among the parameters, and back. The format has another use for `__metadata__`:
// that name, and what it is with more of `_` behind it, has one more of them there.
std::string ParameterNameInFile(absl::string_view tensor);
std::string ParameterOfNameInFile(absl::string_view name);

// The text of the file. INVALID_ARGUMENT where the manifest makes none: a name that is no UTF-8, a time that no
// calendar has, or more than kMaxManifestBytes.
absl::StatusOr<std::string> FormatManifest(const CheckpointManifest& manifest);

// Understands it. What it returns has a format, a step of at least 0, an incarnation, a time, and the files
// kParametersName and, it may be, kOptimizerName behind that, with as many checksums as their bytes ask for. Fields
// that a later version has added are left out. Errors: DATA_LOSS; FAILED_PRECONDITION if it is of a later format. Takes
// memory in proportion to the text.
absl::StatusOr<CheckpointManifest> ParseManifest(absl::string_view text);

}  // namespace adamant::tensor_files

#endif  // ADAMANT_CLIENT_TENSOR_FILES_MANIFEST_H_
