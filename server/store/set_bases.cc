#include "server/store/set_bases.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/backend/slot_arrays.h"
#include "server/store/set_changes.h"

namespace adamant::store {
namespace {

constexpr absl::Duration kFirstRetryDelay = absl::Seconds(1);
constexpr absl::Duration kLastRetryDelay = absl::Minutes(1);

// A checkpoint that is read, and not removed as long as it is.
class ReadCheckpoint final : public core::StoredState {
 public:
  ReadCheckpoint(std::shared_ptr<const KeptCheckpoint> held, class Checkpoint checkpoint)
      : held_(std::move(held)), checkpoint_(std::move(checkpoint)) {}

  int64_t step() const override { return checkpoint_.info().step; }
  uint64_t schema_fingerprint() const override { return checkpoint_.info().description.schema_fingerprint(); }
  const std::vector<int64_t>& update_counts() const override { return checkpoint_.info().update_counts; }
  absl::Status Read(v1::Slot slot, const core::Schema& schema, Take take) override {
    return checkpoint_.Read(slot, schema, take);
  }

 private:
  const std::shared_ptr<const KeptCheckpoint> held_;
  class Checkpoint checkpoint_;
};

absl::Status HasNewerBase() { return absl::AbortedError("there is another base since the state was read"); }

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointKeeper>> SetBases::OpenKeeper(const StoreParts& parts,
                                                                       const SetFolder& folder) {
  return CheckpointKeeper::Open(parts.file_system, absl::StrCat(folder.directory(), "/checkpoints"));
}

SetBases::SetBases(const StoreParts& parts, int64_t number, std::string name, std::shared_ptr<SetFolder> folder,
                   std::unique_ptr<CheckpointKeeper> checkpoints, std::shared_ptr<SetRecords> records,
                   std::shared_ptr<ChangeRooms> rooms)
    : parts_(parts),
      number_(number),
      name_(std::move(name)),
      folder_(std::move(folder)),
      checkpoints_(std::move(checkpoints)),
      records_(std::move(records)),
      rooms_(std::move(rooms)) {}

void SetBases::Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
                          core::Then<absl::Status> done) {
  NewBase base;
  base.info.set = name_;
  base.info.incarnation = state->header().incarnation();
  base.info.step = state->header().step();
  base.info.update_counts.assign(state->header().update_counts().begin(), state->header().update_counts().end());
  base.info.description = set;
  // Tensors may have been added between the reading and this, as steps may have come.
  base.info.description.set_schema_fingerprint(state->schema().fingerprint());
  base.info.create_time = absl::Now();
  if (set.incarnation() == base.info.incarnation) {
    v1::SetStatistics* const statistics = base.info.description.mutable_statistics();
    statistics->set_applied(statistics->applied() - (set.step() - base.info.step));
  }
  base.slots = state->slots();
  base.last_digest = state->last_digest();
  bool is_there = false;
  bool is_old;
  {
    core::MutexLock lock(&mutex_);
    is_old = generation_ != generation;
    if (checkpointing_ && !is_old) {
      // That one may be of a state before.
      waiting_.push_back([self = shared_from_this(), state = std::move(state), set, generation,
                          done = std::move(done)](const absl::Status& /*made*/) mutable {
        self->Checkpoint(std::move(state), set, generation, std::move(done));
      });
      return;
    }
    if (records_->IsBase(base.info.incarnation, base.info.step)) {
      is_there = true;
    } else if (!is_old) {
      checkpointing_ = true;
    }
  }
  if (is_there || is_old) {
    done(is_there ? absl::OkStatus() : HasNewerBase());
    return;
  }
  base.schema = state->shared_schema();
  core::ComputePool* const thread = ThreadFor(*base.schema);
  thread->Post([self = shared_from_this(), base = std::move(base), state = std::move(state), generation,
                done = std::move(done)]() mutable {
    const absl::StatusOr<KeptCheckpoint> written =
        self->Write(base, [&state](v1::Slot slot, int64_t begin, int64_t end,
                                   absl::FunctionRef<void(const float* elements, int64_t count)> visit) {
          state->Visit(slot, begin, end, visit);
          // Steps, and other readers, may want the memory.
          state->ReleaseBefore(slot, end);
        });
    // Before the commit: others may want the memory.
    state.reset();
    self->CommitWritten(
        std::move(base), generation, written, [self, done = std::move(done)](absl::Status status) mutable {
          std::vector<core::Then<absl::Status>> waiting;
          bool is_told;
          {
            core::MutexLock lock(&self->mutex_);
            self->checkpointing_ = false;
            waiting.swap(self->waiting_);
            is_told = self->NoteOutcome(status);
          }
          if (is_told) {
            self->parts_.warn(absl::StrCat("checkpoint of ", Quoted(self->name_), ": ", status.message()));
          }
          done(Unshared(status));
          for (core::Then<absl::Status>& one : waiting) one(Unshared(status));
        });
  });
}

void SetBases::CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                          absl::Span<const core::BlockList> slots, const v1::ParameterSet& set,
                          core::Then<absl::Status> done) {
  NewBase base;
  base.info.set = name_;
  base.info.incarnation = record.incarnation;
  base.info.step = record.step;
  base.info.update_counts.assign(record.header.update_counts().begin(), record.header.update_counts().end());
  base.info.description = set;
  base.info.create_time = absl::Now();
  base.write = record.header;
  uint64_t generation;
  {
    core::MutexLock lock(&mutex_);
    base.schema = records_->schema();
    // What is under way is of a state that this takes the place of.
    generation = ++generation_;
  }
  base.slots = CheckpointSlots(set);
  core::ComputePool* const thread = ThreadFor(*base.schema);
  thread->Post([self = shared_from_this(), base = std::move(base), parameters = &parameters, slots, generation,
                done = std::move(done)]() mutable {
    const absl::StatusOr<KeptCheckpoint> written =
        self->Write(base, [&](v1::Slot slot, int64_t begin, int64_t end,
                              absl::FunctionRef<void(const float* elements, int64_t count)> visit) {
          const auto index = absl::c_find(base.slots, slot) - base.slots.begin();
          const core::BlockList& blocks = index == 0 ? *parameters : slots[index - 1];
          core::ForEachRun(begin, end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
            visit(blocks[block].data() + run_begin, run_end - run_begin);
          });
        });
    self->CommitWritten(std::move(base), generation, written, std::move(done));
  });
}

void SetBases::AwaitCheckpoint(core::Then<absl::Status> done) {
  {
    core::MutexLock lock(&mutex_);
    if (checkpointing_) {
      waiting_.push_back(std::move(done));
      return;
    }
  }
  done(absl::OkStatus());
}

core::ComputePool* SetBases::ThreadFor(const core::Schema& schema) const {
  return core::IsSmall(schema.flat_size()) ? parts_.small_checkpoints : parts_.large_checkpoints;
}

absl::StatusOr<KeptCheckpoint> SetBases::Write(const NewBase& base, ElementSource elements) {
  if (absl::Status status = parts_.check(); !status.ok()) return status;
  KeptCheckpoint written = {.name = checkpoints_->NewName(base.info.step, base.info.incarnation),
                            .incarnation = base.info.incarnation,
                            .step = base.info.step,
                            .create_time = base.info.create_time};
  const absl::StatusOr<int64_t> bytes = WriteCheckpoint(parts_.file_system, checkpoints_->PathOf(written.name),
                                                        base.info, *base.schema, base.slots, elements, parts_.pace);
  // Of a set that is older than what keeps such sets from being made.
  if (absl::IsInvalidArgument(bytes.status())) {
    return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE, bytes.status().message());
  }
  if (!bytes.ok()) return bytes.status();
  written.bytes = *bytes;
  return written;
}

void SetBases::CommitWritten(NewBase base, uint64_t generation, const absl::StatusOr<KeptCheckpoint>& written,
                             core::Then<absl::Status> done) {
  if (!written.ok()) {
    parts_.executor->Post(
        [status = OutcomeOf(parts_, written.status()), done = std::move(done)]() mutable { done(std::move(status)); });
    return;
  }
  struct Outcome {
    int64_t number = 0;
    StoredRecord record;
    int64_t first = 0;  // of the records that are kept
  };
  auto outcome = std::make_shared<Outcome>();
  parts_.commits->Commit(
      [self = shared_from_this(), base, written = *written, generation, outcome](Catalog* catalog) -> absl::Status {
        {
          core::MutexLock lock(&self->mutex_);
          // Nothing comes between a write and its turn's end.
          if (!base.write.has_value() && self->generation_ != generation) return HasNewerBase();
          outcome->record = self->records_->MakeBase(base, written.name, written.bytes, &outcome->first);
        }
        absl::StatusOr<int64_t> number = catalog->NextNumber(self->number_);
        if (!number.ok()) return number.status();
        outcome->number = *number;
        if (base.write.has_value()) {
          // All that was before it.
          outcome->first = *number;
          outcome->record.mutable_base()->set_covers(*number);
        }
        absl::Status status = catalog->AddRecord(self->number_, *number, outcome->record);
        if (status.ok()) status = catalog->RemoveRecordsBefore(self->number_, outcome->first);
        if (status.ok()) {
          status = catalog->DropGradients(self->number_, outcome->first, outcome->record.base().covers() + 1);
        }
        return status;
      },
      [self = shared_from_this(), base, written = *written, outcome,
       done = std::move(done)](absl::Status status) mutable {
        self->Committed(base, written, outcome->number, outcome->record, outcome->first, status);
        done(std::move(status));
      });
}

void SetBases::Committed(const NewBase& base, const KeptCheckpoint& written, int64_t number, const StoredRecord& record,
                         int64_t first, const absl::Status& status) {
  if (!status.ok()) {
    // Nothing refers to it, and nothing else was it meant for; unless it is not known what is on disk.
    if (GetErrorDetail(status).reason() != v1::ERROR_REASON_STORE_FAILED) {
      parts_.file_system->RemoveAll(checkpoints_->PathOf(written.name)).IgnoreError();
    }
    return;
  }
  {
    core::MutexLock lock(&mutex_);
    // It is told of in any order, and of a later one first, perhaps.
    if (number > base_number_) {
      base_number_ = number;
      ++generation_;
      rooms_->Remove(records_->Rebase(base, number, record, first));
    }
  }
  checkpoints_->Add(written);
  if (absl::Status kept = checkpoints_->RemoveOld(records_->base().base().checkpoint()); !kept.ok()) {
    parts_.warn(absl::StrCat("old checkpoints of ", Quoted(name_), ": ", kept.message()));
  }
  rooms_->RemoveUnusedFiles();
  // Without a file elements go to the catalog.
  rooms_->MakeMissingFile(base.schema->flat_size()).IgnoreError();
}

bool SetBases::may_begin() const {
  core::MutexLock lock(&mutex_);
  return !checkpointing_ && parts_.clock->Now() >= retry_time_;
}

bool SetBases::NoteOutcome(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) {
    retry_delay_ = absl::ZeroDuration();
    retry_time_ = -absl::InfiniteDuration();
    // ABORTED is for whoever has read the state: it is read again. CANCELLED is the server's end.
    return !status.ok() && !absl::IsAborted(status) && !absl::IsCancelled(status);
  }
  const absl::Duration now = parts_.clock->Now();
  if (now < retry_time_) return false;
  retry_delay_ = std::clamp(2 * retry_delay_, kFirstRetryDelay, kLastRetryDelay);
  retry_time_ = now + retry_delay_;
  return true;
}

uint64_t SetBases::generation() const {
  core::MutexLock lock(&mutex_);
  return generation_;
}

void SetBases::Abandon() {
  core::MutexLock lock(&mutex_);
  ++generation_;
}

std::vector<v1::Checkpoint> SetBases::ListCheckpoints() const {
  std::vector<v1::Checkpoint> listed;
  for (const KeptCheckpoint& kept : checkpoints_->List()) {
    v1::Checkpoint& checkpoint = listed.emplace_back();
    checkpoint.set_incarnation(kept.incarnation);
    checkpoint.set_step(kept.step);
    *checkpoint.mutable_time() =
        google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(kept.create_time));
    checkpoint.set_bytes(kept.bytes);
  }
  return listed;
}

absl::StatusOr<std::unique_ptr<core::StoredState>> SetBases::OpenCheckpoint(uint64_t incarnation, int64_t step) {
  std::shared_ptr<const KeptCheckpoint> held = checkpoints_->Hold(incarnation, step);
  if (held == nullptr) {
    return Error(absl::StatusCode::kNotFound, v1::ERROR_REASON_CHECKPOINT_NOT_FOUND,
                 ExpectedGot("the state of one of the set's checkpoints",
                             absl::StrCat("step ", step, " of incarnation ", incarnation)),
                 "checkpoint_step");
  }
  absl::StatusOr<class Checkpoint> opened =
      store::Checkpoint::Open(parts_.file_system, checkpoints_->PathOf(held->name));
  if (!opened.ok()) return opened.status();
  return std::make_unique<ReadCheckpoint>(std::move(held), *std::move(opened));
}

}  // namespace adamant::store
