#include "server/core/spec/configuration.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/error/error.h"
#include "server/core/base/utf8.h"
#include "server/core/spec/range.h"
#include "server/core/spec/slots.h"
#include "server/core/spec/workers.h"

namespace adamant::core {
namespace {

constexpr double kMinClippingBound = 0x1p-40;
constexpr double kMaxClippingBound = 0x1p64;

constexpr size_t kMaxLabelKeyBytes = 63;
constexpr size_t kMaxLabelValueBytes = 255;

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
  absl::StatusOr<std::vector<v1::ParameterGroup>> groups = ResolveGroups(spec.groups(), "spec.groups");
  if (!groups.ok()) return groups.status();
  std::shared_ptr<Configuration> configuration(new Configuration());
  configuration->groups_ = *std::move(groups);
  if (absl::Status status = configuration->SetAll(spec); !status.ok()) return status;
  return configuration;
}

absl::StatusOr<std::shared_ptr<const Configuration>> Configuration::Restore(const v1::ParameterSet& set) {
  v1::ParameterSetSpec spec;
  *spec.mutable_groups() = set.groups();
  *spec.mutable_labels() = set.labels();
  if (set.has_clipping()) *spec.mutable_clipping() = set.clipping();
  spec.set_non_finite_policy(set.non_finite_policy());
  spec.set_max_staleness(set.max_staleness());
  if (set.has_workers()) *spec.mutable_workers() = set.workers();
  absl::StatusOr<std::vector<v1::ParameterGroup>> groups = ResolveGroups(spec.groups(), "spec.groups");
  if (!groups.ok()) return groups.status();
  std::shared_ptr<Configuration> configuration(new Configuration());
  configuration->groups_ = *std::move(groups);
  configuration->revision_ = set.config_revision();
  if (absl::Status status = configuration->SetAll(spec); !status.ok()) return status;
  return configuration;
}

absl::StatusOr<std::shared_ptr<const Configuration>> Configuration::Change(
    const v1::UpdateParameterGroupRequest& request) const {
  const absl::StatusOr<int> index = FindGroup(groups_, request.group().name(), "group.name");
  if (!index.ok()) return index.status();
  absl::StatusOr<v1::ParameterGroup> group =
      ChangeGroup(groups_[*index], request.group(), request.update_mask(), "group", "update_mask");
  if (!group.ok()) return group.status();
  std::shared_ptr<Configuration> changed(new Configuration(*this));
  changed->groups_[*index] = *std::move(group);
  ++changed->revision_;
  return changed;
}

absl::StatusOr<std::shared_ptr<const Configuration>> Configuration::Change(
    const v1::UpdateParameterSetRequest& request) const {
  const google::protobuf::FieldMask& mask = request.update_mask();
  if (mask.paths().empty()) return InvalidField("update_mask", "the fields that are to change", "none");
  std::shared_ptr<Configuration> changed(new Configuration(*this));
  for (int i = 0; i < mask.paths_size(); ++i) {
    absl::Status status;
    if (mask.paths(i) == "labels") {
      status = changed->SetLabels(request.spec());
    } else if (mask.paths(i) == "clipping") {
      status = changed->SetClipping(request.spec());
    } else if (mask.paths(i) == "non_finite_policy") {
      status = changed->SetNonFinitePolicy(request.spec());
    } else if (mask.paths(i) == "max_staleness") {
      status = changed->SetMaxStaleness(request.spec());
    } else if (mask.paths(i) == "workers") {
      status = changed->SetWorkers(request.spec());
    } else {
      status = InvalidField(absl::StrCat("update_mask.paths[", i, "]"),
                            "labels, clipping, non_finite_policy, max_staleness or workers", Quoted(mask.paths(i)));
    }
    if (!status.ok()) return status;
  }
  ++changed->revision_;
  return changed;
}

absl::StatusOr<std::shared_ptr<const Configuration>> Configuration::Add(
    const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& groups) const {
  absl::StatusOr<std::vector<v1::ParameterGroup>> all = AddGroups(groups_, groups, "groups");
  if (!all.ok()) return all.status();
  const std::vector<v1::Slot> slots = OptimizerSlots(groups_);
  for (size_t i = groups_.size(); i < all->size(); ++i) {
    for (const v1::Slot slot : SlotsOf(UpdateOf((*all)[i]))) {
      if (absl::c_linear_search(slots, slot)) continue;
      return InvalidField(absl::StrCat("groups[", i - groups_.size(), "]"),
                          "an optimizer that takes no other arrays than the set has",
                          absl::StrCat("one that takes ", EnumName(slot)));
    }
  }
  std::shared_ptr<Configuration> changed(new Configuration(*this));
  changed->groups_ = *std::move(all);
  if (!groups.empty()) ++changed->revision_;
  return changed;
}

absl::Status Configuration::SetAll(const v1::ParameterSetSpec& spec) {
  absl::Status status = SetLabels(spec);
  if (status.ok()) status = SetClipping(spec);
  if (status.ok()) status = SetNonFinitePolicy(spec);
  if (status.ok()) status = SetMaxStaleness(spec);
  if (status.ok()) status = SetWorkers(spec);
  return status;
}

absl::Status Configuration::SetLabels(const v1::ParameterSetSpec& spec) {
  if (absl::Status status = ValidateLabels(spec.labels()); !status.ok()) return status;
  labels_ = spec.labels();
  return absl::OkStatus();
}

absl::Status Configuration::SetClipping(const v1::ParameterSetSpec& spec) {
  const v1::Clipping& clipping = spec.clipping();
  absl::Status status;
  if (clipping.bound_case() == v1::Clipping::kMaxValue) {
    status = ValidateRange(clipping.max_value(), kMinClippingBound, kMaxClippingBound, "spec.clipping.max_value");
  } else if (clipping.bound_case() == v1::Clipping::kMaxNorm) {
    status = ValidateRange(clipping.max_norm(), kMinClippingBound, kMaxClippingBound, "spec.clipping.max_norm");
  }
  if (status.ok()) clipping_ = clipping;
  return status;
}

absl::Status Configuration::SetNonFinitePolicy(const v1::ParameterSetSpec& spec) {
  const v1::NonFinitePolicy policy = spec.non_finite_policy();
  if (!v1::NonFinitePolicy_IsValid(policy)) {
    return InvalidField("spec.non_finite_policy", "NON_FINITE_POLICY_SKIP or NON_FINITE_POLICY_REJECT",
                        EnumName(policy));
  }
  non_finite_policy_ = policy == v1::NON_FINITE_POLICY_UNSPECIFIED ? v1::NON_FINITE_POLICY_SKIP : policy;
  return absl::OkStatus();
}

absl::Status Configuration::SetMaxStaleness(const v1::ParameterSetSpec& spec) {
  if (spec.max_staleness() < 0 || spec.max_staleness() > kMaxStaleness) {
    return InvalidField("spec.max_staleness", absl::StrCat("[0, ", kMaxStaleness, "]"),
                        absl::StrCat(spec.max_staleness()));
  }
  max_staleness_ = spec.max_staleness();
  return absl::OkStatus();
}

absl::Status Configuration::SetWorkers(const v1::ParameterSetSpec& spec) {
  workers_.reset();
  if (!spec.has_workers()) return absl::OkStatus();
  absl::StatusOr<v1::Workers> workers = ResolveWorkers(spec.workers(), "spec.workers");
  if (!workers.ok()) return workers.status();
  workers_ = *std::move(workers);
  return absl::OkStatus();
}

int64_t Configuration::MemoryBytes() const {
  int64_t bytes = sizeof(Configuration);
  for (const v1::ParameterGroup& group : groups_) bytes += static_cast<int64_t>(group.SpaceUsedLong());
  for (const auto& [key, value] : labels_) {
    bytes += static_cast<int64_t>(2 * sizeof(std::string) + key.size() + value.size());
  }
  return bytes;
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
