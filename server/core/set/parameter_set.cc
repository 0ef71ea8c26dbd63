#include "server/core/set/parameter_set.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/set/growth.h"
#include "server/core/set/round_turn.h"
#include "server/core/set/set_rep.h"
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

// Changes the configuration as `request` says, and returns the set as it is then.
template <typename Request>
absl::StatusOr<v1::ParameterSet> ChangeConfiguration(SetRep* set, const Request& request) {
  // What was there before goes without the mutex.
  std::shared_ptr<const Configuration> configuration;
  Grant grant;
  MutexLock lock(&set->mutex);
  if (absl::Status status = CheckUpdatable(*set, request); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<const Configuration>> changed = set->configuration->Change(request);
  if (!changed.ok()) return changed.status();
  if (absl::Status status = CheckWorkers(*set, request, **changed); !status.ok()) return status;
  const int64_t more = ConfigurationBytes(**changed) - ConfigurationBytes(*set->configuration);
  const int64_t bytes = std::max<int64_t>(0, set->configuration_grant.bytes() + more);
  absl::StatusOr<Grant> reserved = set->resources.state->TryReserve(bytes);
  if (!reserved.ok()) return reserved.status();
  grant = std::exchange(set->configuration_grant, *std::move(reserved));
  configuration = std::exchange(set->configuration, *std::move(changed));
  auto trainable = SelectTrainable(set->schema, *set->configuration);
  // The same if it is the same, and with it the last step's work.
  if (*trainable != *set->trainable) set->trainable = std::move(trainable);
  return DescribeSet(*set);
}

template <typename Request>
void UpdateInTurn(std::shared_ptr<SetRep> set, const Request& request, Then<absl::StatusOr<v1::ParameterSet>> done) {
  TurnQueue* const turns = set->turns.get();
  turns->Enqueue([set = std::move(set), request, done = std::move(done)](TurnQueue::Turn turn) mutable {
    absl::StatusOr<v1::ParameterSet> changed = ChangeConfiguration(set.get(), request);
    if (changed.ok()) {
      std::shared_ptr<const Watches> watches;
      v1::WatchParameterSetResponse event;
      {
        MutexLock lock(&set->mutex);
        watches = set->watches;
        event = EventNow(*set);
      }
      *event.mutable_config_changed() = *changed;
      if (!watches->empty()) Tell(*watches, std::move(event));
    }
    turn.EndAtOnce();
    done(std::move(changed));
  });
}

}  // namespace

absl::StatusOr<std::shared_ptr<ParameterSet>> ParameterSet::Create(const Resources& resources,
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
  // Not std::make_shared: the constructor is private.
  return std::shared_ptr<ParameterSet>(new ParameterSet(std::move(rep)));
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

void ParameterSet::Delete(std::optional<uint64_t> incarnation, absl::AnyInvocable<void()> forget,
                          Then<absl::Status> done) {
  rep_->turns->Enqueue([rep = rep_, incarnation, forget = std::move(forget),
                        done = std::move(done)](const TurnQueue::Turn& /*turn*/) mutable {
    absl::Status status;
    absl::Status gone;
    std::vector<std::shared_ptr<StepAttempt>> steps;
    std::shared_ptr<Round> round;
    WriteLane::Attempts writes;
    std::shared_ptr<const Watches> watches;
    v1::WatchParameterSetResponse event;
    {
      MutexLock lock(&rep->mutex);
      watches = rep->watches;
      event = EventNow(*rep);
      event.mutable_deleted();
      status = rep->lifecycle.CheckExists();
      if (status.ok() && incarnation.has_value()) status = rep->lifecycle.CheckIncarnation(*incarnation, "incarnation");
      if (status.ok()) {
        rep->lifecycle.Delete();
        gone = rep->lifecycle.CheckExists();
        steps = rep->requests.FindOutdated();
        round = TakeRound(rep.get());
        writes = rep->writes.All();
      }
    }
    if (status.ok()) {
      forget();
      AbandonRound(rep, round, gone);
      // What is complete comes to its turn.
      for (const std::shared_ptr<StepAttempt>& step : steps) step->EndUnlessComplete(gone);
      for (const std::shared_ptr<WriteAttempt>& write : writes) write->EndUnlessComplete(gone);
      if (!watches->empty()) Tell(*watches, std::move(event));
    }
    done(status);
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
  MutexLock lock(&rep_->mutex);
  absl::Status status = rep_->lifecycle.CheckNotPoisoned();
  if (status.ok() && request.has_incarnation()) {
    status = rep_->lifecycle.CheckIncarnation(request.incarnation(), "incarnation");
  }
  if (!status.ok()) return status;
  v1::GetStepResultResponse response;
  response.set_step(rep_->lifecycle.step());
  response.set_incarnation(rep_->lifecycle.incarnation());
  if (const v1::StepResult* result = rep_->requests.FindResult(request.request_id()); result != nullptr) {
    response.set_state(v1::STEP_STATE_COMMITTED);
    *response.mutable_result() = *result;
    response.mutable_result()->set_replayed(true);
    if (rep_->configuration->workers() != nullptr) response.mutable_result()->set_round(rep_->round_number);
    return response;
  }
  if (rep_->round != nullptr && rep_->round->Counts(request.request_id())) {
    response.set_state(v1::STEP_STATE_ACCUMULATED);
    return response;
  }
  response.set_state(rep_->requests.IsUnderWay(request.request_id()) ? v1::STEP_STATE_IN_FLIGHT
                                                                     : v1::STEP_STATE_UNKNOWN);
  return response;
}

}  // namespace adamant::core
