// Checks a specification's groups and labels, and fills in the defaults.
#include "server/core/configuration.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/error/error.h"
#include "server/core/utf8.h"

namespace adamant::core {
namespace {

constexpr absl::string_view kDefaultGroupName = "default";
constexpr double kDefaultLearningRate = 1e-3;
constexpr double kDefaultBeta1 = 0.9;
constexpr double kDefaultBeta2 = 0.999;
constexpr double kDefaultEps = 1e-8;

constexpr double kMaxBeta = 1 - 0x1p-20;
constexpr double kMaxLearningRate = 0x1p32;
constexpr double kMaxEps = 0x1p32;

constexpr size_t kMaxGroupNameBytes = 64;
constexpr size_t kMaxLabelKeyBytes = 63;
constexpr size_t kMaxLabelValueBytes = 255;

absl::Status InvalidField(absl::string_view field, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD,
               absl::StrCat("`", field, "`: ", message), field);
}

// All three as the kernel will see them: rounded to float. A NaN is outside of every range.
absl::Status ValidateRange(double value, double lowest, double highest, absl::string_view field) {
  const float rounded = static_cast<float>(value);
  if (rounded >= static_cast<float>(lowest) && rounded <= static_cast<float>(highest)) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("in [", lowest, ", ", highest, "], got ", value));
}

absl::Status ValidateGroupName(absl::string_view name, absl::string_view field) {
  const bool valid = !name.empty() && name.size() <= kMaxGroupNameBytes &&
                     std::all_of(name.begin(), name.end(),
                                 [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-'; });
  if (valid) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("1 to ", kMaxGroupNameBytes, " characters of [A-Za-z0-9_.-]"));
}

// Sets every field of `group` that is not, but its name.
void ResolveDefaults(v1::ParameterGroup* group) {
  if (!group->has_learning_rate()) group->set_learning_rate(kDefaultLearningRate);
  v1::Adam* adam = group->mutable_adam();
  if (!adam->has_beta1()) adam->set_beta1(kDefaultBeta1);
  if (!adam->has_beta2()) adam->set_beta2(kDefaultBeta2);
  if (!adam->has_eps()) adam->set_eps(kDefaultEps);
}

// Of a resolved group, at `path`.
absl::Status ValidateHyperparameters(const v1::ParameterGroup& group, absl::string_view path) {
  const v1::Adam& adam = group.adam();
  absl::Status status = ValidateRange(group.learning_rate(), 0, kMaxLearningRate, absl::StrCat(path, ".learning_rate"));
  if (status.ok()) status = ValidateRange(adam.beta1(), 0, kMaxBeta, absl::StrCat(path, ".adam.beta1"));
  if (status.ok()) status = ValidateRange(adam.beta2(), 0, kMaxBeta, absl::StrCat(path, ".adam.beta2"));
  if (status.ok()) {
    status = ValidateRange(adam.eps(), kernels::MinEps(adam.beta2()), kMaxEps, absl::StrCat(path, ".adam.eps"));
  }
  return status;
}

absl::StatusOr<std::vector<v1::ParameterGroup>> ResolveGroups(const v1::ParameterSetSpec& spec) {
  if (spec.groups_size() > kMaxGroups) {
    return InvalidField("spec.groups", absl::StrCat("at most ", kMaxGroups, " groups, got ", spec.groups_size()));
  }
  std::vector<v1::ParameterGroup> groups(spec.groups().begin(), spec.groups().end());
  if (groups.empty()) groups.emplace_back();
  if (groups.size() == 1 && groups[0].name().empty()) groups[0].set_name(std::string(kDefaultGroupName));

  std::set<absl::string_view> names;
  for (size_t i = 0; i < groups.size(); ++i) {
    const std::string path = absl::StrCat("spec.groups[", i, "]");
    const std::string name_path = absl::StrCat(path, ".name");
    if (absl::Status status = ValidateGroupName(groups[i].name(), name_path); !status.ok()) return status;
    if (!names.insert(groups[i].name()).second) {
      return InvalidField(name_path, absl::StrCat("another group has the name `", groups[i].name(), "` too"));
    }
    ResolveDefaults(&groups[i]);
    if (absl::Status status = ValidateHyperparameters(groups[i], path); !status.ok()) return status;
  }
  return groups;
}

absl::Status ValidateLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  constexpr absl::string_view kField = "spec.labels";
  if (labels.size() > kMaxLabels) {
    return InvalidField(kField, absl::StrCat("at most ", kMaxLabels, " labels, got ", labels.size()));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelKeyBytes || !IsUtf8(key)) {
      return InvalidField(kField, absl::StrCat("a key is 1 to ", kMaxLabelKeyBytes, " bytes of UTF-8"));
    }
    if (value.size() > kMaxLabelValueBytes || !IsUtf8(value)) {
      return InvalidField(kField, absl::StrCat("a value is at most ", kMaxLabelValueBytes, " bytes of UTF-8; that of `",
                                               absl::CHexEscape(key), "` is not"));
    }
  }
  return absl::OkStatus();
}

// [a-z0-9][a-z0-9._-]*
bool IsSetNameSegment(absl::string_view segment) {
  const auto letter_or_digit = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c); };
  return !segment.empty() && letter_or_digit(segment.front()) &&
         std::all_of(segment.begin(), segment.end(),
                     [&](char c) { return letter_or_digit(c) || c == '.' || c == '_' || c == '-'; });
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Configuration>> Configuration::Create(const v1::ParameterSetSpec& spec) {
  absl::StatusOr<std::vector<v1::ParameterGroup>> groups = ResolveGroups(spec);
  if (!groups.ok()) return groups.status();
  if (absl::Status status = ValidateLabels(spec.labels()); !status.ok()) return status;
  std::shared_ptr<Configuration> configuration(new Configuration());
  configuration->groups_ = *std::move(groups);
  configuration->labels_ = spec.labels();
  return configuration;
}

double Configuration::LearningRate(int group, int64_t /*t*/) const { return groups_[group].learning_rate(); }

kernels::AdamScalars Configuration::Scalars(int group, int64_t t, float scale) const {
  const v1::Adam& adam = groups_[group].adam();
  return kernels::MakeAdamScalars(
      {.learning_rate = LearningRate(group, t), .beta1 = adam.beta1(), .beta2 = adam.beta2(), .eps = adam.eps()}, t,
      scale);
}

absl::Status ValidateSetName(absl::string_view name, absl::string_view field) {
  const std::vector<absl::string_view> segments = absl::StrSplit(name.substr(0, kMaxSetNameBytes + 1), '/');
  if (name.size() <= kMaxSetNameBytes && std::all_of(segments.begin(), segments.end(), IsSetNameSegment)) {
    return absl::OkStatus();
  }
  return InvalidField(field, absl::StrCat("segments of [a-z0-9][a-z0-9._-]* joined by `/`, together at most ",
                                          kMaxSetNameBytes, " bytes"));
}

}  // namespace adamant::core
