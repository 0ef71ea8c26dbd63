#include "server/core/set/parameter_set.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/base/notification.h"
#include "server/core/set/checkpointing.h"
#include "server/core/set/growth.h"
#include "server/core/set/round_turn.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/state_writing.h"
#include "server/core/spec/slots.h"
#include "server/core/spec/spec_difference.h"

namespace adamant::core {
namespace {

absl::Status ValidateInitialization(v1::Initialization initialization) {
  if (initialization == v1::INITIALIZATION_ZEROS || initialization == v1::INITIALIZATION_WRITTEN) {
    return absl::OkStatus();
  }
  return InvalidField("spec.initialization", "INITIALIZATION_ZEROS or INITIALIZATION_WRITTEN",
                      EnumName(initialization));
}

// Whether a request that demands them is meant for the set as it is.
template <typename Request>
absl::Status CheckUpdatable(const SetRep& set, const Request& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  absl::Status status = set.lifecycle.CheckExists();
  if (status.ok() && request.has_incarnation()) {
    status = set.lifecycle.CheckIncarnation(request.incarnation(), "incarnation");
  }
  const int64_t revision = set.configuration->revision();
  if (status.ok() && request.has_config_revision() && request.config_revision() != revision) {
    status = set.lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED,
                                     ExpectedGot(absl::StrCat(revision), absl::StrCat(request.config_revision())),
                                     "config_revision");
  }
  return status;
}

// Whether the set's workers may become those of `changed`.
absl::Status CheckWorkers(const SetRep& /*set*/, const v1::UpdateParameterGroupRequest& /*request*/,
                          const Configuration& /*changed*/) {
  return absl::OkStatus();
}
absl::Status CheckWorkers(const SetRep& set, const v1::UpdateParameterSetRequest& request, const Configuration& changed)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  if (!absl::c_linear_search(request.update_mask().paths(), "workers")) return absl::OkStatus();
  if (set.round != nullptr) {
    return set.lifecycle.MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_ROUND_OPEN,
                                   absl::StrCat("round ", set.round_number, " is open"), "update_mask");
  }
  return CheckCanContribute(TensorSelection(set.schema), changed.workers(), set.resources, "spec.workers");
}

// A configuration that is to become the set's, and what it takes beyond what the set has paid for.
struct NewConfiguration {
  std::shared_ptr<const Configuration> configuration;
  Grant grant;
};

// What `request` makes of the set's configuration.
template <typename Request>
absl::StatusOr<NewConfiguration> ChangeConfiguration(const SetRep& set, const Request& request) {
  MutexLock lock(&set.mutex);
  if (absl::Status status = CheckUpdatable(set, request); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<const Configuration>> changed = set.configuration->Change(request);
  if (!changed.ok()) return changed.status();
  if (absl::Status status = CheckWorkers(set, request, **changed); !status.ok()) return status;
  const int64_t more = ConfigurationBytes(**changed) - ConfigurationBytes(*set.configuration);
  const int64_t bytes = std::max<int64_t>(0, set.configuration_grant.bytes() + more);
  absl::StatusOr<Grant> reserved = set.resources.state->TryReserve(bytes);
  if (!reserved.ok()) return reserved.status();
  return NewConfiguration{*std::move(changed), *std::move(reserved)};
}

// Makes it the set's, tells those who watch, and returns the set as it is then.
v1::ParameterSet PublishConfiguration(SetRep* set, NewConfiguration changed) {
  // What was there before goes without the mutex.
  std::shared_ptr<const Watches> watches;
  v1::WatchParameterSetResponse event;
  {
    MutexLock lock(&set->mutex);
    std::swap(set->configuration_grant, changed.grant);
    std::swap(set->configuration, changed.configuration);
    auto trainable = SelectTrainable(set->schema, *set->configuration);
    // The same if it is the same, and with it the last step's work.
    if (*trainable != *set->trainable) set->trainable = std::move(trainable);
    watches = set->watches;
    event = EventNow(*set);
    *event.mutable_config_changed() = DescribeSet(*set);
  }
  v1::ParameterSet description = event.config_changed();
  if (!watches->empty()) Tell(*watches, std::move(event));
  return description;
}

template <typename Request>
void UpdateInTurn(std::shared_ptr<SetRep> set, const Request& request, Then<absl::StatusOr<v1::ParameterSet>> done) {
  TurnQueue* const turns = set->turns.get();
  turns->Enqueue([set = std::move(set), request, done = std::move(done)](TurnQueue::Turn turn) mutable {
    absl::StatusOr<NewConfiguration> changed = ChangeConfiguration(*set, request);
    if (!changed.ok()) {
      turn.EndAtOnce();
      done(std::move(changed).status());
      return;
    }
    v1::ParameterSet description;
    DescribeConfiguration(*changed->configuration, &description);
    Then<absl::Status> publish = [set, changed = *std::move(changed), done = std::move(done),
                                  turn = std::move(turn)](const absl::Status& recorded) mutable {
      if (recorded.ok()) {
        v1::ParameterSet published = PublishConfiguration(set.get(), std::move(changed));
        turn.EndAtOnce();
        done(std::move(published));
      } else {
        turn.EndAtOnce();
        done(Unshared(recorded));
      }
    };
    if (set->journal != nullptr) {
      set->journal->CommitConfiguration(description, std::move(publish));
    } else {
      publish(absl::OkStatus());
    }
  });
}

}  // namespace

absl::StatusOr<v1::Durability> ParameterSet::ResolveDurability(const Resources& resources,
                                                               const v1::Durability* durability,
                                                               absl::string_view field) {
  if (resources.journal != nullptr) return resources.journal->Resolve(durability, field);
  if (durability != nullptr && !durability->has_nothing()) {
    return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_NO_DATA_DIRECTORY,
                 "the server was started without a data directory, and keeps nothing", field);
  }
  v1::Durability nothing;
  nothing.mutable_nothing();
  return nothing;
}

absl::StatusOr<std::shared_ptr<ParameterSet>> ParameterSet::Create(const Resources& resources,
                                                                   const v1::ParameterSetSpec& spec) {
  absl::StatusOr<v1::Durability> durability =
      ResolveDurability(resources, spec.has_durability() ? &spec.durability() : nullptr, "spec.durability");
  if (!durability.ok()) return durability.status();
  absl::StatusOr<std::shared_ptr<SetRep>> made = Make(resources, spec);
  if (!made.ok()) return made.status();
  std::shared_ptr<SetRep> rep = *std::move(made);
  if (!durability->has_nothing()) {
    v1::ParameterSetSpec stored = spec;
    *stored.mutable_durability() = *durability;
    stored.set_device(resources.backend->name());
    v1::ParameterSet description;
    std::shared_ptr<const Schema> schema;
    {
      MutexLock lock(&rep->mutex);
      description = DescribeSet(*rep);
      schema = rep->schema;
    }
    if (absl::Status status = CheckHasRoomForCheckpoints(*schema, rep->slots.size(), resources, "spec.durability");
        !status.ok()) {
      return status;
    }
    absl::StatusOr<std::unique_ptr<SetJournal>> journal = resources.journal->CreateSet(stored, schema, description);
    if (!journal.ok()) return journal.status();
    rep->journal = *std::move(journal);
  }
  return std::make_shared<ParameterSet>(std::move(rep));
}

absl::StatusOr<std::shared_ptr<SetRep>> ParameterSet::Make(const Resources& resources,
                                                           const v1::ParameterSetSpec& spec) {
  if (absl::Status status = ValidateSetName(spec.name(), "spec.name"); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<const Configuration>> configuration = Configuration::Create(spec);
  if (!configuration.ok()) return configuration.status();
  absl::StatusOr<std::shared_ptr<const Schema>> schema = Schema::Create(spec, (*configuration)->groups());
  if (!schema.ok()) return schema.status();
  if (absl::Status status = ValidateInitialization(spec.initialization()); !status.ok()) return status;
  if (absl::Status status = resources.backend->CheckWorking(); !status.ok()) return status;

  std::vector<v1::Slot> slots = OptimizerSlots((*configuration)->groups());
  if (absl::Status status = CheckCanBeWritten(TensorSelection(*schema), slots.size(), resources, "spec.tensors");
      !status.ok())
    return status;
  if (absl::Status status =
          CheckCanContribute(TensorSelection(*schema), (*configuration)->workers(), resources, "spec.workers");
      !status.ok()) {
    return status;
  }
  const int64_t slots_on_host = resources.backend->on_host() ? static_cast<int64_t>(slots.size()) : 0;
  const int64_t arrays_bytes = ArrayBytes(**schema) * (1 + slots_on_host);
  absl::StatusOr<Grant> grant = resources.state->TryReserve(arrays_bytes + OverheadBytes(**schema, **configuration));
  if (!grant.ok()) return grant.status();

  const ArraysLayout layout = {*schema, std::move(slots)};
  absl::StatusOr<BlockList> parameters = resources.lender->TakeZeroed((*schema)->flat_size());
  if (!parameters.ok()) return parameters.status();
  absl::StatusOr<std::unique_ptr<SlotArrays>> arrays =
      resources.backend->NewArrays(layout, resources.lender, resources.compute);
  if (!arrays.ok()) return arrays.status();

  absl::BitGen random;
  Lifecycle lifecycle(spec.name(), (*schema)->fingerprint(), DrawIncarnation(&random));
  auto rep = std::make_shared<SetRep>(resources, *std::move(schema), *std::move(configuration), spec.initialization(),
                                      *std::move(grant), layout, *std::move(arrays), lifecycle);
  {
    MutexLock lock(&rep->mutex);
    if (spec.initialization() == v1::INITIALIZATION_ZEROS) {
      rep->lifecycle.Rewrite(lifecycle.incarnation(), /*step=*/0);
      rep->snapshot = std::make_shared<const Snapshot>(lifecycle.incarnation(), 0, *std::move(parameters));
    } else {
      rep->unpublished = *std::move(parameters);
    }
  }
  return rep;
}

ParameterSet::~ParameterSet() {
  {
    MutexLock lock(&rep_->mutex);
    if (rep_->round == nullptr) return;
  }
  // It refers to the set, as what counts in it does.
  EndRound(absl::CancelledError("the set is gone"));
}

void ParameterSet::EndRound(const absl::Status& status) {
  rep_->turns->Enqueue([rep = rep_, status](const TurnQueue::Turn& /*turn*/) {
    std::shared_ptr<Round> round;
    {
      MutexLock lock(&rep->mutex);
      round = TakeRound(rep.get());
    }
    AbandonRound(rep, round, status);
  });
}

const std::string& ParameterSet::name() const { return rep_->name; }

const Schema& ParameterSet::schema() const {
  MutexLock lock(&rep_->mutex);
  return *rep_->schema;
}

v1::ParameterSet ParameterSet::Describe() const {
  MutexLock lock(&rep_->mutex);
  return DescribeSet(*rep_);
}

absl::Status ParameterSet::CheckSpec(const v1::ParameterSetSpec& spec, const std::string& device) const {
  absl::StatusOr<std::shared_ptr<const Configuration>> configuration = Configuration::Create(spec);
  if (!configuration.ok()) return configuration.status();
  absl::StatusOr<std::shared_ptr<const Schema>> schema = Schema::Create(spec, (*configuration)->groups());
  if (!schema.ok()) return schema.status();
  if (absl::Status status = ValidateInitialization(spec.initialization()); !status.ok()) return status;
  std::shared_ptr<const Configuration> mine;
  std::shared_ptr<const Schema> my_schema;
  {
    MutexLock lock(&rep_->mutex);
    mine = rep_->configuration;
    my_schema = rep_->schema;
  }
  // Without the mutex: there may be many names to compare.
  const std::optional<SpecDifference> difference =
      FindDifference({*mine, *my_schema, rep_->initialization, rep_->resources.backend->name()},
                     {**configuration, **schema, spec.initialization(), device});
  if (!difference.has_value()) return absl::OkStatus();
  MutexLock lock(&rep_->mutex);
  return rep_->lifecycle.MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SPEC_MISMATCH,
                                   ExpectedGot(difference->expected, difference->got), difference->field);
}

std::shared_ptr<const Configuration> ParameterSet::configuration() const {
  MutexLock lock(&rep_->mutex);
  return rep_->configuration;
}

bool ParameterSet::deleted() const {
  MutexLock lock(&rep_->mutex);
  return rep_->lifecycle.deleted();
}

std::shared_ptr<StepAttempt> ParameterSet::NewStep(const v1::StepHeader& header,
                                                   std::shared_ptr<StepListener> listener) {
  return std::make_shared<StepAttempt>(rep_, header, std::move(listener));
}

std::shared_ptr<WriteAttempt> ParameterSet::NewWrite(const v1::WriteHeader& header,
                                                     std::shared_ptr<WriteListener> listener) {
  return std::make_shared<WriteAttempt>(rep_, header, std::move(listener));
}

void ParameterSet::BeginRead(const v1::ReadTensorsRequest& request, Reading::Done done) {
  Reading::Begin(rep_, request, std::move(done));
}

namespace {

// What becomes of a request for something that is on disk, of a set of which nothing is.
absl::Status NothingKept(const SetRep& set) {
  MutexLock lock(&set.mutex);
  absl::Status status = set.lifecycle.CheckExists();
  if (!status.ok()) return status;
  return set.lifecycle.MakeError(
      absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_NO_DATA_DIRECTORY,
      "nothing of the set is kept, as its durability says, which it has been created with: a fork may have another");
}

// Deletes the set, which is gone from the journal, if it had one.
void DeleteNow(const std::shared_ptr<SetRep>& set, absl::AnyInvocable<void()> forget) {
  std::vector<std::shared_ptr<StepAttempt>> steps;
  std::shared_ptr<Round> round;
  WriteLane::Attempts writes;
  std::shared_ptr<const Watches> watches;
  v1::WatchParameterSetResponse event;
  absl::Status gone;
  {
    MutexLock lock(&set->mutex);
    watches = set->watches;
    event = EventNow(*set);
    event.mutable_deleted();
    set->lifecycle.Delete();
    gone = set->lifecycle.CheckExists();
    steps = set->requests.FindOutdated();
    round = TakeRound(set.get());
    writes = set->writes.All();
  }
  forget();
  AbandonRound(set, round, gone);
  // What is complete comes to its turn.
  for (const std::shared_ptr<StepAttempt>& step : steps) step->EndUnlessComplete(gone);
  for (const std::shared_ptr<WriteAttempt>& write : writes) write->EndUnlessComplete(gone);
  if (!watches->empty()) Tell(*watches, std::move(event));
}

}  // namespace

void ParameterSet::Delete(std::optional<uint64_t> incarnation, absl::AnyInvocable<void()> forget,
                          Then<absl::Status> done) {
  rep_->turns->Enqueue(
      [rep = rep_, incarnation, forget = std::move(forget), done = std::move(done)](TurnQueue::Turn turn) mutable {
        absl::Status status;
        {
          MutexLock lock(&rep->mutex);
          status = rep->lifecycle.CheckExists();
          if (status.ok() && incarnation.has_value())
            status = rep->lifecycle.CheckIncarnation(*incarnation, "incarnation");
        }
        if (!status.ok() || rep->journal == nullptr) {
          if (status.ok()) DeleteNow(rep, std::move(forget));
          done(status);
          return;
        }
        rep->journal->CommitDelete([rep, forget = std::move(forget), done = std::move(done),
                                    turn = std::move(turn)](const absl::Status& recorded) mutable {
          if (recorded.ok()) DeleteNow(rep, std::move(forget));
          done(Unshared(recorded));
        });
      });
}

void ParameterSet::Update(const v1::UpdateParameterGroupRequest& request, Then<absl::StatusOr<v1::ParameterSet>> done) {
  UpdateInTurn(rep_, request, std::move(done));
}

void ParameterSet::Update(const v1::UpdateParameterSetRequest& request, Then<absl::StatusOr<v1::ParameterSet>> done) {
  UpdateInTurn(rep_, request, std::move(done));
}

void ParameterSet::AddTensors(const v1::AddTensorsRequest& request, Then<absl::StatusOr<v1::ParameterSet>> done) {
  Growth::Begin(rep_, request, std::move(done));
}

void ParameterSet::Checkpoint(std::optional<uint64_t> incarnation, Then<absl::Status> done) {
  if (rep_->journal != nullptr) {
    if (incarnation.has_value()) {
      absl::Status status;
      {
        MutexLock lock(&rep_->mutex);
        status = rep_->lifecycle.CheckExists();
        if (status.ok()) status = rep_->lifecycle.CheckIncarnation(*incarnation, "incarnation");
      }
      if (!status.ok()) {
        done(std::move(status));
        return;
      }
    }
    BeginCheckpoint(rep_, std::move(done));
    return;
  }
  done(NothingKept(*rep_));
}

absl::StatusOr<std::vector<v1::Checkpoint>> ParameterSet::ListCheckpoints() const {
  if (rep_->journal == nullptr) return NothingKept(*rep_);
  return rep_->journal->ListCheckpoints();
}

absl::StatusOr<v1::ParameterSet> ParameterSet::RestoreCheckpoint(const v1::RestoreCheckpointRequest& request) {
  if (rep_->journal == nullptr) return NothingKept(*rep_);
  {
    MutexLock lock(&rep_->mutex);
    absl::Status status = rep_->lifecycle.CheckExists();
    if (status.ok() && request.has_incarnation()) {
      status = rep_->lifecycle.CheckIncarnation(request.incarnation(), "incarnation");
    }
    if (!status.ok()) return status;
  }
  // Of a set that is deleted meanwhile there are no files.
  const auto unless_deleted = [this](const absl::Status& error) {
    MutexLock lock(&rep_->mutex);
    absl::Status status = rep_->lifecycle.CheckExists();
    return status.ok() ? error : status;
  };
  absl::StatusOr<std::unique_ptr<StoredState>> state =
      rep_->journal->OpenCheckpoint(request.checkpoint_incarnation(), request.checkpoint_step());
  if (!state.ok()) return unless_deleted(state.status());
  std::shared_ptr<const Schema> schema;
  {
    MutexLock lock(&rep_->mutex);
    if ((*state)->schema_fingerprint() != rep_->schema->fingerprint()) {
      return rep_->lifecycle.MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_SCHEMA_MISMATCH,
                                       "expected a checkpoint of the tensors that the set has now, got one of others",
                                       "checkpoint_step");
    }
    schema = rep_->schema;
  }
  // All of it, before what the set has is given up for it.
  std::vector<v1::Slot> all = {v1::SLOT_PARAMETER};
  all.insert(all.end(), rep_->slots.begin(), rep_->slots.end());
  for (const v1::Slot slot : all) {
    absl::Status status = (*state)->Read(
        slot, *schema,
        [](int /*tensor*/, int64_t /*offset*/, absl::Span<const float> /*elements*/) { return absl::OkStatus(); });
    if (!status.ok()) return unless_deleted(status);
  }
  WrittenState written = {.step = (*state)->step(), .update_counts = (*state)->update_counts()};
  if (request.has_incarnation()) written.former_incarnation = request.incarnation();
  written.schema_fingerprint = (*state)->schema_fingerprint();
  absl::Status status =
      WriteState(rep_, written, [&state](const Schema& known, absl::Span<const v1::Slot> slots, PutElements put) {
        absl::Status read;
        for (const v1::Slot slot : slots) {
          if (!read.ok()) break;
          read = (*state)->Read(slot, known, [&](int tensor, int64_t offset, absl::Span<const float> elements) {
            return put(slot, tensor, offset, elements);
          });
        }
        return read;
      });
  if (!status.ok()) return unless_deleted(status);
  return Describe();
}

v1::ParameterSetSpec ParameterSet::Spec() const {
  std::shared_ptr<const Schema> schema;
  v1::ParameterSet described;
  {
    MutexLock lock(&rep_->mutex);
    schema = rep_->schema;
    described = DescribeSet(*rep_);
  }
  v1::ParameterSetSpec spec;
  spec.set_name(described.name());
  for (const Schema::Tensor& tensor : schema->tensors()) {
    v1::TensorSpec* const added = spec.add_tensors();
    added->set_name(tensor.name);
    added->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    added->set_group(described.groups(tensor.group).name());
  }
  *spec.mutable_groups() = described.groups();
  spec.set_initialization(v1::INITIALIZATION_WRITTEN);
  *spec.mutable_labels() = described.labels();
  spec.set_device(described.device());
  *spec.mutable_clipping() = described.clipping();
  spec.set_non_finite_policy(described.non_finite_policy());
  spec.set_max_staleness(described.max_staleness());
  if (described.has_workers()) *spec.mutable_workers() = described.workers();
  return spec;
}

absl::Status ParameterSet::CopyFrom(ParameterSet* other, std::optional<uint64_t> incarnation) {
  v1::ReadTensorsRequest request;
  request.set_set(other->name());
  request.add_slots(v1::SLOT_PARAMETER);
  for (const v1::Slot slot : other->rep_->slots) request.add_slots(slot);
  if (incarnation.has_value()) request.set_incarnation(*incarnation);
  absl::StatusOr<std::unique_ptr<Reading>> begun = absl::UnknownError("");
  Notification read;
  other->BeginRead(request, [&](absl::StatusOr<std::unique_ptr<Reading>> reading) {
    begun = std::move(reading);
    read.Notify();
  });
  read.WaitForNotification();
  if (!begun.ok()) return Unshared(begun.status());
  const std::unique_ptr<Reading> reading = *std::move(begun);
  const v1::ReadHeader& header = reading->header();
  if (reading->schema().fingerprint() != schema().fingerprint()) {
    return Error(absl::StatusCode::kAborted, v1::ERROR_REASON_SNAPSHOT_GONE, "tensors were added meanwhile");
  }
  return WriteState(rep_, {header.step(), {header.update_counts().begin(), header.update_counts().end()}},
                    [&reading](const Schema& schema, absl::Span<const v1::Slot> slots, PutElements put) {
                      absl::Status status;
                      for (const v1::Slot slot : slots) {
                        for (size_t i = 0; i < schema.tensors().size() && status.ok(); ++i) {
                          const Schema::Tensor& tensor = schema.tensors()[i];
                          int64_t offset = 0;
                          if (tensor.size() == 0) continue;
                          reading->Visit(slot, tensor.begin, tensor.end, [&](const float* elements, int64_t count) {
                            if (!status.ok()) return;
                            status = put(slot, static_cast<int>(i), offset, {elements, static_cast<size_t>(count)});
                            offset += count;
                          });
                        }
                      }
                      return status;
                    });
}

void ParameterSet::CheckpointInTime() { core::CheckpointInTime(rep_); }

void ParameterSet::FinishJournal(Then<absl::Status> done) {
  Checkpoint(std::nullopt, [rep = rep_, done = std::move(done)](absl::Status made) mutable {
    if (made.ok()) {
      std::vector<RememberedStep> remembered;
      {
        MutexLock lock(&rep->mutex);
        for (const Requests::Entry& step : rep->requests.remembered()) {
          RememberedStep& one = remembered.emplace_back();
          for (const Requests::Key& key : step.keys) one.keys.push_back({key.request_id, key.header_hash});
          one.result = step.result;
        }
      }
      rep->journal->Finish(remembered, std::move(done));
    } else {
      done(std::move(made));
    }
  });
}

bool ParameterSet::keeps_steps() const { return rep_->journal != nullptr && rep_->journal->keeps_steps(); }
bool ParameterSet::is_kept() const { return rep_->journal != nullptr; }

absl::StatusOr<std::shared_ptr<Watch>> ParameterSet::BeginWatch(absl::AnyInvocable<void()> notify) {
  auto watch = std::make_shared<Watch>(std::move(notify));
  auto watches = std::make_shared<Watches>();
  MutexLock lock(&rep_->mutex);
  if (absl::Status status = rep_->lifecycle.CheckExists(); !status.ok()) return status;
  for (const std::weak_ptr<Watch>& other : *rep_->watches) {
    if (!other.expired()) watches->push_back(other);
  }
  watches->push_back(watch);
  rep_->watches = std::move(watches);
  auto event = std::make_shared<v1::WatchParameterSetResponse>(EventNow(*rep_));
  *event->mutable_current() = DescribeSet(*rep_);
  // It is not awaited yet: nobody is notified.
  watch->Add(std::move(event));
  return watch;
}

std::vector<int64_t> ParameterSet::UpdateCountsFrom(int first, int most) const {
  std::vector<int64_t> counts;
  MutexLock lock(&rep_->mutex);
  const int end = std::min(first + most, static_cast<int>(rep_->schema->tensors().size()));
  counts.reserve(end - first);
  for (int tensor = first; tensor < end; ++tensor) counts.push_back(rep_->update_counts.of(tensor));
  return counts;
}

absl::StatusOr<v1::GetStepResultResponse> ParameterSet::FindStepResult(const v1::GetStepResultRequest& request) const {
  if (absl::Status status = ValidateRequestId(request.request_id(), "request_id"); !status.ok()) return status;
  v1::GetStepResultResponse response;
  {
    MutexLock lock(&rep_->mutex);
    absl::Status status = rep_->lifecycle.CheckNotPoisoned();
    if (status.ok() && request.has_incarnation()) {
      status = rep_->lifecycle.CheckIncarnation(request.incarnation(), "incarnation");
    }
    if (!status.ok()) return status;
    response.set_step(rep_->lifecycle.step());
    response.set_incarnation(rep_->lifecycle.incarnation());
    if (const v1::StepResult* result = rep_->requests.FindResult(request.request_id()); result != nullptr) {
      response.set_state(v1::STEP_STATE_COMMITTED);
      *response.mutable_result() = *result;
      response.mutable_result()->set_replayed(true);
      if (rep_->configuration->workers() != nullptr) response.mutable_result()->set_round(rep_->round_number);
    } else if (rep_->round != nullptr && rep_->round->Counts(request.request_id())) {
      response.set_state(v1::STEP_STATE_ACCUMULATED);
    } else {
      response.set_state(rep_->requests.IsUnderWay(request.request_id()) ? v1::STEP_STATE_IN_FLIGHT
                                                                         : v1::STEP_STATE_UNKNOWN);
    }
  }
  // A step that nobody remembers here may be on disk, and there after a restart.
  if (response.state() == v1::STEP_STATE_UNKNOWN && keeps_steps()) {
    if (absl::Status status = rep_->resources.journal->CheckWorking(); !status.ok()) return status;
  }
  return response;
}

}  // namespace adamant::core
