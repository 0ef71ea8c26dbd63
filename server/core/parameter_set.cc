#include "server/core/parameter_set.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/attempt_life.h"
#include "server/core/spec_difference.h"

namespace adamant::core {
namespace {

// What a set takes beside its arrays: itself, its configuration, what it knows of its tensors, what it remembers of its
// steps, and what a direct write, which there is one of at a time, knows of its progress.
int64_t OverheadBytes(const Schema& schema, const Configuration& configuration) {
  const int64_t tensors = static_cast<int64_t>(schema.tensors().size());
  const int64_t blocks = (schema.flat_size() + kBlockElements - 1) / kBlockElements;
  // As GroupRanges makes them: at worst one for each tensor, and where a block ends, in vectors that double as they
  // grow.
  const int64_t ranges = static_cast<int64_t>(2 * sizeof(BlockUpdate::Range)) * (tensors + blocks) +
                         static_cast<int64_t>(2 * sizeof(std::vector<BlockUpdate::Range>)) * blocks;
  const int64_t remembered =
      kRememberedSteps * static_cast<int64_t>(sizeof(ReplayMemory::Entry) + kMaxRequestIdBytes +
                                              sizeof(v1::StepResult) + sizeof(double) * configuration.groups().size());
  int64_t configured = 0;
  for (const v1::ParameterGroup& group : configuration.groups()) {
    configured += static_cast<int64_t>(group.SpaceUsedLong());
  }
  for (const auto& [key, value] : configuration.labels()) {
    configured += static_cast<int64_t>(2 * sizeof(std::string) + key.size() + value.size());
  }
  return static_cast<int64_t>(sizeof(ParameterSet)) + schema.MemoryBytes() + ranges + remembered + configured +
         3 * Coverage::MemoryBytes(tensors);
}

// The flat space by block, each as runs of one group. Padding goes with the tensor before it: a gradient of zero leaves
// parameters and moments of zero as they are.
std::vector<std::vector<BlockUpdate::Range>> GroupRanges(const Schema& schema) {
  std::vector<std::vector<BlockUpdate::Range>> ranges;
  const absl::Span<const Schema::Tensor> tensors = schema.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int group = tensors[i].group;
    const int64_t end = i + 1 < tensors.size() ? tensors[i + 1].begin : schema.flat_size();
    ForEachRun(tensors[i].begin, end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
      ranges.resize(std::max<size_t>(ranges.size(), block + 1));
      std::vector<BlockUpdate::Range>& of_block = ranges[block];
      if (!of_block.empty() && of_block.back().group == group) {
        of_block.back().end = run_end;
      } else {
        of_block.push_back({run_begin, run_end, group});
      }
    });
  }
  return ranges;
}

absl::Status ValidateInitialization(v1::Initialization initialization) {
  if (initialization == v1::INITIALIZATION_ZEROS || initialization == v1::INITIALIZATION_WRITTEN) {
    return absl::OkStatus();
  }
  return InvalidField("spec.initialization", "INITIALIZATION_ZEROS or INITIALIZATION_WRITTEN",
                      EnumName(initialization));
}

absl::StatusOr<BlockList> TakeZeroed(BlockPool* pool, int64_t elements) {
  absl::StatusOr<BlockList> blocks = pool->Take(elements);
  if (!blocks.ok()) return blocks;
  for (const BlockRef& block : *blocks) std::fill_n(block.mutable_data(), block.size(), 0.0f);
  return blocks;
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

  const int64_t array_elements = (*schema)->flat_size();
  const int64_t array_bytes = array_elements * static_cast<int64_t>(sizeof(float));
  const int64_t step_bytes = array_bytes + Coverage::MemoryBytes((*schema)->tensors().size());
  if (array_bytes > kSmallStepBytes && step_bytes > resources.inflight->capacity()) {
    return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
                 ExpectedGot(absl::StrCat("steps of at most ", resources.inflight->capacity(),
                                          " bytes, the budget for those under way"),
                             absl::StrCat(step_bytes)),
                 "spec.tensors");
  }
  absl::StatusOr<Grant> grant = resources.state->TryReserve(3 * array_bytes + OverheadBytes(**schema, **configuration));
  if (!grant.ok()) return grant.status();

  // Not std::make_shared: the constructor is private.
  std::shared_ptr<ParameterSet> set(new ParameterSet(
      resources, spec.name(), *std::move(schema), *std::move(configuration), spec.initialization(), *std::move(grant)));
  absl::StatusOr<BlockList> parameters = TakeZeroed(resources.pool, array_elements);
  absl::StatusOr<BlockList> exp_avg = TakeZeroed(resources.pool, array_elements);
  absl::StatusOr<BlockList> exp_avg_sq = TakeZeroed(resources.pool, array_elements);
  for (const auto* blocks : {&parameters, &exp_avg, &exp_avg_sq}) {
    if (!blocks->ok()) return blocks->status();
  }
  MutexLock lock(&set->mutex_);
  set->incarnation_ = set->DrawIncarnation();
  set->exp_avg_ = *std::move(exp_avg);
  set->exp_avg_sq_ = *std::move(exp_avg_sq);
  if (spec.initialization() == v1::INITIALIZATION_ZEROS) {
    set->state_ = v1::PARAMETER_SET_STATE_READY;
    set->snapshot_ = std::make_shared<const Snapshot>(set->incarnation_, 0, *std::move(parameters));
  } else {
    set->state_ = v1::PARAMETER_SET_STATE_UNINITIALIZED;
    set->unpublished_ = *std::move(parameters);
  }
  return set;
}

ParameterSet::ParameterSet(const Resources& resources, std::string name, std::shared_ptr<const Schema> schema,
                           std::shared_ptr<const Configuration> configuration, v1::Initialization initialization,
                           Grant state_grant)
    : resources_(resources),
      name_(std::move(name)),
      schema_(std::move(schema)),
      create_time_(absl::Now()),
      initialization_(initialization),
      state_grant_(std::move(state_grant)),
      ranges_(GroupRanges(*schema_)),
      turns_(std::make_shared<TurnQueue>(resources_.compute)),
      configuration_(std::move(configuration)),
      state_(v1::PARAMETER_SET_STATE_UNINITIALIZED) {}

ParameterSet::~ParameterSet() = default;

v1::ParameterSet ParameterSet::Describe() const {
  v1::ParameterSet description;
  description.set_name(name_);
  description.set_schema_fingerprint(schema_->fingerprint());
  description.set_tensor_count(static_cast<int32_t>(schema_->tensors().size()));
  description.set_parameter_count(schema_->parameter_count());
  description.set_state_bytes(state_grant_.bytes());
  *description.mutable_create_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(create_time_));
  MutexLock lock(&mutex_);
  description.set_incarnation(incarnation_);
  description.set_step(step_);
  description.set_state(state_);
  for (const v1::ParameterGroup& group : configuration_->groups()) *description.add_groups() = group;
  *description.mutable_labels() = configuration_->labels();
  description.set_config_revision(configuration_->revision());
  return description;
}

absl::Status ParameterSet::CheckSpec(const v1::ParameterSetSpec& spec) const {
  absl::StatusOr<std::shared_ptr<const Configuration>> configuration = Configuration::Create(spec);
  if (!configuration.ok()) return configuration.status();
  absl::StatusOr<std::shared_ptr<const Schema>> schema = Schema::Create(spec, (*configuration)->groups());
  if (!schema.ok()) return schema.status();
  if (absl::Status status = ValidateInitialization(spec.initialization()); !status.ok()) return status;
  std::shared_ptr<const Configuration> mine;
  {
    MutexLock lock(&mutex_);
    mine = configuration_;
  }
  // Without the mutex: there may be many names to compare.
  const absl::optional<SpecDifference> difference =
      FindDifference({*mine, *schema_, initialization_}, {**configuration, **schema, spec.initialization()});
  if (!difference.has_value()) return absl::OkStatus();
  MutexLock lock(&mutex_);
  return MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SPEC_MISMATCH,
                   ExpectedGot(difference->expected, difference->got), difference->field);
}

std::vector<std::string> ParameterSet::GroupNames() const {
  MutexLock lock(&mutex_);
  std::vector<std::string> names;
  for (const v1::ParameterGroup& group : configuration_->groups()) names.push_back(group.name());
  return names;
}

bool ParameterSet::deleted() const {
  MutexLock lock(&mutex_);
  return deleted_;
}

void ParameterSet::Delete(absl::optional<uint64_t> incarnation, absl::AnyInvocable<void()> forget,
                          absl::AnyInvocable<void(absl::Status)> done) {
  turns_->Enqueue([self = shared_from_this(), this, incarnation, forget = std::move(forget),
                   done = std::move(done)](const TurnQueue::Turn& /*turn*/) mutable {
    absl::Status status;
    absl::Status gone;
    {
      MutexLock lock(&mutex_);
      status = CheckExists();
      if (status.ok() && incarnation.has_value()) status = CheckIncarnation(*incarnation, "incarnation");
      if (status.ok()) {
        deleted_ = true;
        gone = CheckExists();
      }
    }
    if (status.ok()) {
      forget();
      EndLate(gone);
    }
    done(status);
  });
}

absl::StatusOr<v1::GetStepResultResponse> ParameterSet::FindStepResult(const v1::GetStepResultRequest& request) const {
  if (absl::Status status = ValidateRequestId(request.request_id(), "request_id"); !status.ok()) return status;
  MutexLock lock(&mutex_);
  absl::Status status = CheckExists();
  if (status.ok() && state_ == v1::PARAMETER_SET_STATE_POISONED) status = CheckReady();
  if (status.ok() && request.has_incarnation()) status = CheckIncarnation(request.incarnation(), "incarnation");
  if (!status.ok()) return status;
  v1::GetStepResultResponse response;
  response.set_step(step_);
  response.set_incarnation(incarnation_);
  if (const ReplayMemory::Entry* entry = replay_.Find(request.request_id()); entry != nullptr) {
    response.set_state(v1::STEP_STATE_COMMITTED);
    *response.mutable_result() = entry->result;
    response.mutable_result()->set_replayed(true);
    return response;
  }
  const bool in_flight = absl::c_any_of(attempts_, [&](const StepAttempt* attempt) {
    return attempt->header_.request_id() == request.request_id() && attempt->state_ != StepAttempt::State::kOver;
  });
  response.set_state(in_flight ? v1::STEP_STATE_IN_FLIGHT : v1::STEP_STATE_UNKNOWN);
  return response;
}

void ParameterSet::EndLate(const absl::Status& status) {
  std::vector<std::shared_ptr<StepAttempt>> steps;
  std::vector<std::shared_ptr<WriteAttempt>> writes;
  {
    MutexLock lock(&mutex_);
    for (StepAttempt* attempt : attempts_) {
      if (!deleted_ && attempt->incarnation_ == incarnation_) continue;
      if (std::shared_ptr<StepAttempt> alive = attempt->weak_from_this().lock()) steps.push_back(std::move(alive));
    }
    for (WriteAttempt* attempt : writes_) {
      if (!deleted_) break;
      if (std::shared_ptr<WriteAttempt> alive = attempt->weak_from_this().lock()) writes.push_back(std::move(alive));
    }
  }
  for (const std::shared_ptr<StepAttempt>& step : steps) End(step.get(), status, Ending::kUnlessComplete);
  for (const std::shared_ptr<WriteAttempt>& write : writes) End(write.get(), status, Ending::kUnlessComplete);
}

absl::StatusOr<BlockList> ParameterSet::ReplaceHeld(const BlockList& blocks) const {
  std::vector<size_t> held;
  int64_t elements = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].unique()) continue;
    held.push_back(i);
    elements += blocks[i].size();
  }
  // All at once, or what must be mapped would be mapped block by block. Only the last block may be short, as in a list
  // from the pool.
  absl::StatusOr<BlockList> fresh = resources_.pool->Take(elements);
  if (!fresh.ok()) return fresh;
  BlockList replaced = blocks;
  for (size_t i = 0; i < held.size(); ++i) replaced[held[i]] = std::move((*fresh)[i]);
  return replaced;
}

absl::Status ParameterSet::CheckReady() const {
  if (absl::Status status = CheckExists(); !status.ok()) return status;
  switch (state_) {
    case v1::PARAMETER_SET_STATE_READY:
      return absl::OkStatus();
    case v1::PARAMETER_SET_STATE_POISONED:
      return MakeError(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED,
                       "a commit failed half way; the set awaits a full write");
    default:
      return MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_UNINITIALIZED, "the set awaits a write");
  }
}

absl::Status ParameterSet::CheckExists() const {
  if (!deleted_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND, "the set was deleted");
}

absl::Status ParameterSet::CheckIncarnation(uint64_t demanded, absl::string_view field) const {
  if (demanded == incarnation_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH,
                   ExpectedGot(absl::StrCat(incarnation_), absl::StrCat(demanded)), field);
}

absl::Status ParameterSet::CheckFingerprint(uint64_t demanded, absl::string_view field) const {
  if (demanded == schema_->fingerprint()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_SCHEMA_MISMATCH,
                   ExpectedGot(absl::StrCat(schema_->fingerprint()), absl::StrCat(demanded)), field);
}

absl::Status ParameterSet::MakeError(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message,
                                     absl::string_view field) const {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_set(name_);
  detail.set_incarnation(incarnation_);
  detail.set_step(step_);
  detail.set_field(std::string(field));
  return Error(code, absl::StrCat(message, " (set ", Quoted(name_), ")"), detail);
}

absl::Status ParameterSet::Rewritten() const {
  return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH, "the set was written meanwhile");
}

uint64_t ParameterSet::DrawIncarnation() { return absl::Uniform(random_, uint64_t{1}, uint64_t{1} << 53); }

}  // namespace adamant::core
