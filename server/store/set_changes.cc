#include "server/store/set_changes.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/store/errors.h"

namespace adamant::store {
namespace {

// The elements that a record has.
StoredElements* ElementsOf(StoredRecord* record) {
  return record->has_committed() ? record->mutable_committed()->mutable_gradient()
                                 : record->mutable_written()->mutable_parameters();
}

}  // namespace

absl::Status OutcomeOf(const StoreParts& parts, const absl::Status& status) {
  if (status.ok() || IsUndone(status)) return Unshared(status);
  parts.fail(status);
  return parts.check();
}

SetChanges::SetChanges(const StoreParts& parts, int64_t number, std::shared_ptr<SetRecords> records,
                       std::shared_ptr<ChangeRooms> rooms)
    : parts_(parts), number_(number), records_(std::move(records)), rooms_(std::move(rooms)) {}

void SetChanges::Commit(StoredRecord record, core::Then<absl::Status> done) {
  CommitRecord(nullptr, std::move(record), {}, std::move(done));
}

void SetChanges::CommitElements(std::unique_ptr<core::SetJournal::Room> room, StoredRecord record, ElementPieces pieces,
                                core::Then<absl::Status> done) {
  struct Commitment {
    std::shared_ptr<Place> place;
    StoredRecord record;
    ElementPieces pieces;
    absl::Span<const std::byte> rest;  // of them, which goes into the record
    core::Then<absl::Status> done;
  };
  std::shared_ptr<Place> place = static_cast<ChangeRooms::Room*>(room.get())->place();
  room.reset();
  GradientSlots* const file = place->file();
  if (file == nullptr || pieces.bytes() <= kInlineBytes) {
    if (pieces.bytes() > kMostInlineBytes) {
      RefuseElements(/*has_file=*/false, pieces.bytes(), std::move(done));
      return;
    }
    place->AwaitWrites([self = shared_from_this(), place, record = std::move(record), pieces = std::move(pieces),
                        done = std::move(done)]() mutable {
      ElementsOf(&record)->set_here(pieces.Join());
      self->CommitRecord(std::move(place), std::move(record), {}, std::move(done));
    });
    return;
  }
  const absl::Span<const std::byte> rest = pieces.Cut(file->slot_bytes());
  if (static_cast<int64_t>(rest.size()) > kMostInlineBytes) {
    RefuseElements(/*has_file=*/true, static_cast<int64_t>(rest.size()), std::move(done));
    return;
  }
  auto commitment = std::make_shared<Commitment>(
      Commitment{std::move(place), std::move(record), std::move(pieces), rest, std::move(done)});
  commitment->place->AwaitWrites([self = shared_from_this(), commitment] {
    self->parts_.io->Post([self, commitment] {
      const ElementPlace where = *commitment->place->place();
      GradientSlots* const slots = commitment->place->file();
      absl::StatusOr<SlotContents> contents =
          slots->Write(where.slot, commitment->pieces.written(), commitment->place->TakeWritten());
      absl::Status status = contents.status();
      if (status.ok()) status = slots->Sync();
      if (!status.ok()) {
        self->parts_.fail(status);
        commitment->place.reset();
        self->parts_.executor->Post([self, commitment] { commitment->done(self->parts_.check()); });
        return;
      }
      StoredSlot* const slot = ElementsOf(&commitment->record)->mutable_slot();
      slot->set_file(where.file);
      slot->set_slot(where.slot);
      slot->set_bytes(contents->bytes);
      slot->set_slot_bytes(slots->slot_bytes());
      slot->mutable_checksums()->Add(contents->checksums.begin(), contents->checksums.end());
      for (size_t part = 0; part < contents->halved.size(); ++part) {
        if (contents->halved[part]) slot->add_halved(static_cast<int32_t>(part));
      }
      if (!commitment->rest.empty()) slot->set_rest(commitment->rest.data(), commitment->rest.size());
      commitment->place->Keep();
      KeptRecord kept;
      kept.place = where;
      self->CommitRecord(std::move(commitment->place), std::move(commitment->record), std::move(kept),
                         std::move(commitment->done));
    });
  });
}

void SetChanges::RefuseElements(bool has_file, int64_t bytes, core::Then<absl::Status> done) {
  if (has_file) {
    parts_.executor->Post([bytes, done = std::move(done)]() mutable {
      done(Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
                 ExpectedGot(absl::StrCat("rows that with the rest of the step take at most ", kMostInlineBytes,
                                          " bytes more than a dense step does"),
                             absl::StrCat(bytes)),
                 "header.sparse"));
    });
    return;
  }
  // There was no room for it when the set was made whole.
  parts_.io->Post([self = shared_from_this(), done = std::move(done)]() mutable {
    absl::Status status = self->rooms_->MakeMissingFile(self->records_->schema()->flat_size());
    if (status.ok()) status = DiskExhausted("there was no room yet for the set's gradients, and there is now");
    self->parts_.executor->Post(
        [status = OutcomeOf(self->parts_, status), done = std::move(done)]() mutable { done(std::move(status)); });
  });
}

void SetChanges::CommitGrowth(const core::GrowthRecord& growth, std::shared_ptr<const core::Schema> schema,
                              core::Then<absl::Status> done) {
  // The file that larger elements go to has to be there first.
  parts_.io->Post([self = shared_from_this(), growth, schema = std::move(schema), done = std::move(done)]() mutable {
    const absl::Status status = self->rooms_->MakeFile(schema->flat_size());
    if (!status.ok()) {
      self->parts_.executor->Post(
          [status = OutcomeOf(self->parts_, status), done = std::move(done)]() mutable { done(std::move(status)); });
      return;
    }
    StoredRecord record;
    record.set_incarnation(growth.incarnation);
    *record.mutable_grown()->mutable_request() = growth.request;
    KeptRecord kept;
    kept.tensors = static_cast<int64_t>(schema->tensors().size());
    kept.groups = growth.request.groups();
    self->CommitRecord(nullptr, std::move(record), std::move(kept),
                       [self, growth, schema, done = std::move(done)](absl::Status status) mutable {
                         if (status.ok()) {
                           self->rooms_->Grow(schema->flat_size());
                           self->records_->NoteGrowth(growth.request, std::move(schema));
                         }
                         done(std::move(status));
                       });
  });
}

void SetChanges::CommitRecord(std::shared_ptr<Place> room, StoredRecord record, KeptRecord kept,
                              core::Then<absl::Status> done) {
  if (absl::Status status = parts_.check(); !status.ok()) {
    if (kept.place.has_value()) rooms_->Free(*kept.place);
    room.reset();
    done(std::move(status));
    return;
  }
  kept.incarnation = record.incarnation();
  kept.step = record.step();
  kept.kind = record.kind_case();
  if (record.has_configuration()) {
    kept.configuration = std::make_shared<const v1::ParameterSet>(record.configuration().set());
  }
  auto number = std::make_shared<int64_t>(0);
  records_->BeginChange();
  parts_.commits->Commit(
      [self = shared_from_this(), number, record = std::move(record)](Catalog* catalog) {
        absl::StatusOr<int64_t> next = catalog->NextNumber(self->number_);
        if (!next.ok()) return next.status();
        // Of configurations with nothing between them only the last is of account: else a client that does nothing but
        // change it would fill the catalog.
        const bool replaces = record.has_configuration() && self->records_->EndsWithConfiguration(*next - 1);
        *number = replaces ? *next - 1 : *next;
        return replaces ? catalog->ReplaceRecord(self->number_, *number, record)
                        : catalog->AddRecord(self->number_, *number, record);
      },
      [self = shared_from_this(), number, kept = std::move(kept), room = std::move(room),
       done = std::move(done)](absl::Status status) mutable {
        if (status.ok()) {
          kept.number = *number;
          if (IsChange(kept.kind)) self->rooms_->Add();
          self->records_->Add(std::move(kept));
        } else if (kept.place.has_value() && IsUndone(status)) {
          self->rooms_->Free(*kept.place);
        }
        self->records_->EndChange();
        room.reset();
        done(std::move(status));
      });
}

}  // namespace adamant::store
