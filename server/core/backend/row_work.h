// The rows of tensors that a step changes alone, where it does not bring the whole tensor.
#ifndef ADAMANT_SERVER_CORE_BACKEND_ROW_WORK_H_
#define ADAMANT_SERVER_CORE_BACKEND_ROW_WORK_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "server/core/memory/block.h"

namespace adamant::core {

// Rows and elements of their own for each. Thread-compatible.
struct RowWork {
  // An index into a tensor's first extent, and which of its rows in `values` has its elements.
  struct Row {
    int64_t index;
    int64_t place;
  };
  // A tensor of which there are rows.
  struct Tensor {
    int tensor;
    int64_t begin;   // in the flat space
    int64_t width;   // elements of a row
    int64_t values;  // where its rows begin in `values`
    size_t first;    // its rows are [first, end) of `rows`
    size_t end;
    int recipe;  // an index of StepPlan::recipes
  };
  // One of `rows`, in the flat space and in `values`.
  struct Place {
    const Tensor* tensor;
    int64_t begin;
    int64_t end;
    int64_t values;
  };

  // The rows that have elements in a block of the set's, as indices of `rows`: [first, end).
  struct Range {
    size_t first;
    size_t end;
  };
  Range RowsIn(int64_t block) const;
  // Calls `visit` for each of the rows [first, end), in order.
  void ForEachRow(size_t first, size_t end, absl::FunctionRef<void(const Place& place)> visit) const;
  // Calls `visit` for each block of the set's that has elements of the rows, once, ascending.
  void ForEachBlock(absl::FunctionRef<void(int64_t block)> visit) const;

  std::vector<Tensor> tensors;  // ascending
  std::vector<Row> rows;        // each of a tensor once, ascending
  // A space of its own: gradients, and when a step has been applied, parameters.
  BlockList values;
};

// Calls `visit(block, begin, values_block, values_begin, count)` for each run of elements of `place` that lies in one
// block of the set's and in one of `values`, in order.
void ForEachRun(
    const RowWork::Place& place,
    absl::FunctionRef<void(int64_t block, int64_t begin, int64_t values_block, int64_t values_begin, int64_t count)>
        visit);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_ROW_WORK_H_
