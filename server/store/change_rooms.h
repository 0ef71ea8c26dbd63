// Room for the changes of one set that are journaled until a checkpoint takes their place.
#ifndef ADAMANT_SERVER_STORE_CHANGE_ROOMS_H_
#define ADAMANT_SERVER_STORE_CHANGE_ROOMS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"
#include "server/core/journal.h"
#include "server/store/element_files.h"
#include "server/store/gradient_slots.h"

namespace adamant::store {

// Of changes whose elements are in their records there may be so many at least between two checkpoints.
inline constexpr int kInlineChanges = 1024;

// Counts the changes that have their elements still, and the rooms that are taken. Thread-safe.
class ChangeRooms : public std::enable_shared_from_this<ChangeRooms> {
 public:
  // Room for one change: a slot, where the set has a file of them. It is given back by whoever uses it last.
  // Thread-safe, but for what says otherwise.
  class Place {
   public:
    Place(std::shared_ptr<ChangeRooms> rooms, std::optional<ElementFiles::Slot> slot, bool is_ahead)
        : rooms_(std::move(rooms)),
          file_(slot.has_value() ? slot->file : nullptr),
          is_ahead_(is_ahead),
          place_(slot.has_value() ? std::make_optional(slot->place) : std::nullopt) {}
    ~Place() { rooms_->Leave(place_, is_ahead_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    GradientSlots* file() const { return file_; }
    const std::optional<ElementPlace>& place() const { return place_; }
    // The slot is a record's from here on. For whoever is the only one to use the room.
    void Keep() { place_.reset(); }

    // A write ahead begins, and ends.
    void Begin();
    void End(size_t part, const absl::StatusOr<SlotPart>& written);
    // Calls `ended` once none is under way: now, or on the thread that ends the last.
    void AwaitWrites(absl::AnyInvocable<void()> ended);
    // By part; nothing for those that were not written, or failed: they are written again. None is under way.
    std::vector<std::optional<SlotPart>> TakeWritten();

   private:
    const std::shared_ptr<ChangeRooms> rooms_;
    GradientSlots* const file_;  // null: there is none
    const bool is_ahead_;
    std::optional<ElementPlace> place_;

    core::Mutex mutex_;
    int64_t under_way_ ABSL_GUARDED_BY(mutex_) = 0;
    std::vector<std::optional<SlotPart>> written_ ABSL_GUARDED_BY(mutex_);
    absl::AnyInvocable<void()> ended_ ABSL_GUARDED_BY(mutex_);
  };

  // What Take returns.
  class Room final : public core::SetJournal::Room {
   public:
    Room(std::shared_ptr<Place> place, core::ComputePool* io) : place_(std::move(place)), io_(io) {}

    void WriteAhead(size_t position, const core::BlockRef& block) override;

    const std::shared_ptr<Place>& place() const { return place_; }

   private:
    const std::shared_ptr<Place> place_;
    core::ComputePool* const io_;
  };

  // Of a set of so many elements, so many of whose changes are journaled already; `io` writes ahead. `files` is null
  // for a set of whose changes not each is kept: there is no room in it to take.
  ChangeRooms(core::ComputePool* io, v1::EveryStep terms, int64_t flat_size, int64_t changes,
              std::unique_ptr<ElementFiles> files);

  // Null where there is none, and none `ahead` where there is little.
  std::unique_ptr<core::SetJournal::Room> Take(bool ahead);
  // Whether it is time for a checkpoint.
  bool IsHalfFull() const;

  // A change is journaled, beside the room that it took.
  void Add();
  // One whose slot this was is not.
  void Free(const ElementPlace& place);
  // Changes need their elements no more; of those that had a slot it is given back.
  void Remove(absl::Span<const std::optional<ElementPlace>> changes);

  // Makes a file for changes of a set of so many elements, if they need one. See ElementFiles::Make.
  absl::Status MakeFile(int64_t flat_size);
  // Makes one if there is none: for a set that was damaged, and is whole again.
  absl::Status MakeMissingFile(int64_t flat_size);
  void RemoveUnusedFiles();
  // The set has so many elements from here on, and a file for their changes.
  void Grow(int64_t flat_size);

 private:
  void Leave(const std::optional<ElementPlace>& place, bool is_ahead);
  int64_t MostChanges(int64_t flat_size) const;

  core::ComputePool* const io_;
  const v1::EveryStep terms_;
  const std::unique_ptr<ElementFiles> files_;

  core::Mutex making_;  // held while a file is made
  mutable core::Mutex mutex_;
  int64_t most_ ABSL_GUARDED_BY(mutex_);
  int64_t changes_ ABSL_GUARDED_BY(mutex_);
  int64_t ahead_ ABSL_GUARDED_BY(mutex_) = 0;  // of the rooms: for steps that are yet to arrive
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_CHANGE_ROOMS_H_
