// What a set does with a gradient: its groups with every default resolved, and what holds for all of them; its labels;
// and what a set may be called.
#ifndef ADAMANT_SERVER_CORE_SPEC_CONFIGURATION_H_
#define ADAMANT_SERVER_CORE_SPEC_CONFIGURATION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "server/core/spec/parameter_group.h"

namespace adamant::core {

inline constexpr int kMaxLabels = 32;
inline constexpr int kMaxSetNameBytes = 255;

// A gradient may be at most so many steps behind: what is older is not remembered, either.
inline constexpr int kMaxStaleness = 64;

// Immutable and thread-safe.
class Configuration {
 public:
  // What `spec` says, as revision 1. Errors: INVALID_ARGUMENT (INVALID_FIELD) with a field such as
  // `spec.groups[0].adam.beta1`.
  static absl::StatusOr<std::shared_ptr<const Configuration>> Create(const v1::ParameterSetSpec& spec);

  // What `set` shows of a configuration: every default is resolved there, and the revision is its own. Errors: the
  // same.
  static absl::StatusOr<std::shared_ptr<const Configuration>> Restore(const v1::ParameterSet& set);

  // The next revision: this one with what `request` changes. Errors: INVALID_ARGUMENT (INVALID_FIELD) with a field such
  // as `group.adam.beta1`.
  absl::StatusOr<std::shared_ptr<const Configuration>> Change(const v1::UpdateParameterGroupRequest& request) const;
  absl::StatusOr<std::shared_ptr<const Configuration>> Change(const v1::UpdateParameterSetRequest& request) const;

  // The next revision, or the same where no groups come: this one with more groups, which take no other arrays. Errors:
  // the same.
  absl::StatusOr<std::shared_ptr<const Configuration>> Add(
      const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& groups) const;

  // At least one; every field set.
  const std::vector<v1::ParameterGroup>& groups() const { return groups_; }
  const google::protobuf::Map<std::string, std::string>& labels() const { return labels_; }
  const v1::Clipping& clipping() const { return clipping_; }
  // Never UNSPECIFIED.
  v1::NonFinitePolicy non_finite_policy() const { return non_finite_policy_; }
  // In [0, kMaxStaleness].
  int max_staleness() const { return max_staleness_; }
  // With every default resolved; null where each step is one client's.
  const v1::Workers* workers() const { return workers_.has_value() ? &*workers_ : nullptr; }
  int64_t revision() const { return revision_; }

  // Memory that it takes, in bytes.
  int64_t MemoryBytes() const;

 private:
  Configuration() = default;

  // Take what `spec` has of it. Errors: as of Create; then nothing has changed.
  absl::Status SetAll(const v1::ParameterSetSpec& spec);
  absl::Status SetLabels(const v1::ParameterSetSpec& spec);
  absl::Status SetClipping(const v1::ParameterSetSpec& spec);
  absl::Status SetNonFinitePolicy(const v1::ParameterSetSpec& spec);
  absl::Status SetMaxStaleness(const v1::ParameterSetSpec& spec);
  absl::Status SetWorkers(const v1::ParameterSetSpec& spec);

  std::vector<v1::ParameterGroup> groups_;
  google::protobuf::Map<std::string, std::string> labels_;
  v1::Clipping clipping_;
  v1::NonFinitePolicy non_finite_policy_ = v1::NON_FINITE_POLICY_SKIP;
  int max_staleness_ = 0;
  std::optional<v1::Workers> workers_;
  int64_t revision_ = 1;
};

// Checks the name of a set: segments of letters, digits and . _ - + = : @ ~, joined by `/`; none empty, `.` or `..`; at
// most kMaxSetNameBytes. Error: INVALID_ARGUMENT (INVALID_FIELD) naming `field`, which shows the name and what is wrong
// with it where (positions are bytes, from 0).
absl::Status ValidateSetName(absl::string_view name, absl::string_view field);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_CONFIGURATION_H_
