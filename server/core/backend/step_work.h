// Which elements a step changes, and how: the flat space of a set, cut into runs that are treated alike.
#ifndef ADAMANT_SERVER_CORE_BACKEND_STEP_WORK_H_
#define ADAMANT_SERVER_CORE_BACKEND_STEP_WORK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "server/core/memory/block.h"
#include "server/core/spec/schema.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

// The tensors that a step treats alike: those of one group that have had as many updates. `tensor` is one of them.
struct Cohort {
  int group;
  int tensor;
};

// Elements [begin, end) of a block, which are of one cohort, or keep what they are.
struct WorkRange {
  static constexpr int32_t kKept = -1;

  int32_t begin;
  int32_t end;
  int32_t cohort;  // an index of StepWork::cohorts(), or kKept
};

// Immutable and thread-safe. A step may use that of the step before it if it brings the same tensors: what was a cohort
// is one still.
class StepWork {
 public:
  // For a step that brings `selection`, of whose tensors `count_of` says how many updates they have had.
  StepWork(std::shared_ptr<const TensorSelection> selection, absl::FunctionRef<int64_t(int tensor)> count_of);

  // What it takes at most for a set of this schema, in bytes.
  static int64_t MemoryBytes(const Schema& schema);

  const TensorSelection& selection() const { return *selection_; }
  const std::shared_ptr<const TensorSelection>& shared_selection() const { return selection_; }
  absl::Span<const Cohort> cohorts() const { return cohorts_; }
  // Of selection().blocks()[i]: together the whole block, in order. Padding is with the tensor before it: a gradient of
  // zero leaves parameters and state of zero as they are.
  absl::Span<const WorkRange> ranges(size_t i) const {
    return absl::MakeConstSpan(ranges_).subspan(first_[i], first_[i + 1] - first_[i]);
  }

 private:
  const std::shared_ptr<const TensorSelection> selection_;
  std::vector<Cohort> cohorts_;
  std::vector<WorkRange> ranges_;
  std::vector<int64_t> first_;  // the first range of each of the blocks, and the end
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_STEP_WORK_H_
