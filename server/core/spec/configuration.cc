// Checks a specification's groups and labels, and fills in the defaults.
#include "server/core/spec/configuration.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/error/error.h"
#include "server/core/base/utf8.h"

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

// All three as the kernel will see them: rounded to float. A NaN is outside of every range.
absl::Status ValidateRange(double value, double lowest, double highest, absl::string_view field) {
  const float rounded = static_cast<float>(value);
  if (rounded >= static_cast<float>(lowest) && rounded <= static_cast<float>(highest)) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("[", Spelled(lowest), ", ", Spelled(highest), "]"), Spelled(value));
}

absl::Status ValidateGroupName(absl::string_view name, absl::string_view field) {
  const bool valid = !name.empty() && name.size() <= kMaxGroupNameBytes &&
                     std::all_of(name.begin(), name.end(),
                                 [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-'; });
  if (valid) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("1 to ", kMaxGroupNameBytes, " characters of [A-Za-z0-9_.-]"), Quoted(name));
}

// Sets every field of `group` that is not, but its name.
void ResolveDefaults(v1::ParameterGroup* group) {
  if (!group->has_learning_rate()) group->set_learning_rate(kDefaultLearningRate);
  v1::Adam* adam = group->mutable_adam();
  if (!adam->has_beta1()) adam->set_beta1(kDefaultBeta1);
  if (!adam->has_beta2()) adam->set_beta2(kDefaultBeta2);
  if (!adam->has_eps()) adam->set_eps(kDefaultEps);
}

// How large learning_rate / ((1 - beta1) * eps) may be, so that no parameter becomes infinite, whatever permitted
// gradients and writes a set gets. A step moves a parameter by at most that ratio times |m|, since d is at least eps
// and step_size at most learning_rate / (1 - beta1); gradients are below 2^63, and a write brings |m| of at most 2^64
// and |p| of at most 2^95.
//
// Where beta1^2 <= beta2, m decays at least as fast as the root of v, and what gradients have brought to both in n
// steps never makes |m| / sqrt(v) more than sqrt(2^20 * n). What a write brought to m, over a v that may be zero, moves
// p by no more than 16 * 2^64 times the ratio in all the steps to come: beta1^t * (1 - beta1) / (1 - beta1^t), summed
// over t, stays below 15. A ratio of 2^58 makes that 2^126.
constexpr double kMaxRatio = 0x1p58;
// Elsewhere gradients can leave a large m over a small v again and again. A parameter is then finite for good only if
// each step, of at most 2^64 times the ratio, is lost in rounding at the largest float: if it is below 2^103.
constexpr double kMaxRatioOfShortMemory = 0x1p38;

// Of a group whose fields are valid each for itself, at `path`.
absl::Status ValidateCombination(const v1::ParameterGroup& group, absl::string_view path) {
  // All as the kernel will see them: rounded to float.
  const double learning_rate = static_cast<float>(group.learning_rate());
  const double beta1 = static_cast<float>(group.adam().beta1());
  const double beta2 = static_cast<float>(group.adam().beta2());
  const double eps = static_cast<float>(group.adam().eps());
  const bool short_memory = beta2 < beta1 * beta1;
  const double highest = (short_memory ? kMaxRatioOfShortMemory : kMaxRatio) * (1 - beta1) * eps;
  if (learning_rate <= highest) return absl::OkStatus();
  return InvalidField(absl::StrCat(path, ".learning_rate"),
                      absl::StrCat("at most 2^", short_memory ? "38" : "58", " * (1 - beta1) * eps, ", Spelled(highest),
                                   ", where beta2 is ", short_memory ? "less than" : "at least", " beta1^2"),
                      Spelled(group.learning_rate()));
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
  if (status.ok()) status = ValidateCombination(group, path);
  return status;
}

absl::StatusOr<std::vector<v1::ParameterGroup>> ResolveGroups(const v1::ParameterSetSpec& spec) {
  if (spec.groups_size() > kMaxGroups) {
    return InvalidField("spec.groups", absl::StrCat("at most ", kMaxGroups, " groups"),
                        absl::StrCat(spec.groups_size()));
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
      return InvalidField(name_path, "a name of its own",
                          absl::StrCat(Quoted(groups[i].name()), ", the name of an earlier group"));
    }
    ResolveDefaults(&groups[i]);
    if (absl::Status status = ValidateHyperparameters(groups[i], path); !status.ok()) return status;
  }
  return groups;
}

absl::Status ValidateLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  constexpr absl::string_view kField = "spec.labels";
  if (labels.size() > kMaxLabels) {
    return InvalidField(kField, absl::StrCat("at most ", kMaxLabels, " labels"), absl::StrCat(labels.size()));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelKeyBytes || !IsUtf8(key)) {
      return InvalidField(kField, absl::StrCat("keys of 1 to ", kMaxLabelKeyBytes, " bytes of UTF-8"), Quoted(key));
    }
    if (value.size() > kMaxLabelValueBytes || !IsUtf8(value)) {
      return InvalidField(kField, absl::StrCat("values of at most ", kMaxLabelValueBytes, " bytes of UTF-8"),
                          absl::StrCat(Quoted(value), " for ", Quoted(key)));
    }
  }
  return absl::OkStatus();
}

// The segments' characters beside letters and digits, as they are listed to people.
constexpr absl::string_view kSetNamePunctuation = ". _ - + = : @ ~";

bool IsSetNameCharacter(char c) {
  return absl::ascii_isalnum(c) || (c != ' ' && absl::StrContains(kSetNamePunctuation, c));
}

// What is wrong with the name of a set, and where; empty if nothing is.
std::string FaultInSetName(absl::string_view name) {
  if (name.empty()) return "an empty name";
  const auto at = [name](absl::string_view what, size_t position) {
    return absl::StrCat(what, " at position ", position, " of ", Quoted(name));
  };
  size_t begin = 0;
  for (const absl::string_view segment : absl::StrSplit(name, '/')) {
    const auto bad = std::find_if_not(segment.begin(), segment.end(), IsSetNameCharacter);
    if (bad != segment.end()) {
      // All bytes of a character that has several.
      const auto end = std::find_if(bad + 1, segment.end(), [](char c) { return (c & 0xc0) != 0x80; });
      return at(Quoted(absl::string_view(bad, end - bad)), begin + (bad - segment.begin()));
    }
    if (segment.empty()) return at("an empty segment", begin);
    if (segment == "." || segment == "..") return at(absl::StrCat("the segment ", Quoted(segment)), begin);
    begin += segment.size() + 1;
  }
  return "";
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
  if (name.size() > kMaxSetNameBytes) {
    return InvalidField(field, absl::StrCat("at most ", kMaxSetNameBytes, " bytes"), Quoted(name));
  }
  const std::string fault = FaultInSetName(name);
  if (fault.empty()) return absl::OkStatus();
  return InvalidField(
      field,
      absl::StrCat("letters, digits and ", kSetNamePunctuation, " in segments joined by /, none of them `.` or `..`"),
      fault);
}

}  // namespace adamant::core
