// What one step has sent so far of the tensors that it brings in rows.
#ifndef ADAMANT_SERVER_CORE_SET_ROW_STAGING_H_
#define ADAMANT_SERVER_CORE_SET_ROW_STAGING_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "adamant/v1/step.pb.h"
#include "kernels/update.h"
#include "server/core/backend/row_work.h"
#include "server/core/memory/block.h"
#include "server/core/memory/snapshot.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

// Copies the next `n` elements of a chunk to [to, to + n).
using ChunkSource = absl::FunctionRef<void(float* to, int64_t n)>;
// Copies the indices of the next `n` rows of a chunk to [to, to + n).
using RowSource = absl::FunctionRef<void(int64_t* to, int64_t n)>;

// A row has at most so many elements: 2 MiB, so that one always fits into a message.
inline constexpr int64_t kMaxRowElements = int64_t{1} << 19;

// A place in the set that holds a bad element.
struct GradientPlace {
  int tensor;
  int64_t offset;
};

// Takes the tensors that `header.sparse` announces out of those that `brought` says, by tensor, the step brings. Error:
// INVALID_ARGUMENT (INVALID_FIELD) naming what of `header.sparse` cannot be: tensors that are not brought, or not
// ascending, or have no rows, or rows that are too long, and negative numbers of rows.
absl::Status TakeOutSparse(const Schema& schema, const v1::StepHeader& header, std::vector<bool>* brought);

// Thread-compatible.
class RowStaging {
 public:
  using Announced = google::protobuf::RepeatedPtrField<v1::SparseRows>;

  // What rows take that are announced so: elements, for blocks of that size, and bytes beside them. No more than 2^60
  // each, whatever is announced.
  struct Size {
    int64_t elements;
    int64_t bytes;
  };
  static Size SizeOf(const Schema& schema, const Announced& announced);

  // For what TakeOutSparse has found in order. `values` are blocks for SizeOf's elements, held by nobody else, and
  // `schema` outlives this.
  RowStaging(const Schema& schema, const Announced& announced, BlockList values, const kernels::KernelTable& kernels);

  // Whether rows of the tensor are announced.
  bool Has(int32_t tensor) const { return Find(tensor) != nullptr; }

  // Takes a chunk of `row_count` rows and `count` elements of a tensor whose rows are announced; `rows` and `copy` are
  // called, if at all, before it returns. Errors, all INVALID_ARGUMENT with the tensor, after which nothing may be
  // added:
  // - MALFORMED_CHUNK: no rows, although there are to be some; an offset; elements that are not as many whole rows;
  // - CHUNK_OUT_OF_RANGE: more rows than announced; or with the field `rows[INDEX]`, one that the tensor does not have.
  absl::Status Add(int32_t tensor, int64_t offset, int64_t row_count, RowSource rows, int64_t count, ChunkSource copy);

  // OK if all that are announced have come; otherwise INVALID_ARGUMENT (INCOMPLETE) with the lowest tensor that misses
  // some.
  absl::Status CheckComplete() const;

  // Adds up what came for the same row, in the order in which it came, and measures the sums. Once, when everything has
  // come, before the rest is called.
  void Sum();

  // In place of chunks and of Sum: what that has left, as many rows of each tensor as `counts` says, whose values are
  // put where they say. False if they cannot be what it left.
  bool Restore(absl::Span<const int64_t> counts, absl::Span<const RowWork::Row> rows);
  const RowWork* work() const { return work_.get(); }

  // Sum of squares and largest magnitude: tensors by index, rows ascending, each of them a chain of leaves of its own,
  // behind what is in `stats`.
  void AddTo(kernels::GradientStats* stats) const;
  // The lowest place whose magnitude is not below `limit` or that is not a number. Nothing if there is none.
  std::optional<GradientPlace> FindNotBelow(double limit) const;
  // By index.
  std::vector<int> Tensors() const;

  // The rows and their sums.
  std::unique_ptr<RowWork> TakeWork() { return std::move(work_); }

 private:
  struct Arrival {
    int64_t extent;     // rows of the tensor
    int64_t announced;  // rows that are to come
    int64_t received;   // and those that have
  };

  const RowWork::Tensor* Find(int32_t tensor) const;
  Arrival& ArrivalOf(const RowWork::Tensor* tensor) { return arrivals_[tensor - work_->tensors.data()]; }
  kernels::GradientStats Measure(const RowWork::Place& place) const;

  const Schema& schema_;
  const kernels::KernelTable& kernels_;
  // Until Sum, each tensor's rows are as they came, and as many as announced.
  std::unique_ptr<RowWork> work_;
  std::vector<Arrival> arrivals_;  // by RowWork::tensors
};

// Overwrites the gradients in `work` with the parameters of its rows.
void FillIn(const Snapshot& parameters, RowWork* work);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_ROW_STAGING_H_
