#include "client/tensor_files/manifest.h"

#include <google/protobuf/util/json_util.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/tensor_files/checksum.h"
#include "proto/error/error.h"

namespace adamant::tensor_files {
namespace {

constexpr absl::string_view kEnd = "}\n";

absl::Status Damaged(absl::string_view message) {
  return Error(absl::StatusCode::kDataLoss, v1::ERROR_REASON_DAMAGED, message);
}

constexpr absl::string_view kReservedName = "__metadata__";

// Whether `name` is `begin` with any number of `_` behind it.
bool IsWithUnderscores(absl::string_view name, absl::string_view begin) {
  return absl::ConsumePrefix(&name, begin) && name.find_first_not_of('_') == name.npos;
}

std::string Start(uint32_t checksum) { return absl::StrFormat("{\"crc32c\": \"%08x\", \"manifest\": ", checksum); }

absl::Status FromJson(absl::string_view json, google::protobuf::Message* message) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto status = google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, message, options);
  return status.ok() ? absl::OkStatus() : Damaged(Quoted(status.ToString()));
}

absl::Status CheckFiles(const CheckpointManifest& manifest) {
  const absl::string_view kNames[] = {kParametersName, kOptimizerName};
  if (manifest.files_size() < 1 || manifest.files_size() > 2) {
    return Damaged(absl::StrCat("expected 1 or 2 files, got ", manifest.files_size()));
  }
  for (int i = 0; i < manifest.files_size(); ++i) {
    const CheckpointManifest::File& file = manifest.files(i);
    if (file.name() != kNames[i]) {
      return Damaged(absl::StrCat("a file: ", ExpectedGot(kNames[i], Quoted(file.name()))));
    }
    const int64_t checksums =
        file.bytes() / kFileChecksumBytes + static_cast<int64_t>(file.bytes() % kFileChecksumBytes != 0);
    if (file.bytes() < 0 || file.crc32c_size() != checksums) {
      return Damaged(absl::StrCat(file.name(), " of ", file.bytes(), " bytes has ", file.crc32c_size(), " checksums"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string ParameterNameInFile(absl::string_view tensor) {
  return absl::StrCat(tensor, IsWithUnderscores(tensor, kReservedName) ? "_" : "");
}

std::string ParameterOfNameInFile(absl::string_view name) {
  if (name != kReservedName && IsWithUnderscores(name, kReservedName)) name.remove_suffix(1);
  return std::string(name);
}

absl::StatusOr<std::string> FormatManifest(const CheckpointManifest& manifest) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(manifest, &json, options);
  if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat("the manifest: ", status.ToString()));
  std::string text = absl::StrCat(Start(Checksum(json)), json, kEnd);
  if (static_cast<int64_t>(text.size()) > kMaxManifestBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the manifest: expected at most ", kMaxManifestBytes, " bytes, got ", text.size()));
  }
  return text;
}

absl::StatusOr<CheckpointManifest> ParseManifest(absl::string_view text) {
  static const size_t start_size = Start(0).size();
  absl::string_view json = text;
  if (json.size() < start_size || !absl::ConsumeSuffix(&json, kEnd) || json.size() < start_size) {
    return Damaged("it is cut off, or no manifest");
  }
  json.remove_prefix(start_size);
  if (const std::string expected = Start(Checksum(json)); text.substr(0, start_size) != expected) {
    return Damaged(
        absl::StrCat("it has to begin with ", expected, ", and begins with ", Quoted(text.substr(0, start_size))));
  }
  // First alone: what else a later version writes may be of other types.
  CheckpointFormat format;
  if (absl::Status status = FromJson(json, &format); !status.ok()) return status;
  if (format.format() > kCheckpointFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("is of format ", format.format(),
                     ", which a later version has written: this one knows those up to ", kCheckpointFormat));
  }
  CheckpointManifest manifest;
  if (absl::Status status = FromJson(json, &manifest); !status.ok()) return status;
  if (manifest.format() < 1 || !manifest.has_step() || manifest.step() < 0 || !manifest.has_incarnation() ||
      !manifest.has_create_time()) {
    return Damaged("it lacks its format, step, incarnation or time");
  }
  for (const int64_t count : manifest.update_counts()) {
    if (count < 0) return Damaged(absl::StrCat("a tensor has had ", count, " updates"));
  }
  for (const int32_t group : manifest.tensor_groups()) {
    if (group < 0 || group >= manifest.description().groups_size()) {
      return Damaged(absl::StrCat("a tensor is of group ", group, " of ", manifest.description().groups_size()));
    }
  }
  if (absl::Status files = CheckFiles(manifest); !files.ok()) return files;
  return manifest;
}

}  // namespace adamant::tensor_files
