#include "server/store/change_rooms.h"

#include <algorithm>

namespace adamant::store {

void ChangeRooms::Place::Begin() {
  core::MutexLock lock(&mutex_);
  ++under_way_;
}

void ChangeRooms::Place::End(size_t part, const absl::StatusOr<SlotPart>& written) {
  absl::AnyInvocable<void()> ended;
  {
    core::MutexLock lock(&mutex_);
    if (written.ok()) {
      if (written_.size() <= part) written_.resize(part + 1);
      written_[part] = *written;
    }
    if (--under_way_ == 0) ended = std::move(ended_);
  }
  if (ended != nullptr) ended();
}

void ChangeRooms::Place::AwaitWrites(absl::AnyInvocable<void()> ended) {
  {
    core::MutexLock lock(&mutex_);
    if (under_way_ > 0) {
      ended_ = std::move(ended);
      return;
    }
  }
  ended();
}

std::vector<std::optional<SlotPart>> ChangeRooms::Place::TakeWritten() {
  core::MutexLock lock(&mutex_);
  return std::move(written_);
}

void ChangeRooms::Room::WriteAhead(size_t position, const core::BlockRef& block) {
  const int64_t bytes = block.size() * static_cast<int64_t>(sizeof(float));
  if (place_->file() == nullptr || bytes != kChecksummedBytes) return;
  place_->Begin();
  io_->Post([place = place_, position, block = core::BlockRef(block)]() mutable {
    const absl::StatusOr<SlotPart> written = place->file()->WritePart(
        place->place()->slot, static_cast<int64_t>(position),
        {reinterpret_cast<const std::byte*>(block.data()), static_cast<size_t>(kChecksummedBytes)});
    // The commit writes over it, and must be the only one who has it.
    block = core::BlockRef();
    place->End(position, written);
  });
}

ChangeRooms::ChangeRooms(core::ComputePool* io, v1::EveryStep terms, int64_t flat_size, int64_t changes,
                         std::unique_ptr<ElementFiles> files)
    : io_(io), terms_(std::move(terms)), files_(std::move(files)), most_(MostChanges(flat_size)), changes_(changes) {}

std::unique_ptr<core::SetJournal::Room> ChangeRooms::Take(bool ahead) {
  core::MutexLock lock(&mutex_);
  if (changes_ >= most_) return nullptr;
  // A checkpoint frees the rooms of what is committed; those of steps that arrive may stay for long.
  if (ahead && (ahead_ >= most_ / 4 || 2 * changes_ >= most_)) return nullptr;
  std::optional<ElementFiles::Slot> slot;
  if (!files_->empty()) {
    slot = files_->Take();
    if (!slot.has_value()) return nullptr;
  }
  ++changes_;
  if (ahead) ++ahead_;
  return std::make_unique<Room>(std::make_shared<Place>(shared_from_this(), slot, ahead), io_);
}

bool ChangeRooms::IsHalfFull() const {
  core::MutexLock lock(&mutex_);
  return 2 * changes_ >= most_;
}

void ChangeRooms::Add() {
  core::MutexLock lock(&mutex_);
  ++changes_;
}

void ChangeRooms::Remove(absl::Span<const std::optional<ElementPlace>> changes) {
  core::MutexLock lock(&mutex_);
  changes_ -= static_cast<int64_t>(changes.size());
  for (const std::optional<ElementPlace>& place : changes) {
    if (place.has_value()) files_->Free(*place);
  }
}

void ChangeRooms::Free(const ElementPlace& place) { files_->Free(place); }

absl::Status ChangeRooms::MakeFile(int64_t flat_size) {
  if (files_ == nullptr) return absl::OkStatus();
  core::MutexLock lock(&making_);
  return files_->Make(flat_size);
}

absl::Status ChangeRooms::MakeMissingFile(int64_t flat_size) {
  if (files_ == nullptr) return absl::OkStatus();
  core::MutexLock lock(&making_);
  return files_->empty() ? files_->Make(flat_size) : absl::OkStatus();
}

void ChangeRooms::RemoveUnusedFiles() {
  if (files_ != nullptr) files_->RemoveUnused();
}

void ChangeRooms::Grow(int64_t flat_size) {
  core::MutexLock lock(&mutex_);
  most_ = MostChanges(flat_size);
}

void ChangeRooms::Leave(const std::optional<ElementPlace>& place, bool is_ahead) {
  core::MutexLock lock(&mutex_);
  --changes_;
  if (is_ahead) --ahead_;
  if (place.has_value()) files_->Free(*place);
}

int64_t ChangeRooms::MostChanges(int64_t flat_size) const {
  const int64_t asked = terms_.journal_steps();
  return HasSlots(flat_size) ? asked : std::max<int64_t>(asked, kInlineChanges);
}

}  // namespace adamant::store
