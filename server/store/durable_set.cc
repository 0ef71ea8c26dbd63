#include "server/store/durable_set.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/base/notification.h"
#include "server/store/errors.h"
#include "server/store/stored_elements.h"

namespace adamant::store {
namespace {

// Of a set that keeps steps; null for another.
std::unique_ptr<ElementFiles> FilesOf(const StoreParts& parts, const std::shared_ptr<SetFolder>& folder,
                                      const v1::Durability& durability) {
  if (!durability.has_every_step()) return nullptr;
  return std::make_unique<ElementFiles>(parts.file_system, folder, durability.every_step().journal_steps());
}

absl::Status MakeMissingFolder(const StoreParts& parts, const SetFolder& folder) {
  if (!absl::IsNotFound(parts.file_system->List(folder.directory()).status())) return absl::OkStatus();
  if (absl::Status status = parts.file_system->MakeDirectory(folder.directory()); !status.ok()) return status;
  return parts.file_system->SyncDirectory(absl::StrCat(parts.directory, "/sets"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DurableSet>> DurableSet::Create(const StoreParts& parts,
                                                               const v1::ParameterSetSpec& spec,
                                                               std::shared_ptr<const core::Schema> schema,
                                                               const v1::ParameterSet& set) {
  StoredSet stored;
  *stored.mutable_spec() = spec;
  stored.set_device(set.device());
  stored.set_create_time_ns(google::protobuf::util::TimeUtil::TimestampToNanoseconds(set.create_time()));
  // As good as a random one.
  stored.set_folder(absl::StrCat(set.incarnation()));
  StoredRecord base;
  base.set_incarnation(set.incarnation());
  base.set_step(set.step());
  base.mutable_base()->set_uninitialized(set.state() == v1::PARAMETER_SET_STATE_UNINITIALIZED);
  base.mutable_base()->set_covers(1);
  base.mutable_base()->set_round(set.round());
  *base.mutable_base()->mutable_configuration()->mutable_set() = set;

  if (absl::Status status = CheckCanHaveCheckpoints(*schema, CheckpointSlots(set), "spec.tensors"); !status.ok())
    return status;
  auto folder = std::make_shared<SetFolder>(parts, SetDirectory(parts, stored));
  std::unique_ptr<ElementFiles> files = FilesOf(parts, folder, spec.durability());
  absl::StatusOr<std::unique_ptr<CheckpointKeeper>> checkpoints;
  absl::Status status = parts.file_system->MakeDirectory(folder->directory());
  if (status.ok()) status = folder->MarkUnlisted();
  if (status.ok() && files != nullptr) status = files->Make(schema->flat_size());
  if (status.ok()) {
    checkpoints = SetBases::OpenKeeper(parts, *folder);
    status = checkpoints.status();
  }
  if (status.ok()) status = parts.file_system->SyncDirectory(folder->directory());
  if (status.ok()) status = parts.file_system->SyncDirectory(absl::StrCat(parts.directory, "/sets"));
  int64_t number = 0;
  if (status.ok()) {
    core::Notification committed;
    parts.commits->Commit(
        [&](Catalog* catalog) {
          absl::StatusOr<int64_t> added = catalog->AddSet(stored);
          if (!added.ok()) return added.status();
          number = *added;
          return catalog->AddRecord(number, 1, base);
        },
        [&](const absl::Status& outcome) {
          status = Unshared(outcome);
          committed.Notify();
        });
    committed.WaitForNotification();
  }
  if (!status.ok()) {
    status = OutcomeOf(parts, status);
    // The catalog knows of it, perhaps, where nobody knows what that has.
    if (IsUndone(status)) folder->Delete();
    return status;
  }
  folder->UnmarkUnlisted();
  const int64_t flat_size = schema->flat_size();
  auto records = std::make_shared<SetRecords>(std::move(base), /*base_number=*/1, std::vector<KeptRecord>(),
                                              std::move(schema), v1::WriteHeader(), spec);
  auto rooms = std::make_shared<ChangeRooms>(parts.io, spec.durability().every_step(), flat_size, /*changes=*/0,
                                             std::move(files));
  return std::unique_ptr<DurableSet>(new DurableSet(parts, number, spec, std::move(folder), *std::move(checkpoints),
                                                    std::move(records), std::move(rooms)));
}

absl::StatusOr<std::unique_ptr<DurableSet>> DurableSet::Open(const StoreParts& parts, int64_t number,
                                                             const StoredSet& stored, const StoredRecord& base,
                                                             int64_t base_number, std::vector<KeptRecord> kept,
                                                             std::shared_ptr<const core::Schema> schema,
                                                             const v1::WriteHeader& write,
                                                             const v1::ParameterSetSpec& spec, bool damaged) {
  const v1::Durability& durability = stored.spec().durability();
  auto folder = std::make_shared<SetFolder>(parts, SetDirectory(parts, stored));
  // Whatever needed what it had has found that out by now; what comes needs a folder.
  if (absl::Status status = MakeMissingFolder(parts, *folder); !status.ok()) return status;
  folder->UnmarkUnlisted();
  absl::StatusOr<std::unique_ptr<CheckpointKeeper>> checkpoints = SetBases::OpenKeeper(parts, *folder);
  if (!checkpoints.ok()) return checkpoints.status();
  const int64_t flat_size = schema->flat_size();
  auto records = std::make_shared<SetRecords>(base, base_number, std::move(kept), std::move(schema), write, spec);
  std::unique_ptr<ElementFiles> files = FilesOf(parts, folder, durability);
  if (!damaged && files != nullptr) {
    if (absl::Status status = files->Open(flat_size, records->places()); !status.ok()) return status;
  }
  // Names that are in memory alone, of what was killed before it came to sync them.
  if (absl::Status status = parts.file_system->SyncDirectory(folder->directory()); !status.ok()) return status;
  auto rooms =
      std::make_shared<ChangeRooms>(parts.io, durability.every_step(), flat_size, records->changes(), std::move(files));
  return std::unique_ptr<DurableSet>(new DurableSet(parts, number, stored.spec(), std::move(folder),
                                                    *std::move(checkpoints), std::move(records), std::move(rooms)));
}

DurableSet::DurableSet(const StoreParts& parts, int64_t number, const v1::ParameterSetSpec& spec,
                       std::shared_ptr<SetFolder> folder, std::unique_ptr<CheckpointKeeper> checkpoints,
                       std::shared_ptr<SetRecords> records, std::shared_ptr<ChangeRooms> rooms)
    : parts_(parts),
      number_(number),
      durability_(spec.durability()),
      folder_(std::move(folder)),
      records_(std::move(records)),
      rooms_(std::move(rooms)),
      changes_(std::make_shared<SetChanges>(parts, number, records_, rooms_)),
      bases_(
          std::make_shared<SetBases>(parts, number, spec.name(), folder_, std::move(checkpoints), records_, rooms_)) {}

DurableSet::~DurableSet() = default;

bool DurableSet::keeps_steps() const { return durability_.has_every_step(); }
absl::Status DurableSet::CheckRoom() { return keeps_steps() ? parts_.check_room() : absl::OkStatus(); }
std::unique_ptr<core::SetJournal::Room> DurableSet::TakeRoom() { return rooms_->Take(/*ahead=*/false); }
std::unique_ptr<core::SetJournal::Room> DurableSet::TakeRoomAhead() { return rooms_->Take(/*ahead=*/true); }
void DurableSet::AwaitCheckpoint(core::Then<absl::Status> done) { bases_->AwaitCheckpoint(std::move(done)); }

void DurableSet::CommitStep(std::unique_ptr<Room> room, const core::StepRecord& record,
                            const core::BroughtElements& gradient, core::Then<absl::Status> done) {
  StoredRecord stored;
  stored.set_incarnation(record.result.incarnation());
  stored.set_step(record.result.step());
  StoredStep* const step = stored.mutable_committed();
  step->mutable_headers()->Add(record.headers.begin(), record.headers.end());
  if (record.divisor.has_value()) step->set_divisor(*record.divisor);
  *step->mutable_result() = record.result;
  step->set_previous_digest(record.previous_digest);
  if (gradient.rows != nullptr) {
    for (const core::RowWork::Tensor& tensor : gradient.rows->tensors) {
      step->add_row_counts(static_cast<int64_t>(tensor.end - tensor.first));
    }
    for (const core::RowWork::Row& row : gradient.rows->rows) step->add_row_indices(row.index);
  }
  changes_->CommitElements(std::move(room), std::move(stored), ElementPieces::ToWrite(gradient), std::move(done));
}

void DurableSet::CommitWrite(std::unique_ptr<Room> room, const core::WriteRecord& record,
                             const core::BroughtElements& parameters, core::Then<absl::Status> done) {
  StoredRecord stored;
  stored.set_incarnation(record.incarnation);
  stored.set_step(record.step);
  *stored.mutable_written()->mutable_header() = record.header;
  changes_->CommitElements(
      std::move(room), std::move(stored), ElementPieces::ToWrite(parameters),
      [records = records_, header = record.header, done = std::move(done)](absl::Status status) mutable {
        if (status.ok()) records->NoteWrite(header);
        done(std::move(status));
      });
}

void DurableSet::CommitConfiguration(const v1::ParameterSet& set, core::Then<absl::Status> done) {
  if (absl::Status status = parts_.check_room(); !status.ok()) {
    done(std::move(status));
    return;
  }
  StoredRecord stored;
  stored.set_incarnation(set.incarnation());
  stored.set_step(set.step());
  *stored.mutable_configuration()->mutable_set() = set;
  changes_->Commit(std::move(stored), std::move(done));
}

void DurableSet::CommitGrowth(const core::GrowthRecord& record, std::shared_ptr<const core::Schema> schema,
                              core::Then<absl::Status> done) {
  if (absl::Status status = parts_.check_room(); !status.ok()) {
    done(std::move(status));
    return;
  }
  // What is added takes no other slots.
  const std::vector<v1::Slot> slots = CheckpointSlots(records_->base().base().configuration().set());
  if (absl::Status status = CheckCanHaveCheckpoints(*schema, slots, "tensors"); !status.ok()) {
    done(std::move(status));
    return;
  }
  changes_->CommitGrowth(record, std::move(schema), std::move(done));
}

void DurableSet::CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                            absl::Span<const core::BlockList> slots, const v1::ParameterSet& set,
                            core::Then<absl::Status> done) {
  bases_->CommitBase(record, parameters, slots, set, std::move(done));
}

void DurableSet::CommitDelete(core::Then<absl::Status> done) {
  // A checkpoint's record would be of no set.
  bases_->Abandon();
  parts_.io->Post([parts = parts_, set = number_, folder = folder_, done = std::move(done)]() mutable {
    // Without it, a start after a crash before the folder is removed puts it aside: a full disk is no reason to refuse.
    folder->MarkUnlisted().IgnoreError();
    parts.commits->Commit([set](Catalog* catalog) { return catalog->RemoveSet(set); },
                          [folder, done = std::move(done)](absl::Status status) mutable {
                            if (status.ok()) {
                              folder->Delete();
                            } else if (IsUndone(status)) {
                              folder->UnmarkUnlisted();
                            }
                            done(std::move(status));
                          });
  });
}

bool DurableSet::WantsCheckpoint(uint64_t incarnation, int64_t step) const {
  if (!bases_->may_begin()) return false;
  return keeps_steps() ? rooms_->IsHalfFull() : records_->WantsCheckpoint(durability_.checkpoints(), incarnation, step);
}

uint64_t DurableSet::generation() const { return bases_->generation(); }

void DurableSet::Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
                            core::Then<absl::Status> done) {
  bases_->Checkpoint(std::move(state), set, generation, std::move(done));
}

std::optional<int64_t> DurableSet::DurableStep(uint64_t incarnation, int64_t step) const {
  return keeps_steps() ? step : records_->CheckpointedStep(incarnation);
}

std::vector<v1::Checkpoint> DurableSet::ListCheckpoints() const { return bases_->ListCheckpoints(); }

absl::StatusOr<std::unique_ptr<core::StoredState>> DurableSet::OpenCheckpoint(uint64_t incarnation, int64_t step) {
  return bases_->OpenCheckpoint(incarnation, step);
}

void DurableSet::Finish(const std::vector<core::RememberedStep>& remembered, core::Then<absl::Status> done) {
  StoredRecord record = records_->base();
  record.mutable_base()->set_final(true);
  record.mutable_base()->clear_remembered();
  for (const core::RememberedStep& step : remembered) {
    StoredRemembrance* const stored = record.mutable_base()->add_remembered();
    for (const core::RememberedStep::Key& key : step.keys) {
      stored->add_request_ids(key.request_id);
      stored->add_header_hashes(key.header_hash);
    }
    *stored->mutable_result() = step.result;
  }
  changes_->Commit(std::move(record), std::move(done));
}

void DurableSet::NoteWrite(const v1::WriteHeader& header) { records_->NoteWrite(header); }

StoredRecord DurableSet::ChangingBase() const {
  StoredRecord record = records_->base();
  record.mutable_base()->set_final(false);
  record.mutable_base()->clear_remembered();
  return record;
}

void DurableSet::NoteFirstRecord(int64_t number, const StoredRecord& record) {
  records_->NoteFirstRecord(number, record);
}

void DurableSet::Describe(v1::ParameterSet* set) const {
  *set->mutable_durability() = durability_;
  records_->Describe(set);
}

}  // namespace adamant::store
