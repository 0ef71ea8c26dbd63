// The files that the elements of one set's changes are in: `elements-N-B`, its N-th one, with slots of B bytes.
//
// New elements go to the last one. A set that grows makes another, with larger slots; the one before it is removed when
// no record refers to it any more. A set whose changes are small enough for their records has none.
#ifndef ADAMANT_SERVER_STORE_ELEMENT_FILES_H_
#define ADAMANT_SERVER_STORE_ELEMENT_FILES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/core/base/mutex.h"
#include "server/core/journal.h"
#include "server/store/catalog.h"
#include "server/store/file_system.h"
#include "server/store/gradient_slots.h"
#include "server/store/set_folder.h"
#include "server/store/store.h"

namespace adamant::store {

// Elements of at most so many bytes are in their record.
inline constexpr int64_t kInlineBytes = 4096;
// And of at most so many, where they, or the end of them, do not fit into a slot, or there is none.
inline constexpr int64_t kMostInlineBytes = int64_t{16} << 20;

// Where elements lie, which a record refers to.
struct ElementPlace {
  int32_t file;
  int32_t slot;
};

// Whether changes of a set of so many elements have slots.
bool HasSlots(int64_t flat_size);

// Reads elements that a record of the set refers to, whose files have so many slots.
absl::Status ReadElements(const StoreParts& parts, const StoredSet& stored, int32_t slots,
                          const StoredElements& elements, const core::BroughtElements& to);

// Thread-safe.
class ElementFiles {
 public:
  struct Slot {
    ElementPlace place;
    GradientSlots* file;  // is there as long as the slot is taken
  };

  // None so far; each will have so many slots.
  ElementFiles(FileSystem* file_system, std::shared_ptr<SetFolder> folder, int32_t slots);

  // Opens the files that there are, and the one that new elements of a set of so many go to; makes that one if it is
  // not there. Removes those that are for nothing. `taken` are the slots that records refer to. Errors: as FileSystem
  // and GradientSlots have them.
  absl::Status Open(int64_t flat_size, absl::Span<const ElementPlace> taken);

  // Makes the file that new elements of a set of so many go to, if they go to one. May take long: it is written whole,
  // while others use the files that there are. One call at a time.
  absl::Status Make(int64_t flat_size);

  bool empty() const;

  // A slot for new elements, which nobody else has until Free gives it back; nothing if none is free. Requires: there
  // is a file.
  std::optional<Slot> Take();
  void Free(const ElementPlace& place);

  // Removes the files that nothing is in and nothing goes to.
  void RemoveUnused();

 private:
  // Opens those that are there; says whether the last one is for new elements, too.
  absl::Status OpenThere(int64_t slot_bytes, absl::Span<const ElementPlace> taken, bool* has_current);

  FileSystem* const file_system_;
  const std::shared_ptr<SetFolder> folder_;
  const int32_t slots_;

  mutable core::Mutex mutex_;
  std::map<int32_t, std::unique_ptr<GradientSlots>> files_ ABSL_GUARDED_BY(mutex_);
  int32_t last_file_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_ELEMENT_FILES_H_
