#include "server/core/registry.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/error/error.h"
#include "server/core/base/notification.h"
#include "server/core/spec/configuration.h"

namespace adamant::core {
namespace {

constexpr int kMaxSetsAPage = 1000;
// What a page looks at whether or not it lists it, and how much of that at a time, with the registry locked while the
// references are copied.
constexpr int kMaxSetsLookedAt = 1000;
constexpr int kSetsATime = 64;
constexpr int kMaxTensorsAPage = 4096;
// A page ends where it would become larger than this: sets may have much to say of labels and groups, tensors have
// names of up to 512 bytes, and a message of 4 MiB is all that a client takes by default.
constexpr size_t kMaxPageBytes = size_t{1} << 20;

// The page size to use for a requested one. Error: INVALID_ARGUMENT.
absl::StatusOr<int> PageSize(int32_t requested, int most) {
  if (requested < 0 || requested > most) {
    return InvalidField("page_size", absl::StrCat("[0, ", most, "]"), absl::StrCat(requested));
  }
  return requested == 0 ? most : requested;
}

bool HasLabels(const ParameterSet& set, const google::protobuf::Map<std::string, std::string>& labels) {
  if (labels.empty()) return true;
  const std::shared_ptr<const Configuration> configuration = set.configuration();
  return absl::c_all_of(labels, [&](const auto& label) {
    const auto found = configuration->labels().find(label.first);
    return found != configuration->labels().end() && found->second == label.second;
  });
}

// Whether a set that is there is promised what a specification asks for, if it does: which server it is on decides
// otherwise.
absl::Status CheckDurability(const Resources& device, const v1::ParameterSetSpec& spec, const ParameterSet& set) {
  if (!spec.has_durability()) return absl::OkStatus();
  constexpr absl::string_view kField = "spec.durability";
  const absl::StatusOr<v1::Durability> asked = ParameterSet::ResolveDurability(device, &spec.durability(), kField);
  if (!asked.ok()) return asked.status();
  const v1::Durability promised = set.Describe().durability();
  if (asked->SerializeAsString() == promised.SerializeAsString()) return absl::OkStatus();
  return WithSet(set.name(), Error(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SPEC_MISMATCH,
                                   ExpectedGot(promised.ShortDebugString(), asked->ShortDebugString()), kField));
}

}  // namespace

absl::StatusOr<v1::CreateParameterSetResponse> Registry::Create(const v1::CreateParameterSetRequest& request) {
  const std::string& name = request.spec().name();
  if (absl::Status status = ValidateSetName(name, "spec.name"); !status.ok()) return status;
  if (!v1::IfExists_IsValid(request.if_exists())) {
    return InvalidField("if_exists", "IF_EXISTS_FAIL or IF_EXISTS_USE_IF_SAME_SPEC", EnumName(request.if_exists()));
  }
  absl::StatusOr<const Resources*> device = FindDevice(request.spec().device(), "spec.device");
  if (!device.ok()) return device.status();
  MutexLock create_lock(&create_mutex_);
  absl::StatusOr<std::shared_ptr<ParameterSet>> existing = Find(name);
  v1::CreateParameterSetResponse response;
  if (existing.ok()) {
    if (request.if_exists() != v1::IF_EXISTS_USE_IF_SAME_SPEC) {
      return Error(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SET_EXISTS,
                   absl::StrCat(ExpectedGot("a name that no set has", Quoted(name)),
                                "; IF_EXISTS_USE_IF_SAME_SPEC uses the set that has it"),
                   "spec.name");
    }
    absl::Status same = (*existing)->CheckSpec(request.spec(), (*device)->backend->name());
    if (same.ok()) same = CheckDurability(**device, request.spec(), **existing);
    if (!same.ok()) return same;
    *response.mutable_parameter_set() = (*existing)->Describe();
    return response;
  }
  absl::StatusOr<std::shared_ptr<ParameterSet>> created = ParameterSet::Create(**device, request.spec());
  if (!created.ok()) return created.status();
  *response.mutable_parameter_set() = (*created)->Describe();
  response.set_created(true);
  MutexLock lock(&mutex_);
  sets_.emplace(name, *std::move(created));
  return response;
}

absl::StatusOr<v1::ForkResponse> Registry::Fork(const v1::ForkRequest& request) {
  if (absl::Status status = ValidateSetName(request.name(), "name"); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<ParameterSet>> source = Find(request.set(), "set");
  if (!source.ok()) return source.status();
  v1::ParameterSetSpec spec = (*source)->Spec();
  spec.set_name(request.name());
  *spec.mutable_durability() = (*source)->Describe().durability();
  if (!request.device().empty()) spec.set_device(request.device());
  const absl::StatusOr<const Resources*> device = FindDevice(spec.device(), "device");
  if (!device.ok()) return device.status();
  absl::StatusOr<v1::Durability> durability = ParameterSet::ResolveDurability(
      **device, request.has_durability() ? &request.durability() : &spec.durability(), "durability");
  if (!durability.ok()) return durability.status();
  *spec.mutable_durability() = *std::move(durability);
  std::optional<uint64_t> incarnation;
  if (request.has_incarnation()) incarnation = request.incarnation();

  MutexLock create_lock(&create_mutex_);
  if (Find(request.name()).ok()) {
    return Error(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SET_EXISTS,
                 ExpectedGot("a name that no set has", Quoted(request.name())), "name");
  }
  absl::StatusOr<std::shared_ptr<ParameterSet>> made = ParameterSet::Create(**device, spec);
  if (!made.ok()) return made.status();
  if (absl::Status status = (*made)->CopyFrom(source->get(), incarnation); !status.ok()) {
    // Nobody knows of it but the disk.
    Notification ended;
    absl::Status deleted;
    (*made)->Delete(
        std::nullopt, [] {},
        [&](const absl::Status& gone) {
          deleted = Unshared(gone);
          ended.Notify();
        });
    ended.WaitForNotification();
    // What the disk has must not be another set's name as well.
    if (!deleted.ok()) Add(*std::move(made));
    return status;
  }
  v1::ForkResponse response;
  *response.mutable_parameter_set() = (*made)->Describe();
  Add(*std::move(made));
  return response;
}

void Registry::Add(std::shared_ptr<ParameterSet> set) {
  std::string name = set->name();
  MutexLock lock(&mutex_);
  sets_.emplace(std::move(name), std::move(set));
}

void Registry::Clear() {
  absl::btree_map<std::string, std::shared_ptr<ParameterSet>> sets;  // destroyed without the mutex
  MutexLock lock(&mutex_);
  sets.swap(sets_);
}

absl::StatusOr<const Resources*> Registry::FindDevice(absl::string_view name, absl::string_view field) const {
  if (name.empty()) return &devices_[default_device_];
  std::vector<std::string> known;
  for (const Resources& device : devices_) {
    known.push_back(device.backend->name());
    if (known.back() == name) return &device;
  }
  return InvalidField(field, absl::StrCat("none, or one of ", absl::StrJoin(known, ", ")), Quoted(name));
}

absl::StatusOr<std::shared_ptr<ParameterSet>> Registry::Find(absl::string_view name, absl::string_view field) const {
  if (absl::Status status = ValidateSetName(name, field); !status.ok()) return status;
  MutexLock lock(&mutex_);
  const auto found = sets_.find(name);
  if (found == sets_.end()) {
    return WithSet(name, Error(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND,
                               ExpectedGot("the name of a set", Quoted(name)), field));
  }
  return found->second;
}

std::vector<std::shared_ptr<ParameterSet>> Registry::FindBehind(absl::string_view after, absl::string_view prefix,
                                                                int most) const {
  std::vector<std::shared_ptr<ParameterSet>> found;
  found.reserve(most);
  MutexLock lock(&mutex_);
  auto it = after < prefix ? sets_.lower_bound(prefix) : sets_.upper_bound(after);
  for (; it != sets_.end() && absl::StartsWith(it->first, prefix) && static_cast<int>(found.size()) < most; ++it) {
    found.push_back(it->second);
  }
  return found;
}

void Registry::Delete(const v1::DeleteParameterSetRequest& request, absl::AnyInvocable<void(absl::Status)> done) {
  absl::StatusOr<std::shared_ptr<ParameterSet>> set = Find(request.name());
  if (!set.ok()) {
    done(set.status());
    return;
  }
  std::optional<uint64_t> incarnation;
  if (request.has_incarnation()) incarnation = request.incarnation();
  (*set)->Delete(
      incarnation,
      [this, name = request.name()] {
        std::shared_ptr<ParameterSet> gone;  // destroyed without the mutex
        MutexLock lock(&mutex_);
        const auto found = sets_.find(name);
        if (found == sets_.end()) return;
        gone = std::move(found->second);
        sets_.erase(found);
      },
      std::move(done));
}

void Registry::CheckpointInTime() {
  std::vector<std::shared_ptr<ParameterSet>> sets;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, set] : sets_) {
      if (set->is_kept()) sets.push_back(set);
    }
  }
  for (const std::shared_ptr<ParameterSet>& set : sets) set->CheckpointInTime();
}

absl::Status Registry::CheckJournal() const {
  const Journal* const journal = devices_.front().journal;
  return journal != nullptr ? journal->CheckWorking() : absl::OkStatus();
}

void Registry::EndRounds(const absl::Status& status) {
  std::vector<std::shared_ptr<ParameterSet>> sets;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, set] : sets_) sets.push_back(set);
  }
  for (const std::shared_ptr<ParameterSet>& set : sets) set->EndRound(status);
}

absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(const Registry& registry,
                                                                const v1::ListParameterSetsRequest& request) {
  absl::StatusOr<int> page_size = PageSize(request.page_size(), kMaxSetsAPage);
  if (!page_size.ok()) return page_size.status();
  // The token is the name of the last set that was looked at.
  if (!request.page_token().empty()) {
    if (absl::Status status = ValidateSetName(request.page_token(), "page_token"); !status.ok()) return status;
  }
  v1::ListParameterSetsResponse response;
  std::string last = request.page_token();
  int looked_at = 0;
  size_t bytes = 0;
  for (;;) {
    const std::vector<std::shared_ptr<ParameterSet>> sets =
        registry.FindBehind(last, request.name_prefix(), kSetsATime);
    if (sets.empty()) return response;
    for (const std::shared_ptr<ParameterSet>& set : sets) {
      bool is_full = looked_at++ == kMaxSetsLookedAt;
      if (!is_full && HasLabels(*set, request.labels())) {
        v1::ParameterSet description = set->Describe();
        bytes += description.ByteSizeLong();
        const int listed = response.parameter_sets_size();
        is_full = listed == *page_size || (listed > 0 && bytes > kMaxPageBytes);
        if (!is_full) *response.add_parameter_sets() = std::move(description);
      }
      if (is_full) {
        response.set_next_page_token(last);
        return response;
      }
      last = set->name();
    }
  }
}

absl::StatusOr<v1::ListTensorsResponse> ListTensors(const ParameterSet& set, const v1::ListTensorsRequest& request) {
  absl::StatusOr<int> page_size = PageSize(request.page_size(), kMaxTensorsAPage);
  if (!page_size.ok()) return page_size.status();
  const absl::Span<const Schema::Tensor> tensors = set.schema().tensors();
  // The token is the index of the first tensor of the page.
  int64_t first = 0;
  if (!request.page_token().empty() &&
      (!absl::SimpleAtoi(request.page_token(), &first) || first < 0 || first >= static_cast<int64_t>(tensors.size()))) {
    return InvalidField("page_token", "a next_page_token of this set", Quoted(request.page_token()));
  }
  const std::shared_ptr<const Configuration> configuration = set.configuration();
  const std::vector<int64_t> update_counts = set.UpdateCountsFrom(static_cast<int>(first), *page_size);
  v1::ListTensorsResponse response;
  size_t bytes = 0;
  for (int64_t i = first; i < static_cast<int64_t>(tensors.size()); ++i) {
    const bool counted = i - first < static_cast<int64_t>(update_counts.size());
    v1::Tensor tensor;
    tensor.set_index(static_cast<int32_t>(i));
    tensor.set_name(tensors[i].name);
    tensor.mutable_shape()->Add(tensors[i].shape.begin(), tensors[i].shape.end());
    tensor.set_group(configuration->groups()[tensors[i].group].name());
    tensor.set_element_count(tensors[i].size());
    if (counted) tensor.set_update_count(update_counts[i - first]);
    bytes += tensor.ByteSizeLong();
    if (!counted || (response.tensors_size() > 0 && bytes > kMaxPageBytes)) {
      response.set_next_page_token(absl::StrCat(i));
      break;
    }
    *response.add_tensors() = std::move(tensor);
  }
  return response;
}

}  // namespace adamant::core
