// Steps and writes that bring some of a set's tensors, frozen groups, and the state that they leave, over a socket.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

using ::testing::ElementsAre;

// `slow` is AMSGrad and `fast` SGD with momentum, so that the set has every slot.
v1::ParameterSetSpec EverySlot(v1::ParameterSetSpec spec) {
  spec.mutable_groups(0)->mutable_adam()->set_amsgrad(true);
  spec.mutable_groups(1)->mutable_sgd()->set_momentum(0.5);
  return spec;
}

// A header that brings these tensors; none: all.
v1::StepHeader Partial(const std::string& set, const std::vector<int32_t>& tensors) {
  v1::StepHeader header = StepHeader(set);
  header.mutable_tensors()->Add(tensors.begin(), tensors.end());
  return header;
}

// What a reply to a step with this header has of each tensor.
std::vector<int64_t> SizesOf(const v1::ParameterSetSpec& spec, const std::vector<int32_t>& tensors) {
  std::vector<int64_t> sizes = TensorSizes(spec);
  if (tensors.empty()) return sizes;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (std::find(tensors.begin(), tensors.end(), i) == tensors.end()) sizes[i] = 0;
  }
  return sizes;
}

// Those elements of `values`, which has all tensors.
Values Of(const v1::ParameterSetSpec& spec, const std::vector<int32_t>& tensors, const Values& values) {
  const std::vector<int64_t> carried = SizesOf(spec, tensors);
  const std::vector<int64_t> sizes = TensorSizes(spec);
  Values of;
  auto begin = values.begin();
  for (size_t i = 0; i < sizes.size(); begin += sizes[i++]) of.insert(of.end(), begin, begin + carried[i]);
  return of;
}

class PartialTest : public ServerTest {
 protected:
  // Sends one step of these tensors, and expects of its reply what the model says.
  void StepBoth(StepStream* stream, const v1::ParameterSetSpec& spec, const std::vector<int32_t>& tensors,
                SequentialModel* model, uint64_t seed) {
    const v1::StepHeader header = Partial(spec.name(), tensors);
    const Values gradient = Gradient(ParameterCount(spec), seed);
    std::vector<v1::TensorChunk> chunks = Chunks(spec, gradient, 65521);
    if (!tensors.empty()) chunks = Only(std::move(chunks), tensors);
    model->Apply(gradient, header);

    ASSERT_TRUE(stream->Send(StepMessages(header, chunks)));
    const absl::StatusOr<StepReply> reply = stream->ReadReply(SizesOf(spec, tensors));

    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.step(), model->arrays().step);
    EXPECT_EQ(reply->result.grad_norm(), model->Norm(model->Brought(gradient, header)));
    EXPECT_TRUE(SameBits(reply->parameters, Of(spec, tensors, model->arrays().parameters)));
  }

  std::vector<int64_t> UpdateCounts(const std::string& set) {
    v1::ListTensorsRequest request;
    request.set_name(set);
    const auto tensors = client_.Call(&v1::OptimizerService::Stub::ListTensors, request);
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    std::vector<int64_t> counts;
    for (const v1::Tensor& tensor : tensors->tensors()) counts.push_back(tensor.update_count());
    return counts;
  }
};

TEST_F(PartialTest, PartialStepsAndWholeOnesShareAStream) {
  for (const v1::ParameterSetSpec& spec : {EverySlot(SmallSpec()), EverySlot(LargeSpec())}) {
    MakeSet(spec);
    SequentialModel model(spec);
    StepStream stream(client_.stub());
    const std::vector<std::vector<int32_t>> brought = {{}, {1}, {0, 2}, {}, {2}, {0}, {1, 2}, {}};
    for (size_t i = 0; i < brought.size(); ++i) StepBoth(&stream, spec, brought[i], &model, i);
    EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
  }
}

TEST_F(PartialTest, TensorsAreListedWithHowManyUpdatesTheyHaveHad) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  EXPECT_THAT(UpdateCounts("small"), ElementsAre(0, 0, 0, 0));
  StepBoth(&stream, spec, {}, &model, 1);
  StepBoth(&stream, spec, {0, 3}, &model, 2);
  StepBoth(&stream, spec, {0}, &model, 3);
  EXPECT_THAT(UpdateCounts("small"), ElementsAre(3, 1, 1, 2));
}

TEST_F(PartialTest, UnaryStepBringsSomeTensorsToo) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  const Values gradient = Gradient(65, 1);
  v1::StepOnceRequest request;
  *request.mutable_header() = Partial("small", {1, 2});
  model.Apply(gradient, request.header());
  for (const v1::TensorChunk& chunk : Only(Chunks(spec, gradient, 65536), {1, 2})) *request.add_chunks() = chunk;

  const absl::StatusOr<v1::StepOnceResponse> response = client_.StepOnce(request);

  ASSERT_TRUE(response.ok()) << response.status();
  ChunkCollector collector(SizesOf(spec, {1, 2}));
  for (const v1::TensorChunk& chunk : response->chunks()) ASSERT_TRUE(collector.Add(chunk));
  EXPECT_TRUE(collector.done());
  EXPECT_TRUE(SameBits(collector.values(), Of(spec, {1, 2}, model.arrays().parameters)));
}

TEST_F(PartialTest, StepLeavesOutWhatIsFrozenUntilItThaws) {
  const v1::ParameterSetSpec spec = EverySlot(LargeSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  StepBoth(&stream, spec, {}, &model, 1);
  v1::UpdateParameterGroupRequest request;
  request.set_set("large");
  request.mutable_group()->set_name("fast");
  request.mutable_update_mask()->add_paths("frozen");
  for (const bool frozen : {true, false}) {
    request.mutable_group()->set_frozen(frozen);
    ASSERT_TRUE(client_.Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request).ok());
    model.mutable_spec()->mutable_groups(1)->set_frozen(frozen);

    const Values gradient = Gradient(ParameterCount(spec), frozen ? 2 : 3);
    const std::vector<int32_t> trained = frozen ? std::vector<int32_t>{0, 2} : std::vector<int32_t>{0, 1, 2};
    model.Apply(gradient);
    ASSERT_TRUE(stream.Send(StepMessages(StepHeader("large"), Only(Chunks(spec, gradient, 65536), trained))));
    const absl::StatusOr<StepReply> reply = stream.ReadReply(SizesOf(spec, trained));

    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_TRUE(SameBits(reply->parameters, Of(spec, trained, model.arrays().parameters)));
  }
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
  EXPECT_THAT(UpdateCounts("large"), ElementsAre(3, 2, 3));
}

// A retry of a partial step is answered with the tensors that it brings, as they are now.
TEST_F(PartialTest, RetryOfAPartialStepGetsItsTensorsAlone) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  const Values gradient = Gradient(65, 1);
  v1::StepHeader header = Partial("small", {1});
  header.set_request_id("once");
  header.set_expected_step(0);
  model.Apply(gradient, header);
  const std::vector<v1::TensorChunk> chunks = Only(Chunks(spec, gradient, 65536), {1});
  for (const int32_t attempt : {1, 2}) {
    header.set_attempt(attempt);
    StepStream stream(client_.stub());
    ASSERT_TRUE(stream.Send(StepMessages(header, chunks)));

    const absl::StatusOr<StepReply> reply = stream.ReadReply(SizesOf(spec, {1}));

    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.replayed(), attempt == 2);
    EXPECT_TRUE(SameBits(reply->parameters, Of(spec, {1}, model.arrays().parameters)));
  }
}

// It was applied, and is to be told so: what it asked for is not to be had any more.
TEST_F(PartialTest, RetryIsAnsweredAlthoughTheSetIsConfiguredOtherwiseByNow) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  v1::StepHeader header = Partial("small", {1});
  header.set_request_id("once");
  header.set_expected_step(0);
  header.add_overrides()->set_learning_rate(3);
  const std::vector<v1::TensorChunk> chunks = Only(Chunks(spec, Gradient(65, 1), 65536), {1});
  StepStream stream(client_.stub());
  ASSERT_TRUE(stream.Send(StepMessages(header, chunks)));
  const absl::StatusOr<StepReply> first = stream.ReadReply(SizesOf(spec, {1}));
  ASSERT_TRUE(first.ok()) << first.status();
  v1::UpdateParameterGroupRequest request;
  request.set_set("small");
  request.mutable_group()->set_name("fast");
  request.mutable_group()->set_frozen(true);
  request.mutable_update_mask()->add_paths("frozen");
  ASSERT_TRUE(client_.Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request).ok());
  request.mutable_group()->set_name("slow");
  request.mutable_group()->mutable_adam()->set_eps(1e-16);  // too small for the learning rate of the step
  request.mutable_update_mask()->set_paths(0, "adam.eps");
  ASSERT_TRUE(client_.Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request).ok());
  header.set_attempt(2);

  ASSERT_TRUE(stream.Send(StepMessages(header, chunks)));
  const absl::StatusOr<StepReply> again = stream.ReadReply(SizesOf(spec, {1}));

  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->result.replayed());
  EXPECT_EQ(again->result.grad_norm(), first->result.grad_norm());
  EXPECT_TRUE(SameBits(again->parameters, first->parameters));
}

class PartialWriteTest : public PartialTest {
 protected:
  // Writes the parameters of these tensors.
  absl::Status Write(const v1::ParameterSetSpec& spec, const std::vector<int32_t>& tensors, const Values& values,
                     uint64_t incarnation) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    v1::WriteTensorsResponse response;
    const auto stream = client_.stub()->WriteTensors(&context, &response);
    v1::WriteTensorsRequest message;
    message.mutable_header()->set_set(spec.name());
    message.mutable_header()->set_mode(v1::WRITE_MODE_PARAMETERS);
    message.mutable_header()->set_incarnation(incarnation);
    message.mutable_header()->mutable_tensors()->Add(tensors.begin(), tensors.end());
    stream->Write(message);
    for (const v1::TensorChunk& chunk : Only(Chunks(spec, values, 65536), tensors)) {
      message.Clear();
      *message.add_chunks() = chunk;
      if (!stream->Write(message)) break;
    }
    message.Clear();
    message.set_last(true);
    stream->Write(message);
    stream->WritesDone();
    return wire::FromGrpcStatus(stream->Finish());
  }
};

TEST_F(PartialWriteTest, ItReplacesTheParametersOfItsTensorsAndNothingElse) {
  const v1::ParameterSetSpec spec = EverySlot(LargeSpec());
  const uint64_t incarnation = MakeSet(spec).incarnation();
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  StepBoth(&stream, spec, {}, &model, 1);
  const Values written = Gradient(ParameterCount(spec), 7);

  ASSERT_TRUE(Write(spec, {0, 2}, written, incarnation).ok());

  Arrays* const arrays = model.mutable_arrays();
  std::copy(written.begin(), written.begin() + 100001, arrays->parameters.begin());
  std::copy(written.end() - 3, written.end(), arrays->parameters.end() - 3);
  EXPECT_TRUE(*client_.ReadArrays(spec) == *arrays);
  EXPECT_NE(client_.Get("large")->incarnation(), incarnation);
  StepBoth(&stream, spec, {}, &model, 2);
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
}

TEST_F(PartialWriteTest, OneThatBringsTooLittleChangesNothing) {
  const v1::ParameterSetSpec spec = SmallSpec();
  const uint64_t incarnation = MakeSet(spec).incarnation();
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
  v1::WriteTensorsResponse response;
  const auto stream = client_.stub()->WriteTensors(&context, &response);
  v1::WriteTensorsRequest message;
  message.mutable_header()->set_set("small");
  message.mutable_header()->set_mode(v1::WRITE_MODE_PARAMETERS);
  for (const int32_t tensor : {1, 2}) message.mutable_header()->add_tensors(tensor);
  *message.add_chunks() = Only(Chunks(spec, Values(65, 1.0f), 65536), {1}).front();
  message.set_last(true);
  stream->Write(message);

  const absl::Status status = wire::FromGrpcStatus(stream->Finish());

  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_INCOMPLETE);
  EXPECT_EQ(GetErrorDetail(status).tensor(), 2);
  EXPECT_EQ(client_.Get("small")->incarnation(), incarnation);
  EXPECT_TRUE(SameBits(client_.ReadArrays(spec)->parameters, Values(65)));
}

// Of a set in which no two tensors have had as many updates: everything that was read goes to a set of another server,
// which goes on with the same bits.
TEST_F(PartialTest, FullWriteRestoresEverySlotAndEveryCountOfUpdates) {
  const v1::ParameterSetSpec spec = EverySlot(LargeSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  StepBoth(&stream, spec, {}, &model, 1);
  StepBoth(&stream, spec, {0, 1}, &model, 2);
  StepBoth(&stream, spec, {1}, &model, 3);
  const absl::StatusOr<Arrays> saved = client_.ReadArrays(spec);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_THAT(saved->update_counts, ElementsAre(2, 3, 1));
  v1::ParameterSetSpec copy = spec;
  copy.set_initialization(v1::INITIALIZATION_WRITTEN);
  TestServer other_server;
  TestClient other(other_server.address());
  ASSERT_TRUE(other.Create(copy).ok());
  v1::WriteHeader header = core::FullHeader(saved->step);
  header.mutable_update_counts()->Add(saved->update_counts.begin(), saved->update_counts.end());

  ASSERT_TRUE(other.Write(copy, header, *saved).ok());

  EXPECT_TRUE(*other.ReadArrays(copy) == *saved);
  StepStream other_stream(other.stub());
  StepBoth(&other_stream, copy, {}, &model, 4);
  EXPECT_TRUE(*other.ReadArrays(copy) == model.arrays());
}

// Where the header says nothing of counts, all tensors have had as many updates as the set.
TEST_F(PartialTest, FullWriteWithoutCountsMakesThemAllTheStep) {
  const v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  StepBoth(&stream, spec, {1}, &model, 1);
  const absl::StatusOr<Arrays> saved = client_.ReadArrays(spec);
  ASSERT_TRUE(saved.ok()) << saved.status();

  ASSERT_TRUE(client_.Write(spec, core::FullHeader(5), *saved).ok());

  EXPECT_THAT(UpdateCounts("small"), ElementsAre(5, 5, 5, 5));
}

}  // namespace
}  // namespace adamant::e2e
