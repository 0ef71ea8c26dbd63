#include "server/store/gradient_slots.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/store/aligned_buffer.h"
#include "server/store/checksum.h"
#include "server/store/errors.h"

namespace adamant::store {
namespace {

// As much as one write of zeros takes.
constexpr int64_t kZeroBytes = int64_t{4} << 20;

int64_t InSectors(size_t bytes) {
  return (static_cast<int64_t>(bytes) + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
}

// Checksums of a slot whose bytes come one after the other.
class RunningChecksums {
 public:
  void Add(absl::Span<const std::byte> bytes) {
    while (!bytes.empty()) {
      if (in_last_ == kChecksummedBytes || checksums_.empty()) {
        checksums_.push_back(0);
        in_last_ = 0;
      }
      const auto count = std::min(static_cast<int64_t>(bytes.size()), kChecksummedBytes - in_last_);
      checksums_.back() = Checksum(bytes.first(count), checksums_.back());
      bytes.remove_prefix(count);
      in_last_ += count;
    }
  }

  // The number of the part that comes next, if the one before it is whole.
  std::optional<size_t> Next() const {
    if (!checksums_.empty() && in_last_ < kChecksummedBytes) return std::nullopt;
    return checksums_.size();
  }
  // Adds a whole part.
  void AddPart(uint32_t checksum) {
    checksums_.push_back(checksum);
    in_last_ = kChecksummedBytes;
  }

  std::vector<uint32_t> checksums() && { return std::move(checksums_); }

 private:
  std::vector<uint32_t> checksums_;
  int64_t in_last_ = 0;
};

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

absl::StatusOr<uint32_t> GradientSlots::WritePart(int32_t slot, int64_t part, absl::Span<const std::byte> bytes) {
  absl::Status status = file_->Write(slot * slot_bytes_ + part * kChecksummedBytes, bytes);
  if (!status.ok()) return status;
  return Checksum(bytes);
}

absl::StatusOr<SlotContents> GradientSlots::Write(int32_t slot, absl::Span<const absl::Span<const std::byte>> pieces,
                                                  absl::Span<const std::optional<uint32_t>> written) {
  int64_t bytes = 0;
  RunningChecksums checksums;
  for (const absl::Span<const std::byte> piece : pieces) {
    const absl::Span<const std::byte> sectors(piece.data(), InSectors(piece.size()));
    const std::optional<size_t> part = checksums.Next();
    if (part.has_value() && *part < written.size() && written[*part].has_value() &&
        static_cast<int64_t>(sectors.size()) == kChecksummedBytes) {
      checksums.AddPart(*written[*part]);
      bytes += kChecksummedBytes;
      continue;
    }
    checksums.Add(sectors);
    if (absl::Status status = file_->Write(slot * slot_bytes_ + bytes, sectors); !status.ok()) return status;
    bytes += static_cast<int64_t>(sectors.size());
  }
  return SlotContents{.slot = slot, .bytes = bytes, .checksums = std::move(checksums).checksums()};
}

absl::Status GradientSlots::Sync() { return file_->Sync(); }

absl::Status GradientSlots::Read(const SlotContents& contents, absl::Span<const absl::Span<std::byte>> pieces) const {
  int64_t wanted = 0;
  for (const absl::Span<std::byte> piece : pieces) wanted += InSectors(piece.size());
  if (contents.slot < 0 || contents.slot >= slots_ || contents.bytes != wanted || contents.bytes > slot_bytes_) {
    return Damaged(absl::StrCat(path_, ": ", contents.bytes, " bytes are recorded of slot ", contents.slot, ", where ",
                                wanted, " of one in [0, ", slots_, ") were to be"));
  }
  int64_t bytes = 0;
  RunningChecksums running;
  for (const absl::Span<std::byte> piece : pieces) {
    const absl::Span<std::byte> sectors(piece.data(), InSectors(piece.size()));
    if (absl::Status status = file_->Read(contents.slot * slot_bytes_ + bytes, sectors); !status.ok()) return status;
    running.Add(sectors);
    bytes += static_cast<int64_t>(sectors.size());
  }
  const std::vector<uint32_t> checksums = std::move(running).checksums();
  if (checksums == contents.checksums) return absl::OkStatus();
  const auto differs =
      std::mismatch(checksums.begin(), checksums.end(), contents.checksums.begin(), contents.checksums.end()).first -
      checksums.begin();
  return Damaged(absl::StrCat(path_, ": slot ", contents.slot, " is not as it was written, in what begins at its byte ",
                              differs * kChecksummedBytes, ", which is byte ",
                              contents.slot * slot_bytes_ + differs * kChecksummedBytes, " of the file"));
}

}  // namespace adamant::store
