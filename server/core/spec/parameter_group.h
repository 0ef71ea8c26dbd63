// A group of parameters: its hyperparameters with every default resolved, checked, changed, and made into what the
// kernels need.
//
// Thread-safe: free functions without state. Errors are INVALID_ARGUMENT (INVALID_FIELD) and name the field within the
// `path` that is given, such as `spec.groups[0].adam.beta1`.
#ifndef ADAMANT_SERVER_CORE_SPEC_PARAMETER_GROUP_H_
#define ADAMANT_SERVER_CORE_SPEC_PARAMETER_GROUP_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/step.pb.h"
#include "google/protobuf/field_mask.pb.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "kernels/update.h"

namespace adamant::core {

inline constexpr int kMaxGroups = 1024;

using GroupOverrides = google::protobuf::RepeatedPtrField<v1::GroupOverride>;

// `given` with every default resolved: at least one group, each with an optimizer and all of its fields.
absl::StatusOr<std::vector<v1::ParameterGroup>> ResolveGroups(
    const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& given, absl::string_view path);

// `groups`, resolved ones, and behind them `added`, resolved.
absl::StatusOr<std::vector<v1::ParameterGroup>> AddGroups(
    absl::Span<const v1::ParameterGroup> groups, const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& added,
    absl::string_view path);

// The position of the group that `name` means, which is the first if it is empty, among resolved `groups`. Error: none
// is called that.
absl::StatusOr<int> FindGroup(absl::Span<const v1::ParameterGroup> groups, absl::string_view name,
                              absl::string_view path);

// `group`, a resolved one, with the fields of `mask` as `values` has them, defaults resolved. Errors: a value, also for
// a combination with the others; a field that cannot change; `mask_path`, for a path that there is not.
absl::StatusOr<v1::ParameterGroup> ChangeGroup(const v1::ParameterGroup& group, const v1::ParameterGroup& values,
                                               const google::protobuf::FieldMask& mask, absl::string_view path,
                                               absl::string_view mask_path);

// `groups`, resolved ones, with what `overrides` say instead.
absl::StatusOr<std::vector<v1::ParameterGroup>> OverrideGroups(absl::Span<const v1::ParameterGroup> groups,
                                                               const GroupOverrides& overrides, absl::string_view path);

// The learning rate of a resolved group in the step that is applied to a set at `step`.
double LearningRateAt(const v1::ParameterGroup& group, int64_t step);

// Which update the optimizer of a resolved group is.
kernels::Update UpdateOf(const v1::ParameterGroup& group);

// What the kernels do in a step to those tensors of a resolved group that have had `update_count` updates before it.
// `transform` is of the whole step: a group that ascends turns its sign.
kernels::Recipe MakeRecipe(const v1::ParameterGroup& group, double learning_rate, int64_t update_count,
                           kernels::GradientTransform transform);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_PARAMETER_GROUP_H_
