#include "server/core/registry.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/configuration.h"

namespace adamant::core {
namespace {

constexpr int kMaxSetsAPage = 1000;
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

}  // namespace

absl::StatusOr<v1::CreateParameterSetResponse> Registry::Create(const v1::CreateParameterSetRequest& request) {
  const std::string& name = request.spec().name();
  if (absl::Status status = ValidateSetName(name, "spec.name"); !status.ok()) return status;
  if (!v1::IfExists_IsValid(request.if_exists())) {
    return InvalidField("if_exists", "IF_EXISTS_FAIL or IF_EXISTS_USE_IF_SAME_SPEC", EnumName(request.if_exists()));
  }
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
    if (absl::Status status = (*existing)->CheckSpec(request.spec()); !status.ok()) return status;
    *response.mutable_parameter_set() = (*existing)->Describe();
    return response;
  }
  absl::StatusOr<std::shared_ptr<ParameterSet>> created = ParameterSet::Create(resources_, request.spec());
  if (!created.ok()) return created.status();
  *response.mutable_parameter_set() = (*created)->Describe();
  response.set_created(true);
  MutexLock lock(&mutex_);
  sets_.emplace(name, *std::move(created));
  return response;
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

absl::StatusOr<v1::ListParameterSetsResponse> Registry::List(const v1::ListParameterSetsRequest& request) const {
  absl::StatusOr<int> page_size = PageSize(request.page_size(), kMaxSetsAPage);
  if (!page_size.ok()) return page_size.status();
  // The token is the last name of the page before.
  if (!request.page_token().empty()) {
    if (absl::Status status = ValidateSetName(request.page_token(), "page_token"); !status.ok()) return status;
  }
  std::vector<std::shared_ptr<ParameterSet>> candidates;
  {
    MutexLock lock(&mutex_);
    auto it = sets_.lower_bound(std::max(request.page_token(), request.name_prefix()));
    for (; it != sets_.end() && absl::StartsWith(it->first, request.name_prefix()); ++it) {
      if (it->first != request.page_token()) candidates.push_back(it->second);
    }
  }
  v1::ListParameterSetsResponse response;
  size_t bytes = 0;
  for (const std::shared_ptr<ParameterSet>& set : candidates) {
    v1::ParameterSet description = set->Describe();
    const bool matches = absl::c_all_of(request.labels(), [&](const auto& label) {
      const auto found = description.labels().find(label.first);
      return found != description.labels().end() && found->second == label.second;
    });
    if (!matches) continue;
    bytes += description.ByteSizeLong();
    if (response.parameter_sets_size() == *page_size || (response.parameter_sets_size() > 0 && bytes > kMaxPageBytes)) {
      response.set_next_page_token(response.parameter_sets().rbegin()->name());
      break;
    }
    *response.add_parameter_sets() = std::move(description);
  }
  return response;
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
        MutexLock lock(&mutex_);
        sets_.erase(name);
      },
      std::move(done));
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
  const std::vector<std::string> groups = set.GroupNames();
  v1::ListTensorsResponse response;
  size_t bytes = 0;
  for (int64_t i = first; i < static_cast<int64_t>(tensors.size()); ++i) {
    v1::Tensor tensor;
    tensor.set_index(static_cast<int32_t>(i));
    tensor.set_name(tensors[i].name);
    tensor.mutable_shape()->Add(tensors[i].shape.begin(), tensors[i].shape.end());
    tensor.set_group(groups[tensors[i].group]);
    tensor.set_element_count(tensors[i].size());
    bytes += tensor.ByteSizeLong();
    if (response.tensors_size() == *page_size || (response.tensors_size() > 0 && bytes > kMaxPageBytes)) {
      response.set_next_page_token(absl::StrCat(i));
      break;
    }
    *response.add_tensors() = std::move(tensor);
  }
  return response;
}

}  // namespace adamant::core
