// Compares groups, tensors and initialization, field by field.
#include "server/core/spec/spec_difference.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

std::optional<SpecDifference> InGroup(const v1::ParameterGroup& expected, const v1::ParameterGroup& got,
                                      const std::string& path) {
  if (expected.name() != got.name()) {
    return SpecDifference{absl::StrCat(path, ".name"), Quoted(expected.name()), Quoted(got.name())};
  }
  const struct {
    const char* field;
    double expected;
    double got;
  } values[] = {{".learning_rate", expected.learning_rate(), got.learning_rate()},
                {".adam.beta1", expected.adam().beta1(), got.adam().beta1()},
                {".adam.beta2", expected.adam().beta2(), got.adam().beta2()},
                {".adam.eps", expected.adam().eps(), got.adam().eps()}};
  for (const auto& value : values) {
    if (static_cast<float>(value.expected) == static_cast<float>(value.got)) continue;
    return SpecDifference{absl::StrCat(path, value.field), Spelled(value.expected), Spelled(value.got)};
  }
  return std::nullopt;
}

std::string SpellShape(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

std::optional<SpecDifference> InTensor(const CheckedSpec& expected, const CheckedSpec& got, size_t index) {
  const Schema::Tensor& a = expected.schema.tensors()[index];
  const Schema::Tensor& b = got.schema.tensors()[index];
  const std::string path = absl::StrCat("spec.tensors[", index, "]");
  if (a.name != b.name) return SpecDifference{absl::StrCat(path, ".name"), Quoted(a.name), Quoted(b.name)};
  if (a.shape != b.shape) {
    return SpecDifference{absl::StrCat(path, ".shape"), SpellShape(a.shape), SpellShape(b.shape)};
  }
  if (a.group != b.group) {
    return SpecDifference{absl::StrCat(path, ".group"), Quoted(expected.configuration.groups()[a.group].name()),
                          Quoted(got.configuration.groups()[b.group].name())};
  }
  return std::nullopt;
}

// The lists are alike as far as the shorter one goes.
std::optional<SpecDifference> InLength(const char* field, size_t expected, size_t got) {
  if (expected == got) return std::nullopt;
  return SpecDifference{field, absl::StrCat(expected), absl::StrCat(got)};
}

}  // namespace

std::optional<SpecDifference> FindDifference(const CheckedSpec& expected, const CheckedSpec& got) {
  const std::vector<v1::ParameterGroup>& groups = expected.configuration.groups();
  const std::vector<v1::ParameterGroup>& other_groups = got.configuration.groups();
  std::optional<SpecDifference> found;
  for (size_t i = 0; i < std::min(groups.size(), other_groups.size()) && !found.has_value(); ++i) {
    found = InGroup(groups[i], other_groups[i], absl::StrCat("spec.groups[", i, "]"));
  }
  if (!found.has_value()) found = InLength("spec.groups", groups.size(), other_groups.size());

  const size_t tensors = expected.schema.tensors().size();
  const size_t other_tensors = got.schema.tensors().size();
  for (size_t i = 0; i < std::min(tensors, other_tensors) && !found.has_value(); ++i) {
    found = InTensor(expected, got, i);
  }
  if (!found.has_value()) found = InLength("spec.tensors", tensors, other_tensors);

  if (!found.has_value() && expected.initialization != got.initialization) {
    found = SpecDifference{"spec.initialization", EnumName(expected.initialization), EnumName(got.initialization)};
  }
  if (!found.has_value() && expected.device != got.device) {
    found = SpecDifference{"spec.device", Quoted(expected.device), Quoted(got.device)};
  }
  return found;
}

}  // namespace adamant::core
