// Puts the changes of one set down in the catalog, and their elements where it says.
#ifndef ADAMANT_SERVER_STORE_SET_CHANGES_H_
#define ADAMANT_SERVER_STORE_SET_CHANGES_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "server/core/base/then.h"
#include "server/core/journal.h"
#include "server/core/spec/schema.h"
#include "server/store/catalog.h"
#include "server/store/change_rooms.h"
#include "server/store/set_records.h"
#include "server/store/store.h"
#include "server/store/stored_elements.h"

namespace adamant::store {

// Thread-safe. Outcomes are as core::SetJournal has them.
class SetChanges : public std::enable_shared_from_this<SetChanges> {
 public:
  // Of the set that has this number in the catalog.
  SetChanges(const StoreParts& parts, int64_t number, std::shared_ptr<SetRecords> records,
             std::shared_ptr<ChangeRooms> rooms);

  // Puts down what takes no room. A configuration takes the place of the one that is last, if one is.
  void Commit(StoredRecord record, core::Then<absl::Status> done);
  // Puts down a step or a write, with its elements: in its record, if they are few, or in the slot that `room` has.
  void CommitElements(std::unique_ptr<core::SetJournal::Room> room, StoredRecord record, ElementPieces pieces,
                      core::Then<absl::Status> done);
  // Puts down that the set grows: makes room for changes of what it will be first.
  void CommitGrowth(const core::GrowthRecord& growth, std::shared_ptr<const core::Schema> schema,
                    core::Then<absl::Status> done);

 private:
  using Place = ChangeRooms::Place;

  // Refuses elements of which so many bytes, too many for a record, fit into no slot, or for which there is none.
  void RefuseElements(bool has_file, int64_t bytes, core::Then<absl::Status> done);
  // The record is made of `record`, `kept` of the rest of what is to be remembered of it.
  void CommitRecord(std::shared_ptr<Place> room, StoredRecord record, KeptRecord kept, core::Then<absl::Status> done);

  const StoreParts parts_;
  const int64_t number_;
  const std::shared_ptr<SetRecords> records_;
  const std::shared_ptr<ChangeRooms> rooms_;
};

// What journals say of such an outcome: unless it says that nothing was put down, nobody knows what was.
absl::Status OutcomeOf(const StoreParts& parts, const absl::Status& status);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_SET_CHANGES_H_
