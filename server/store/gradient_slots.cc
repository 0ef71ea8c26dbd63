#include "server/store/gradient_slots.h"

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "client/tensor_files/checksum.h"
#include "server/store/aligned_buffer.h"
#include "server/store/errors.h"
#include "server/store/halves.h"

namespace adamant::store {
namespace {

using tensor_files::Checksum;

// As much as one write of zeros takes.
constexpr int64_t kZeroBytes = int64_t{4} << 20;

int64_t InSectors(size_t bytes) {
  return (static_cast<int64_t>(bytes) + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
}

// Calls `visit(part, is_whole, bytes)` for each run of pieces, which lie one behind the other in whole sectors, that is
// within one part, in order, until one returns an error; `is_whole` says that it is all of the part.
template <typename Byte>
absl::Status ForEachRun(absl::Span<const absl::Span<Byte>> pieces,
                        absl::FunctionRef<absl::Status(size_t part, bool is_whole, absl::Span<Byte> bytes)> visit) {
  int64_t offset = 0;
  for (const absl::Span<Byte> piece : pieces) {
    absl::Span<Byte> rest(piece.data(), InSectors(piece.size()));
    while (!rest.empty()) {
      const int64_t in_part = offset % kChecksummedBytes;
      const absl::Span<Byte> run = rest.first(std::min<size_t>(rest.size(), kChecksummedBytes - in_part));
      const bool is_whole = static_cast<int64_t>(run.size()) == kChecksummedBytes;
      absl::Status status = visit(static_cast<size_t>(offset / kChecksummedBytes), is_whole, run);
      if (!status.ok()) return status;
      offset += static_cast<int64_t>(run.size());
      rest.remove_prefix(run.size());
    }
  }
  return absl::OkStatus();
}

// Writes zeros to all of a file.
absl::Status WriteZeros(File* file, int64_t size) {
  const int64_t most = std::min(size, kZeroBytes);
  AlignedBuffer zeros(most);
  for (int64_t offset = 0; offset < size; offset += most) {
    absl::Status status = file->Write(offset, zeros.span().first(std::min(most, size - offset)));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

GradientSlots::GradientSlots(std::unique_ptr<File> file, std::string path, int32_t slots, int64_t slot_bytes)
    : file_(std::move(file)), path_(std::move(path)), slots_(slots), slot_bytes_(slot_bytes), taken_(slots, false) {}

absl::StatusOr<std::unique_ptr<GradientSlots>> GradientSlots::Create(FileSystem* file_system, const std::string& path,
                                                                     int32_t slots, int64_t slot_bytes) {
  absl::StatusOr<std::unique_ptr<File>> file = file_system->Create(path, FileSystem::Access::kDirect);
  if (!file.ok()) return file.status();
  // First all the room, so that where there is too little nothing is written.
  absl::Status status = (*file)->Allocate(slots * slot_bytes);
  if (status.ok()) status = WriteZeros(file->get(), slots * slot_bytes);
  if (status.ok()) status = (*file)->Sync();
  if (status.ok()) status = file_system->SyncDirectory(ParentDirectory(path));
  if (!status.ok()) {
    file->reset();
    file_system->Remove(path).IgnoreError();  // The first error says more.
    return status;
  }
  return std::unique_ptr<GradientSlots>(new GradientSlots(*std::move(file), path, slots, slot_bytes));
}

absl::StatusOr<std::unique_ptr<GradientSlots>> GradientSlots::Open(FileSystem* file_system, const std::string& path,
                                                                   int32_t slots, int64_t slot_bytes,
                                                                   absl::Span<const int32_t> taken) {
  absl::StatusOr<std::unique_ptr<File>> file = file_system->Open(path, FileSystem::Access::kDirect);
  if (absl::IsNotFound(file.status())) return Damaged(absl::StrCat(path, " is missing"));
  if (!file.ok()) return file.status();
  const absl::StatusOr<int64_t> size = (*file)->Size();
  if (!size.ok()) return size.status();
  if (*size != slots * slot_bytes) {
    return Damaged(absl::StrCat(path, " has ", *size, " bytes rather than ", slots * slot_bytes));
  }
  auto result = std::unique_ptr<GradientSlots>(new GradientSlots(*std::move(file), path, slots, slot_bytes));
  core::MutexLock lock(&result->mutex_);
  for (const int32_t slot : taken) {
    if (slot < 0 || slot >= slots) return Damaged(absl::StrCat(path, " has no slot ", slot));
    result->taken_[slot] = true;
  }
  return result;
}

int32_t GradientSlots::free_slots() const {
  core::MutexLock lock(&mutex_);
  return static_cast<int32_t>(std::count(taken_.begin(), taken_.end(), false));
}

std::optional<int32_t> GradientSlots::Take() {
  core::MutexLock lock(&mutex_);
  const auto slot = std::find(taken_.begin(), taken_.end(), false);
  if (slot == taken_.end()) return std::nullopt;
  *slot = true;
  return static_cast<int32_t>(slot - taken_.begin());
}

void GradientSlots::Free(int32_t slot) {
  core::MutexLock lock(&mutex_);
  taken_[slot] = false;
}

absl::StatusOr<SlotPart> GradientSlots::WritePart(int32_t slot, int64_t part, absl::Span<const std::byte> bytes) {
  // One for each thread that writes, of which there are few: taken anew each time it would cost page faults.
  thread_local AlignedBuffer halves(kChecksummedBytes / 2);
  const bool halved = Halve(bytes, halves.span());
  if (halved) bytes = halves.span();
  absl::Status status = file_->Write(slot * slot_bytes_ + part * kChecksummedBytes, bytes);
  if (!status.ok()) return status;
  return SlotPart{.checksum = Checksum(bytes), .halved = halved};
}

absl::StatusOr<SlotContents> GradientSlots::Write(int32_t slot, absl::Span<const absl::Span<const std::byte>> pieces,
                                                  absl::Span<const std::optional<SlotPart>> written) {
  SlotContents contents = {.slot = slot, .checksums = {}};
  absl::Status status = ForEachRun<const std::byte>(
      pieces, [&](size_t part, bool is_whole, absl::Span<const std::byte> bytes) -> absl::Status {
        const int64_t offset = contents.bytes;
        contents.bytes += static_cast<int64_t>(bytes.size());
        if (is_whole) {
          absl::StatusOr<SlotPart> whole;
          if (part < written.size() && written[part].has_value()) {
            whole = *written[part];
          } else {
            whole = WritePart(slot, static_cast<int64_t>(part), bytes);
          }
          if (!whole.ok()) return whole.status();
          contents.checksums.push_back(whole->checksum);
          if (whole->halved) {
            contents.halved.resize(part + 1);
            contents.halved[part] = true;
          }
          return absl::OkStatus();
        }
        contents.checksums.resize(part + 1);
        contents.checksums[part] = Checksum(bytes, contents.checksums[part]);
        return file_->Write(slot * slot_bytes_ + offset, bytes);
      });
  if (!status.ok()) return status;
  return contents;
}

absl::Status GradientSlots::Sync() { return file_->Sync(); }

absl::Status GradientSlots::Read(const SlotContents& contents, absl::Span<const absl::Span<std::byte>> pieces) const {
  int64_t wanted = 0;
  for (const absl::Span<std::byte> piece : pieces) wanted += InSectors(piece.size());
  if (contents.slot < 0 || contents.slot >= slots_ || contents.bytes != wanted || contents.bytes > slot_bytes_) {
    return Damaged(absl::StrCat(path_, ": ", contents.bytes, " bytes are recorded of slot ", contents.slot, ", where ",
                                wanted, " of one in [0, ", slots_, ") were to be"));
  }
  std::vector<uint32_t> checksums;
  int64_t offset = contents.slot * slot_bytes_;
  absl::Status status =
      ForEachRun<std::byte>(pieces, [&](size_t part, bool is_whole, absl::Span<std::byte> bytes) -> absl::Status {
        const bool halved = part < contents.halved.size() && contents.halved[part];
        if (halved && !is_whole) return Damaged(absl::StrCat(path_, ": a part of a slot is halved that is none"));
        const absl::Span<std::byte> read = halved ? bytes.first(bytes.size() / 2) : bytes;
        if (absl::Status status = file_->Read(offset, read); !status.ok()) return status;
        offset += static_cast<int64_t>(bytes.size());
        checksums.resize(part + 1);
        checksums[part] = Checksum(read, checksums[part]);
        if (halved) Unhalve(bytes);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  if (checksums == contents.checksums) return absl::OkStatus();
  const auto differs =
      std::mismatch(checksums.begin(), checksums.end(), contents.checksums.begin(), contents.checksums.end()).first -
      checksums.begin();
  return Damaged(absl::StrCat(path_, ": slot ", contents.slot, " is not as it was written, in what begins at its byte ",
                              differs * kChecksummedBytes, ", which is byte ",
                              contents.slot * slot_bytes_ + differs * kChecksummedBytes, " of the file"));
}

}  // namespace adamant::store
