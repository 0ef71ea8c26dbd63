// One set's journal, of the parts that it is made of:
//
//   SetChanges    puts steps, writes and other changes down in the catalog
//   ChangeRooms   has room for them until a checkpoint takes their place: ElementFiles, with their elements
//   SetBases      makes the checkpoints
//   SetRecords    remembers what the catalog has, for all of them
//   SetFolder     is where the files are, until the last who uses them is done
#ifndef ADAMANT_SERVER_STORE_DURABLE_SET_H_
#define ADAMANT_SERVER_STORE_DURABLE_SET_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/journal.h"
#include "server/store/catalog.h"
#include "server/store/change_rooms.h"
#include "server/store/checkpoint_keeper.h"
#include "server/store/set_bases.h"
#include "server/store/set_changes.h"
#include "server/store/set_folder.h"
#include "server/store/set_records.h"
#include "server/store/store.h"

namespace adamant::store {

// See core::SetJournal.
class DurableSet final : public core::SetJournal {
 public:
  // A new set, which is in the catalog as `number` with its first base. Makes its folder, and its file of elements, if
  // it needs one: what has to be there before the catalog knows of the set.
  static absl::StatusOr<std::unique_ptr<DurableSet>> Create(const StoreParts& parts, const v1::ParameterSetSpec& spec,
                                                            std::shared_ptr<const core::Schema> schema,
                                                            const v1::ParameterSet& set);
  // One that comes back, with its last base, which is the record of this number, and these records; `write` made its
  // incarnation, and `spec` has the tensors and groups that it has by now. Opens its files of elements, unless the set
  // is damaged, and awaits a full write.
  static absl::StatusOr<std::unique_ptr<DurableSet>> Open(const StoreParts& parts, int64_t number,
                                                          const StoredSet& stored, const StoredRecord& base,
                                                          int64_t base_number, std::vector<KeptRecord> kept,
                                                          std::shared_ptr<const core::Schema> schema,
                                                          const v1::WriteHeader& write,
                                                          const v1::ParameterSetSpec& spec, bool damaged);
  ~DurableSet() override;

  bool keeps_steps() const override;
  absl::Status CheckRoom() override;
  std::unique_ptr<Room> TakeRoom() override;
  std::unique_ptr<Room> TakeRoomAhead() override;
  void AwaitCheckpoint(core::Then<absl::Status> done) override;
  void CommitStep(std::unique_ptr<Room> room, const core::StepRecord& record, const core::BroughtElements& gradient,
                  core::Then<absl::Status> done) override;
  void CommitWrite(std::unique_ptr<Room> room, const core::WriteRecord& record, const core::BroughtElements& parameters,
                   core::Then<absl::Status> done) override;
  void CommitConfiguration(const v1::ParameterSet& set, core::Then<absl::Status> done) override;
  void CommitGrowth(const core::GrowthRecord& record, std::shared_ptr<const core::Schema> schema,
                    core::Then<absl::Status> done) override;
  void CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                  absl::Span<const core::BlockList> slots, const v1::ParameterSet& set,
                  core::Then<absl::Status> done) override;
  void CommitDelete(core::Then<absl::Status> done) override;
  bool WantsCheckpoint(uint64_t incarnation, int64_t step) const override;
  uint64_t generation() const override;
  void Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
                  core::Then<absl::Status> done) override;
  std::optional<int64_t> DurableStep(uint64_t incarnation, int64_t step) const override;
  std::vector<v1::Checkpoint> ListCheckpoints() const override;
  absl::StatusOr<std::unique_ptr<core::StoredState>> OpenCheckpoint(uint64_t incarnation, int64_t step) override;
  void Finish(const std::vector<core::RememberedStep>& remembered, core::Then<absl::Status> done) override;
  void NoteWrite(const v1::WriteHeader& header) override;
  // The record that takes back what Finish has said, for before the set changes.
  StoredRecord ChangingBase() const;
  // Such a record, or one of a rollback, is in the catalog, as this number.
  void NoteFirstRecord(int64_t number, const StoredRecord& record);
  void Describe(v1::ParameterSet* set) const override;

 private:
  DurableSet(const StoreParts& parts, int64_t number, const v1::ParameterSetSpec& spec,
             std::shared_ptr<SetFolder> folder, std::unique_ptr<CheckpointKeeper> checkpoints,
             std::shared_ptr<SetRecords> records, std::shared_ptr<ChangeRooms> rooms);

  const StoreParts parts_;
  const int64_t number_;  // in the catalog
  const v1::Durability durability_;
  const std::shared_ptr<SetFolder> folder_;
  const std::shared_ptr<SetRecords> records_;
  const std::shared_ptr<ChangeRooms> rooms_;
  const std::shared_ptr<SetChanges> changes_;
  const std::shared_ptr<SetBases> bases_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_DURABLE_SET_H_
