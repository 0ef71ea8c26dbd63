#include "server/core/set/parameter_set.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/set/set_rep.h"
#include "server/core/spec/slots.h"
#include "server/core/spec/spec_difference.h"

namespace adamant::core {
namespace {

// What a list keeps beside an entry: two links, and what the allocator adds.
constexpr int64_t kNodeBytes = 32;

// What a set takes beside its arrays: itself, its configuration, what it knows of its tensors, what it remembers of its
// steps, and what a direct write, which there is one of at a time, knows of its progress.
int64_t OverheadBytes(const Schema& schema, const Configuration& configuration) {
  const int64_t tensors = static_cast<int64_t>(schema.tensors().size());
  const int64_t blocks = (schema.flat_size() + kBlockElements - 1) / kBlockElements;
  // As FindGroupRanges makes them: at worst one for each tensor, and where a block ends, in vectors that double as they
  // grow.
  const int64_t ranges = static_cast<int64_t>(2 * sizeof(GroupRange)) * (tensors + blocks) +
                         static_cast<int64_t>(2 * sizeof(std::vector<GroupRange>)) * blocks;
  const int64_t remembered =
      kRememberedSteps * static_cast<int64_t>(sizeof(Requests::Entry) + sizeof(Requests::Key) + kMaxRequestIdBytes +
                                              sizeof(double) * configuration.groups().size() + kNodeBytes);
  int64_t configured = 0;
  for (const v1::ParameterGroup& group : configuration.groups()) {
    configured += static_cast<int64_t>(group.SpaceUsedLong());
  }
  for (const auto& [key, value] : configuration.labels()) {
    configured += static_cast<int64_t>(2 * sizeof(std::string) + key.size() + value.size());
  }
  return static_cast<int64_t>(sizeof(SetRep)) + schema.MemoryBytes() + ranges + remembered + configured +
         3 * Coverage::MemoryBytes(tensors);
}

// The flat space by block, each as runs of one group. Padding goes with the tensor before it: a gradient of zero leaves
// parameters and moments of zero as they are.
GroupRanges FindGroupRanges(const Schema& schema) {
  GroupRanges ranges;
  const absl::Span<const Schema::Tensor> tensors = schema.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int group = tensors[i].group;
    const int64_t end = i + 1 < tensors.size() ? tensors[i + 1].begin : schema.flat_size();
    ForEachRun(tensors[i].begin, end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
      ranges.resize(std::max<size_t>(ranges.size(), block + 1));
      std::vector<GroupRange>& of_block = ranges[block];
      if (!of_block.empty() && of_block.back().group == group) {
        of_block.back().end = run_end;
      } else {
        of_block.push_back({run_begin, run_end, group});
      }
    });
  }
  return ranges;
}

// Whether what a step brings, or on a device with memory of its own a full write, could ever be held until it commits.
absl::Status CheckCanBeWritten(const Schema& schema, size_t slots, const Resources& resources) {
  // The call pays for one small array.
  int64_t arrays = IsSmall(schema) ? 0 : 1;
  if (!resources.backend->on_host()) arrays += static_cast<int64_t>(slots);
  const int64_t bytes = arrays * StagingBytes(schema);
  if (bytes <= resources.inflight->capacity()) return absl::OkStatus();
  return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
               ExpectedGot(absl::StrCat("steps and writes of at most ", resources.inflight->capacity(),
                                        " bytes, the budget for those under way"),
                           absl::StrCat(bytes)),
               "spec.tensors");
}

absl::Status ValidateInitialization(v1::Initialization initialization) {
  if (initialization == v1::INITIALIZATION_ZEROS || initialization == v1::INITIALIZATION_WRITTEN) {
    return absl::OkStatus();
  }
  return InvalidField("spec.initialization", "INITIALIZATION_ZEROS or INITIALIZATION_WRITTEN",
                      EnumName(initialization));
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
  if (absl::Status status = CheckCanBeWritten(**schema, slots.size(), resources); !status.ok()) return status;
  const int64_t slots_on_host = resources.backend->on_host() ? static_cast<int64_t>(slots.size()) : 0;
  const int64_t arrays_bytes = ArrayBytes(**schema) * (1 + slots_on_host);
  absl::StatusOr<Grant> grant = resources.state->TryReserve(arrays_bytes + OverheadBytes(**schema, **configuration));
  if (!grant.ok()) return grant.status();

  const ArraysLayout layout = {*schema, std::make_shared<const GroupRanges>(FindGroupRanges(**schema)),
                               std::move(slots)};
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

const std::string& ParameterSet::name() const { return rep_->name; }

const Schema& ParameterSet::schema() const { return *rep_->schema; }

v1::ParameterSet ParameterSet::Describe() const {
  v1::ParameterSet description;
  description.set_name(rep_->name);
  description.set_schema_fingerprint(rep_->schema->fingerprint());
  description.set_tensor_count(static_cast<int32_t>(rep_->schema->tensors().size()));
  description.set_parameter_count(rep_->schema->parameter_count());
  description.set_state_bytes(rep_->state_grant.bytes());
  description.set_device(rep_->resources.backend->name());
  *description.mutable_create_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(rep_->create_time));
  MutexLock lock(&rep_->mutex);
  description.set_incarnation(rep_->lifecycle.incarnation());
  description.set_step(rep_->lifecycle.step());
  description.set_state(rep_->lifecycle.state());
  for (const v1::ParameterGroup& group : rep_->configuration->groups()) *description.add_groups() = group;
  *description.mutable_labels() = rep_->configuration->labels();
  description.set_config_revision(rep_->configuration->revision());
  return description;
}

absl::Status ParameterSet::CheckSpec(const v1::ParameterSetSpec& spec, const std::string& device) const {
  absl::StatusOr<std::shared_ptr<const Configuration>> configuration = Configuration::Create(spec);
  if (!configuration.ok()) return configuration.status();
  absl::StatusOr<std::shared_ptr<const Schema>> schema = Schema::Create(spec, (*configuration)->groups());
  if (!schema.ok()) return schema.status();
  if (absl::Status status = ValidateInitialization(spec.initialization()); !status.ok()) return status;
  std::shared_ptr<const Configuration> mine;
  {
    MutexLock lock(&rep_->mutex);
    mine = rep_->configuration;
  }
  // Without the mutex: there may be many names to compare.
  const std::optional<SpecDifference> difference =
      FindDifference({*mine, *rep_->schema, rep_->initialization, rep_->resources.backend->name()},
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
    WriteLane::Attempts writes;
    {
      MutexLock lock(&rep->mutex);
      status = rep->lifecycle.CheckExists();
      if (status.ok() && incarnation.has_value()) status = rep->lifecycle.CheckIncarnation(*incarnation, "incarnation");
      if (status.ok()) {
        rep->lifecycle.Delete();
        gone = rep->lifecycle.CheckExists();
        steps = rep->requests.FindOutdated();
        writes = rep->writes.All();
      }
    }
    if (status.ok()) {
      forget();
      // What is complete comes to its turn.
      for (const std::shared_ptr<StepAttempt>& step : steps) step->EndUnlessComplete(gone);
      for (const std::shared_ptr<WriteAttempt>& write : writes) write->EndUnlessComplete(gone);
    }
    done(status);
  });
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
    return response;
  }
  response.set_state(rep_->requests.IsUnderWay(request.request_id()) ? v1::STEP_STATE_IN_FLIGHT
                                                                     : v1::STEP_STATE_UNKNOWN);
  return response;
}

}  // namespace adamant::core
