#include "server/store/store.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/base/notification.h"
#include "server/core/restoration.h"
#include "server/core/set/requests.h"
#include "server/core/spec/configuration.h"
#include "server/store/durable_set.h"
#include "server/store/errors.h"
#include "server/store/set_folder.h"
#include "server/store/set_replay.h"

namespace adamant::store {
namespace {

constexpr int kDefaultJournalSteps = 16;
constexpr int kMaxJournalSteps = 1024;
constexpr int64_t kMaxCheckpointSteps = int64_t{1} << 53;
constexpr double kMaxCheckpointSeconds = 604800;

// Whether a directory has folders of sets, and neither catalog nor fence that has promised any.
absl::StatusOr<bool> HasSetsOnly(FileSystem* file_system, const std::string& directory) {
  const absl::StatusOr<bool> promised = Catalog::HasPromised(file_system, directory);
  if (!promised.ok()) return promised.status();
  if (*promised) return false;
  const absl::StatusOr<std::vector<std::string>> sets = file_system->List(absl::StrCat(directory, "/sets"));
  if (!sets.ok()) return sets.status();
  return !sets->empty();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Open(FileSystem* file_system, StoreOptions options) {
  absl::Status status = file_system->MakeDirectory(options.directory);
  if (status.ok()) status = file_system->MakeDirectory(absl::StrCat(options.directory, "/sets"));
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<FileSystem::Lock>> lock =
      file_system->TakeLock(absl::StrCat(options.directory, "/LOCK"));
  if (!lock.ok()) return lock.status();
  const absl::StatusOr<bool> lost_catalog = HasSetsOnly(file_system, options.directory);
  if (!lost_catalog.ok()) return lost_catalog.status();
  if (*lost_catalog && !options.accept_data_loss) {
    return Damaged(absl::StrCat(options.directory, " has lost its catalog and fence: there are folders of sets in ",
                                options.directory, "/sets"));
  }
  absl::StatusOr<std::unique_ptr<Catalog>> catalog =
      Catalog::Open(file_system, options.directory, options.accept_data_loss, options.sqlite_vfs);
  if (!catalog.ok()) return catalog.status();
  // Names that a start before this one has made, and did not come to sync.
  status = file_system->SyncDirectory(options.directory);
  if (status.ok()) status = file_system->SyncDirectory(ParentDirectory(options.directory));
  if (!status.ok()) return status;
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Store> store(new Store(file_system, std::move(options), *std::move(lock), *std::move(catalog)));
  store->lost_data_ = *lost_catalog;
  return store;
}

Store::Store(FileSystem* file_system, StoreOptions options, std::unique_ptr<FileSystem::Lock> lock,
             std::unique_ptr<Catalog> catalog)
    : file_system_(file_system),
      options_(std::move(options)),
      lock_(std::move(lock)),
      restored_catalog_(std::move(catalog)),
      own_clock_(options_.clock == nullptr ? core::NewSteadyClock() : nullptr),
      clock_(options_.clock == nullptr ? own_clock_.get() : options_.clock),
      executor_(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U))),
      io_(2),
      small_checkpoints_(1),
      large_checkpoints_(1) {
  if (options_.checkpoint_bytes_per_second > 0) {
    rate_limit_ = std::make_unique<RateLimit>(clock_, static_cast<double>(options_.checkpoint_bytes_per_second));
  }
  parts_ = {.file_system = file_system_,
            .directory = options_.directory,
            .commits = nullptr,
            .io = &io_,
            .small_checkpoints = &small_checkpoints_,
            .large_checkpoints = &large_checkpoints_,
            .executor = &executor_,
            .clock = clock_,
            .pace = [this](int64_t bytes) -> absl::Status {
              if (is_ending_) return absl::CancelledError("the server ends");
              return rate_limit_ != nullptr ? rate_limit_->Wait(bytes) : absl::OkStatus();
            },
            .warn = options_.warn,
            .fail =
                [this](const absl::Status& status) {
                  core::MutexLock lock(&mutex_);
                  if (!failed_.ok()) return;
                  failed_ = StoreFailed(status.message());
                  options_.warn(absl::StrCat("durable sets do not change until a restart: ", status.message()));
                },
            .check = [this] { return CheckWorking(); },
            .check_room = [this] { return reserve_->Check(); }};
}

Store::~Store() { EndCheckpoints(); }

absl::StatusOr<v1::Durability> Store::Resolve(const v1::Durability* durability, absl::string_view field) const {
  v1::Durability resolved = durability != nullptr ? *durability : options_.default_durability;
  switch (resolved.level_case()) {
    case v1::Durability::LEVEL_NOT_SET:
      if (durability != nullptr) {
        return InvalidField(field, "one of nothing, checkpoints and every_step", "none");
      }
      resolved.mutable_nothing();
      break;
    case v1::Durability::kNothing:
      break;
    case v1::Durability::kCheckpoints: {
      const v1::Checkpoints& terms = resolved.checkpoints();
      if (!terms.has_steps() && !terms.has_seconds()) {
        return InvalidField(absl::StrCat(field, ".checkpoints"), "steps, seconds, or both", "none");
      }
      if (terms.has_steps() && (terms.steps() < 1 || terms.steps() > kMaxCheckpointSteps)) {
        return InvalidField(absl::StrCat(field, ".checkpoints.steps"), absl::StrCat("[1, ", kMaxCheckpointSteps, "]"),
                            absl::StrCat(terms.steps()));
      }
      if (terms.has_seconds() && !(terms.seconds() >= 1 && terms.seconds() <= kMaxCheckpointSeconds)) {
        return InvalidField(absl::StrCat(field, ".checkpoints.seconds"),
                            absl::StrCat("[1, ", kMaxCheckpointSeconds, "]"), Spelled(terms.seconds()));
      }
      break;
    }
    case v1::Durability::kEveryStep: {
      const int32_t steps = resolved.every_step().journal_steps();
      if (steps != 0 && (steps < 2 || steps > kMaxJournalSteps)) {
        return InvalidField(absl::StrCat(field, ".every_step.journal_steps"),
                            absl::StrCat("[2, ", kMaxJournalSteps, "]"), absl::StrCat(steps));
      }
      if (steps == 0) resolved.mutable_every_step()->set_journal_steps(kDefaultJournalSteps);
      break;
    }
  }
  return resolved;
}

absl::StatusOr<std::unique_ptr<core::SetJournal>> Store::CreateSet(const v1::ParameterSetSpec& spec,
                                                                   std::shared_ptr<const core::Schema> schema,
                                                                   const v1::ParameterSet& set) {
  absl::Status status = CheckWorking();
  if (status.ok()) status = reserve_->Check();
  if (!status.ok()) return status;
  return DurableSet::Create(parts_, spec, std::move(schema), set);
}

absl::Status Store::CheckWorking() const {
  if (commits_ != nullptr) {
    if (absl::Status status = commits_->CheckWorking(); !status.ok()) return status;
  }
  core::MutexLock lock(&mutex_);
  return Unshared(failed_);
}

absl::StatusOr<std::vector<Store::Found>> Store::FindSets() {
  std::vector<Found> sets;
  absl::Status status =
      restored_catalog_->ForEachSet([&](int64_t number, absl::StatusOr<StoredSet> stored) -> absl::Status {
        sets.push_back({number, std::move(stored), absl::OkStatus(), {}});
        return absl::OkStatus();
      });
  for (Found& found : sets) {
    if (!status.ok()) return status;
    status = restored_catalog_->ForEachRecord(found.number,
                                              [&](int64_t number, absl::StatusOr<StoredRecord> record) -> absl::Status {
                                                if (record.ok()) {
                                                  found.records.emplace_back(number, *std::move(record));
                                                } else if (found.status.ok()) {
                                                  found.status = record.status();
                                                }
                                                return absl::OkStatus();
                                              });
  }
  if (!status.ok()) return status;
  return sets;
}

absl::Status Store::Replay(const core::Resources& resources, ReportReplay report) {
  absl::StatusOr<std::vector<Found>> sets = FindSets();
  if (!sets.ok()) return sets.status();
  for (const Found& found : *sets) {
    if (!found.stored.ok()) return found.stored.status();
    SetReplay replay = {.set = found.stored->spec().name(), .status = found.status};
    if (replay.status.ok()) {
      const absl::StatusOr<ReplayedSet> set =
          ReplaySet(parts_, *found.stored, found.records, resources,
                    [&](const ReplayedStep& step) { replay.steps.push_back(step); });
      replay.status = set.status();
      if (set.ok()) {
        replay.base_step = set->base.step();
        replay.now = set->restoration->Describe();
        replay.last_digest = set->restoration->last_digest();
      }
    }
    report(replay);
  }
  return absl::OkStatus();
}

absl::Status Store::Restore(core::Registry* registry) {
  absl::StatusOr<std::vector<Found>> sets = FindSets();
  if (!sets.ok()) return sets.status();
  absl::Status status;
  lost_data_ = lost_data_ || restored_catalog_->lost_data();
  if (lost_data_) options_.warn("the catalog has less than it had: every set comes back as another incarnation");
  reserve_ = std::make_unique<Reserve>(file_system_, absl::StrCat(options_.directory, "/reserve"),
                                       options_.reserve_bytes, &io_);
  commits_ =
      std::make_unique<CommitThread>(std::move(restored_catalog_), &executor_, [this] { return reserve_->Release(); });
  parts_.commits = commits_.get();

  std::set<std::string> folders;
  for (Found& found : *sets) {
    if (!found.stored.ok()) {
      const std::string message = absl::StrCat("a set, number ", found.number, ": ", found.stored.status().message());
      if (!options_.accept_data_loss) return absl::Status(found.stored.status().code(), message);
      options_.warn(absl::StrCat(message, "; it is left out"));
      left_out_.push_back(found.number);
      continue;
    }
    folders.insert(found.stored->folder());
    const std::string name = Quoted(found.stored->spec().name());
    status = found.status;
    if (status.ok()) status = RestoreSet(found.number, *found.stored, found.records, registry);
    if (status.code() == absl::StatusCode::kDataLoss) {
      options_.warn(absl::StrCat("set ", name,
                                 " is POISONED, and awaits a full write, or RestoreCheckpoint: ", status.message()));
      status = RestoreDamaged(found.number, *found.stored, found.records, registry);
    }
    if (!status.ok()) return absl::Status(status.code(), absl::StrCat("set ", name, ": ", status.message()));
  }
  return ClearUnknown(folders);
}

absl::Status Store::BeginChanges() {
  // Whatever told of a loss says so until then.
  if (first_records_.empty() && left_out_.empty() && !lost_data_) return absl::OkStatus();
  absl::Status status;
  core::Notification committed;
  commits_->Commit(
      [this](Catalog* catalog) {
        for (const int64_t set : left_out_) {
          if (absl::Status removed = catalog->RemoveSet(set); !removed.ok()) return removed;
        }
        for (FirstRecord& first : first_records_) {
          absl::StatusOr<int64_t> next = catalog->NextNumber(first.set);
          if (!next.ok()) return next.status();
          first.number = *next;
          if (absl::Status added = catalog->AddRecord(first.set, *next, first.record); !added.ok()) return added;
        }
        return absl::OkStatus();
      },
      [&](const absl::Status& outcome) {
        status = Unshared(outcome);
        committed.Notify();
      });
  committed.WaitForNotification();
  if (!status.ok()) return status;
  for (const FirstRecord& first : first_records_) first.journal->NoteFirstRecord(first.number, first.record);
  first_records_.clear();
  return absl::OkStatus();
}

absl::Status Store::ClearUnknown(const std::set<std::string>& known) {
  const std::string sets = absl::StrCat(options_.directory, "/sets");
  const std::string lost = absl::StrCat(options_.directory, "/lost");
  absl::StatusOr<std::vector<std::string>> there = file_system_->List(sets);
  if (!there.ok()) return there.status();
  std::vector<std::string> unknown;
  for (const std::string& folder : *there) {
    if (known.contains(folder)) continue;
    const std::string path = absl::StrCat(sets, "/", folder);
    // What says so may be of a time before that which the catalog has lost.
    const absl::StatusOr<bool> is_for_nothing = lost_data_ ? false : SetFolder::IsUnlisted(file_system_, path);
    if (!is_for_nothing.ok()) return is_for_nothing.status();
    if (!*is_for_nothing) {
      unknown.push_back(folder);
    } else if (absl::Status status = file_system_->RemoveAll(path); !status.ok()) {
      return status;
    }
  }
  if (unknown.empty()) return absl::OkStatus();
  if (absl::Status status = file_system_->MakeDirectory(lost); !status.ok()) return status;
  absl::StatusOr<std::vector<std::string>> taken = file_system_->List(lost);
  if (!taken.ok()) return taken.status();
  for (const std::string& folder : unknown) {
    std::string name = folder;
    for (int number = 2; absl::c_linear_search(*taken, name); ++number) name = absl::StrCat(folder, "-", number);
    absl::Status status = file_system_->Rename(absl::StrCat(sets, "/", folder), absl::StrCat(lost, "/", name));
    if (!status.ok()) return status;
    options_.warn(absl::StrCat("sets/", folder, " is of a set that the catalog does not know: it is lost/", name,
                               " from now on"));
  }
  for (const std::string& directory : {lost, sets, options_.directory}) {
    if (absl::Status status = file_system_->SyncDirectory(directory); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<const core::Resources*> Store::FindDevice(const StoredSet& stored,
                                                         const core::Registry& registry) const {
  for (const core::Resources& device : registry.devices()) {
    if (device.backend->name() == stored.device()) return &device;
  }
  return absl::FailedPreconditionError(absl::StrCat("it is on ", stored.device(), ", which this server does not have"));
}

absl::Status Store::RestoreDamaged(int64_t number, const StoredSet& stored, const Records& records,
                                   core::Registry* registry) {
  const absl::StatusOr<const core::Resources*> resources = FindDevice(stored, *registry);
  if (!resources.ok()) return resources.status();
  // What the set is like is in its last base; where that is of no use, in what it was created as.
  const auto last_base =
      std::find_if(records.rbegin(), records.rend(), [](const auto& record) { return record.second.has_base(); });
  absl::StatusOr<std::unique_ptr<core::Restoration>> begun = Damaged("none of its records is a whole state");
  StoredRecord base;
  v1::ParameterSetSpec spec;
  if (last_base != records.rend()) {
    base = last_base->second;
    spec = base.base().has_spec() ? base.base().spec() : stored.spec();
    *spec.mutable_groups() = base.base().configuration().set().groups();
    core::RestoredState state;
    state.configuration = base.base().configuration().set();
    // What it says of later ones is not to be believed.
    state.incarnation = base.incarnation();
    state.step = base.step();
    state.create_time = absl::FromUnixNanos(stored.create_time_ns());
    begun = core::Restoration::BeginDamaged(**resources, spec, state);
  }
  if (absl::IsDataLoss(begun.status())) {
    spec = stored.spec();
    const absl::StatusOr<std::shared_ptr<const core::Configuration>> configuration = core::Configuration::Create(spec);
    if (!configuration.ok()) return Damaged(configuration.status().message());
    core::RestoredState state;
    state.incarnation = 1;
    *state.configuration.mutable_groups() = {(*configuration)->groups().begin(), (*configuration)->groups().end()};
    state.configuration.set_non_finite_policy((*configuration)->non_finite_policy());
    state.configuration.set_config_revision(1);
    state.create_time = absl::FromUnixNanos(stored.create_time_ns());
    base.Clear();
    *base.mutable_base()->mutable_configuration()->mutable_set() = state.configuration;
    begun = core::Restoration::BeginDamaged(**resources, spec, state);
  }
  if (!begun.ok()) return begun.status();
  absl::StatusOr<std::unique_ptr<DurableSet>> journal =
      DurableSet::Open(parts_, number, stored, base, last_base != records.rend() ? last_base->first : 0, {},
                       (*begun)->schema(), {}, spec, /*damaged=*/true);
  if (!journal.ok()) return journal.status();
  registry->Add((*begun)->Finish(*std::move(journal)));
  return absl::OkStatus();
}

absl::Status Store::RestoreSet(int64_t number, const StoredSet& stored, const Records& records,
                               core::Registry* registry) {
  const absl::StatusOr<const core::Resources*> resources = FindDevice(stored, *registry);
  if (!resources.ok()) return resources.status();
  const absl::Time begin = absl::Now();
  absl::StatusOr<ReplayedSet> replayed =
      ReplaySet(parts_, stored, records, **resources, [](const ReplayedStep& /*step*/) {});
  if (!replayed.ok()) return replayed.status();
  core::Restoration* const restoration = replayed->restoration.get();
  const StoredBase& state = replayed->base.base();
  // Otherwise it would step until it needs one.
  if (absl::Status status = restoration->CheckHasRoomForCheckpoints(); !status.ok()) return status;

  absl::StatusOr<std::unique_ptr<DurableSet>> opened =
      DurableSet::Open(parts_, number, stored, replayed->base, replayed->base_number, std::move(replayed->kept),
                       restoration->schema(), replayed->write, replayed->spec, /*damaged=*/false);
  if (!opened.ok()) return opened.status();
  std::unique_ptr<DurableSet> journal = *std::move(opened);
  DurableSet* const durable = journal.get();
  if (journal->keeps_steps() && !lost_data_) {
    // It cannot be that what the catalog ends with comes before a checkpoint, unless it is another one than there was.
    const v1::ParameterSet now = restoration->Describe();
    for (const v1::Checkpoint& checkpoint : journal->ListCheckpoints()) {
      if (checkpoint.incarnation() != now.incarnation() || checkpoint.step() <= now.step()) continue;
      return Damaged(absl::StrCat("there is a checkpoint of step ", checkpoint.step(),
                                  ", and the catalog ends at step ", now.step(),
                                  ": it is an earlier one than there was"));
    }
  }
  const bool is_exact = (journal->keeps_steps() || state.final()) && !lost_data_;
  std::string loss;
  if (!is_exact) {
    // Else later starts would take what comes after the rollback for nothing.
    if (state.final()) first_records_.push_back({number, journal->ChangingBase(), durable});
    StoredRecord rollback;
    rollback.set_incarnation(restoration->RollBack());
    const v1::ParameterSet now = restoration->Describe();
    rollback.set_step(now.step());
    rollback.mutable_rolled_back();
    if (!journal->keeps_steps()) {
      // Of a set without a checkpoint: as it was created.
      v1::ParameterSet described;
      journal->Describe(&described);
      v1::Checkpoint* const from = rollback.mutable_rolled_back()->mutable_restored_from();
      *from = described.last_checkpoint();
      if (state.checkpoint().empty()) {
        from->set_incarnation(replayed->base.incarnation());
        from->set_step(replayed->base.step());
        *from->mutable_time() = google::protobuf::util::TimeUtil::NanosecondsToTimestamp(stored.create_time_ns());
      }
      if (now.state() == v1::PARAMETER_SET_STATE_UNINITIALIZED) rollback.mutable_rolled_back()->clear_restored_from();
      loss = absl::StrCat(", of another incarnation, since steps after it may be lost: ",
                          state.checkpoint().empty() ? "it has no checkpoint" : "that is its last checkpoint");
    }
    first_records_.push_back({number, std::move(rollback), durable});
  } else if (!journal->keeps_steps()) {
    first_records_.push_back({number, journal->ChangingBase(), durable});
  }
  std::shared_ptr<core::ParameterSet> set = restoration->Finish(std::move(journal));
  options_.log(absl::StrCat("set ", Quoted(set->name()), " is back at step ", set->Describe().step(), ", ",
                            replayed->steps, " of them made again, in ",
                            absl::FormatDuration(absl::Ceil(absl::Now() - begin, absl::Milliseconds(1))), loss));
  registry->Add(std::move(set));
  return absl::OkStatus();
}

void Store::Finish(core::Registry* registry, absl::Duration rest) {
  struct Progress {
    core::Mutex mutex;
    core::CondVar changed;
    int64_t awaited ABSL_GUARDED_BY(mutex) = 0;
    std::set<std::string> unfinished ABSL_GUARDED_BY(mutex);
  };
  auto progress = std::make_shared<Progress>();
  std::string last;
  constexpr int kSetsATime = 64;
  for (;;) {
    const std::vector<std::shared_ptr<core::ParameterSet>> sets = registry->FindBehind(last, "", kSetsATime);
    if (sets.empty()) break;
    for (const std::shared_ptr<core::ParameterSet>& set : sets) {
      last = set->name();
      if (!set->is_kept() || set->keeps_steps()) continue;
      {
        core::MutexLock lock(&progress->mutex);
        ++progress->awaited;
        progress->unfinished.insert(set->name());
      }
      set->FinishJournal([progress, name = set->name()](const absl::Status& finished) {
        core::MutexLock lock(&progress->mutex);
        if (finished.ok()) progress->unfinished.erase(name);
        --progress->awaited;
        progress->changed.NotifyAll();
      });
    }
  }
  // The clock does not reach much further.
  constexpr absl::Duration kLongest = absl::Hours(24 * 365);
  const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(std::min(rest, kLongest));
  core::MutexLock lock(&progress->mutex);
  while (progress->awaited > 0 && !progress->changed.WaitUntil(&progress->mutex, deadline)) continue;
  for (const std::string& name : progress->unfinished) {
    options_.warn(
        absl::StrCat("set ", Quoted(name), " has no last checkpoint: it will come back as of the one before"));
  }
  // What is being written still, of whatever set, would keep the process from its end.
  EndCheckpoints();
}

void Store::EndCheckpoints() {
  is_ending_ = true;
  if (rate_limit_ != nullptr) rate_limit_->Stop(absl::CancelledError("the server ends"));
}

}  // namespace adamant::store
