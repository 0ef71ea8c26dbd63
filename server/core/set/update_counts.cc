#include "server/core/set/update_counts.h"

#include <algorithm>

#include "absl/algorithm/container.h"

namespace adamant::core {

void UpdateCounts::Add(const TensorSelection& selection, absl::Span<const int> others) {
  ++most_;
  if (selection.all()) return;
  const auto tensors = static_cast<int>(selection.sizes().size());
  behind_.resize(tensors, 0);
  int64_t least = most_;
  for (int tensor = 0; tensor < tensors; ++tensor) {
    if (!selection.has(tensor)) ++behind_[tensor];
  }
  for (const int tensor : others) --behind_[tensor];
  for (const int64_t behind : behind_) least = std::min(least, behind);
  // Nobody has had the most: they are counted from who has.
  most_ -= least;
  for (int64_t& behind : behind_) behind -= least;
  if (absl::c_all_of(behind_, [](int64_t behind) { return behind == 0; })) behind_.clear();
}

void UpdateCounts::Grow(int tensors, int before) {
  if (most_ == 0) return;
  behind_.resize(before, 0);
  behind_.resize(tensors, most_);
}

void UpdateCounts::Set(int64_t count, const google::protobuf::RepeatedField<int64_t>& counts) {
  behind_.clear();
  most_ = counts.empty() ? count : *absl::c_max_element(counts);
  if (absl::c_all_of(counts, [this](int64_t one) { return one == most_; })) return;
  for (const int64_t one : counts) behind_.push_back(most_ - one);
}

}  // namespace adamant::core
