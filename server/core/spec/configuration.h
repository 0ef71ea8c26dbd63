// What a set does with a gradient: its groups with every default resolved, and its labels; and what a set may be
// called.
#ifndef ADAMANT_SERVER_CORE_SPEC_CONFIGURATION_H_
#define ADAMANT_SERVER_CORE_SPEC_CONFIGURATION_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "kernels/adam_scalars.h"

namespace adamant::core {

inline constexpr int kMaxGroups = 1024;
inline constexpr int kMaxLabels = 32;
inline constexpr int kMaxSetNameBytes = 255;

// Immutable and thread-safe.
class Configuration {
 public:
  // Of the groups and labels of `spec`, as revision 1. Errors: INVALID_ARGUMENT (INVALID_FIELD) with a field such as
  // `spec.groups[0].adam.beta1`.
  static absl::StatusOr<std::shared_ptr<const Configuration>> Create(const v1::ParameterSetSpec& spec);

  // At least one; every field set.
  const std::vector<v1::ParameterGroup>& groups() const { return groups_; }
  const google::protobuf::Map<std::string, std::string>& labels() const { return labels_; }
  int64_t revision() const { return revision_; }

  // What group number `group` multiplies an update with when the counter becomes `t`.
  double LearningRate(int group, int64_t t) const;
  // What the kernel needs for that step; the gradient counts `scale` times.
  kernels::AdamScalars Scalars(int group, int64_t t, float scale) const;

 private:
  Configuration() = default;

  std::vector<v1::ParameterGroup> groups_;
  google::protobuf::Map<std::string, std::string> labels_;
  int64_t revision_ = 1;
};

// Checks the name of a set: segments of letters, digits and . _ - + = : @ ~, joined by `/`; none empty, `.` or `..`; at
// most kMaxSetNameBytes. Error: INVALID_ARGUMENT (INVALID_FIELD) naming `field`, which shows the name and what is wrong
// with it where (positions are bytes, from 0).
absl::Status ValidateSetName(absl::string_view name, absl::string_view field);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_CONFIGURATION_H_
