// Files go through a buffer of a few MiB, past the page cache: their whole sectors do. What is left behind the last of
// them, as the format wants files that end with their elements, goes by a second, ordinary way into the same file.
#include "server/store/checkpoint.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/tensor_files/checksum.h"
#include "client/tensor_files/manifest.h"
#include "client/tensor_files/safetensors.h"
#include "proto/error/error.h"
#include "server/core/spec/slots.h"
#include "server/store/aligned_buffer.h"
#include "server/store/errors.h"

namespace adamant::store {
namespace {

using tensor_files::CheckpointManifest;
using tensor_files::Checksum;
using tensor_files::FormatManifest;
using tensor_files::kCheckpointFormat;
using tensor_files::kFileChecksumBytes;
using tensor_files::kManifestName;
using tensor_files::kMaxManifestBytes;
using tensor_files::kOptimizerName;
using tensor_files::kParametersName;
using tensor_files::ParseManifest;
using tensor_files::SafetensorsHeader;
using tensor_files::SafetensorsTensor;

// What is written, and read, at once.
constexpr int64_t kBufferBytes = int64_t{4} << 20;
static_assert(kBufferBytes % kFileChecksumBytes == 0 && kFileChecksumBytes % kSectorBytes == 0);
constexpr int64_t kElementBytes = sizeof(float);

int64_t WholeSectors(int64_t bytes) { return bytes / kSectorBytes * kSectorBytes; }

// What a tensor of a slot is called in its file.
std::string NameInFile(v1::Slot slot, absl::string_view tensor) {
  if (slot != v1::SLOT_PARAMETER) {
    return absl::StrCat(absl::AsciiStrToLower(absl::StripPrefix(EnumName(slot), "SLOT_")), "/", tensor);
  }
  return tensor_files::ParameterNameInFile(tensor);
}

const char* FileOf(v1::Slot slot) { return slot == v1::SLOT_PARAMETER ? kParametersName : kOptimizerName; }

// A file that is written from its beginning to its end.
class FileWriter {
 public:
  using Pace = std::function<absl::Status(int64_t bytes)>;

  // `buffer` and `pace` outlive this; the buffer is a multiple of kFileChecksumBytes.
  FileWriter(FileSystem* file_system, std::string path, AlignedBuffer* buffer, const Pace* pace)
      : file_system_(file_system), path_(std::move(path)), buffer_(buffer->span()), pace_(pace) {}

  // Makes the file, with room for all of it.
  absl::Status Create(int64_t bytes) {
    absl::StatusOr<std::unique_ptr<File>> file = file_system_->Create(path_, FileSystem::Access::kDirect);
    if (!file.ok()) return file.status();
    file_ = *std::move(file);
    return bytes == 0 ? absl::OkStatus() : file_->Allocate(bytes);
  }

  // How much Put takes. Never 0.
  int64_t room() const { return static_cast<int64_t>(buffer_.size()) - filled_; }

  // Requires: bytes <= room().
  void Put(const void* from, int64_t bytes) {
    assert(bytes <= room());
    if (bytes > 0) std::memcpy(buffer_.data() + filled_, from, bytes);
    filled_ += bytes;
  }

  // Writes the buffer if it is full. To be called after Put.
  absl::Status WriteIfFull() { return room() == 0 ? Write() : absl::OkStatus(); }

  // Writes the rest, and has all of it survive a power cut.
  absl::Status Finish() {
    if (absl::Status status = Write(); !status.ok()) return status;
    return file_->Sync();
  }

  // All that was written, once it is finished, but for the name.
  const CheckpointManifest::File& written() const { return written_; }

 private:
  absl::Status Write() {
    if (filled_ == 0) return absl::OkStatus();
    if (absl::Status status = (*pace_)(filled_); !status.ok()) return status;
    const absl::Span<const std::byte> bytes = buffer_.first(filled_);
    for (int64_t begin = 0; begin < filled_; begin += kFileChecksumBytes) {
      written_.add_crc32c(Checksum(bytes.subspan(begin, kFileChecksumBytes)));
    }
    const int64_t begin = written_.bytes();
    const int64_t whole = WholeSectors(filled_);
    if (whole > 0) {
      if (absl::Status status = file_->Write(begin, bytes.first(whole)); !status.ok()) return status;
    }
    if (whole < filled_) {
      const absl::StatusOr<std::unique_ptr<File>> file = file_system_->Open(path_, FileSystem::Access::kBuffered);
      if (!file.ok()) return file.status();
      if (absl::Status status = (*file)->Write(begin + whole, bytes.subspan(whole)); !status.ok()) return status;
    }
    written_.set_bytes(begin + filled_);
    filled_ = 0;
    return absl::OkStatus();
  }

  FileSystem* const file_system_;
  const std::string path_;
  const absl::Span<std::byte> buffer_;
  const Pace* const pace_;
  std::unique_ptr<File> file_;
  int64_t filled_ = 0;
  CheckpointManifest::File written_;
};

// The header of a file that has the tensors in these slots; `data_bytes` come behind it.
absl::StatusOr<std::string> HeaderOf(const core::Schema& schema, absl::Span<const v1::Slot> slots,
                                     int64_t* data_bytes) {
  std::vector<SafetensorsTensor> tensors;
  tensors.reserve(schema.tensors().size() * slots.size());
  for (const v1::Slot slot : slots) {
    for (const core::Schema::Tensor& tensor : schema.tensors()) {
      tensors.push_back({.name = NameInFile(slot, tensor.name), .dtype = "F32", .shape = tensor.shape});
    }
  }
  // Without it there are readers that take the file for one that is not for PyTorch.
  absl::StatusOr<std::string> header = FormatSafetensorsHeader(&tensors, {{"format", "pt"}}, kSectorBytes);
  *data_bytes = tensors.empty() ? 0 : tensors.back().end;
  return header;
}

// Writes the tensors in these slots as a file.
absl::StatusOr<CheckpointManifest::File> WriteTensors(FileWriter writer, const core::Schema& schema,
                                                      absl::Span<const v1::Slot> slots, ElementSource elements) {
  int64_t data_bytes = 0;
  absl::StatusOr<std::string> formatted = HeaderOf(schema, slots, &data_bytes);
  if (!formatted.ok()) return formatted.status();
  const std::string header = *std::move(formatted);
  if (absl::Status status = writer.Create(static_cast<int64_t>(header.size()) + data_bytes); !status.ok()) {
    return status;
  }
  for (absl::string_view rest = header; !rest.empty();) {
    const auto count = std::min<int64_t>(rest.size(), writer.room());
    writer.Put(rest.data(), count);
    rest.remove_prefix(count);
    if (absl::Status status = writer.WriteIfFull(); !status.ok()) return status;
  }
  for (const v1::Slot slot : slots) {
    for (const core::Schema::Tensor& tensor : schema.tensors()) {
      for (int64_t begin = tensor.begin; begin < tensor.end;) {
        // Elements are never cut: both the buffer and the header are multiples of their size.
        const int64_t end = std::min(tensor.end, begin + writer.room() / kElementBytes);
        elements(slot, begin, end, [&](const float* run, int64_t count) {
          writer.Put(run, count * kElementBytes);
          begin += count;
        });
        assert(begin == end);
        if (absl::Status status = writer.WriteIfFull(); !status.ok()) return status;
      }
    }
  }
  if (absl::Status status = writer.Finish(); !status.ok()) return status;
  return writer.written();
}

// Returns how many bytes it has.
absl::StatusOr<int64_t> WriteManifest(FileSystem* file_system, const std::string& path,
                                      const CheckpointManifest& manifest) {
  const absl::StatusOr<std::string> text = FormatManifest(manifest);
  if (!text.ok()) return text.status();
  const absl::StatusOr<std::unique_ptr<File>> file = file_system->Create(path, FileSystem::Access::kBuffered);
  if (!file.ok()) return file.status();
  const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text->data()), text->size());
  absl::Status status = (*file)->Write(0, bytes);
  if (status.ok()) status = (*file)->Sync();
  if (!status.ok()) return status;
  return static_cast<int64_t>(bytes.size());
}

// Writes all of it into a folder, which is there, and syncs that. Returns the bytes of all files.
absl::StatusOr<int64_t> WriteFiles(FileSystem* file_system, const std::string& directory, const CheckpointInfo& info,
                                   const core::Schema& schema, absl::Span<const v1::Slot> slots, ElementSource elements,
                                   const FileWriter::Pace& pace) {
  CheckpointManifest manifest;
  manifest.set_format(kCheckpointFormat);
  manifest.set_set(info.set);
  manifest.set_incarnation(info.incarnation);
  manifest.set_step(info.step);
  const timespec create_time = absl::ToTimespec(info.create_time);
  manifest.mutable_create_time()->set_seconds(create_time.tv_sec);
  manifest.mutable_create_time()->set_nanos(static_cast<int32_t>(create_time.tv_nsec));
  manifest.mutable_update_counts()->Add(info.update_counts.begin(), info.update_counts.end());
  *manifest.mutable_description() = info.description;
  if (info.description.groups_size() > 1) {
    for (const core::Schema::Tensor& tensor : schema.tensors()) manifest.add_tensor_groups(tensor.group);
  }

  int64_t bytes = 0;
  AlignedBuffer buffer(kBufferBytes);
  for (const absl::Span<const v1::Slot> of_file : {slots.first(1), slots.subspan(1)}) {
    if (of_file.empty()) continue;
    const std::string name = FileOf(of_file.front());
    absl::StatusOr<CheckpointManifest::File> written = WriteTensors(
        FileWriter(file_system, absl::StrCat(directory, "/", name), &buffer, &pace), schema, of_file, elements);
    if (!written.ok()) return written.status();
    bytes += written->bytes();
    written->set_name(name);
    *manifest.add_files() = *std::move(written);
  }
  const std::string path = absl::StrCat(directory, "/", kManifestName);
  const absl::StatusOr<int64_t> manifest_bytes = WriteManifest(file_system, path, manifest);
  if (!manifest_bytes.ok()) return manifest_bytes.status();
  if (absl::Status status = file_system->SyncDirectory(directory); !status.ok()) return status;
  return bytes + *manifest_bytes;
}

absl::Status Lost(absl::string_view path, absl::string_view what) { return Damaged(absl::StrCat(path, " ", what)); }

// An error of a file that has to be there and as long as it is said to be.
absl::Status Needed(const std::string& path, const absl::Status& status) {
  if (absl::IsNotFound(status)) return Lost(path, "is missing");
  if (absl::IsOutOfRange(status)) return Lost(path, absl::StrCat("is of another size: ", status.message()));
  return status;
}

// A file that is read a buffer at a time, none of which is given to anybody before its checksums fit.
class CheckedFile {
 public:
  static absl::StatusOr<std::unique_ptr<CheckedFile>> Open(FileSystem* file_system, std::string path,
                                                           const CheckpointManifest::File& said) {
    std::unique_ptr<CheckedFile> file(new CheckedFile(std::move(path), said));
    using Access = FileSystem::Access;
    for (auto [handle, access] : {std::pair(&file->sectors_, Access::kDirect), {&file->rest_, Access::kBuffered}}) {
      absl::StatusOr<std::unique_ptr<File>> opened = file_system->Open(file->path_, access);
      if (!opened.ok()) return Needed(file->path_, opened.status());
      *handle = *std::move(opened);
    }
    const absl::StatusOr<int64_t> size = file->sectors_->Size();
    if (!size.ok()) return size.status();
    // From here on it is no bigger than what is there.
    if (*size != said.bytes()) {
      return Lost(file->path_, absl::StrCat("has ", *size, " bytes, and its manifest says ", said.bytes()));
    }
    file->buffer_ = AlignedBuffer(std::min(kBufferBytes, *size));
    return file;
  }

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }

  // Some of the bytes from `offset` on, until the next call: more than none. Requires: 0 <= offset < bytes().
  absl::StatusOr<absl::Span<const std::byte>> At(int64_t offset) {
    const int64_t begin = offset / kBufferBytes * kBufferBytes;
    if (begin != begin_) {
      begin_ = -1;
      if (absl::Status status = Load(begin); !status.ok()) return Needed(path_, status);
      begin_ = begin;
    }
    int64_t end = offset / kFileChecksumBytes * kFileChecksumBytes;
    const int64_t buffer_end = std::min(begin + kBufferBytes, bytes_);
    while (end < buffer_end && fits_[(end - begin) / kFileChecksumBytes]) end += kFileChecksumBytes;
    if (end <= offset) {
      return Lost(path_, absl::StrCat("is damaged: the checksum of its bytes [", end, ", ",
                                      std::min(end + kFileChecksumBytes, bytes_), ") does not fit"));
    }
    return buffer_.span().subspan(offset - begin, std::min(end, buffer_end) - offset);
  }

 private:
  CheckedFile(std::string path, const CheckpointManifest::File& said)
      : path_(std::move(path)), bytes_(said.bytes()), checksums_(said.crc32c().begin(), said.crc32c().end()) {}

  absl::Status Load(int64_t begin) {
    const absl::Span<std::byte> bytes = buffer_.span().first(std::min(kBufferBytes, bytes_ - begin));
    const int64_t whole = WholeSectors(bytes.size());
    if (whole > 0) {
      if (absl::Status status = sectors_->Read(begin, bytes.first(whole)); !status.ok()) return status;
    }
    if (whole < static_cast<int64_t>(bytes.size())) {
      if (absl::Status status = rest_->Read(begin + whole, bytes.subspan(whole)); !status.ok()) return status;
    }
    for (int64_t at = 0; at < static_cast<int64_t>(bytes.size()); at += kFileChecksumBytes) {
      const uint32_t expected = checksums_[(begin + at) / kFileChecksumBytes];
      fits_[at / kFileChecksumBytes] = Checksum(bytes.subspan(at, kFileChecksumBytes)) == expected;
    }
    return absl::OkStatus();
  }

  const std::string path_;
  const int64_t bytes_;
  const std::vector<uint32_t> checksums_;
  std::unique_ptr<File> sectors_, rest_;  // the file, both of them
  AlignedBuffer buffer_;
  int64_t begin_ = -1;                                             // of what is in the buffer; -1: nothing
  std::array<bool, kBufferBytes / kFileChecksumBytes> fits_ = {};  // the checksum of each part of the buffer
};

// What a file of tensors has, and where.
struct TensorsOnDisk {
  std::unique_ptr<CheckedFile> file;
  absl::flat_hash_map<std::string, SafetensorsTensor> tensors;  // with begin and end in the file
};

absl::StatusOr<TensorsOnDisk> OpenTensors(FileSystem* file_system, const std::string& path,
                                          const CheckpointManifest::File& said) {
  absl::StatusOr<std::unique_ptr<CheckedFile>> opened = CheckedFile::Open(file_system, path, said);
  if (!opened.ok()) return opened.status();
  CheckedFile& file = **opened;
  // The header, and what says how long it is.
  std::string start;
  auto read_to = [&](int64_t bytes) -> absl::Status {
    while (static_cast<int64_t>(start.size()) < bytes) {
      const auto more = file.At(start.size());
      if (!more.ok()) return more.status();
      start.append(reinterpret_cast<const char*>(more->data()),
                   std::min<int64_t>(more->size(), bytes - static_cast<int64_t>(start.size())));
    }
    return absl::OkStatus();
  };
  constexpr int64_t kPrefix = tensor_files::kSafetensorsPrefixBytes;
  if (absl::Status status = read_to(std::min(kPrefix, file.bytes())); !status.ok()) return status;
  const absl::StatusOr<int64_t> length = tensor_files::ParseSafetensorsPrefix(start, file.bytes());
  if (!length.ok()) return Lost(path, absl::StrCat("is damaged: ", length.status().message()));
  const int64_t data = kPrefix + *length;
  if (absl::Status status = read_to(data); !status.ok()) return status;
  absl::StatusOr<SafetensorsHeader> header =
      tensor_files::ParseSafetensorsHeader(absl::string_view(start).substr(kPrefix), file.bytes() - data);
  if (!header.ok()) return Lost(path, absl::StrCat("is damaged: ", header.status().message()));
  // Elements are used where they lie in the buffer.
  if (data % kSectorBytes != 0) {
    return Lost(path, absl::StrCat("has its elements at byte ", data, ", which is no multiple of ", kSectorBytes));
  }
  TensorsOnDisk on_disk = {.file = *std::move(opened), .tensors = {}};
  on_disk.tensors.reserve(header->tensors.size());
  for (SafetensorsTensor& tensor : header->tensors) {
    if (tensor.dtype != "F32") {
      return Lost(path, absl::StrCat("has elements of type ", tensor.dtype, " in tensor ", Quoted(tensor.name)));
    }
    tensor.begin += data;
    tensor.end += data;
    std::string name = tensor.name;
    on_disk.tensors.emplace(std::move(name), std::move(tensor));
  }
  return on_disk;
}

}  // namespace

std::vector<v1::Slot> CheckpointSlots(const v1::ParameterSet& set) {
  const std::vector<v1::ParameterGroup> groups(set.groups().begin(), set.groups().end());
  std::vector<v1::Slot> slots = core::OptimizerSlots(groups);
  slots.insert(slots.begin(), v1::SLOT_PARAMETER);
  return slots;
}

absl::Status CheckCanHaveCheckpoints(const core::Schema& schema, absl::Span<const v1::Slot> slots,
                                     absl::string_view field) {
  // Rather than making the header of a set of which nobody could doubt it.
  constexpr int64_t kMostBytesATensor = 512;   // but for the name: a slot's name, and numbers
  constexpr int64_t kMostBytesACharacter = 6;  // \u0000
  int64_t most = 0;
  for (const core::Schema::Tensor& tensor : schema.tensors()) {
    most += kMostBytesATensor + kMostBytesACharacter * static_cast<int64_t>(tensor.name.size());
  }
  if (most * static_cast<int64_t>(slots.size()) < tensor_files::kMaxSafetensorsHeaderBytes) return absl::OkStatus();
  for (const absl::Span<const v1::Slot> in_file : {slots.first(1), slots.subspan(1)}) {
    int64_t data_bytes = 0;
    const absl::Status status = HeaderOf(schema, in_file, &data_bytes).status();
    if (status.ok()) continue;
    return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
                 absl::StrCat("names and shapes of tensors that a checkpoint has room for: ", status.message()), field);
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> WriteCheckpoint(FileSystem* file_system, const std::string& directory,
                                        const CheckpointInfo& info, const core::Schema& schema,
                                        absl::Span<const v1::Slot> slots, ElementSource elements,
                                        const std::function<absl::Status(int64_t bytes)>& pace) {
  assert(!slots.empty() && slots.front() == v1::SLOT_PARAMETER);
  const std::string unfinished = absl::StrCat(directory, ".new");
  if (absl::Status status = file_system->RemoveAll(unfinished); !status.ok()) return status;
  absl::StatusOr<int64_t> bytes = 0;
  absl::Status status = file_system->MakeDirectory(unfinished);
  if (status.ok()) {
    bytes = WriteFiles(file_system, unfinished, info, schema, slots, elements, pace);
    status = bytes.status();
  }
  if (status.ok()) status = file_system->Rename(unfinished, directory);
  if (!status.ok()) {
    // The error that there is says more than what comes of this.
    (void)file_system->RemoveAll(unfinished);
    return status;
  }
  status = file_system->SyncDirectory(ParentDirectory(directory));
  if (!status.ok()) {
    // Whole as it is: after a power cut it may have its name nevertheless.
    (void)file_system->Rename(directory, unfinished);
    return status;
  }
  return bytes;
}

struct Checkpoint::Rep {
  CheckpointInfo info;
  int64_t bytes = 0;
  std::vector<TensorsOnDisk> files;  // of parameters, and of the optimizers' state if there is one
};

Checkpoint::Checkpoint(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
Checkpoint::Checkpoint(Checkpoint&&) = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) = default;
Checkpoint::~Checkpoint() = default;

const CheckpointInfo& Checkpoint::info() const { return rep_->info; }
int64_t Checkpoint::bytes() const { return rep_->bytes; }

absl::StatusOr<Checkpoint> Checkpoint::Open(FileSystem* file_system, const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kManifestName);
  const absl::StatusOr<std::string> text = ReadFile(file_system, path, kMaxManifestBytes);
  if (absl::IsNotFound(text.status())) {
    // Is it the manifest alone?
    if (const auto names = file_system->List(directory); !names.ok()) return names.status();
  }
  if (!text.ok()) return Needed(path, text.status());
  absl::StatusOr<CheckpointManifest> manifest = ParseManifest(*text);
  if (!manifest.ok()) {
    return absl::IsDataLoss(manifest.status())
               ? Lost(path, absl::StrCat("is damaged: ", manifest.status().message()))
               : absl::FailedPreconditionError(absl::StrCat(path, " ", manifest.status().message()));
  }
  auto rep = std::make_unique<Rep>();
  rep->bytes = static_cast<int64_t>(text->size());
  for (const CheckpointManifest::File& said : manifest->files()) {
    absl::StatusOr<TensorsOnDisk> file = OpenTensors(file_system, absl::StrCat(directory, "/", said.name()), said);
    if (!file.ok()) return file.status();
    rep->bytes += said.bytes();
    rep->files.push_back(*std::move(file));
  }
  const auto tensors = static_cast<int64_t>(rep->files.front().tensors.size());
  if (manifest->update_counts_size() != 0 && manifest->update_counts_size() != tensors) {
    return Lost(path, absl::StrCat("is damaged: it counts the updates of ", manifest->update_counts_size(),
                                   " tensors, and there are ", tensors));
  }
  CheckpointInfo& info = rep->info;
  info.set = manifest->set();
  info.incarnation = manifest->incarnation();
  info.step = manifest->step();
  info.update_counts.assign(manifest->update_counts().begin(), manifest->update_counts().end());
  info.create_time =
      absl::FromUnixSeconds(manifest->create_time().seconds()) + absl::Nanoseconds(manifest->create_time().nanos());
  info.description = std::move(*manifest->mutable_description());
  return Checkpoint(std::move(rep));
}

absl::Status Checkpoint::Read(
    v1::Slot slot, const core::Schema& schema,
    absl::FunctionRef<absl::Status(int tensor, int64_t offset, absl::Span<const float> elements)> take) {
  const size_t number = slot == v1::SLOT_PARAMETER ? 0 : 1;
  TensorsOnDisk* const on_disk = number < rep_->files.size() ? &rep_->files[number] : nullptr;
  for (size_t i = 0; i < schema.tensors().size(); ++i) {
    const core::Schema::Tensor& wanted = schema.tensors()[i];
    const std::string name = NameInFile(slot, wanted.name);
    if (on_disk == nullptr) {
      return Damaged(absl::StrCat("the checkpoint has no ", FileOf(slot), ", and so no tensor ", Quoted(name)));
    }
    CheckedFile& file = *on_disk->file;
    const auto found = on_disk->tensors.find(name);
    if (found == on_disk->tensors.end()) return Lost(file.path(), absl::StrCat("has no tensor ", Quoted(name)));
    const SafetensorsTensor& tensor = found->second;
    if (tensor.shape != wanted.shape) {
      return Lost(file.path(), absl::StrCat("has tensor ", Quoted(name), " of another shape: ",
                                            ExpectedGot(absl::StrCat("[", absl::StrJoin(wanted.shape, ", "), "]"),
                                                        absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]"))));
    }
    for (int64_t at = tensor.begin; at < tensor.end;) {
      const auto more = file.At(at);
      if (!more.ok()) {
        const std::string message = absl::StrCat(more.status().message(), ", in tensor ", Quoted(name));
        return absl::IsDataLoss(more.status()) ? Damaged(message) : absl::Status(more.status().code(), message);
      }
      const int64_t bytes = std::min<int64_t>(more->size(), tensor.end - at);
      // Aligned: the buffer and the place of the elements in the file are, and no buffer ends within an element.
      const auto* const elements = reinterpret_cast<const float*>(more->data());
      if (absl::Status status = take(static_cast<int>(i), (at - tensor.begin) / kElementBytes,
                                     absl::MakeConstSpan(elements, bytes / kElementBytes));
          !status.ok()) {
        return status;
      }
      at += bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace adamant::store
