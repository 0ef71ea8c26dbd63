// Steps that bring rows, of a set that has tensors for it.
#ifndef ADAMANT_TESTS_CORE_SPARSE_STEPS_H_
#define ADAMANT_TESTS_CORE_SPARSE_STEPS_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"

namespace adamant::core {

inline constexpr int kTable = 0;
inline constexpr int kBias = 1;
inline constexpr int kWide = 2;
inline constexpr int kScalar = 3;
inline constexpr int kNarrow = 4;
inline constexpr int kEmpty = 5;
inline constexpr int kTensors = 6;

// Tables whose rows begin and end in the middle of blocks, lie across the end of one, or are longer than a block.
inline v1::ParameterSetSpec TablesSpec() {
  v1::ParameterSetSpec spec = SmallSpec("tables");
  spec.clear_tensors();
  const auto add = [&](absl::string_view name, std::vector<int64_t> shape, absl::string_view group) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(std::string(name));
    tensor->mutable_shape()->Add(shape.begin(), shape.end());
    tensor->set_group(std::string(group));
  };
  add("table", {1500, 3, 32}, "slow");
  add("bias", {100}, "fast");
  add("wide", {3, 70001}, "fast");
  add("scalar", {}, "slow");
  add("narrow", {400, 7}, "fast");
  add("empty", {8, 0}, "slow");
  return spec;
}

inline int64_t WidthOf(const Schema& schema, int tensor) {
  const Schema::Tensor& place = schema.tensors()[tensor];
  return place.size() / std::max<int64_t>(1, place.shape[0]);
}

// As seeded random numbers say: in any order, some more than once.
inline BroughtRows RandomRows(const Schema& schema, int tensor, int count, uint64_t seed) {
  BroughtRows brought = {.tensor = tensor, .rows = {}, .values = {}};
  uint64_t state = seed * 0x9E3779B97F4A7C15 + 1;
  for (int i = 0; i < count; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    brought.rows.push_back(static_cast<int64_t>(state >> 33) % schema.tensors()[tensor].shape[0]);
    if (i % 4 == 3) brought.rows.back() = brought.rows[i / 2];
  }
  brought.values = Gradient(count * WidthOf(schema, tensor), seed);
  return brought;
}

// `header` with the tensors that it brings whole, and these rows.
inline v1::StepHeader WithRows(v1::StepHeader header, const std::vector<int>& whole,
                               const std::vector<BroughtRows>& rows) {
  std::vector<int> all = whole;
  for (const BroughtRows& brought : rows) {
    all.push_back(brought.tensor);
    v1::SparseRows* const sparse = header.add_sparse();
    sparse->set_tensor(brought.tensor);
    sparse->set_rows(static_cast<int64_t>(brought.rows.size()));
  }
  std::sort(all.begin(), all.end());
  header.clear_tensors();
  header.mutable_tensors()->Add(all.begin(), all.end());
  return header;
}

// Rows in chunks of at most `most`, then the tensors that come whole.
inline absl::Status SendAll(const Schema& schema, StepDelivery* step, const std::vector<int>& whole,
                            const Values& gradient, const std::vector<BroughtRows>& rows, size_t most = 5) {
  for (const BroughtRows& brought : rows) {
    const size_t width = WidthOf(schema, brought.tensor);
    for (size_t first = 0; first < brought.rows.size(); first += most) {
      const size_t end = std::min(first + most, brought.rows.size());
      absl::Status status =
          step->SendRows(brought.tensor, {brought.rows.begin() + first, brought.rows.begin() + end},
                         {brought.values.begin() + first * width, brought.values.begin() + end * width});
      if (!status.ok()) return status;
    }
  }
  if (whole.empty()) return absl::OkStatus();
  return step->Send(Cut(schema, 50000, {whole.begin(), whole.end()}), gradient);
}

// A step that chunks may be sent for.
inline StepDelivery BeginAdmitted(ParameterSet* set, const v1::StepHeader& header) {
  StepDelivery step = BeginStep(set, header);
  step.Await();
  return step;
}

// A whole step.
inline absl::StatusOr<StepReply> StepRows(ParameterSet* set, const v1::StepHeader& header,
                                          const std::vector<int>& whole, const Values& gradient,
                                          const std::vector<BroughtRows>& rows) {
  StepDelivery step = BeginStep(set, header);
  step.Await();
  if (step.done()) return step.Take();
  absl::Status status = SendAll(set->schema(), &step, whole, gradient, rows);
  if (status.ok()) status = step.Complete();
  return status.ok() ? step.Take() : absl::StatusOr<StepReply>(status);
}

// The rows of a reply.
inline std::vector<BroughtRows> RowsOf(const StepReply& reply) {
  std::vector<BroughtRows> rows;
  const RowWork* const work = reply.parameters->rows.get();
  if (work == nullptr) return rows;
  for (const RowWork::Tensor& tensor : work->tensors) {
    BroughtRows brought = {.tensor = tensor.tensor, .rows = {}, .values = {}};
    for (size_t i = tensor.first; i < tensor.end; ++i) brought.rows.push_back(work->rows[i].index);
    work->ForEachRow(tensor.first, tensor.end, [&](const RowWork::Place& place) {
      const size_t before = brought.values.size();
      brought.values.resize(before + place.end - place.begin);
      CopyRuns(work->values, place.values, place.values + place.end - place.begin, brought.values.data() + before);
    });
    rows.push_back(std::move(brought));
  }
  return rows;
}

// Whether a reply has these rows, ascending and each once, as they are in `parameters`.
inline void ExpectRowsOf(const Schema& schema, const StepReply& reply, const std::vector<BroughtRows>& brought,
                         const Values& parameters) {
  const std::vector<BroughtRows> rows = RowsOf(reply);
  ASSERT_EQ(rows.size(), brought.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].tensor, brought[i].tensor);
    int64_t begin = 0;
    for (int tensor = 0; tensor < rows[i].tensor; ++tensor) begin += schema.sizes()[tensor];
    std::vector<int64_t> expected;
    Values expected_values;
    for (const auto& [row, sum] : SequentialModel::SumRows(brought[i])) {
      expected.push_back(row);
      const auto first = parameters.begin() + begin + row * WidthOf(schema, rows[i].tensor);
      expected_values.insert(expected_values.end(), first, first + WidthOf(schema, rows[i].tensor));
    }
    EXPECT_EQ(rows[i].rows, expected);
    EXPECT_TRUE(SameBits(rows[i].values, expected_values));
  }
}

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SPARSE_STEPS_H_
