#include "server/store/durable_set.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/base/notification.h"
#include "server/core/set/reading.h"
#include "server/core/set/requests.h"
#include "server/core/spec/slots.h"
#include "server/store/errors.h"
#include "server/store/stored_elements.h"

namespace adamant::store {
namespace {

std::string SetDirectory(const StoreParts& parts, const StoredSet& stored) {
  return absl::StrCat(parts.directory, "/sets/", stored.folder());
}
// `elements-N-B`, the set's N-th file of elements, with slots of B bytes.
std::string ElementsPath(const std::string& directory, int32_t file, int64_t slot_bytes) {
  return absl::StrCat(directory, "/elements-", file, "-", slot_bytes);
}

v1::Checkpoint DescribeCheckpoint(const StoredRecord& base) {
  v1::Checkpoint description;
  description.set_incarnation(base.incarnation());
  description.set_step(base.step());
  *description.mutable_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(base.base().checkpoint_time_ns());
  description.set_bytes(base.base().checkpoint_bytes());
  return description;
}

// The elements that a record has.
StoredElements* ElementsOf(StoredRecord* record) {
  return record->has_committed() ? record->mutable_committed()->mutable_gradient()
                                 : record->mutable_written()->mutable_parameters();
}

}  // namespace

class DurableSetRep : public std::enable_shared_from_this<DurableSetRep> {
 public:
  // Room for one change: a slot, in a set that has some. It is given back by whoever uses it last.
  class Place {
   public:
    Place(std::shared_ptr<DurableSetRep> set, std::optional<ElementPlace> place, GradientSlots* file, bool is_ahead)
        : set_(std::move(set)), file_(file), is_ahead_(is_ahead), place_(place) {}
    ~Place() { set_->LeaveRoom(place_, is_ahead_); }

    GradientSlots* file() const { return file_; }
    const std::optional<ElementPlace>& place() const { return place_; }
    // The slot is a record's from here on. For whoever is the only one to use it.
    void Keep() { place_.reset(); }

    // A write ahead begins, and ends.
    void Begin() {
      core::MutexLock lock(&mutex_);
      ++under_way_;
    }
    void End(size_t part, const absl::StatusOr<uint32_t>& checksum) {
      absl::AnyInvocable<void()> ended;
      {
        core::MutexLock lock(&mutex_);
        if (checksum.ok()) {
          if (written_.size() <= part) written_.resize(part + 1);
          written_[part] = *checksum;
        }
        if (--under_way_ == 0) ended = std::move(ended_);
      }
      if (ended != nullptr) ended();
    }
    // Calls `ended` once none is under way: now, or on the thread that ends the last.
    void AwaitWrites(absl::AnyInvocable<void()> ended) {
      {
        core::MutexLock lock(&mutex_);
        if (under_way_ > 0) {
          ended_ = std::move(ended);
          return;
        }
      }
      ended();
    }
    // By part; nothing for those that were not written, or failed: they are written again. None is under way.
    std::vector<std::optional<uint32_t>> TakeWritten() {
      core::MutexLock lock(&mutex_);
      return std::move(written_);
    }

   private:
    const std::shared_ptr<DurableSetRep> set_;
    GradientSlots* const file_;  // null: there is none
    const bool is_ahead_;
    std::optional<ElementPlace> place_;

    core::Mutex mutex_;
    int64_t under_way_ ABSL_GUARDED_BY(mutex_) = 0;
    std::vector<std::optional<uint32_t>> written_ ABSL_GUARDED_BY(mutex_);
    absl::AnyInvocable<void()> ended_ ABSL_GUARDED_BY(mutex_);
  };

  class Room final : public core::SetJournal::Room {
   public:
    Room(std::shared_ptr<Place> place, core::ComputePool* io) : place_(std::move(place)), io_(io) {}

    void WriteAhead(size_t position, const core::BlockRef& block) override {
      const int64_t bytes = block.size() * static_cast<int64_t>(sizeof(float));
      if (place_->file() == nullptr || bytes != kChecksummedBytes) return;
      place_->Begin();
      io_->Post([place = place_, position, block = core::BlockRef(block)]() mutable {
        const absl::StatusOr<uint32_t> written = place->file()->WritePart(
            place->place()->slot, static_cast<int64_t>(position),
            {reinterpret_cast<const std::byte*>(block.data()), static_cast<size_t>(kChecksummedBytes)});
        // The commit writes over it, and must be the only one who has it.
        block = core::BlockRef();
        place->End(position, written);
      });
    }

    const std::shared_ptr<Place>& place() const { return place_; }

   private:
    const std::shared_ptr<Place> place_;
    core::ComputePool* const io_;
  };

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

  // A checkpoint that is to be the set's base.
  struct NewBase {
    CheckpointInfo info;
    std::shared_ptr<const core::Schema> schema;
    std::vector<v1::Slot> slots;
    // Of a state that a write has made, in its turn.
    std::optional<v1::WriteHeader> write;
  };

  DurableSetRep(StoreParts parts, const StoredSet& stored, StoredRecord base,
                std::shared_ptr<const core::Schema> schema)
      : parts_(std::move(parts)),
        name_(stored.spec().name()),
        durability_(stored.spec().durability()),
        directory_(SetDirectory(parts_, stored)),
        spec_(base.base().has_spec() ? base.base().spec() : stored.spec()),
        schema_(std::move(schema)),
        write_(base.base().write()),
        base_(std::move(base)) {}

  bool keeps_steps() const { return durability_.has_every_step(); }
  const std::string& directory() const { return directory_; }

  // Before anything is committed.
  void SetNumber(int64_t number) { number_ = number; }

  int64_t MostChanges() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const int64_t asked = durability_.every_step().journal_steps();
    return HasSlots(schema_->flat_size()) ? asked : std::max<int64_t>(asked, kInlineChanges);
  }

  // Looks at the checkpoints that there are.
  absl::Status OpenCheckpoints() {
    absl::StatusOr<std::unique_ptr<CheckpointKeeper>> opened =
        CheckpointKeeper::Open(parts_.file_system, absl::StrCat(directory_, "/checkpoints"));
    if (!opened.ok()) return opened.status();
    checkpoints_ = *std::move(opened);
    return absl::OkStatus();
  }

  std::vector<v1::Checkpoint> ListCheckpoints() const {
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

  absl::StatusOr<std::unique_ptr<core::StoredState>> OpenCheckpoint(uint64_t incarnation, int64_t step) {
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

  // Opens the files of elements that records refer to, and the one that new ones go to; makes that if it is new.
  absl::Status OpenFiles(bool make) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (!keeps_steps()) return absl::OkStatus();
    std::shared_ptr<const core::Schema> schema;
    bool has_current = false;
    if (!make) {
      absl::Status status = OpenFilesThere(&has_current);
      if (!status.ok()) return status;
    }
    {
      core::MutexLock lock(&mutex_);
      schema = schema_;
    }
    return has_current ? absl::OkStatus() : MakeFile(*schema);
  }

  // Opens those of the files that are there; says whether the last one is for new elements, too.
  absl::Status OpenFilesThere(bool* has_current) ABSL_LOCKS_EXCLUDED(mutex_) {
    core::MutexLock lock(&mutex_);
    absl::StatusOr<std::vector<std::string>> names = parts_.file_system->List(directory_);
    if (!names.ok()) return names.status();
    std::map<int32_t, std::vector<int32_t>> taken;
    for (const KeptRecord& kept : kept_) {
      if (kept.place.has_value()) taken[kept.place->file].push_back(kept.place->slot);
    }
    std::map<int32_t, std::string> found;
    for (const std::string& name : *names) {
      const std::vector<absl::string_view> parts = absl::StrSplit(name, '-');
      int32_t file;
      if (parts.size() != 3 || parts[0] != "elements" || !absl::SimpleAtoi(parts[1], &file)) continue;
      found[file] = name;
    }
    for (const auto& [file, name] : found) {
      const std::string path = absl::StrCat(directory_, "/", name);
      int64_t slot_bytes = 0;
      if (!absl::SimpleAtoi(name.substr(name.rfind('-') + 1), &slot_bytes)) continue;
      const bool is_current = file == found.rbegin()->first && slot_bytes == SectorBytesOf(schema_->flat_size());
      last_file_ = file;
      // A set that has grown has made another file; and one that has not, perhaps, for a growth that came to nothing.
      if (!is_current && taken.find(file) == taken.end()) {
        if (absl::Status status = parts_.file_system->Remove(path); !status.ok()) return status;
        continue;
      }
      absl::StatusOr<std::unique_ptr<GradientSlots>> opened = GradientSlots::Open(
          parts_.file_system, path, durability_.every_step().journal_steps(), slot_bytes, taken[file]);
      if (!opened.ok()) return opened.status();
      files_[file] = *std::move(opened);
    }
    const auto last = files_.find(last_file_);
    *has_current = last != files_.end() && last->second->slot_bytes() == SectorBytesOf(schema_->flat_size());
    return absl::OkStatus();
  }

  // As the set is when it has come back.
  void Keep(std::vector<KeptRecord> records, const v1::WriteHeader& write, const v1::ParameterSetSpec& spec) {
    core::MutexLock lock(&mutex_);
    write_ = write;
    spec_ = spec;
    kept_.assign(std::make_move_iterator(records.begin()), std::make_move_iterator(records.end()));
    for (const KeptRecord& kept : kept_) changes_ += kept.is_replayed && IsChange(kept.kind);
  }

  std::unique_ptr<core::SetJournal::Room> TakeRoom(bool ahead) {
    core::MutexLock lock(&mutex_);
    if (changes_ >= MostChanges()) return nullptr;
    // A checkpoint frees the rooms of what is committed; those of steps that arrive may stay for long.
    if (ahead && (ahead_ >= MostChanges() / 4 || 2 * changes_ >= MostChanges())) return nullptr;
    std::optional<ElementPlace> place;
    GradientSlots* file = nullptr;
    if (!files_.empty()) {
      file = files_[last_file_].get();
      const std::optional<int32_t> slot = file->Take();
      if (!slot.has_value()) return nullptr;
      place = {last_file_, *slot};
    }
    ++changes_;
    if (ahead) ++ahead_;
    return std::make_unique<Room>(std::make_shared<Place>(shared_from_this(), place, file, ahead), parts_.io);
  }

  // Puts down a change that brings elements.
  void CommitElements(std::unique_ptr<core::SetJournal::Room> room, StoredRecord record, ElementPieces pieces,
                      core::Then<absl::Status> done) {
    struct Commitment {
      std::shared_ptr<Place> place;
      StoredRecord record;
      ElementPieces pieces;
      core::Then<absl::Status> done;
    };
    std::shared_ptr<Place> place = static_cast<Room*>(room.get())->place();
    room.reset();
    GradientSlots* const file = place->file();
    if (file == nullptr || pieces.bytes() <= kInlineBytes || pieces.sector_bytes() > file->slot_bytes()) {
      place->AwaitWrites([self = shared_from_this(), place, record = std::move(record), pieces = std::move(pieces),
                          done = std::move(done)]() mutable {
        ElementsOf(&record)->set_here(pieces.Join());
        self->CommitChange(std::move(place), std::move(record), std::nullopt, std::move(done));
      });
      return;
    }
    auto commitment = std::make_shared<Commitment>(
        Commitment{std::move(place), std::move(record), std::move(pieces), std::move(done)});
    commitment->place->AwaitWrites([self = shared_from_this(), commitment] {
      self->parts_.io->Post([self, commitment] {
        const ElementPlace where = *commitment->place->place();
        GradientSlots* const slots = commitment->place->file();
        absl::StatusOr<SlotContents> contents =
            slots->Write(where.slot, commitment->pieces.written(), commitment->place->TakeWritten());
        absl::Status status = contents.status();
        if (status.ok()) status = slots->Sync();
        if (!status.ok()) {
          self->Fail(status);
          commitment->place.reset();
          self->parts_.executor->Post([self, commitment] { commitment->done(self->CheckWorking()); });
          return;
        }
        StoredSlot* const slot = ElementsOf(&commitment->record)->mutable_slot();
        slot->set_file(where.file);
        slot->set_slot(where.slot);
        slot->set_bytes(contents->bytes);
        slot->set_slot_bytes(slots->slot_bytes());
        slot->mutable_checksums()->Add(contents->checksums.begin(), contents->checksums.end());
        commitment->place->Keep();
        self->CommitChange(std::move(commitment->place), std::move(commitment->record), where,
                           std::move(commitment->done));
      });
    });
  }

  // Puts down a change, or what else is to be there when the set comes back.
  void CommitChange(std::shared_ptr<Place> room, StoredRecord record, std::optional<ElementPlace> place,
                    core::Then<absl::Status> done, int64_t tensors = 0) {
    if (absl::Status status = CheckWorking(); !status.ok()) {
      if (place.has_value()) GiveBack(*place);
      room.reset();
      done(std::move(status));
      return;
    }
    KeptRecord kept = {.number = 0,
                       .incarnation = record.incarnation(),
                       .step = record.step(),
                       .kind = record.kind_case(),
                       .place = place,
                       .tensors = tensors};
    if (record.has_configuration()) {
      kept.configuration = std::make_shared<const v1::ParameterSet>(record.configuration().set());
    }
    auto number = std::make_shared<int64_t>(0);
    parts_.commits->Commit(
        [self = shared_from_this(), number, record = std::move(record)](Catalog* catalog) {
          absl::StatusOr<int64_t> next = catalog->NextNumber(self->number_);
          if (!next.ok()) return next.status();
          // Of configurations with nothing between them only the last is of account: else a client that does nothing
          // but change it would fill the catalog.
          const bool replaces = record.has_configuration() && self->EndsWithConfiguration(*next - 1);
          *number = replaces ? *next - 1 : *next;
          return replaces ? catalog->ReplaceRecord(self->number_, *number, record)
                          : catalog->AddRecord(self->number_, *number, record);
        },
        [self = shared_from_this(), number, kept = std::move(kept), room = std::move(room),
         done = std::move(done)](absl::Status status) mutable {
          if (status.ok()) {
            kept.number = *number;
            core::MutexLock lock(&self->mutex_);
            self->changes_ += IsChange(kept.kind);
            const auto behind =
                absl::c_find_if(self->kept_, [&kept](const KeptRecord& other) { return other.number >= kept.number; });
            if (behind != self->kept_.end() && behind->number == kept.number) {
              *behind = std::move(kept);
            } else {
              self->kept_.insert(behind, std::move(kept));
            }
          } else if (kept.place.has_value()) {
            self->GiveBack(*kept.place);
          }
          room.reset();
          done(std::move(status));
        });
  }

  // Whether the last record, if it is of this number, is a configuration.
  bool EndsWithConfiguration(int64_t number) const {
    core::MutexLock lock(&mutex_);
    return !kept_.empty() && kept_.back().number == number && kept_.back().kind == StoredRecord::kConfiguration;
  }

  void CommitGrowth(const core::GrowthRecord& growth, std::shared_ptr<const core::Schema> schema,
                    core::Then<absl::Status> done) {
    // The file that larger elements go to has to be there first.
    parts_.io->Post([self = shared_from_this(), growth, schema = std::move(schema), done = std::move(done)]() mutable {
      const absl::Status status = self->keeps_steps() ? self->MakeFile(*schema) : absl::OkStatus();
      if (!status.ok()) {
        self->parts_.executor->Post(
            [status = self->AsOutcome(status), done = std::move(done)]() mutable { done(std::move(status)); });
        return;
      }
      StoredRecord record;
      record.set_incarnation(growth.incarnation);
      *record.mutable_grown()->mutable_request() = growth.request;
      self->CommitChange(
          nullptr, std::move(record), std::nullopt,
          [self, growth, schema, done = std::move(done)](absl::Status status) mutable {
            if (status.ok()) {
              core::MutexLock lock(&self->mutex_);
              self->spec_.mutable_tensors()->MergeFrom(growth.request.tensors());
              self->spec_.mutable_groups()->MergeFrom(growth.request.groups());
              self->schema_ = std::move(schema);
              self->write_.Clear();
            }
            done(std::move(status));
          },
          static_cast<int64_t>(schema->tensors().size()));
    });
  }

  void NoteWrite(const v1::WriteHeader& header) {
    core::MutexLock lock(&mutex_);
    write_ = header;
  }

  bool WantsCheckpoint(uint64_t incarnation, int64_t step) const {
    core::MutexLock lock(&mutex_);
    if (checkpointing_) return false;
    if (keeps_steps()) return 2 * changes_ >= MostChanges();
    const bool is_same = incarnation == base_.incarnation();
    if (is_same && step == base_.step()) return false;
    const v1::Checkpoints& terms = durability_.checkpoints();
    if (!is_same || !has_checkpoint()) return true;
    if (terms.has_steps() && step - base_.step() >= terms.steps()) return true;
    return terms.has_seconds() && absl::ToUnixNanos(absl::Now()) - base_.base().checkpoint_time_ns() >=
                                      static_cast<int64_t>(terms.seconds() * 1e9);
  }

  uint64_t generation() const {
    core::MutexLock lock(&mutex_);
    return generation_;
  }

  void Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
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
      if (has_checkpoint() && base_.incarnation() == base.info.incarnation && base_.step() == base.info.step &&
          !base_.base().uninitialized()) {
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
    parts_.checkpoints->Post([self = shared_from_this(), base = std::move(base), state = std::move(state), generation,
                              done = std::move(done)]() mutable {
      const absl::StatusOr<std::string> written =
          self->WriteBase(base, [&state](v1::Slot slot, int64_t begin, int64_t end,
                                         absl::FunctionRef<void(const float* elements, int64_t count)> visit) {
            state->Visit(slot, begin, end, visit);
          });
      // Before the commit: others may want the memory.
      state.reset();
      self->CommitWritten(
          std::move(base), generation, written, [self, done = std::move(done)](absl::Status status) mutable {
            std::vector<core::Then<absl::Status>> waiting;
            {
              core::MutexLock lock(&self->mutex_);
              self->checkpointing_ = false;
              waiting.swap(self->waiting_);
            }
            if (!status.ok()) {
              self->parts_.warn(absl::StrCat("checkpoint of ", Quoted(self->name_), ": ", status.ToString()));
            }
            done(Unshared(status));
            for (core::Then<absl::Status>& one : waiting) one(Unshared(status));
          });
    });
  }

  void CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                  absl::Span<const core::BlockList> slots, const v1::ParameterSet& set, core::Then<absl::Status> done) {
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
      base.schema = schema_;
      // What is under way is of a state that this takes the place of.
      generation = ++generation_;
    }
    std::vector<v1::ParameterGroup> groups(set.groups().begin(), set.groups().end());
    base.slots = core::OptimizerSlots(groups);
    base.slots.insert(base.slots.begin(), v1::SLOT_PARAMETER);
    parts_.checkpoints->Post([self = shared_from_this(), base = std::move(base), parameters = &parameters, slots,
                              generation, done = std::move(done)]() mutable {
      const absl::StatusOr<std::string> written =
          self->WriteBase(base, [&](v1::Slot slot, int64_t begin, int64_t end,
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

  void AwaitCheckpoint(core::Then<absl::Status> done) {
    {
      core::MutexLock lock(&mutex_);
      if (checkpointing_) {
        waiting_.push_back(std::move(done));
        return;
      }
    }
    done(absl::OkStatus());
  }

  void Finish(const std::vector<core::RememberedStep>& remembered, core::Then<absl::Status> done) {
    StoredRecord record;
    {
      core::MutexLock lock(&mutex_);
      record = base_;
    }
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
    CommitChange(nullptr, std::move(record), std::nullopt, std::move(done));
  }
  // The base that the set came back from is not what it is any more, from here on.
  void MarkChanging(core::Then<absl::Status> done) {
    StoredRecord record;
    {
      core::MutexLock lock(&mutex_);
      record = base_;
      base_.mutable_base()->set_final(false);
    }
    record.mutable_base()->set_final(false);
    CommitChange(nullptr, std::move(record), std::nullopt, std::move(done));
  }

  void CommitDelete(core::Then<absl::Status> done) {
    {
      core::MutexLock lock(&mutex_);
      // A checkpoint that is under way comes to nothing: its record would be of no set.
      ++generation_;
    }
    parts_.commits->Commit([set = number_](Catalog* catalog) { return catalog->RemoveSet(set); },
                           [self = shared_from_this(), done = std::move(done)](absl::Status status) mutable {
                             if (status.ok()) {
                               core::MutexLock lock(&self->mutex_);
                               self->deleted_ = true;
                             }
                             done(std::move(status));
                           });
  }

  std::optional<int64_t> DurableStep(uint64_t incarnation, int64_t step) const {
    if (keeps_steps()) return step;
    core::MutexLock lock(&mutex_);
    if (!has_checkpoint() || base_.incarnation() != incarnation) return std::nullopt;
    return base_.step();
  }

  void Describe(v1::ParameterSet* set) const {
    *set->mutable_durability() = durability_;
    core::MutexLock lock(&mutex_);
    if (has_checkpoint()) *set->mutable_last_checkpoint() = DescribeCheckpoint(base_);
    if (restored_from_.has_value()) *set->mutable_restored_from() = *restored_from_;
  }
  void NoteRollback(int64_t number, const StoredRecord& record) {
    core::MutexLock lock(&mutex_);
    if (record.rolled_back().has_restored_from()) restored_from_ = record.rolled_back().restored_from();
    kept_.push_back(
        {.number = number, .incarnation = record.incarnation(), .step = record.step(), .kind = record.kind_case()});
    write_.Clear();
  }

  // What journals say of such an outcome: unless it says that nothing was put down, nobody knows what was.
  absl::Status AsOutcome(const absl::Status& status) {
    if (status.ok() || absl::IsResourceExhausted(status) || absl::IsAborted(status) || absl::IsCancelled(status)) {
      return Unshared(status);
    }
    Fail(status);
    return CheckWorking();
  }

  // For a set that the catalog does not know.
  void DeleteFiles() {
    core::MutexLock lock(&mutex_);
    deleted_ = true;
  }

  ~DurableSetRep() {
    // The last one that referred to a set that was deleted: its files, and no record, are there.
    bool deleted;
    {
      core::MutexLock lock(&mutex_);
      deleted = deleted_;
      files_.clear();
    }
    if (!deleted) return;
    if (absl::Status status = parts_.file_system->RemoveAll(directory_); !status.ok()) {
      parts_.warn(absl::StrCat("files of a deleted set, ", directory_, ": ", status.ToString()));
    }
  }

 private:
  static bool IsChange(StoredRecord::KindCase kind) {
    return kind == StoredRecord::kCommitted || kind == StoredRecord::kWritten;
  }
  static bool HasSlots(int64_t flat_size) { return flat_size * static_cast<int64_t>(sizeof(float)) > kInlineBytes; }
  bool has_checkpoint() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !base_.base().checkpoint().empty(); }

  // Makes the file that elements of a set of this schema go to, if they go to one. May take long: it is written whole,
  // without the mutex, which those take who describe the set. One call at a time.
  absl::Status MakeFile(const core::Schema& schema) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (!HasSlots(schema.flat_size())) return absl::OkStatus();
    int32_t number;
    {
      core::MutexLock lock(&mutex_);
      number = last_file_ + 1;
    }
    const int64_t slot_bytes = SectorBytesOf(schema.flat_size());
    absl::StatusOr<std::unique_ptr<GradientSlots>> made =
        GradientSlots::Create(parts_.file_system, ElementsPath(directory_, number, slot_bytes),
                              durability_.every_step().journal_steps(), slot_bytes);
    if (!made.ok()) return made.status();
    core::MutexLock lock(&mutex_);
    last_file_ = number;
    files_[number] = *std::move(made);
    return absl::OkStatus();
  }

  void LeaveRoom(const std::optional<ElementPlace>& place, bool is_ahead) {
    core::MutexLock lock(&mutex_);
    --changes_;
    if (is_ahead) --ahead_;
    if (place.has_value()) files_[place->file]->Free(place->slot);
  }
  void GiveBack(const ElementPlace& place) {
    core::MutexLock lock(&mutex_);
    files_[place.file]->Free(place.slot);
  }

  static absl::Status HasNewerBase() { return absl::AbortedError("there is another base since the state was read"); }

  void Fail(const absl::Status& status) { parts_.fail(status); }
  absl::Status CheckWorking() const { return parts_.check(); }

  // Writes a checkpoint, whose name it returns; on the thread that does that.
  absl::StatusOr<std::string> WriteBase(const NewBase& base, ElementSource elements) {
    std::string name = checkpoints_->NewName(base.info.step, base.info.incarnation);
    absl::Status status = CheckWorking();
    if (status.ok()) {
      status = WriteCheckpoint(parts_.file_system, checkpoints_->PathOf(name), base.info, *base.schema, base.slots,
                               elements, parts_.pace);
    }
    if (!status.ok()) return status;
    return name;
  }

  // Makes a checkpoint that was written, if it was, the set's base.
  void CommitWritten(NewBase base, uint64_t generation, const absl::StatusOr<std::string>& written,
                     core::Then<absl::Status> done) {
    if (!written.ok()) {
      parts_.executor->Post(
          [status = AsOutcome(written.status()), done = std::move(done)]() mutable { done(std::move(status)); });
      return;
    }
    const std::string& name = *written;
    const std::string path = checkpoints_->PathOf(name);
    int64_t bytes = 0;
    if (absl::StatusOr<class Checkpoint> made = store::Checkpoint::Open(parts_.file_system, path); made.ok()) {
      bytes = made->bytes();
    }
    struct Outcome {
      int64_t number = 0;
      StoredRecord record;
      int64_t first = 0;  // of the records that are kept
    };
    auto outcome = std::make_shared<Outcome>();
    parts_.commits->Commit(
        [self = shared_from_this(), base, name, bytes, generation, outcome](Catalog* catalog) -> absl::Status {
          {
            core::MutexLock lock(&self->mutex_);
            // Nothing comes between a write and its turn's end.
            if (!base.write.has_value() && self->generation_ != generation) return HasNewerBase();
            outcome->record = self->MakeBase(base, name, bytes, &outcome->first);
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
        [self = shared_from_this(), base, path, outcome, done = std::move(done)](absl::Status status) mutable {
          self->BaseCommitted(base, path, outcome->number, outcome->record, outcome->first, status);
          done(std::move(status));
        });
  }

  // The record of a new base, and the first one of those that are to be kept then.
  StoredRecord MakeBase(const NewBase& base, const std::string& name, int64_t bytes, int64_t* first)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    int64_t covers = base_.base().covers();
    for (const KeptRecord& kept : kept_) {
      const bool is_part =
          (IsChange(kept.kind) && kept.incarnation == base.info.incarnation && kept.step == base.info.step) ||
          (kept.kind == StoredRecord::kGrown && kept.tensors <= static_cast<int64_t>(base.schema->tensors().size()));
      if (is_part) covers = std::max(covers, kept.number);
    }
    // Steps that are remembered still.
    *first = covers + 1;
    int64_t remembered = 0;
    for (auto kept = kept_.rbegin(); kept != kept_.rend() && remembered < core::kRememberedSteps; ++kept) {
      if (kept->number > covers || kept->kind != StoredRecord::kCommitted) continue;
      if (kept->incarnation != base.info.incarnation) break;
      *first = kept->number;
      ++remembered;
    }
    StoredRecord record;
    record.set_incarnation(base.info.incarnation);
    record.set_step(base.info.step);
    StoredBase* const stored = record.mutable_base();
    *stored->mutable_configuration() = base_.base().configuration();
    for (const KeptRecord& kept : kept_) {
      if (kept.configuration == nullptr || (kept.number >= *first && !base.write.has_value())) continue;
      *stored->mutable_configuration()->mutable_set() = *kept.configuration;
    }
    *stored->mutable_spec() = spec_;
    stored->mutable_spec()->clear_tensors();
    for (size_t i = 0; i < base.schema->tensors().size(); ++i) {
      *stored->mutable_spec()->add_tensors() = spec_.tensors(static_cast<int>(i));
    }
    *stored->mutable_spec()->mutable_groups() = stored->configuration().set().groups();
    stored->set_checkpoint(name);
    stored->set_checkpoint_time_ns(absl::ToUnixNanos(base.info.create_time));
    stored->set_checkpoint_bytes(bytes);
    stored->set_covers(covers);
    *stored->mutable_write() = base.write.has_value() ? *base.write : write_;
    stored->mutable_update_counts()->Add(base.info.update_counts.begin(), base.info.update_counts.end());
    stored->set_round(base.info.description.round());
    *stored->mutable_statistics() = base.info.description.statistics();
    return record;
  }

  void BaseCommitted(const NewBase& base, const std::string& path, int64_t number, const StoredRecord& record,
                     int64_t first, const absl::Status& status) {
    std::vector<std::string> old_files;
    bool needs_file = false;
    std::string base_name;
    {
      core::MutexLock lock(&mutex_);
      // It is told of in any order, and of a later one first, perhaps.
      if (status.ok() && number > base_number_) {
        needs_file = keeps_steps() && files_.empty();
        base_ = record;
        base_number_ = number;
        ++generation_;
        if (base.write.has_value()) write_ = *base.write;
        for (KeptRecord& kept : kept_) {
          if (kept.number > record.base().covers() || !kept.is_replayed) continue;
          kept.is_replayed = false;
          changes_ -= IsChange(kept.kind);
          if (kept.place.has_value()) {
            files_[kept.place->file]->Free(kept.place->slot);
            kept.place.reset();
          }
        }
        while (!kept_.empty() && kept_.front().number < first) kept_.pop_front();
        for (auto file = files_.begin(); file != files_.end();) {
          if (file->first != last_file_ && file->second->free_slots() == file->second->slots()) {
            old_files.push_back(ElementsPath(directory_, file->first, file->second->slot_bytes()));
            file = files_.erase(file);
          } else {
            ++file;
          }
        }
      }
      base_name = base_.base().checkpoint();
    }
    if (!status.ok()) {
      // Nothing refers to it, and nothing else was it meant for; unless it is not known what is on disk.
      if (GetErrorDetail(status).reason() != v1::ERROR_REASON_STORE_FAILED) {
        parts_.file_system->RemoveAll(path).IgnoreError();
      }
      return;
    }
    absl::Status kept = checkpoints_->Add(record.base().checkpoint());
    if (kept.ok()) kept = checkpoints_->RemoveOld(base_name);
    if (!kept.ok()) parts_.warn(absl::StrCat("old checkpoints of ", Quoted(name_), ": ", kept.ToString()));
    for (const std::string& one : old_files) parts_.file_system->Remove(one).IgnoreError();
    // Of a set that was damaged, and is whole again. Without one its elements go to the catalog.
    if (needs_file) MakeFile(*base.schema).IgnoreError();
  }

  const StoreParts parts_;
  int64_t number_ = 0;  // constant once it is in the catalog
  const std::string name_;
  const v1::Durability durability_;
  const std::string directory_;
  std::unique_ptr<CheckpointKeeper> checkpoints_;  // constant once it is open

  mutable core::Mutex mutex_;
  bool deleted_ ABSL_GUARDED_BY(mutex_) = false;
  // As the set is now.
  v1::ParameterSetSpec spec_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const core::Schema> schema_ ABSL_GUARDED_BY(mutex_);
  v1::WriteHeader write_ ABSL_GUARDED_BY(mutex_);
  StoredRecord base_ ABSL_GUARDED_BY(mutex_);
  int64_t base_number_ ABSL_GUARDED_BY(mutex_) = 0;  // of its record, if it was made here
  std::optional<v1::Checkpoint> restored_from_ ABSL_GUARDED_BY(mutex_);
  // By number. Those behind the base are all there.
  std::deque<KeptRecord> kept_ ABSL_GUARDED_BY(mutex_);
  // Steps and writes in `kept_` that have their elements still, and rooms that are taken.
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t ahead_ ABSL_GUARDED_BY(mutex_) = 0;  // of these rooms: for steps that are yet to arrive
  std::map<int32_t, std::unique_ptr<GradientSlots>> files_ ABSL_GUARDED_BY(mutex_);
  int32_t last_file_ ABSL_GUARDED_BY(mutex_) = 0;
  bool checkpointing_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<core::Then<absl::Status>> waiting_ ABSL_GUARDED_BY(mutex_);
  // Advanced by each base, and by a write that is going to make one: what was read before may be of a state before it.
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 1;
};

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
  auto rep = std::make_shared<DurableSetRep>(parts, stored, base, std::move(schema));

  absl::Status status = parts.file_system->MakeDirectory(rep->directory());
  if (status.ok()) status = rep->OpenFiles(/*make=*/true);
  if (status.ok()) status = rep->OpenCheckpoints();
  if (status.ok()) status = parts.file_system->SyncDirectory(rep->directory());
  if (status.ok()) status = parts.file_system->SyncDirectory(absl::StrCat(parts.directory, "/sets"));
  if (status.ok()) {
    core::Notification committed;
    int64_t number = 0;
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
    rep->SetNumber(number);
  }
  if (!status.ok()) {
    status = rep->AsOutcome(status);
    // The catalog knows of it, perhaps, where nobody knows what that has.
    if (absl::IsResourceExhausted(status)) rep->DeleteFiles();
    return status;
  }
  return std::unique_ptr<DurableSet>(new DurableSet(std::move(rep)));
}

absl::StatusOr<std::unique_ptr<DurableSet>> DurableSet::Open(const StoreParts& parts, int64_t number,
                                                             const StoredSet& stored, const StoredRecord& base,
                                                             std::vector<KeptRecord> records,
                                                             std::shared_ptr<const core::Schema> schema,
                                                             const v1::WriteHeader& write,
                                                             const v1::ParameterSetSpec& spec, bool damaged) {
  auto rep = std::make_shared<DurableSetRep>(parts, stored, base, std::move(schema));
  rep->SetNumber(number);
  rep->Keep(std::move(records), write, spec);
  if (absl::Status status = rep->OpenCheckpoints(); !status.ok()) return status;
  if (!damaged) {
    if (absl::Status status = rep->OpenFiles(/*make=*/false); !status.ok()) return status;
  }
  return std::unique_ptr<DurableSet>(new DurableSet(std::move(rep)));
}

DurableSet::~DurableSet() = default;

absl::Status DurableSet::ReadElements(const StoreParts& parts, const StoredSet& stored, int32_t slots,
                                      const StoredElements& elements, const core::BroughtElements& to) {
  ElementPieces pieces = ElementPieces::ToRead(to);
  if (elements.has_here()) {
    if (!pieces.Split(elements.here())) return Damaged("a record has other elements than its header says");
  } else {
    SlotContents contents = {.slot = elements.slot().slot(), .bytes = elements.slot().bytes(), .checksums = {}};
    contents.checksums.assign(elements.slot().checksums().begin(), elements.slot().checksums().end());
    if (contents.bytes != pieces.sector_bytes()) return Damaged("a record has other elements than its header says");
    const std::string path =
        ElementsPath(SetDirectory(parts, stored), elements.slot().file(), elements.slot().slot_bytes());
    absl::StatusOr<std::unique_ptr<GradientSlots>> file = GradientSlots::Open(
        parts.file_system, path, slots, elements.slot().slot_bytes(), absl::MakeConstSpan(&contents.slot, 1));
    if (!file.ok()) return file.status();
    if (absl::Status status = (*file)->Read(contents, pieces.read()); !status.ok()) return status;
  }
  pieces.Scatter();
  return absl::OkStatus();
}

bool DurableSet::keeps_steps() const { return rep_->keeps_steps(); }
std::unique_ptr<core::SetJournal::Room> DurableSet::TakeRoom() { return rep_->TakeRoom(/*ahead=*/false); }
std::unique_ptr<core::SetJournal::Room> DurableSet::TakeRoomAhead() { return rep_->TakeRoom(/*ahead=*/true); }
void DurableSet::AwaitCheckpoint(core::Then<absl::Status> done) { rep_->AwaitCheckpoint(std::move(done)); }

void DurableSet::CommitStep(std::unique_ptr<Room> room, const core::StepRecord& record,
                            const core::BroughtElements& gradient, core::Then<absl::Status> done) {
  StoredRecord stored;
  stored.set_incarnation(record.result.incarnation());
  stored.set_step(record.result.step());
  StoredStep* const step = stored.mutable_committed();
  step->mutable_headers()->Add(record.headers.begin(), record.headers.end());
  if (record.divisor.has_value()) step->set_divisor(*record.divisor);
  *step->mutable_result() = record.result;
  if (gradient.rows != nullptr) {
    for (const core::RowWork::Tensor& tensor : gradient.rows->tensors) {
      step->add_row_counts(static_cast<int64_t>(tensor.end - tensor.first));
    }
    for (const core::RowWork::Row& row : gradient.rows->rows) step->add_row_indices(row.index);
  }
  rep_->CommitElements(std::move(room), std::move(stored), ElementPieces::ToWrite(gradient), std::move(done));
}

void DurableSet::CommitWrite(std::unique_ptr<Room> room, const core::WriteRecord& record,
                             const core::BroughtElements& parameters, core::Then<absl::Status> done) {
  StoredRecord stored;
  stored.set_incarnation(record.incarnation);
  stored.set_step(record.step);
  *stored.mutable_written()->mutable_header() = record.header;
  rep_->CommitElements(std::move(room), std::move(stored), ElementPieces::ToWrite(parameters),
                       [rep = rep_, header = record.header, done = std::move(done)](absl::Status status) mutable {
                         if (status.ok()) rep->NoteWrite(header);
                         done(std::move(status));
                       });
}

void DurableSet::CommitConfiguration(const v1::ParameterSet& set, core::Then<absl::Status> done) {
  StoredRecord stored;
  stored.set_incarnation(set.incarnation());
  stored.set_step(set.step());
  *stored.mutable_configuration()->mutable_set() = set;
  rep_->CommitChange(nullptr, std::move(stored), std::nullopt, std::move(done));
}

void DurableSet::CommitGrowth(const core::GrowthRecord& record, std::shared_ptr<const core::Schema> schema,
                              core::Then<absl::Status> done) {
  rep_->CommitGrowth(record, std::move(schema), std::move(done));
}

void DurableSet::CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                            absl::Span<const core::BlockList> slots, const v1::ParameterSet& set,
                            core::Then<absl::Status> done) {
  rep_->CommitBase(record, parameters, slots, set, std::move(done));
}

void DurableSet::CommitDelete(core::Then<absl::Status> done) { rep_->CommitDelete(std::move(done)); }

uint64_t DurableSet::generation() const { return rep_->generation(); }

bool DurableSet::WantsCheckpoint(uint64_t incarnation, int64_t step) const {
  return rep_->WantsCheckpoint(incarnation, step);
}

void DurableSet::Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
                            core::Then<absl::Status> done) {
  rep_->Checkpoint(std::move(state), set, generation, std::move(done));
}

std::optional<int64_t> DurableSet::DurableStep(uint64_t incarnation, int64_t step) const {
  return rep_->DurableStep(incarnation, step);
}

void DurableSet::Describe(v1::ParameterSet* set) const { rep_->Describe(set); }
std::vector<v1::Checkpoint> DurableSet::ListCheckpoints() const { return rep_->ListCheckpoints(); }
absl::StatusOr<std::unique_ptr<core::StoredState>> DurableSet::OpenCheckpoint(uint64_t incarnation, int64_t step) {
  return rep_->OpenCheckpoint(incarnation, step);
}
void DurableSet::Finish(const std::vector<core::RememberedStep>& remembered, core::Then<absl::Status> done) {
  rep_->Finish(remembered, std::move(done));
}
void DurableSet::NoteWrite(const v1::WriteHeader& header) { rep_->NoteWrite(header); }
void DurableSet::MarkChanging(core::Then<absl::Status> done) { rep_->MarkChanging(std::move(done)); }
void DurableSet::NoteRollback(int64_t number, const StoredRecord& record) { rep_->NoteRollback(number, record); }

}  // namespace adamant::store
