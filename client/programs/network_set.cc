#include "client/programs/network_set.h"

#include <cstdint>
#include <random>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace adamant::programs {
namespace {

template <typename Element>
std::vector<absl::Span<Element>> Split(const Mlp& mlp, absl::Span<Element> all) {
  std::vector<absl::Span<Element>> spans;
  for (const Mlp::Tensor& tensor : mlp.Tensors()) {
    int64_t size = 1;
    for (int64_t extent : tensor.shape) size *= extent;
    spans.push_back(all.first(size));
    all.remove_prefix(size);
  }
  return spans;
}

}  // namespace

v1::ParameterSetSpec NetworkSpec(const std::string& name, const Mlp& mlp, const v1::ParameterGroup& group) {
  v1::ParameterSetSpec spec;
  spec.set_name(name);
  spec.set_initialization(v1::INITIALIZATION_WRITTEN);
  for (const Mlp::Tensor& tensor : mlp.Tensors()) {
    v1::TensorSpec* added = spec.add_tensors();
    added->set_name(tensor.name);
    added->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  }
  *spec.add_groups() = group;
  return spec;
}

std::vector<absl::Span<const float>> SplitByTensor(const Mlp& mlp, absl::Span<const float> all) {
  return Split(mlp, all);
}

std::vector<absl::Span<float>> SplitByTensor(const Mlp& mlp, absl::Span<float> all) { return Split(mlp, all); }

std::string UniqueSetName(absl::string_view prefix) {
  std::random_device random;
  return absl::StrFormat("%s/%08x%08x", prefix, random(), random());
}

absl::Status DeleteSet(const std::string& name, Client& client) {
  const absl::StatusOr<v1::ParameterSet> set = client.GetParameterSet(name);
  return set.ok() ? client.DeleteParameterSet(name, set->incarnation()) : set.status();
}

absl::Status Annotate(const absl::Status& status, absl::string_view what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

}  // namespace adamant::programs
