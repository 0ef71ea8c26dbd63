// Where the gradients of one set's steps wait for the next checkpoint: one file, of as many slots as steps may be
// journaled between two of them.
//
// A slot is no log, and does not say what is in it: the record of a step, which is in the catalog, says which slot has
// its gradient, how many bytes of it, and their checksums. So a slot that was written half way, or whose step was never
// recorded, is a free slot.
#ifndef ADAMANT_SERVER_STORE_GRADIENT_SLOTS_H_
#define ADAMANT_SERVER_STORE_GRADIENT_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/core/base/mutex.h"
#include "server/store/file_system.h"

namespace adamant::store {

// A checksum is of so many bytes of a slot, the last one of what is left: of one block of a set, where that is whole.
inline constexpr int64_t kChecksummedBytes = int64_t{1} << 18;

// What the record of a step says of its gradient.
struct SlotContents {
  int32_t slot = 0;
  int64_t bytes = 0;                // that were written, before any part was halved
  std::vector<uint32_t> checksums;  // CRC-32C, one for each kChecksummedBytes
  // By part: whether it is halved, see WritePart. It may end before the last part: those behind it are not.
  std::vector<bool> halved = {};
};

// What the record of a step says of one part of a slot.
struct SlotPart {
  uint32_t checksum;
  bool halved;
};

// Thread-safe.
class GradientSlots {
 public:
  // Makes the file, of `slots` slots of `slot_bytes` each, all of it on disk and written: a write to it later changes
  // no metadata. RESOURCE_EXHAUSTED (DISK_EXHAUSTED) where there is no room; after an error there is no file.
  // `slot_bytes` is a multiple of kSectorBytes.
  static absl::StatusOr<std::unique_ptr<GradientSlots>> Create(FileSystem* file_system, const std::string& path,
                                                               int32_t slots, int64_t slot_bytes);
  // Opens what Create made. All slots are free but those of `taken`. DATA_LOSS if the file is not there, is of another
  // size, or has no such slots.
  static absl::StatusOr<std::unique_ptr<GradientSlots>> Open(FileSystem* file_system, const std::string& path,
                                                             int32_t slots, int64_t slot_bytes,
                                                             absl::Span<const int32_t> taken);

  int32_t slots() const { return slots_; }
  int64_t slot_bytes() const { return slot_bytes_; }
  int32_t free_slots() const;

  // A slot that nobody has, until Free gives it back; nothing if there is none.
  std::optional<int32_t> Take();
  void Free(int32_t slot);

  // Writes kChecksummedBytes into a slot, of which they are number `part`, and returns what a record of them says. As
  // for the rest, see Write. Where all are floats whose lower halves are zero, as those are that a client sent as
  // bfloat16, only the upper halves are written, to the beginning of the part: it is halved.
  absl::StatusOr<SlotPart> WritePart(int32_t slot, int64_t part, absl::Span<const std::byte> bytes);
  // Writes `pieces` one behind the other into a slot, from its beginning on, and returns what a record of it says.
  // Pieces are as File::Write has them for kDirect; where one is not as long as a multiple of kSectorBytes it has
  // memory up to there, which is written, too. May take long. Nothing of it is sure to be there before Sync.
  // A part that is one piece is written by WritePart, unless it was already, and `written` has it.
  absl::StatusOr<SlotContents> Write(int32_t slot, absl::Span<const absl::Span<const std::byte>> pieces,
                                     absl::Span<const std::optional<SlotPart>> written = {});
  // See File::Sync.
  absl::Status Sync();
  // Reads what Write wrote into `pieces`, of the same sizes, and with memory up to whole sectors likewise. DATA_LOSS,
  // naming the slot and the byte, where a checksum does not fit, or the record is not one of such a slot; nothing that
  // is in `pieces` is to be used then.
  absl::Status Read(const SlotContents& contents, absl::Span<const absl::Span<std::byte>> pieces) const;

 private:
  GradientSlots(std::unique_ptr<File> file, std::string path, int32_t slots, int64_t slot_bytes);

  const std::unique_ptr<File> file_;
  const std::string path_;
  const int32_t slots_;
  const int64_t slot_bytes_;

  mutable core::Mutex mutex_;
  std::vector<bool> taken_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_GRADIENT_SLOTS_H_
