// Gradients and replies of 16 bits: a gradient's elements are widened exactly, and a reply is the one of fp32, rounded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/formats.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

using Halves = std::vector<uint16_t>;

// The conversions of the scalar kernels, which have tests of their own over every value.
const kernels::KernelTable& Scalar() { return *kernels::AllKernels().front(); }

int FormatOf(v1::Dtype dtype) { return dtype == v1::DTYPE_BFLOAT16 ? kernels::kBfloat16 : kernels::kFloat16; }

Values Widen(const Halves& halves, v1::Dtype dtype) {
  Values values(halves.size());
  Scalar().widen[FormatOf(dtype)](halves.data(), values.data(), static_cast<int64_t>(halves.size()));
  return values;
}

// Counts in `overflowed` what has become infinite.
Halves Narrow(const Values& values, v1::Dtype dtype, int64_t* overflowed = nullptr) {
  Halves halves(values.size());
  const int64_t count =
      Scalar().narrow[FormatOf(dtype)](values.data(), halves.data(), static_cast<int64_t>(values.size()));
  if (overflowed != nullptr) *overflowed = count;
  return halves;
}

// As Chunks, of elements of 16 bits.
std::vector<v1::TensorChunk> HalfChunks(const v1::ParameterSetSpec& spec, const Halves& halves, v1::Dtype dtype,
                                        int64_t most) {
  std::vector<v1::TensorChunk> chunks = Chunks(spec, Values(halves.size()), most);
  const uint16_t* next = halves.data();
  for (v1::TensorChunk& chunk : chunks) {
    const auto n = static_cast<int64_t>(chunk.data().size() / sizeof(float));
    chunk.set_dtype(dtype);
    chunk.set_data(next, n * sizeof(uint16_t));
    next += n;
  }
  return chunks;
}

class SixteenBitTest : public ServerTest, public ::testing::WithParamInterface<v1::Dtype> {
 protected:
  v1::Dtype dtype() const { return GetParam(); }

  // One step on a stream of its own.
  absl::StatusOr<StepReply> Step(const v1::ParameterSetSpec& spec, const v1::StepHeader& header,
                                 const std::vector<v1::TensorChunk>& chunks) {
    StepStream stream(client_.stub());
    stream.Send(StepMessages(header, chunks));
    return stream.ReadReply(spec);
  }
};

// Odd cuts let elements begin at every place in a message, and messages of 1 and 3 elements at every place in a slice.
TEST_P(SixteenBitTest, GradientHasTheBitsOfTheWidenedOneHoweverItIsCut) {
  const v1::ParameterSetSpec spec = LargeSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  for (const int64_t most : {65535, 65536, 99999, 262144, 1001}) {
    const Halves gradient = Narrow(Gradient(ParameterCount(spec), most), dtype());
    model.Apply(Widen(gradient, dtype()));

    ASSERT_TRUE(stream.Send(StepMessages(StepHeader("large"), HalfChunks(spec, gradient, dtype(), most))));
    const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);

    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.grad_norm(), model.Norm(Widen(gradient, dtype())));
    EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters)) << "in chunks of " << most;
  }
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
}

TEST_P(SixteenBitTest, SmallGradientInOneMessageHasTheBitsOfTheWidenedOne) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  for (const int64_t most : {1, 3, 7, 65536}) {
    const Halves gradient = Narrow(Gradient(ParameterCount(spec), most), dtype());
    model.Apply(Widen(gradient, dtype()));
    v1::StepOnceRequest request;
    request.mutable_header()->set_set("small");
    for (const v1::TensorChunk& chunk : HalfChunks(spec, gradient, dtype(), most)) *request.add_chunks() = chunk;

    const absl::StatusOr<v1::StepOnceResponse> response = client_.StepOnce(request);

    ASSERT_TRUE(response.ok()) << response.status();
  }
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
}

TEST_P(SixteenBitTest, ChunksOfOneTensorMayDifferInTheirType) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  const Halves halves = Narrow(Gradient(ParameterCount(spec), 1), dtype());
  const Values gradient = Widen(halves, dtype());
  std::vector<v1::TensorChunk> chunks = Chunks(spec, gradient, 5);
  const std::vector<v1::TensorChunk> narrow = HalfChunks(spec, halves, dtype(), 5);
  for (size_t i = 0; i < chunks.size(); i += 2) chunks[i] = narrow[i];
  model.Apply(gradient);

  const absl::StatusOr<StepReply> reply = Step(spec, StepHeader("small"), chunks);

  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
}

// The reply of a step of fp32 and that of 16 bits, of two sets that are alike: of a large one in many messages, which
// leave while later blocks are computed, and of a small one.
TEST_P(SixteenBitTest, ReplyIsTheOneOfFp32Narrowed) {
  for (const v1::ParameterSetSpec& spec : {SmallSpec(), LargeSpec(), core::WithEmptyTensors(SmallSpec("gaps"))}) {
    v1::ParameterSetSpec twin = spec;
    twin.set_name(absl::StrCat(spec.name(), "-twin"));
    MakeSet(spec);
    MakeSet(twin);
    v1::StepHeader header = StepHeader(spec.name());
    header.set_reply_dtype(dtype());
    for (int64_t step = 0; step < 3; ++step) {
      const std::vector<v1::TensorChunk> chunks = Chunks(spec, Gradient(ParameterCount(spec), step), 65536);

      const absl::StatusOr<StepReply> narrow = Step(spec, header, chunks);
      const absl::StatusOr<StepReply> wide = Step(twin, StepHeader(twin.name()), chunks);

      ASSERT_TRUE(narrow.ok()) << narrow.status();
      ASSERT_TRUE(wide.ok()) << wide.status();
      EXPECT_EQ(narrow->halves, Narrow(wide->parameters, dtype()));
      EXPECT_TRUE(narrow->parameters.empty());
      EXPECT_EQ(narrow->result.overflowed(), 0);
      EXPECT_EQ(wide->result.overflowed(), 0);
    }
  }
}

TEST_P(SixteenBitTest, SmallReplyInOneMessageIsTheOneOfFp32Narrowed) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  const Values gradient = Gradient(ParameterCount(spec), 1);
  model.Apply(gradient);
  v1::StepOnceRequest request;
  request.mutable_header()->set_set("small");
  request.mutable_header()->set_reply_dtype(dtype());
  for (const v1::TensorChunk& chunk : Chunks(spec, gradient, 65536)) *request.add_chunks() = chunk;

  const absl::StatusOr<v1::StepOnceResponse> response = client_.StepOnce(request);

  ASSERT_TRUE(response.ok()) << response.status();
  ChunkCollector collector(TensorSizes(spec));
  for (const v1::TensorChunk& chunk : response->chunks()) {
    EXPECT_EQ(chunk.dtype(), dtype());
    ASSERT_TRUE(collector.Add(chunk));
  }
  EXPECT_TRUE(collector.done());
  EXPECT_EQ(collector.halves(), Narrow(model.arrays().parameters, dtype()));
}

// A client that sends numbers cannot be answered in numbers of 16 bits.
TEST_P(SixteenBitTest, ReplyToNumbersComesAsBytes) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  v1::StepHeader header = StepHeader("small");
  header.set_reply_dtype(dtype());

  const absl::StatusOr<StepReply> reply =
      Step(spec, header, Chunks(spec, Gradient(ParameterCount(spec), 1), 65536, ChunkForm::kValues));

  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->form, ChunkForm::kData);
  EXPECT_EQ(reply->halves.size(), 65u);
}

// Of a large set, so that what is counted is in several messages. No parameter is too large for bfloat16: a write
// brings at most 2^95.
TEST_P(SixteenBitTest, ParametersWithoutRoomInTheReplyAreCounted) {
  const v1::ParameterSetSpec spec = LargeSpec();
  MakeSet(spec);
  Values parameters(ParameterCount(spec), 0.5f);
  const std::vector<size_t> large = {0, 65535, 100000, 250001, parameters.size() - 1};
  for (const size_t i : large) parameters[i] = i % 2 == 0 ? 1e5f : -1e5f;
  core::Arrays arrays;
  arrays.parameters = parameters;
  ASSERT_TRUE(client_.Write(spec, core::ParametersHeader(), arrays).ok());
  v1::StepHeader header = StepHeader("large");
  header.set_reply_dtype(dtype());

  const absl::StatusOr<StepReply> reply = Step(spec, header, Chunks(spec, Values(parameters.size()), 65536));

  ASSERT_TRUE(reply.ok()) << reply.status();
  int64_t overflowed = 0;
  EXPECT_EQ(reply->halves, Narrow(parameters, dtype(), &overflowed));
  EXPECT_EQ(reply->result.overflowed(), overflowed);
  EXPECT_EQ(overflowed, dtype() == v1::DTYPE_FLOAT16 ? static_cast<int64_t>(large.size()) : 0);
}

// A result that is remembered says nothing of the reply: each has its own.
TEST_P(SixteenBitTest, RetryMayAskForAnotherTypeOfReply) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  const std::vector<v1::TensorChunk> chunks = Chunks(spec, Gradient(ParameterCount(spec), 1), 65536);
  const absl::StatusOr<StepReply> first = Step(spec, StepHeader("small", "one", 0), chunks);
  ASSERT_TRUE(first.ok()) << first.status();
  v1::StepHeader header = StepHeader("small", "one", 0, 2);
  header.set_reply_dtype(dtype());

  const absl::StatusOr<StepReply> again = Step(spec, header, chunks);

  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->result.replayed());
  EXPECT_EQ(again->halves, Narrow(first->parameters, dtype()));
}

INSTANTIATE_TEST_SUITE_P(EveryType, SixteenBitTest, ::testing::Values(v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16),
                         [](const auto& info) {
                           return info.param == v1::DTYPE_BFLOAT16 ? std::string("Bfloat16") : std::string("Float16");
                         });

using ReplyTest = ServerTest;

TEST_F(ReplyTest, ParametersAreLeftOutWhereTheClientDoesNotWantThem) {
  const v1::ParameterSetSpec spec = LargeSpec();
  MakeSet(spec);
  const std::map<std::string, int64_t> budgets = client_.UsedBudgets();
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  for (int64_t step = 0; step < 4; ++step) {
    const Values gradient = Gradient(ParameterCount(spec), step);
    model.Apply(gradient);
    v1::StepHeader header = StepHeader("large");
    header.set_omit_parameters(step % 2 == 0);
    ASSERT_TRUE(stream.Send(StepMessages(header, Chunks(spec, gradient, 65536))));
    if (header.omit_parameters()) {
      v1::StepResponse response;
      ASSERT_TRUE(stream.Receive(&response));
      EXPECT_EQ(response.result().step(), step + 1);
      EXPECT_TRUE(response.chunks().empty());
    } else {
      const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);
      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
    }
  }
  stream.HalfClose();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_TRUE(client_.ReturnsTo(budgets));
}

TEST_F(ReplyTest, ParametersOfAUnaryStepAreLeftOutToo) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  v1::StepOnceRequest request;
  request.mutable_header()->set_set("small");
  request.mutable_header()->set_omit_parameters(true);
  for (const v1::TensorChunk& chunk : Chunks(spec, Gradient(65, 1), 65536)) *request.add_chunks() = chunk;

  const absl::StatusOr<v1::StepOnceResponse> response = client_.StepOnce(request);

  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->result().step(), 1);
  EXPECT_TRUE(response->chunks().empty());
}

}  // namespace
}  // namespace adamant::e2e
