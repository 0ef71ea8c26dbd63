#include "server/core/backend/step_work.h"

#include <utility>

#include "absl/container/flat_hash_map.h"

namespace adamant::core {

StepWork::StepWork(std::shared_ptr<const TensorSelection> selection, absl::FunctionRef<int64_t(int tensor)> count_of)
    : selection_(std::move(selection)) {
  const Schema& schema = selection_->schema();
  const absl::Span<const Schema::Tensor> tensors = schema.tensors();
  const absl::Span<const int64_t> blocks = selection_->blocks();
  absl::flat_hash_map<std::pair<int, int64_t>, int32_t> cohorts;
  first_.reserve(blocks.size() + 1);
  size_t next_block = 0;  // of `blocks`
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int tensor = static_cast<int>(i);
    const int64_t end = i + 1 < tensors.size() ? tensors[i + 1].begin : schema.flat_size();
    if (end == tensors[i].begin) continue;
    int32_t cohort = WorkRange::kKept;
    if (selection_->has(tensor)) {
      const auto [found, is_new] =
          cohorts.try_emplace({tensors[i].group, count_of(tensor)}, static_cast<int32_t>(cohorts_.size()));
      if (is_new) cohorts_.push_back({tensors[i].group, tensor});
      cohort = found->second;
    }
    ForEachRun(tensors[i].begin, end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
      while (next_block < blocks.size() && blocks[next_block] < block) ++next_block;
      if (next_block == blocks.size() || blocks[next_block] != block) return;
      if (first_.size() == next_block) first_.push_back(static_cast<int64_t>(ranges_.size()));
      const bool begins_block = static_cast<int64_t>(ranges_.size()) == first_.back();
      if (!begins_block && ranges_.back().cohort == cohort) {
        ranges_.back().end = static_cast<int32_t>(run_end);
      } else {
        ranges_.push_back({static_cast<int32_t>(run_begin), static_cast<int32_t>(run_end), cohort});
      }
    });
  }
  first_.push_back(static_cast<int64_t>(ranges_.size()));
}

int64_t StepWork::MemoryBytes(const Schema& schema) {
  const auto tensors = static_cast<int64_t>(schema.tensors().size());
  const int64_t blocks = (schema.flat_size() + kBlockElements - 1) / kBlockElements;
  // At worst a range and a cohort for each tensor, and a range more where a block ends, in vectors that double as they
  // grow; and what is selected.
  return 2 * static_cast<int64_t>(sizeof(WorkRange)) * (tensors + blocks) +
         2 * static_cast<int64_t>(sizeof(Cohort)) * tensors + 2 * static_cast<int64_t>(sizeof(int64_t)) * blocks +
         static_cast<int64_t>(sizeof(int64_t)) * tensors;
}

}  // namespace adamant::core
