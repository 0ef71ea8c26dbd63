// How many updates each tensor of a set has had.
#ifndef ADAMANT_SERVER_CORE_SET_UPDATE_COUNTS_H_
#define ADAMANT_SERVER_CORE_SET_UPDATE_COUNTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "google/protobuf/repeated_field.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

// Thread-compatible: guarded by the set's mutex. As long as all tensors have had as many, it is one number.
class UpdateCounts {
 public:
  // None has had any.
  UpdateCounts() = default;

  int64_t of(int tensor) const { return behind_.empty() ? most_ : most_ - behind_[tensor]; }
  // Whether all have had as many.
  bool equal() const { return behind_.empty(); }

  // Every tensor of `selection`, and every one of `others`, which are not among them, has had one more.
  void Add(const TensorSelection& selection, absl::Span<const int> others = {});
  // There are `tensors` now: those that came have had none.
  void Grow(int tensors, int before);
  // All have had `count`, or where `counts` is not empty, each what it says.
  void Set(int64_t count, const google::protobuf::RepeatedField<int64_t>& counts);

 private:
  int64_t most_ = 0;             // of any tensor
  std::vector<int64_t> behind_;  // by tensor: how many fewer it has had; empty if none is behind
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_UPDATE_COUNTS_H_
