// What a checkpoint's files say of themselves, on any bytes, with checksums that fit: those find accidents only. What
// is understood is whole, comes back when it is written again, and has as many elements as it says.
//
// An input is a byte, which says what the rest is: the object in MANIFEST.json; parameters.safetensors; or how many
// elements that file has, in a byte, and its header without what fills it up.
#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/tensor_files/checksum.h"
#include "client/tensor_files/manifest.h"
#include "server/core/spec/schema.h"
#include "server/store/checkpoint.h"
#include "tests/store/simulated_file_system.h"

namespace adamant::store {
namespace {

using tensor_files::CheckpointManifest;
using tensor_files::Checksum;
using tensor_files::FormatManifest;
using tensor_files::kCheckpointFormat;
using tensor_files::kFileChecksumBytes;
using tensor_files::kParametersName;
using tensor_files::ParseManifest;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::cerr << what << std::endl;
  std::abort();
}

void CheckError(const absl::Status& status) {
  Check(absl::IsDataLoss(status) || absl::IsFailedPrecondition(status), "an error of another kind");
  Check(!status.message().empty() && status.message().size() < 2048, "an error without measure");
}

void Put(FileSystem* disk, const std::string& path, absl::string_view contents) {
  const absl::StatusOr<std::unique_ptr<File>> file = disk->Create(path, FileSystem::Access::kBuffered);
  Check(file.ok() && (*file)->Write(0, {reinterpret_cast<const std::byte*>(contents.data()), contents.size()}).ok(),
        "the disk does not work");
}

std::shared_ptr<const core::Schema> MakeSchema() {
  v1::ParameterSetSpec spec;
  v1::TensorSpec* const matrix = spec.add_tensors();
  matrix->set_name("a");
  matrix->add_shape(2);
  matrix->add_shape(3);
  spec.add_tensors()->set_name("b");
  v1::ParameterGroup group;
  group.set_name("default");
  return *core::Schema::Create(spec, {group});
}

// Opens the checkpoint /c and reads what is in it.
void TryToRead(FileSystem* disk) {
  static const std::shared_ptr<const core::Schema> schema = MakeSchema();
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(disk, "/c");
  if (!checkpoint.ok()) return CheckError(checkpoint.status());
  for (const v1::Slot slot : {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG}) {
    int64_t elements = 0;
    float sum = 0;
    const absl::Status status = checkpoint->Read(slot, *schema, [&](int, int64_t, absl::Span<const float> run) {
      elements += static_cast<int64_t>(run.size());
      for (const float element : run) sum += element;
      return absl::OkStatus();
    });
    volatile float read = sum;  // all of them are there
    (void)read;
    if (!status.ok()) {
      CheckError(status);
    } else {
      Check(elements == schema->parameter_count(), "elements are missing");
    }
  }
}

void TryManifest(absl::string_view json) {
  const std::string text = absl::StrFormat("{\"crc32c\": \"%08x\", \"manifest\": %s}\n", Checksum(json), json);
  const auto manifest = ParseManifest(text);
  if (!manifest.ok()) return CheckError(manifest.status());
  Check(manifest->step() >= 0 && manifest->format() == kCheckpointFormat, "a manifest that is none");
  const auto formatted = FormatManifest(*manifest);
  Check(formatted.ok(), "what was understood cannot be written");
  const auto again = ParseManifest(*formatted);
  Check(again.ok(), "what was written cannot be understood");
  // Of this text, as maps are written in any order.
  Check(again->step() == manifest->step() && again->incarnation() == manifest->incarnation() &&
            again->ByteSizeLong() == manifest->ByteSizeLong(),
        "what was written is understood differently");

  SimulatedFileSystem disk;
  Check(disk.MakeDirectory("/c").ok(), "the disk does not work");
  Put(&disk, "/c/MANIFEST.json", text);
  Put(&disk, "/c/parameters.safetensors", "{}");
  TryToRead(&disk);
}

void TryFile(absl::string_view contents) {
  CheckpointManifest manifest;
  manifest.set_format(kCheckpointFormat);
  manifest.set_step(1);
  manifest.set_incarnation(1);
  manifest.mutable_create_time();
  CheckpointManifest::File* const file = manifest.add_files();
  file->set_name(kParametersName);
  file->set_bytes(static_cast<int64_t>(contents.size()));
  for (size_t begin = 0; begin < contents.size(); begin += kFileChecksumBytes) {
    file->add_crc32c(Checksum(contents.substr(begin, kFileChecksumBytes)));
  }
  SimulatedFileSystem disk;
  Check(disk.MakeDirectory("/c").ok(), "the disk does not work");
  Put(&disk, "/c/MANIFEST.json", *FormatManifest(manifest));
  Put(&disk, "/c/parameters.safetensors", contents);
  TryToRead(&disk);
}

void TryHeader(absl::string_view input) {
  if (input.empty()) return;
  const auto elements = static_cast<uint8_t>(input.front());
  std::string header(input.substr(1));
  header.append((kSectorBytes - (header.size() + 8) % kSectorBytes) % kSectorBytes, ' ');
  std::string prefix;
  for (int byte = 0; byte < 8; ++byte) prefix += static_cast<char>(header.size() >> (8 * byte));
  TryFile(absl::StrCat(prefix, header, std::string(size_t{elements} * sizeof(float), 'x')));
}

}  // namespace
}  // namespace adamant::store

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  // Of what cannot be read, protobuf would tell the log.
  static const google::protobuf::LogSilencer silence;
  const absl::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      adamant::store::TryManifest(rest);
      break;
    case 1:
      adamant::store::TryFile(rest);
      break;
    default:
      adamant::store::TryHeader(rest);
  }
  return 0;
}
