// What one attempt has sent so far: coverage of every tensor, the elements themselves, and their measure.
#ifndef ADAMANT_SERVER_CORE_SET_STAGING_H_
#define ADAMANT_SERVER_CORE_SET_STAGING_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/norm.h"
#include "server/core/memory/block.h"
#include "server/core/set/row_staging.h"
#include "server/core/spec/schema.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

// How far each selected tensor of one array has come: chunks of a tensor arrive in ascending order without gaps.
// Thread-compatible.
//
// A tensor without elements needs no chunk. Empty chunks are accepted for it all the same, since a loop over all
// tensors sends one.
class Coverage {
 public:
  explicit Coverage(std::shared_ptr<const TensorSelection> selection);

  // What a coverage of a set of so many tensors takes, in bytes.
  static int64_t MemoryBytes(int64_t tensors) { return tensors * static_cast<int64_t>(sizeof(int64_t)); }

  // Accounts for `count` elements of `tensor` from `offset` on, and returns the flat index of the first. Errors, all
  // INVALID_ARGUMENT with tensor and offset, after which nothing was accounted for:
  // - UNKNOWN_TENSOR, with the field `tensor`;
  // - TENSOR_NOT_CARRIED, with the field `tensor`: it is not selected;
  // - MALFORMED_CHUNK: no elements, of a tensor that has some;
  // - CHUNK_OUT_OF_RANGE: the detail's expected_offset is the tensor's size, which the chunk may reach to;
  // - CHUNK_OUT_OF_ORDER, with the field `offset`: expected_offset is where the tensor's next chunk has to start.
  // The field is relative to the chunk. The message asks whether the elements are of another type than fp32 where the
  // bytes that have come would then add up.
  absl::StatusOr<int64_t> Advance(int32_t tensor, int64_t offset, int64_t count);

  // OK if every element has come; otherwise INVALID_ARGUMENT (INCOMPLETE) with the lowest tensor and offset missing,
  // which is expected_offset, too. Asks like Advance.
  absl::Status CheckComplete() const;

 private:
  std::shared_ptr<const TensorSelection> selection_;
  std::vector<int64_t> received_;
  int64_t missing_;  // elements of all selected tensors
};

// Whole arrays, or the selected tensors of one, from the wire to blocks; and beside them rows of others.
// Thread-compatible.
class Staging {
 public:
  using Place = GradientPlace;

  // Into `blocks`, a list of the set's blocks of which those that `selection` needs are there, held by nobody else.
  // What is not selected in them, padding too, is zeroed here. `measure` may be null: then nothing is measured. `rows`,
  // where there are any, are of tensors that are not selected.
  Staging(std::shared_ptr<const TensorSelection> selection, BlockList blocks, kernels::MeasureFunction measure,
          std::unique_ptr<RowStaging> rows = nullptr);

  // From here on `complete` is called for each block that is complete, with where it stands among those that are
  // selected. Before anything is added.
  void Watch(std::function<void(size_t position, const BlockRef& block)> complete) { complete_ = std::move(complete); }

  // Takes one chunk: `copy` is called for each run of memory that it goes to. Errors as Coverage::Advance, after which
  // nothing was copied. A block is measured when its last element has come, while it is in cache.
  absl::Status Add(int32_t tensor, int64_t offset, int64_t count, ChunkSource copy);
  // Takes one chunk of rows. Errors as RowStaging::Add; MALFORMED_CHUNK where no rows of the tensor are expected.
  absl::Status AddRows(int32_t tensor, int64_t offset, int64_t row_count, RowSource rows, int64_t count,
                       ChunkSource copy);

  // Errors as Coverage and RowStaging have them.
  absl::Status CheckComplete() const;
  // To be called once, when everything has come: see RowStaging::Sum.
  void SumRows() {
    if (rows_ != nullptr) rows_->Sum();
  }

  const std::shared_ptr<const TensorSelection>& selection() const { return selection_; }

  // Sum of squares and largest magnitude of all elements, blocks added in order, and then rows. Requires: everything
  // has come, and `measure` was given.
  kernels::GradientStats Stats() const;
  // The lowest place whose magnitude is not below `limit` or that is not a number. Nothing if there is none. Requires:
  // everything has come.
  std::optional<Place> FindNotBelow(double limit) const;
  const BlockList& blocks() const { return blocks_; }
  // Measures a block once more, which has been changed since. Several threads may do so at the same time, each another
  // one. Requires: `measure` was given.
  void Remeasure(int64_t block) { stats_[PositionOf(block)] = measure_(blocks_[block].data(), blocks_[block].size()); }
  // Null where there are none.
  RowStaging* rows() { return rows_.get(); }
  BlockList TakeBlocks() { return std::move(blocks_); }

 private:
  // Where a block that is selected stands among those that are.
  size_t PositionOf(int64_t block) const;
  // Zeroes what these blocks have of [begin, end) of the flat space.
  void Zero(int64_t begin, int64_t end);

  std::shared_ptr<const TensorSelection> selection_;
  kernels::MeasureFunction measure_;
  BlockList blocks_;
  Coverage coverage_;
  std::unique_ptr<RowStaging> rows_;
  // Of each block that is selected: its elements that have not come, without padding, and what they are.
  std::vector<int64_t> missing_;
  std::vector<kernels::GradientStats> stats_;
  std::function<void(size_t position, const BlockRef& block)> complete_;  // null: nobody watches
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_STAGING_H_
