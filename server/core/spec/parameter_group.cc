#include "server/core/spec/parameter_group.h"

#include <algorithm>
#include <set>
#include <string>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/field_mask_util.h"
#include "proto/error/error.h"
#include "server/core/spec/range.h"
#include "server/core/spec/schedule.h"

namespace adamant::core {
namespace {

constexpr absl::string_view kDefaultGroupName = "default";
constexpr double kDefaultLearningRate = 1e-3;
constexpr double kDefaultBeta1 = 0.9;
constexpr double kDefaultBeta2 = 0.999;
constexpr double kDefaultEps = 1e-8;

constexpr double kMaxBeta = 1 - 0x1p-20;
constexpr double kMaxLearningRate = 0x1p32;
constexpr double kMaxWeightDecay = 0x1p32;
constexpr double kMaxEps = 0x1p32;

constexpr size_t kMaxGroupNameBytes = 64;

// Where the fields of a group and those of its optimizer stand in a request.
struct Paths {
  std::string group;
  std::string adam;
  std::string sgd;
};

Paths OfGroup(absl::string_view path) {
  return {std::string(path), absl::StrCat(path, ".adam"), absl::StrCat(path, ".sgd")};
}

// An override has the optimizer's fields among its own.
Paths OfOverride(absl::string_view path) { return {std::string(path), std::string(path), std::string(path)}; }

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
  if (group->has_sgd()) {
    v1::Sgd* const sgd = group->mutable_sgd();
    if (!sgd->has_momentum()) sgd->set_momentum(0);
    if (!sgd->has_dampening()) sgd->set_dampening(0);
    if (!sgd->has_weight_decay()) sgd->set_weight_decay(0);
    return;
  }
  v1::Adam* const adam = group->mutable_adam();
  if (!adam->has_beta1()) adam->set_beta1(kDefaultBeta1);
  if (!adam->has_beta2()) adam->set_beta2(kDefaultBeta2);
  if (!adam->has_eps()) adam->set_eps(kDefaultEps);
  if (!adam->has_weight_decay()) adam->set_weight_decay(0);
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
// The same of SGD: the buffer is at most 2^64, from a write, or 2^63 / (1 - momentum), from gradients, and Nesterov's
// sum no more than twice that.
constexpr double kMaxSgdRatio = 0x1p38;

absl::Status RatioTooLarge(const v1::ParameterGroup& group, absl::string_view path, absl::string_view highest,
                           double value, absl::string_view condition) {
  return InvalidField(absl::StrCat(path, ".learning_rate"),
                      absl::StrCat("at most ", highest, ", ", Spelled(value), condition),
                      Spelled(group.learning_rate()));
}

// Of an Adam group whose fields are valid each for itself, at `path`.
absl::Status ValidateAdamRatio(const v1::ParameterGroup& group, absl::string_view path) {
  // All as the kernel will see them: rounded to float.
  const double learning_rate = static_cast<float>(group.learning_rate());
  const double beta1 = static_cast<float>(group.adam().beta1());
  const double beta2 = static_cast<float>(group.adam().beta2());
  const double eps = static_cast<float>(group.adam().eps());
  const bool short_memory = beta2 < beta1 * beta1;
  const double highest = (short_memory ? kMaxRatioOfShortMemory : kMaxRatio) * (1 - beta1) * eps;
  if (learning_rate <= highest) return absl::OkStatus();
  return RatioTooLarge(group, path, short_memory ? "2^38 * (1 - beta1) * eps" : "2^58 * (1 - beta1) * eps", highest,
                       short_memory ? ", where beta2 is less than beta1^2" : ", where beta2 is at least beta1^2");
}

absl::Status ValidateAdam(const v1::ParameterGroup& group, const Paths& paths) {
  const v1::Adam& adam = group.adam();
  absl::Status status = ValidateRange(adam.beta1(), 0, kMaxBeta, absl::StrCat(paths.adam, ".beta1"));
  if (status.ok()) status = ValidateRange(adam.beta2(), 0, kMaxBeta, absl::StrCat(paths.adam, ".beta2"));
  if (status.ok()) {
    status = ValidateRange(adam.eps(), kernels::MinEps(adam.beta2()), kMaxEps, absl::StrCat(paths.adam, ".eps"));
  }
  if (status.ok()) {
    status = ValidateRange(adam.weight_decay(), 0, kMaxWeightDecay, absl::StrCat(paths.adam, ".weight_decay"));
  }
  if (status.ok()) status = ValidateAdamRatio(group, paths.group);
  return status;
}

absl::Status ValidateSgd(const v1::ParameterGroup& group, const Paths& paths) {
  const v1::Sgd& sgd = group.sgd();
  absl::Status status = ValidateRange(sgd.momentum(), 0, kMaxBeta, absl::StrCat(paths.sgd, ".momentum"));
  if (status.ok()) status = ValidateRange(sgd.dampening(), 0, 1, absl::StrCat(paths.sgd, ".dampening"));
  if (status.ok()) {
    status = ValidateRange(sgd.weight_decay(), 0, kMaxWeightDecay, absl::StrCat(paths.sgd, ".weight_decay"));
  }
  if (!status.ok()) return status;
  if (sgd.nesterov() && (sgd.momentum() == 0 || sgd.dampening() != 0)) {
    return InvalidField(absl::StrCat(paths.sgd, ".nesterov"), "false, or a momentum above 0 and a dampening of 0",
                        absl::StrCat("true with a momentum of ", Spelled(sgd.momentum()), " and a dampening of ",
                                     Spelled(sgd.dampening())));
  }
  const double highest = kMaxSgdRatio * (1 - static_cast<double>(static_cast<float>(sgd.momentum())));
  if (static_cast<float>(group.learning_rate()) <= highest) return absl::OkStatus();
  return RatioTooLarge(group, paths.group, "2^38 * (1 - momentum)", highest, "");
}

// Of a resolved group.
absl::Status ValidateHyperparameters(const v1::ParameterGroup& group, const Paths& paths) {
  absl::Status status =
      ValidateRange(group.learning_rate(), 0, kMaxLearningRate, absl::StrCat(paths.group, ".learning_rate"));
  if (status.ok()) status = group.has_sgd() ? ValidateSgd(group, paths) : ValidateAdam(group, paths);
  if (status.ok() && group.has_schedule()) {
    status = ValidateSchedule(group.schedule(), group.learning_rate(), absl::StrCat(paths.group, ".schedule"));
  }
  return status;
}

bool HasMomentum(const v1::ParameterGroup& group) { return group.sgd().momentum() != 0; }

// Whether `changed` can go on with the arrays of `group`.
absl::Status CheckSameArrays(const v1::ParameterGroup& group, const v1::ParameterGroup& changed,
                             absl::string_view path) {
  if (group.optimizer_case() != changed.optimizer_case()) {
    const bool sgd = group.has_sgd();
    return InvalidField(absl::StrCat(path, sgd ? ".adam" : ".sgd"),
                        absl::StrCat("none: the group's optimizer is ", sgd ? "SGD" : "Adam", " for good"), "one");
  }
  const auto spelled = [](bool value) { return value ? "true" : "false"; };
  if (group.adam().amsgrad() != changed.adam().amsgrad()) {
    return InvalidField(absl::StrCat(path, ".adam.amsgrad"),
                        absl::StrCat(spelled(group.adam().amsgrad()), ", as when the set was created"),
                        spelled(changed.adam().amsgrad()));
  }
  if (HasMomentum(group) != HasMomentum(changed)) {
    return InvalidField(
        absl::StrCat(path, ".sgd.momentum"),
        HasMomentum(group) ? "more than 0, as when the set was created" : "0, as when the set was created",
        Spelled(changed.sgd().momentum()));
  }
  return absl::OkStatus();
}

absl::Status NoSuchGroup(absl::string_view name, absl::string_view path) {
  return InvalidField(path, "the name of one of the set's groups", Quoted(name));
}

bool CanChange(absl::string_view field) {
  static const auto* const whole =
      new absl::flat_hash_set<absl::string_view>({"learning_rate", "schedule", "frozen", "adam", "sgd"});
  return whole->contains(field) || absl::StartsWith(field, "adam.") || absl::StartsWith(field, "sgd.");
}

absl::Status Override(const v1::GroupOverride& values, v1::ParameterGroup* group, absl::string_view path) {
  const auto not_of = [&](absl::string_view field, absl::string_view optimizer) {
    return InvalidField(absl::StrCat(path, ".", field),
                        absl::StrCat("none for ", Quoted(group->name()), ", whose optimizer is ", optimizer), "one");
  };
  if (values.has_learning_rate()) {
    group->set_learning_rate(values.learning_rate());
    group->clear_schedule();
  }
  if (group->has_sgd()) {
    if (values.has_beta1()) return not_of("beta1", "SGD");
    if (values.has_beta2()) return not_of("beta2", "SGD");
    if (values.has_eps()) return not_of("eps", "SGD");
    const bool had_momentum = HasMomentum(*group);
    if (values.has_weight_decay()) group->mutable_sgd()->set_weight_decay(values.weight_decay());
    if (values.has_momentum()) group->mutable_sgd()->set_momentum(values.momentum());
    if (HasMomentum(*group) != had_momentum) {
      return InvalidField(absl::StrCat(path, ".momentum"),
                          had_momentum ? "more than 0, as the group's" : "0, as the group's",
                          Spelled(values.momentum()));
    }
    return absl::OkStatus();
  }
  if (values.has_momentum()) return not_of("momentum", "Adam");
  v1::Adam* const adam = group->mutable_adam();
  if (values.has_beta1()) adam->set_beta1(values.beta1());
  if (values.has_beta2()) adam->set_beta2(values.beta2());
  if (values.has_eps()) adam->set_eps(values.eps());
  if (values.has_weight_decay()) adam->set_weight_decay(values.weight_decay());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<v1::ParameterGroup>> ResolveGroups(
    const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& given, absl::string_view path) {
  google::protobuf::RepeatedPtrField<v1::ParameterGroup> groups = given;
  if (groups.empty()) groups.Add();
  if (groups.size() == 1 && groups[0].name().empty()) groups[0].set_name(std::string(kDefaultGroupName));
  return AddGroups({}, groups, path);
}

absl::StatusOr<std::vector<v1::ParameterGroup>> AddGroups(
    absl::Span<const v1::ParameterGroup> groups, const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& added,
    absl::string_view path) {
  const size_t before = groups.size();
  if (before + added.size() > kMaxGroups) {
    return InvalidField(path, absl::StrCat("at most ", kMaxGroups - before, " groups"), absl::StrCat(added.size()));
  }
  std::vector<v1::ParameterGroup> all(groups.begin(), groups.end());
  all.insert(all.end(), added.begin(), added.end());
  std::set<absl::string_view> names;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool is_new = names.insert(all[i].name()).second;
    if (i < before) continue;
    const std::string group_path = absl::StrCat(path, "[", i - before, "]");
    const std::string name_path = absl::StrCat(group_path, ".name");
    if (absl::Status status = ValidateGroupName(all[i].name(), name_path); !status.ok()) return status;
    if (!is_new) {
      return InvalidField(name_path, "a name of its own",
                          absl::StrCat(Quoted(all[i].name()), ", the name of an earlier group"));
    }
    ResolveDefaults(&all[i]);
    if (absl::Status status = ValidateHyperparameters(all[i], OfGroup(group_path)); !status.ok()) return status;
  }
  return all;
}

absl::StatusOr<int> FindGroup(absl::Span<const v1::ParameterGroup> groups, absl::string_view name,
                              absl::string_view path) {
  if (name.empty()) return 0;
  const auto found = absl::c_find_if(groups, [name](const v1::ParameterGroup& group) { return group.name() == name; });
  if (found != groups.end()) return static_cast<int>(found - groups.begin());
  return NoSuchGroup(name, path);
}

absl::StatusOr<v1::ParameterGroup> ChangeGroup(const v1::ParameterGroup& group, const v1::ParameterGroup& values,
                                               const google::protobuf::FieldMask& mask, absl::string_view path,
                                               absl::string_view mask_path) {
  using google::protobuf::util::FieldMaskUtil;
  if (mask.paths().empty()) return InvalidField(mask_path, "the fields that are to change", "none");
  for (int i = 0; i < mask.paths_size(); ++i) {
    if (CanChange(mask.paths(i)) && FieldMaskUtil::IsValidPath<v1::ParameterGroup>(mask.paths(i))) continue;
    return InvalidField(absl::StrCat(mask_path, ".paths[", i, "]"),
                        "learning_rate, schedule, frozen, adam or sgd, or a field of adam or sgd",
                        Quoted(mask.paths(i)));
  }
  v1::ParameterGroup changed = group;
  FieldMaskUtil::MergeOptions options;
  options.set_replace_message_fields(true);
  FieldMaskUtil::MergeMessageTo(values, mask, options, &changed);
  ResolveDefaults(&changed);
  if (absl::Status status = CheckSameArrays(group, changed, path); !status.ok()) return status;
  if (absl::Status status = ValidateHyperparameters(changed, OfGroup(path)); !status.ok()) return status;
  return changed;
}

absl::StatusOr<std::vector<v1::ParameterGroup>> OverrideGroups(absl::Span<const v1::ParameterGroup> groups,
                                                               const GroupOverrides& overrides,
                                                               absl::string_view path) {
  std::vector<v1::ParameterGroup> overridden(groups.begin(), groups.end());
  absl::flat_hash_map<absl::string_view, int> indices;
  for (size_t i = 0; i < groups.size(); ++i) indices.emplace(groups[i].name(), static_cast<int>(i));
  absl::flat_hash_set<int> seen;
  for (int i = 0; i < overrides.size(); ++i) {
    const std::string override_path = absl::StrCat(path, "[", i, "]");
    const std::string group_path = absl::StrCat(override_path, ".group");
    const std::string& name = overrides[i].group();
    const auto found = indices.find(name.empty() ? groups[0].name() : name);
    if (found == indices.end()) return NoSuchGroup(name, group_path);
    const int group = found->second;
    if (!seen.insert(group).second) {
      return InvalidField(group_path, "at most one override a group",
                          absl::StrCat("another of ", Quoted(groups[group].name())));
    }
    absl::Status status = Override(overrides[i], &overridden[group], override_path);
    if (status.ok()) status = ValidateHyperparameters(overridden[group], OfOverride(override_path));
    if (!status.ok()) return status;
  }
  return overridden;
}

double LearningRateAt(const v1::ParameterGroup& group, int64_t step) {
  return group.has_schedule() ? ScheduledLearningRate(group.schedule(), group.learning_rate(), step)
                              : group.learning_rate();
}

kernels::Update UpdateOf(const v1::ParameterGroup& group) {
  if (group.has_sgd()) {
    const bool decays = static_cast<float>(group.sgd().weight_decay()) != 0;
    if (group.sgd().nesterov()) return decays ? kernels::kNesterovL2 : kernels::kNesterov;
    if (HasMomentum(group)) return decays ? kernels::kMomentumL2 : kernels::kMomentum;
    return decays ? kernels::kSgdL2 : kernels::kSgd;
  }
  const v1::Adam& adam = group.adam();
  // By a branch, and never a multiplication by zero: a product with an infinite parameter is none.
  const bool decays = static_cast<float>(adam.weight_decay()) != 0;
  if (!decays) return adam.amsgrad() ? kernels::kAdamAmsgrad : kernels::kAdam;
  if (adam.decoupled_weight_decay()) return adam.amsgrad() ? kernels::kAdamWAmsgrad : kernels::kAdamW;
  return adam.amsgrad() ? kernels::kAdamL2Amsgrad : kernels::kAdamL2;
}

kernels::Recipe MakeRecipe(const v1::ParameterGroup& group, double learning_rate, int64_t update_count,
                           kernels::GradientTransform transform) {
  const int64_t t = update_count + 1;
  const kernels::Update update = UpdateOf(group);
  if (group.has_sgd()) {
    const v1::Sgd& sgd = group.sgd();
    if (sgd.maximize()) transform.scale = -transform.scale;
    return {update, kernels::MakeSgdScalars({.learning_rate = learning_rate,
                                             .momentum = sgd.momentum(),
                                             .dampening = sgd.dampening(),
                                             .weight_decay = sgd.weight_decay()},
                                            t, transform)};
  }
  const v1::Adam& adam = group.adam();
  if (adam.maximize()) transform.scale = -transform.scale;
  return {update, kernels::MakeAdamScalars({.learning_rate = learning_rate,
                                            .beta1 = adam.beta1(),
                                            .beta2 = adam.beta2(),
                                            .eps = adam.eps(),
                                            .weight_decay = adam.weight_decay()},
                                           t, transform)};
}

}  // namespace adamant::core
