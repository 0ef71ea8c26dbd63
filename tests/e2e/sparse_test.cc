// Rows of tensors, over a socket: by the client library, and message by message.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "adamant/client.h"
#include "kernels/dispatch.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

using core::BroughtRows;

constexpr int kTable = 0;
constexpr int64_t kWidth = 64;

v1::ParameterSetSpec Words(int64_t rows) {
  v1::ParameterSetSpec spec = SmallSpec("words");
  spec.clear_tensors();
  v1::TensorSpec* const table = spec.add_tensors();
  table->set_name("table");
  table->add_shape(rows);
  table->add_shape(kWidth);
  table->set_group("slow");
  v1::TensorSpec* const bias = spec.add_tensors();
  bias->set_name("bias");
  bias->add_shape(100);
  bias->set_group("fast");
  return spec;
}

// `count` rows of the table, some more than once.
BroughtRows SomeRows(int64_t extent, int64_t count, uint64_t seed) {
  BroughtRows rows = {.tensor = kTable, .rows = {}, .values = Gradient(count * kWidth, seed)};
  for (int64_t i = 0; i < count; ++i) rows.rows.push_back((i * 7919 + static_cast<int64_t>(seed)) % extent);
  if (count > 2) rows.rows[2] = rows.rows[0];
  return rows;
}

v1::StepHeader SparseHeader(const BroughtRows& rows) {
  v1::StepHeader header = StepHeader("words");
  v1::SparseRows* const sparse = header.add_sparse();
  sparse->set_tensor(rows.tensor);
  sparse->set_rows(static_cast<int64_t>(rows.rows.size()));
  return header;
}

class SparseTest : public ServerTest {
 protected:
  // Steps set and model by the client library, with the bias whole, and compares all that there is then.
  void StepBoth(int64_t extent, const std::vector<BroughtRows>& steps, const StepOptions& options = {}) {
    const v1::ParameterSetSpec spec = Words(extent);
    MakeSet(spec);
    SequentialModel model(spec);
    Client client = *Client::Connect(server_.address());
    adamant::StepStream stream = *client.OpenStepStream("words");
    std::vector<float> table(extent * kWidth);
    std::vector<float> bias(100);
    const std::vector<absl::Span<float>> parameters = {absl::MakeSpan(table), absl::MakeSpan(bias)};
    for (const BroughtRows& rows : steps) {
      Values gradient(extent * kWidth);
      const Values of_bias = Gradient(100, 5);
      gradient.insert(gradient.end(), of_bias.begin(), of_bias.end());
      StepOptions with = options;
      with.rows = {{.tensor = kTable, .rows = rows.rows, .values = rows.values}};
      const std::vector<absl::Span<const float>> gradients = {{}, of_bias};
      const absl::StatusOr<v1::StepResult> result = stream.Step(gradients, parameters, with);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->grad_norm(), model.GradNorm(gradient, SparseHeader(rows), {rows}));
      model.Apply(gradient, SparseHeader(rows), {rows});
    }
    EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
    Values brought(table.begin(), table.end());
    brought.insert(brought.end(), bias.begin(), bias.end());
    EXPECT_TRUE(SameBits(brought, Expected(model.arrays().parameters, options.reply_dtype)));
  }

  static Values Expected(const Values& parameters, v1::Dtype dtype) {
    if (dtype == v1::DTYPE_FLOAT32) return parameters;
    const auto count = static_cast<int64_t>(parameters.size());
    std::vector<uint16_t> halves(parameters.size());
    Values rounded(parameters.size());
    kernels::BestKernels().narrow[kernels::kBfloat16](parameters.data(), halves.data(), count);
    kernels::BestKernels().widen[kernels::kBfloat16](halves.data(), rounded.data(), count);
    return rounded;
  }
};

TEST_F(SparseTest, ClientBringsFewRowsAndTakesThemBack) {
  StepBoth(1000, {SomeRows(1000, 3, 1), SomeRows(1000, 40, 2), SomeRows(1000, 0, 3), SomeRows(1000, 500, 4)});
}

TEST_F(SparseTest, ClientBringsMoreRowsThanAMessageHolds) {
  StepBoth(8000, {SomeRows(8000, 5000, 1), SomeRows(8000, 10, 2), SomeRows(8000, 9000, 3)});
}

TEST_F(SparseTest, RowsTravelIn16BitsToo) {
  BroughtRows rows = SomeRows(1000, 700, 1);
  // What bfloat16 has room for.
  rows.values = Expected(rows.values, v1::DTYPE_BFLOAT16);
  const v1::ParameterSetSpec spec = Words(1000);
  MakeSet(spec);
  SequentialModel model(spec);
  Client client = *Client::Connect(server_.address());
  adamant::StepStream stream = *client.OpenStepStream("words");
  std::vector<float> table(1000 * kWidth);
  const std::vector<absl::Span<float>> parameters = {absl::MakeSpan(table), {}};
  StepOptions options;
  options.tensors = {kTable};
  options.rows = {{.tensor = kTable, .rows = rows.rows, .values = rows.values}};
  options.gradient_dtype = v1::DTYPE_BFLOAT16;
  options.reply_dtype = v1::DTYPE_BFLOAT16;
  const absl::StatusOr<v1::StepResult> result =
      stream.Step(std::vector<absl::Span<const float>>(2), parameters, options);
  ASSERT_TRUE(result.ok()) << result.status();
  v1::StepHeader header = SparseHeader(rows);
  header.add_tensors(kTable);
  model.Apply(Values(ParameterCount(spec)), header, {rows});
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
  const Values expected = Expected(model.arrays().parameters, v1::DTYPE_BFLOAT16);
  EXPECT_TRUE(SameBits(Values(table.begin(), table.end()), Values(expected.begin(), expected.begin() + 1000 * kWidth)));
}

TEST_F(SparseTest, UnaryStepIsAnsweredInTheFormThatItCame) {
  const v1::ParameterSetSpec spec = Words(50);
  MakeSet(spec);
  SequentialModel model(spec);
  const BroughtRows rows = {.tensor = kTable, .rows = {40, 7}, .values = Gradient(2 * kWidth, 1)};
  v1::StepOnceRequest request;
  *request.mutable_header() = SparseHeader(rows);
  request.mutable_header()->add_tensors(kTable);
  v1::TensorChunk* const chunk = request.add_chunks();
  chunk->mutable_rows()->Add(rows.rows.begin(), rows.rows.end());
  chunk->mutable_values()->Add(rows.values.begin(), rows.values.end());
  model.Apply(Values(ParameterCount(spec)), request.header(), {rows});

  const absl::StatusOr<v1::StepOnceResponse> response = client_.StepOnce(request);

  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(response->chunks_size(), 1);
  const v1::TensorChunk& reply = response->chunks(0);
  EXPECT_EQ(std::vector<int64_t>(reply.rows().begin(), reply.rows().end()), (std::vector<int64_t>{7, 40}));
  const Values& parameters = model.arrays().parameters;
  Values expected(parameters.begin() + 7 * kWidth, parameters.begin() + 8 * kWidth);
  expected.insert(expected.end(), parameters.begin() + 40 * kWidth, parameters.begin() + 41 * kWidth);
  EXPECT_TRUE(SameBits(Values(reply.values().begin(), reply.values().end()), expected));
}

TEST_F(SparseTest, RetryIsAnsweredWithoutRowsAndTheClientReadsThem) {
  const v1::ParameterSetSpec spec = Words(1000);
  MakeSet(spec);
  const BroughtRows rows = SomeRows(1000, 5, 1);
  Client client = *Client::Connect(server_.address());
  std::vector<float> table(1000 * kWidth, -1.0f);
  const std::vector<absl::Span<float>> parameters = {absl::MakeSpan(table), {}};
  StepOptions options;
  options.request_id = "once";
  options.tensors = {kTable};
  options.rows = {{.tensor = kTable, .rows = rows.rows, .values = rows.values}};
  const std::vector<absl::Span<const float>> none(2);
  adamant::StepStream first = *client.OpenStepStream("words");
  // Of a trainer that was restarted before it had the reply.
  adamant::StepStream second = *client.OpenStepStream("words");
  ASSERT_TRUE(first.Step(none, parameters, options).ok());
  EXPECT_EQ(table[999 * kWidth], -1);
  const absl::StatusOr<v1::StepResult> again = second.Step(none, parameters, options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed());
  EXPECT_EQ(again->step(), 1);
  const Values read = client_.ReadArrays(spec)->parameters;
  EXPECT_TRUE(SameBits(Values(table.begin(), table.end()), Values(read.begin(), read.begin() + 1000 * kWidth)));
}

}  // namespace
}  // namespace adamant::e2e
