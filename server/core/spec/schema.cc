// Checks a specification's tensors and lays them out.
#include "server/core/spec/schema.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"
#include "server/core/base/fingerprint.h"
#include "server/core/base/utf8.h"

namespace adamant::core {
namespace {

// Elements of a flat space: counts stay exact in a double, as JSON carries them, and no number of bytes overflows.
constexpr int64_t kMaxElements = int64_t{1} << 53;
static_assert(kMaxElements <= std::numeric_limits<int64_t>::max() / 16);

absl::Status ValidateTensorName(absl::string_view name, absl::string_view field) {
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    return InvalidField(field, absl::StrCat("1 to ", kMaxTensorNameBytes, " bytes"),
                        absl::StrCat(name.size(), " bytes: ", Quoted(name)));
  }
  if (!IsUtf8WithoutControls(name)) {
    return InvalidField(field, "UTF-8 without control characters", Quoted(name));
  }
  return absl::OkStatus();
}

// The product of the extents. That of those which are not 0 is limited, too: so it does not matter in which order
// anybody multiplies.
absl::StatusOr<int64_t> CountElements(const v1::TensorSpec& tensor, absl::string_view field) {
  if (tensor.shape_size() > kMaxRank) {
    return InvalidField(field, absl::StrCat("at most ", kMaxRank, " extents"), absl::StrCat(tensor.shape_size()));
  }
  bool empty = false;
  int64_t elements = 1;
  for (int i = 0; i < tensor.shape_size(); ++i) {
    const int64_t extent = tensor.shape(i);
    if (extent < 0) return InvalidField(absl::StrCat(field, "[", i, "]"), "0 or more", absl::StrCat(extent));
    if (extent == 0) {
      empty = true;
      continue;
    }
    if (extent > kMaxElements / elements) {
      return InvalidField(field, absl::StrCat("at most ", kMaxElements, " elements"),
                          absl::StrCat("more in tensor ", Quoted(tensor.name())));
    }
    elements *= extent;
  }
  return empty ? 0 : elements;
}

// What an allocation takes beside what was asked for, in bytes: the allocator rounds up.
constexpr int64_t kAllocationBytes = 16;

// The 64 bits of a hash in [1, 2^53): the upper ones folded into the lower ones, which is how the authors of FNV
// shorten it.
uint64_t Shorten(uint64_t hash) {
  constexpr int kBits = 53;
  const uint64_t shortened = (hash >> kBits) ^ (hash & ((uint64_t{1} << kBits) - 1));
  return shortened != 0 ? shortened : 1;
}

int64_t RoundUp(int64_t elements) { return (elements + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment; }

}  // namespace

absl::StatusOr<std::shared_ptr<const Schema>> Schema::Create(const v1::ParameterSetSpec& spec,
                                                             absl::Span<const v1::ParameterGroup> groups) {
  std::shared_ptr<Schema> schema(new Schema());
  if (absl::Status status = schema->Append(spec.tensors(), groups, "spec.tensors"); !status.ok()) return status;
  return schema;
}

absl::StatusOr<std::shared_ptr<const Schema>> Schema::Add(
    const google::protobuf::RepeatedPtrField<v1::TensorSpec>& added,
    absl::Span<const v1::ParameterGroup> groups) const {
  std::shared_ptr<Schema> schema(new Schema(*this));
  if (absl::Status status = schema->Append(added, groups, "tensors"); !status.ok()) return status;
  return schema;
}

absl::Status Schema::Append(const google::protobuf::RepeatedPtrField<v1::TensorSpec>& added,
                            absl::Span<const v1::ParameterGroup> groups, absl::string_view path) {
  const size_t before = tensors_.size();
  if (added.empty() || before + added.size() > kMaxTensors) {
    return InvalidField(path, absl::StrCat("1 to ", kMaxTensors - before, " tensors"), absl::StrCat(added.size()));
  }
  std::map<absl::string_view, int> group_numbers = {{"", 0}};
  for (const v1::ParameterGroup& group : groups) {
    group_numbers.emplace(group.name(), static_cast<int>(&group - groups.data()));
  }

  // Not again: names that others refer to below stay where they are.
  tensors_.reserve(before + added.size());
  sizes_.reserve(before + added.size());
  absl::flat_hash_map<absl::string_view, int> indices;
  indices.reserve(before + added.size());
  for (size_t i = 0; i < before; ++i) indices.emplace(tensors_[i].name, static_cast<int>(i));
  for (int i = 0; i < added.size(); ++i) {
    const v1::TensorSpec& tensor = added[i];
    const std::string tensor_path = absl::StrCat(path, "[", i, "]");

    const std::string name_path = absl::StrCat(tensor_path, ".name");
    if (absl::Status status = ValidateTensorName(tensor.name(), name_path); !status.ok()) return status;
    const int index = static_cast<int>(before) + i;
    if (const auto [other, is_new] = indices.emplace(tensor.name(), index); !is_new) {
      return InvalidField(name_path, "a name of its own",
                          absl::StrCat(Quoted(tensor.name()), ", the name of tensor ", other->second));
    }
    const auto group = group_numbers.find(tensor.group());
    if (group == group_numbers.end()) {
      return InvalidField(absl::StrCat(tensor_path, ".group"), "the name of one of `spec.groups`",
                          absl::StrCat(Quoted(tensor.group()), " for tensor ", Quoted(tensor.name())));
    }
    const std::string shape_path = absl::StrCat(tensor_path, ".shape");
    const absl::StatusOr<int64_t> size = CountElements(tensor, shape_path);
    if (!size.ok()) return size.status();
    const int64_t begin = flat_size_;
    if (*size > kMaxElements - begin) {
      return InvalidField(shape_path, absl::StrCat("at most ", kMaxElements, " elements in all tensors together"),
                          absl::StrCat("more up to tensor ", Quoted(tensor.name())));
    }

    tensors_.push_back({.name = tensor.name(),
                        .shape = {tensor.shape().begin(), tensor.shape().end()},
                        .group = group->second,
                        .begin = begin,
                        .end = begin + *size});
    sizes_.push_back(*size);
    parameter_count_ += *size;
    flat_size_ = RoundUp(begin + *size);
  }
  Fingerprint fingerprint;
  fingerprint.AddInteger(static_cast<int64_t>(tensors_.size()));
  for (const Tensor& tensor : tensors_) {
    fingerprint.AddString(tensor.name);
    fingerprint.AddInteger(static_cast<int64_t>(tensor.shape.size()));
    for (const int64_t extent : tensor.shape) fingerprint.AddInteger(extent);
  }
  fingerprint_ = Shorten(fingerprint.value());
  return absl::OkStatus();
}

int Schema::TensorAt(int64_t index) const {
  const auto behind = std::upper_bound(tensors_.begin(), tensors_.end(), index,
                                       [](int64_t flat, const Tensor& tensor) { return flat < tensor.begin; });
  // Tensors without elements begin where the next one does: the last of those that begin here is the one that has some.
  return static_cast<int>(behind - tensors_.begin()) - 1;
}

int64_t Schema::MemoryBytes() const {
  const size_t kept_within = std::string().capacity();  // short names are not allocated
  int64_t bytes = sizeof(Schema) + tensors_.capacity() * sizeof(Tensor) + sizes_.capacity() * sizeof(int64_t) +
                  3 * kAllocationBytes;
  for (const Tensor& tensor : tensors_) {
    if (tensor.name.capacity() > kept_within) bytes += tensor.name.capacity() + 1 + kAllocationBytes;
    if (tensor.shape.capacity() > 0) bytes += tensor.shape.capacity() * sizeof(int64_t) + kAllocationBytes;
  }
  return bytes;
}

}  // namespace adamant::core
