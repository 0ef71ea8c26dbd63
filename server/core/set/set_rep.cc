#include "server/core/set/set_rep.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "server/core/spec/workers.h"

namespace adamant::core {
namespace {

// What a list keeps beside an entry: two links, and what the allocator adds.
constexpr int64_t kNodeBytes = 32;

// Whether steps, or writes, that take so many bytes can be under way.
absl::Status CheckFits(int64_t bytes, const Resources& resources, absl::string_view field) {
  if (bytes <= resources.inflight->capacity()) return absl::OkStatus();
  return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
               ExpectedGot(absl::StrCat("steps and writes of at most ", resources.inflight->capacity(),
                                        " bytes, the budget for those under way"),
                           absl::StrCat(bytes)),
               field);
}

}  // namespace

// What a set takes beside its arrays: itself, its configuration, what it knows of its tensors and their updates, what
// it remembers of its steps, and what a direct write, which there is one of at a time, knows of its progress.
std::string PreviousDigest(const SetRep& set) {
  return set.last_digest.incarnation == set.lifecycle.incarnation() ? set.last_digest.digest : "";
}

int64_t OverheadBytes(const Schema& schema, const Configuration& configuration) {
  const int64_t tensors = static_cast<int64_t>(schema.tensors().size());
  const int64_t remembered =
      kRememberedSteps * static_cast<int64_t>(sizeof(Requests::Entry) + sizeof(Requests::Key) + kMaxRequestIdBytes +
                                              sizeof(double) * configuration.groups().size() + kNodeBytes);
  // The work of the last step, and of one that replaces it; the counts of updates, and those after a step.
  return static_cast<int64_t>(sizeof(SetRep)) + schema.MemoryBytes() + 2 * StepWork::MemoryBytes(schema) +
         2 * tensors * static_cast<int64_t>(sizeof(int64_t)) + remembered + ConfigurationBytes(configuration) +
         3 * Coverage::MemoryBytes(tensors);
}

int64_t ConfigurationBytes(const Configuration& configuration) {
  const int64_t workers = configuration.workers() != nullptr ? configuration.workers()->count() : 0;
  const auto requests = static_cast<int64_t>(kRememberedSteps * (sizeof(Requests::Key) + kMaxRequestIdBytes));
  return configuration.MemoryBytes() + workers * (requests + Round::kRankBytes);
}

absl::Status CheckCanContribute(const TensorSelection& all, const v1::Workers* workers, const Resources& resources,
                                absl::string_view field) {
  if (workers == nullptr) return absl::OkStatus();
  return CheckFits(ArraysOfRound(*workers) * StagingBytes(all), resources, field);
}

absl::Status CheckCanBeWritten(const TensorSelection& all, size_t slots, const Resources& resources,
                               absl::string_view field) {
  // The call pays for one small array.
  int64_t arrays = IsSmall(all.block_elements()) ? 0 : 1;
  if (!resources.backend->on_host()) arrays += static_cast<int64_t>(slots);
  return CheckFits(arrays * StagingBytes(all), resources, field);
}

absl::Status CheckHasRoomForCheckpoints(const Schema& schema, size_t slots, const Resources& resources,
                                        absl::string_view field) {
  const int64_t bytes = ArrayBytes(schema) * static_cast<int64_t>(1 + slots);
  if (bytes <= resources.read->capacity()) return absl::OkStatus();
  return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
               ExpectedGot(absl::StrCat("a set whose state, which checkpoints read, takes at most ",
                                        resources.read->capacity(), " bytes, the budget for reads"),
                           absl::StrCat(bytes)),
               field);
}

void DescribeConfiguration(const Configuration& configuration, v1::ParameterSet* description) {
  for (const v1::ParameterGroup& group : configuration.groups()) *description->add_groups() = group;
  *description->mutable_labels() = configuration.labels();
  description->set_config_revision(configuration.revision());
  *description->mutable_clipping() = configuration.clipping();
  description->set_non_finite_policy(configuration.non_finite_policy());
  description->set_max_staleness(configuration.max_staleness());
  if (configuration.workers() != nullptr) *description->mutable_workers() = *configuration.workers();
}

v1::ParameterSet DescribeSet(const SetRep& set) {
  int64_t state_bytes = set.configuration_grant.bytes();
  for (const Grant& grant : set.grants) state_bytes += grant.bytes();
  v1::ParameterSet description;
  description.set_name(set.name);
  description.set_schema_fingerprint(set.schema->fingerprint());
  description.set_tensor_count(static_cast<int32_t>(set.schema->tensors().size()));
  description.set_parameter_count(set.schema->parameter_count());
  description.set_state_bytes(state_bytes);
  description.set_device(set.resources.backend->name());
  *description.mutable_create_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(set.create_time));
  description.set_incarnation(set.lifecycle.incarnation());
  description.set_step(set.lifecycle.step());
  description.set_state(set.lifecycle.state());
  DescribeConfiguration(*set.configuration, &description);
  if (set.configuration->workers() != nullptr) description.set_round(set.round_number);
  *description.mutable_statistics() = set.statistics;
  if (set.journal != nullptr) {
    set.journal->Describe(&description);
  } else {
    description.mutable_durability()->mutable_nothing();
  }
  return description;
}

v1::WatchParameterSetResponse EventNow(const SetRep& set) {
  v1::WatchParameterSetResponse event;
  event.set_incarnation(set.lifecycle.incarnation());
  event.set_step(set.lifecycle.step());
  return event;
}

}  // namespace adamant::core
