// Compares groups, tensors and initialization, field by field.
#include "server/core/spec/spec_difference.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// One value of a field, as people read it; a number as the kernels see it.
std::string SpellValue(const Message& message, const FieldDescriptor* field, int index) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE && !field->is_repeated()) {
    return Spelled(static_cast<float>(reflection.GetDouble(message, field)));
  }
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) return Quoted(reflection.GetString(message, field));
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, field, index, &text);
  return text;
}

// All values of a field that is no message.
std::string SpellField(const Message& message, const FieldDescriptor* field) {
  if (!field->is_repeated()) return SpellValue(message, field, -1);
  std::vector<std::string> values;
  for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
    values.push_back(SpellValue(message, field, i));
  }
  return absl::StrCat("[", absl::StrJoin(values, ", "), "]");
}

// Of two messages of one type at `path`, whose defaults are resolved: in order of the fields' numbers.
std::optional<SpecDifference> InMessage(const Message& expected, const Message& got, const std::string& path) {
  const google::protobuf::Reflection& reflection = *expected.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  for (int i = 0; i < expected.GetDescriptor()->field_count(); ++i)
    fields.push_back(expected.GetDescriptor()->field(i));
  absl::c_sort(fields, [](const auto* a, const auto* b) { return a->number() < b->number(); });
  for (const FieldDescriptor* field : fields) {
    const std::string field_path = absl::StrCat(path, ".", field->name());
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      std::string a = SpellField(expected, field);
      std::string b = SpellField(got, field);
      if (a != b) return SpecDifference{field_path, std::move(a), std::move(b)};
      continue;
    }
    if (field->is_repeated()) continue;  // those of a specification: they have functions of their own
    const bool has = reflection.HasField(expected, field);
    if (has != reflection.HasField(got, field)) {
      return SpecDifference{field_path, has ? "one" : "none", has ? "none" : "one"};
    }
    if (!has) continue;
    std::optional<SpecDifference> within =
        InMessage(reflection.GetMessage(expected, field), reflection.GetMessage(got, field), field_path);
    if (within.has_value()) return within;
  }
  return std::nullopt;
}

// Of what holds for all groups.
std::optional<SpecDifference> InRules(const Configuration& expected, const Configuration& got) {
  v1::ParameterSetSpec rules[2];
  for (const Configuration* configuration : {&expected, &got}) {
    v1::ParameterSetSpec& of_one = rules[configuration == &got ? 1 : 0];
    *of_one.mutable_clipping() = configuration->clipping();
    of_one.set_non_finite_policy(configuration->non_finite_policy());
    of_one.set_max_staleness(configuration->max_staleness());
    if (configuration->workers() != nullptr) *of_one.mutable_workers() = *configuration->workers();
  }
  return InMessage(rules[0], rules[1], "spec");
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
    found = InMessage(groups[i], other_groups[i], absl::StrCat("spec.groups[", i, "]"));
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
  if (!found.has_value()) found = InRules(expected.configuration, got.configuration);
  return found;
}

}  // namespace adamant::core
