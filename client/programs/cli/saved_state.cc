#include "client/programs/cli/saved_state.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/programs/cli/tensor_match.h"
#include "client/tensor_files/checksum.h"
#include "client/tensor_files/manifest.h"

namespace adamant::programs::cli {
namespace {

using tensor_files::CheckpointManifest;
using tensor_files::FileFormat;
using tensor_files::FileTensor;
using tensor_files::TensorFile;

absl::Status About(absl::string_view path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

// A value of the file's metadata, without the room that was left for it. Empty if there is none.
std::string Metadata(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) return "";
  return std::string(absl::StripAsciiWhitespace(found->second));
}

absl::StatusOr<v1::ParameterSetSpec> ExportedSpec(const TensorFile& file) {
  const std::string json = Metadata(file, kSpecKey);
  v1::ParameterSetSpec spec;
  if (json.empty() || !google::protobuf::util::JsonStringToMessage(json, &spec).ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": does not say what set it is of, as files of `adamant export` do; see adamant create --from"));
  }
  return spec;
}

absl::StatusOr<int64_t> ExportedStep(const TensorFile& file) {
  const std::string text = Metadata(file, kStepKey);
  int64_t step;
  if (!absl::SimpleAtoi(text, &step)) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": expected the step of the state as `", kStepKey,
                                                   "` in its metadata, got '", text, "'"));
  }
  return step;
}

absl::StatusOr<std::vector<int64_t>> ExportedUpdateCounts(const TensorFile& file) {
  std::vector<int64_t> counts;
  for (const absl::string_view count : absl::StrSplit(Metadata(file, kUpdateCountsKey), ',', absl::SkipWhitespace())) {
    if (!absl::SimpleAtoi(count, &counts.emplace_back())) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": `", kUpdateCountsKey, "` has no number: '", count, "'"));
    }
  }
  return counts;
}

absl::StatusOr<SavedState> OpenExported(const std::string& path) {
  absl::StatusOr<TensorFile> file = TensorFile::Open(path);
  if (!file.ok()) return file.status();
  if (file->format() != FileFormat::kSafetensors) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a .safetensors file, or a checkpoint's folder"));
  }
  SavedState saved = {.path = path,
                      .is_checkpoint = false,
                      .files = {},
                      .names = {},
                      .is_whole = file->metadata().contains(kUpdateCountsKey),
                      .spec = ExportedSpec(*file),
                      .step = ExportedStep(*file),
                      .update_counts = ExportedUpdateCounts(*file)};
  if (saved.spec.ok()) {
    // Who has written the file again may have put its tensors into another order.
    for (const v1::TensorSpec& tensor : saved.spec->tensors()) saved.names.push_back(tensor.name());
  } else {
    saved.names = ParameterNames(*file);
  }
  saved.files.push_back(*std::move(file));
  return saved;
}

// What the system has just said of the file.
absl::Status SystemError(const std::string& path) { return absl::ErrnoToStatus(errno, path); }

absl::StatusOr<CheckpointManifest> ReadManifest(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) {
    const absl::Status error = SystemError(path);
    return absl::IsNotFound(error) ? absl::NotFoundError(absl::StrCat(path, ": is missing: no checkpoint's folder"))
                                   : error;
  }
  std::string text;
  std::vector<char> buffer(1 << 20);
  while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size())), file.gcount() > 0) {
    text.append(buffer.data(), static_cast<size_t>(file.gcount()));
    if (static_cast<int64_t>(text.size()) > tensor_files::kMaxManifestBytes) {
      return absl::DataLossError(absl::StrCat(path, ": is longer than a manifest may be"));
    }
  }
  absl::StatusOr<CheckpointManifest> manifest = tensor_files::ParseManifest(text);
  if (!manifest.ok()) return About(path, manifest.status());
  return manifest;
}

// Whether each byte of the file is what the manifest says of it.
absl::Status CheckFile(const std::string& path, const CheckpointManifest::File& said) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) {
    const absl::Status error = SystemError(path);
    return absl::IsNotFound(error) ? absl::DataLossError(absl::StrCat(path, ": is missing")) : error;
  }
  std::vector<char> part(tensor_files::kFileChecksumBytes);
  int64_t bytes = 0;
  for (const uint32_t expected : said.crc32c()) {
    file.read(part.data(),
              static_cast<std::streamsize>(std::min<int64_t>(tensor_files::kFileChecksumBytes, said.bytes() - bytes)));
    if (file.bad()) return SystemError(path);
    const auto got = static_cast<size_t>(file.gcount());
    if (tensor_files::Checksum(absl::string_view(part.data(), got)) != expected) {
      return absl::DataLossError(absl::StrCat(path, ": is damaged: the checksum of its bytes [", bytes, ", ",
                                              bytes + static_cast<int64_t>(got), ") does not fit"));
    }
    bytes += static_cast<int64_t>(got);
  }
  if (bytes != said.bytes() || file.peek() != std::ifstream::traits_type::eof()) {
    return absl::DataLossError(
        absl::StrCat(path, ": is damaged: its manifest says that it has ", said.bytes(), " bytes"));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ParameterSetSpec> CheckpointedSpec(const std::string& path, const CheckpointManifest& manifest,
                                                      const TensorFile& parameters) {
  const v1::ParameterSet& set = manifest.description();
  if (set.groups().empty() || (set.groups_size() > 1 && manifest.tensor_groups().empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat(path,
                     ": was made by a server of an earlier version, and does not say in which group each tensor "
                     "is: create the set, and import without --create"));
  }
  std::vector<v1::Tensor> tensors;
  for (const FileTensor& in_file : parameters.tensors()) {
    v1::Tensor& tensor = tensors.emplace_back();
    tensor.set_name(tensor_files::ParameterOfNameInFile(in_file.name));
    tensor.mutable_shape()->Add(in_file.shape.begin(), in_file.shape.end());
    const auto index = static_cast<int>(tensors.size()) - 1;
    tensor.set_group(set.groups(manifest.tensor_groups().empty() ? 0 : manifest.tensor_groups(index)).name());
  }
  return SpecOf(set, tensors);
}

absl::StatusOr<SavedState> OpenCheckpoint(const std::string& path) {
  const absl::StatusOr<CheckpointManifest> manifest =
      ReadManifest(absl::StrCat(path, "/", tensor_files::kManifestName));
  if (!manifest.ok()) return manifest.status();
  SavedState saved = {
      .path = path,
      .is_checkpoint = true,
      .files = {},
      .names = {},
      .is_whole = true,
      .spec = v1::ParameterSetSpec(),
      .step = manifest->step(),
      .update_counts = std::vector<int64_t>(manifest->update_counts().begin(), manifest->update_counts().end())};
  for (const CheckpointManifest::File& said : manifest->files()) {
    const std::string file_path = absl::StrCat(path, "/", said.name());
    if (absl::Status status = CheckFile(file_path, said); !status.ok()) return status;
    absl::StatusOr<TensorFile> file = TensorFile::Open(file_path);
    if (!file.ok()) return file.status();
    saved.files.push_back(*std::move(file));
  }
  const TensorFile& parameters = saved.files.front();
  for (const int numbers : {manifest->update_counts_size(), manifest->tensor_groups_size()}) {
    if (numbers != 0 && static_cast<size_t>(numbers) != parameters.tensors().size()) {
      return absl::DataLossError(absl::StrCat(path, ": is damaged: its manifest is about ", numbers,
                                              " tensors, and there are ", parameters.tensors().size()));
    }
  }
  saved.names = saved.TensorsOf(v1::SLOT_PARAMETER).names;
  saved.spec = CheckpointedSpec(path, *manifest, parameters);
  return saved;
}

}  // namespace

v1::ParameterSetSpec SpecOf(const v1::ParameterSet& set, const std::vector<v1::Tensor>& tensors) {
  v1::ParameterSetSpec spec;
  spec.set_name(set.name());
  spec.set_initialization(v1::INITIALIZATION_WRITTEN);
  *spec.mutable_groups() = set.groups();
  *spec.mutable_labels() = set.labels();
  if (set.clipping().bound_case() != v1::Clipping::BOUND_NOT_SET) *spec.mutable_clipping() = set.clipping();
  spec.set_non_finite_policy(set.non_finite_policy());
  spec.set_max_staleness(set.max_staleness());
  if (set.has_workers()) *spec.mutable_workers() = set.workers();
  for (const v1::Tensor& tensor : tensors) {
    v1::TensorSpec* const added = spec.add_tensors();
    added->set_name(tensor.name());
    *added->mutable_shape() = tensor.shape();
    added->set_group(tensor.group());
  }
  return spec;
}

absl::StatusOr<SavedState> SavedState::Open(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::status_known(status)) return absl::ErrnoToStatus(error.value(), path);
  if (!std::filesystem::exists(status)) return absl::NotFoundError(absl::StrCat(path, ": no such file or folder"));
  return std::filesystem::is_directory(status) ? OpenCheckpoint(path) : OpenExported(path);
}

SavedSlot SavedState::TensorsOf(v1::Slot slot) const {
  const bool is_parameter = slot == v1::SLOT_PARAMETER;
  // What an export has of a name of a parameter is one, whatever that name begins with.
  const std::set<std::string, std::less<>> parameters =
      !is_checkpoint && spec.ok() ? std::set<std::string, std::less<>>(names.begin(), names.end())
                                  : std::set<std::string, std::less<>>();
  SavedSlot found = {.file = is_parameter ? &files.front() : &files.back(), .names = {}};
  const bool has_moments = !is_checkpoint || files.size() > 1;
  const std::string prefix = NameInFile(slot, "");
  for (const FileTensor& tensor : found.file->tensors()) {
    std::string& name = found.names.emplace_back();
    if (is_parameter) {
      name = is_checkpoint ? tensor_files::ParameterOfNameInFile(tensor.name) : tensor.name;
    } else if (has_moments && absl::StartsWith(tensor.name, prefix) && !parameters.contains(tensor.name)) {
      name = tensor.name.substr(prefix.size());
    }
  }
  return found;
}

}  // namespace adamant::programs::cli
