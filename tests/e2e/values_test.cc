// The same step in every form in which it can be sent has the same bits.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <random>
#include <vector>

#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

uint64_t TestSeed() {
  const char* seed = std::getenv("ADAMANT_TEST_SEED");
  return seed != nullptr ? std::strtoull(seed, nullptr, 10) : std::random_device()();
}

// A gradient cut anywhere, its tensors interleaved, its chunks dealt out to messages of any number of them, in either
// form.
std::vector<v1::StepRequest> RandomMessages(const v1::ParameterSetSpec& spec, const v1::StepHeader& header,
                                            const Values& gradient, std::mt19937_64* random) {
  const auto draw = [random](int64_t lowest, int64_t highest) {
    return std::uniform_int_distribution<int64_t>(lowest, highest)(*random);
  };
  struct Rest {
    int32_t tensor;
    int64_t offset;
    int64_t size;
    const float* elements;
  };
  std::vector<Rest> rests;
  const float* next = gradient.data();
  for (const int64_t size : TensorSizes(spec)) {
    rests.push_back({static_cast<int32_t>(rests.size()), 0, size, next});
    next += size;
  }
  std::vector<v1::StepRequest> messages(1);
  *messages.back().mutable_header() = header;
  while (!rests.empty()) {
    if (draw(0, 2) == 0 || messages.back().ByteSizeLong() > 1000000) messages.emplace_back();
    Rest& rest = rests[draw(0, rests.size() - 1)];
    const int64_t left = rest.size - rest.offset;
    const int64_t n = std::min(left, draw(0, 1) == 0 ? draw(1, 100) : draw(1, 100000));
    v1::TensorChunk* chunk = messages.back().add_chunks();
    chunk->set_tensor(rest.tensor);
    chunk->set_offset(rest.offset);
    SetElements(rest.elements + rest.offset, n, draw(0, 1) == 0 ? ChunkForm::kData : ChunkForm::kValues, chunk);
    rest.offset += n;
    if (rest.offset == rest.size) rests.erase(rests.begin() + (&rest - rests.data()));
  }
  if (draw(0, 1) == 0) messages.emplace_back();
  messages.back().set_last(true);
  return messages;
}

class ValuesTest : public ServerTest {
 protected:
  // What three steps make of the set.
  Arrays Expected(const v1::ParameterSetSpec& spec) {
    SequentialModel model(spec);
    for (int64_t step = 0; step < 3; ++step) model.Apply(Gradient(model.parameter_count(), step));
    return model.arrays();
  }

  // Makes a set and those steps in chunks of at most `most` elements, and expects these bits of everything.
  void ExpectSameBits(const v1::ParameterSetSpec& spec, ChunkForm form, int64_t most) {
    MakeSet(spec);
    absl::StatusOr<StepReply> reply;
    for (int64_t step = 0; step < 3; ++step) {
      reply = client_.Step(spec, StepHeader(spec.name()), Gradient(ParameterCount(spec), step), most, form);
      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_EQ(reply->form, form);
    }
    EXPECT_TRUE(SameBits(reply->parameters, Expected(spec).parameters));
    const absl::StatusOr<Arrays> arrays = client_.ReadArrays(spec, form == ChunkForm::kValues);
    ASSERT_TRUE(arrays.ok()) << arrays.status();
    EXPECT_TRUE(*arrays == Expected(spec));
  }
};

TEST_F(ValuesTest, SmallStepInBytesHasTheBitsOfTheModel) { ExpectSameBits(SmallSpec(), ChunkForm::kData, 7); }

TEST_F(ValuesTest, SmallStepInNumbersHasTheBitsOfTheModelAndIsAnsweredInNumbers) {
  ExpectSameBits(SmallSpec(), ChunkForm::kValues, 7);
}

TEST_F(ValuesTest, LargeStepInBytesHasTheBitsOfTheModel) { ExpectSameBits(LargeSpec(), ChunkForm::kData, 65536); }

TEST_F(ValuesTest, LargeStepInNumbersHasTheBitsOfTheModelAndIsAnsweredInNumbers) {
  ExpectSameBits(LargeSpec(), ChunkForm::kValues, 65536);
}

TEST_F(ValuesTest, ReplyHasTheFormOfTheFirstChunk) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  const Values gradient = Gradient(ParameterCount(spec), 0);
  std::vector<v1::TensorChunk> mixed = Chunks(spec, gradient, 65536, ChunkForm::kData);
  mixed.front() = Chunks(spec, gradient, 65536, ChunkForm::kValues).front();
  StepStream stream(client_.stub());

  ASSERT_TRUE(stream.Send(StepMessages(StepHeader("small"), mixed)));
  const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);

  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->form, ChunkForm::kValues);
}

// Of an empty chunk nobody can tell.
TEST_F(ValuesTest, ReplyHasTheFormOfTheFirstChunkThatHasElements) {
  const v1::ParameterSetSpec spec = core::WithEmptyTensors(SmallSpec());
  MakeSet(spec);
  std::vector<v1::TensorChunk> chunks = Chunks(spec, Gradient(ParameterCount(spec), 0), 65536, ChunkForm::kValues);
  chunks.emplace(chunks.begin());  // of tensor 0, which is empty
  StepStream stream(client_.stub());

  ASSERT_TRUE(stream.Send(StepMessages(StepHeader("small"), chunks)));
  const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);

  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->form, ChunkForm::kValues);
}

TEST_F(ValuesTest, TensorsWithoutElementsAreListedAndNeedNoChunk) {
  ExpectSameBits(core::WithEmptyTensors(SmallSpec()), ChunkForm::kData, 7);
  v1::ListTensorsRequest request;
  request.set_name("small");
  const absl::StatusOr<v1::ListTensorsResponse> tensors =
      client_.Call(&v1::OptimizerService::Stub::ListTensors, request);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->tensors_size(), 9);
  EXPECT_EQ(tensors->tensors(0).ShortDebugString(),
            "name: \"empty1\" shape: 8 shape: 0 group: \"slow\" update_count: 3");
  EXPECT_EQ(tensors->tensors(1).element_count(), 32);
}

TEST_F(ValuesTest, SetWithoutAnyElementsIsSteppedAndRead) { ExpectSameBits(core::EmptySpec(), ChunkForm::kData, 7); }

TEST_F(ValuesTest, StepOnceHasTheBitsOfStep) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  for (const ChunkForm form : {ChunkForm::kData, ChunkForm::kValues, ChunkForm::kData}) {
    const absl::StatusOr<v1::ParameterSet> before = client_.Get("small");
    ASSERT_TRUE(before.ok()) << before.status();
    v1::StepOnceRequest request;
    *request.mutable_header() = StepHeader("small", absl::StrCat("step ", before->step()), before->step());
    for (const v1::TensorChunk& chunk : Chunks(spec, Gradient(ParameterCount(spec), before->step()), 65536, form)) {
      *request.add_chunks() = chunk;
    }

    const absl::StatusOr<v1::StepOnceResponse> response = client_.StepOnce(request);

    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->result().step(), before->step() + 1);
    ChunkCollector parameters(TensorSizes(spec));
    for (const v1::TensorChunk& chunk : response->chunks()) ASSERT_TRUE(parameters.Add(chunk));
    ASSERT_TRUE(parameters.done());
    EXPECT_EQ(parameters.form(), form);
    const absl::StatusOr<Arrays> arrays = client_.ReadArrays(spec);
    ASSERT_TRUE(arrays.ok()) << arrays.status();
    EXPECT_TRUE(SameBits(parameters.values(), arrays->parameters));
  }
  EXPECT_TRUE(*client_.ReadArrays(spec) == Expected(spec));
}

TEST_F(ValuesTest, BitsDoNotDependOnHowAGradientIsCut) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(absl::StrCat("ADAMANT_TEST_SEED=", seed));
  std::cout << "ADAMANT_TEST_SEED=" << seed << "\n";
  std::mt19937_64 random(seed);
  // A tensor without elements gets an empty chunk.
  for (const v1::ParameterSetSpec& spec :
       {SmallSpec(), LargeSpec(), core::WithEmptyTensors(SmallSpec("gaps")), core::EmptySpec()}) {
    SequentialModel model(spec);
    MakeSet(spec);
    StepStream stream(client_.stub());
    for (int64_t step = 0; step < 20; ++step) {
      const Values gradient = Gradient(ParameterCount(spec), random());
      model.Apply(gradient);

      ASSERT_TRUE(stream.Send(RandomMessages(spec, StepHeader(spec.name()), gradient, &random)));
      const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);

      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_EQ(reply->result.step(), step + 1);
      EXPECT_EQ(reply->result.grad_norm(), model.Norm(gradient));
      ASSERT_TRUE(SameBits(reply->parameters, model.arrays().parameters)) << "at step " << step;
    }
    EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
  }
}

// Everything that was read can be written back, to a set of another server, and goes on with the same bits.
TEST_F(ValuesTest, FullWriteRestoresWhatAFullReadReturned) {
  const v1::ParameterSetSpec spec = LargeSpec();
  MakeSet(spec);
  for (int64_t step = 0; step < 2; ++step) {
    ASSERT_TRUE(client_.Step(spec, StepHeader("large"), Gradient(ParameterCount(spec), step)).ok());
  }
  const absl::StatusOr<Arrays> saved = client_.ReadArrays(spec);
  ASSERT_TRUE(saved.ok()) << saved.status();
  const v1::ParameterSetSpec copy = LargeSpec("copy", v1::INITIALIZATION_WRITTEN);
  TestServer other_server;
  TestClient other(other_server.address());
  ASSERT_TRUE(other.Create(copy).ok());

  const absl::StatusOr<v1::WriteTensorsResponse> written = other.Write(copy, core::FullHeader(saved->step), *saved);
  ASSERT_TRUE(written.ok()) << written.status();
  const absl::StatusOr<StepReply> reply = other.Step(copy, StepHeader("copy"), Gradient(ParameterCount(spec), 2));

  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_TRUE(*other.ReadArrays(copy) == Expected(spec));
}

class KernelsTest : public ::testing::TestWithParam<const kernels::KernelTable*> {};

TEST_P(KernelsTest, EveryInstructionSetHasTheBitsOfTheReference) {
  const v1::ParameterSetSpec spec = LargeSpec();
  rpc::ServerOptions options = SmallServer();
  options.kernels = GetParam();
  options.compute_threads = 2;
  TestServer server(options);
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(spec).ok());
  SequentialModel model(spec);
  for (int64_t step = 0; step < 5; ++step) {
    const Values gradient = Gradient(ParameterCount(spec), step);
    model.Apply(gradient);

    const absl::StatusOr<StepReply> reply = client.Step(spec, StepHeader("large"), gradient);

    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.grad_norm(), model.Norm(gradient));
    EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
  }
  EXPECT_TRUE(*client.ReadArrays(spec) == model.arrays());
}

std::vector<const kernels::KernelTable*> SupportedKernels() {
  std::vector<const kernels::KernelTable*> supported;
  for (const kernels::KernelTable* table : kernels::AllKernels()) {
    if (table->supported()) supported.push_back(table);
  }
  return supported;
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, KernelsTest, ::testing::ValuesIn(SupportedKernels()),
                         [](const auto& info) { return std::string(info.param->name); });

// The README has these numbers.
TEST_F(ValuesTest, GradientBelowTheSmallestOneCountsAsZeroAndOneAboveItDoesNot) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  Values gradient(ParameterCount(spec));
  gradient[0] = 4.84e-18f;
  gradient[1] = -4.84e-18f;
  gradient[2] = 4.86e-18f;
  gradient[3] = -4.86e-18f;

  const absl::StatusOr<StepReply> reply = client_.Step(spec, StepHeader("small"), gradient);

  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_NEAR(reply->result.grad_norm(), 9.7e-18, 1e-20);
  const absl::StatusOr<Arrays> arrays = client_.ReadArrays(spec);
  ASSERT_TRUE(arrays.ok()) << arrays.status();
  for (const int i : {0, 1}) {
    EXPECT_TRUE(SameBits({arrays->parameters[i], arrays->exp_avg[i], arrays->exp_avg_sq[i]}, {0, 0, 0})) << i;
  }
  // What counting as zero costs at most: 5e-10 of the learning rate, which is 1e-3.
  EXPECT_NEAR(arrays->parameters[2], -4.86e-13, 1e-15);
  EXPECT_NEAR(arrays->parameters[3], 4.86e-13, 1e-15);
  for (const int i : {2, 3}) EXPECT_GE(arrays->exp_avg_sq[i], 0x1p-125f) << i;
}

TEST_F(ValuesTest, MomentThatDecaysBelowTheSmallestNormalFloatBecomesZero) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  const Values zeros(ParameterCount(spec));
  Arrays written = {.step = 1, .parameters = zeros, .exp_avg = zeros, .exp_avg_sq = zeros};
  written.exp_avg[0] = written.exp_avg_sq[0] = 0x1p-126f;
  written.exp_avg[1] = written.exp_avg_sq[1] = 0x1p-125f;
  v1::WriteHeader header;
  header.set_mode(v1::WRITE_MODE_FULL);
  header.set_step(1);
  ASSERT_TRUE(client_.Write(spec, header, written).ok());

  ASSERT_TRUE(client_.Step(spec, StepHeader("small"), zeros).ok());

  const absl::StatusOr<Arrays> arrays = client_.ReadArrays(spec);
  ASSERT_TRUE(arrays.ok()) << arrays.status();
  EXPECT_TRUE(SameBits({arrays->exp_avg[0], arrays->exp_avg_sq[0]}, {0, 0}));
  EXPECT_TRUE(SameBits({arrays->exp_avg[1], arrays->exp_avg_sq[1]}, {0x1p-125f * 0.9f, 0x1p-125f * 0.999f}));
}

}  // namespace
}  // namespace adamant::e2e
