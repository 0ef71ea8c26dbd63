// Readers beside steps: whatever they read is the whole of one single step.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

constexpr int kSteps = 40;

class SnapshotTest : public ServerTest {
 protected:
  SnapshotTest() { MakeSet(spec_); }

  const v1::ParameterSetSpec spec_ = LargeSpec();
};

TEST_F(SnapshotTest, ReadersOfTheWholeStateSeeOnlyWholeStepsWhileStepsRun) {
  SequentialModel model(spec_);
  std::vector<Arrays> expected = {model.arrays()};
  for (int step = 1; step <= kSteps; ++step) {
    model.Apply(Gradient(model.parameter_count(), step));
    expected.push_back(model.arrays());
  }

  std::atomic<bool> stepped(false);
  std::vector<std::set<int64_t>> seen(2);
  std::vector<std::thread> readers;
  for (std::set<int64_t>& steps : seen) {
    readers.emplace_back([&] {
      TestClient client(server_.address());
      do {
        const absl::StatusOr<Arrays> arrays = client.ReadArrays(spec_);
        ASSERT_TRUE(arrays.ok()) << arrays.status();
        ASSERT_TRUE(*arrays == expected[arrays->step]) << "a mix of steps, called " << arrays->step;
        steps.insert(arrays->step);
      } while (!stepped);
    });
  }
  for (int step = 1; step <= kSteps; ++step) {
    const absl::StatusOr<StepReply> reply =
        client_.Step(spec_, StepHeader(spec_.name()), Gradient(model.parameter_count(), step));
    EXPECT_TRUE(reply.ok()) << reply.status();
    EXPECT_TRUE(reply.ok() && SameBits(reply->parameters, expected[step].parameters));
  }
  stepped = true;
  for (std::thread& reader : readers) reader.join();
  // They read in between, and not only before or after.
  for (const std::set<int64_t>& steps : seen) EXPECT_GT(steps.size(), 2u);
}

TEST_F(SnapshotTest, ReadOfSomeTensorsSendsThoseOfEverySlotAndNoOthers) {
  ASSERT_TRUE(client_.Step(spec_, StepHeader(spec_.name()), Gradient(ParameterCount(spec_), 1)).ok());
  const absl::StatusOr<Arrays> all = client_.ReadArrays(spec_);
  ASSERT_TRUE(all.ok()) << all.status();
  const std::vector<int64_t> sizes = TensorSizes(spec_);
  v1::ReadTensorsRequest request;
  request.set_set(spec_.name());
  request.add_slots(v1::SLOT_EXP_AVG);
  request.add_slots(v1::SLOT_PARAMETER);
  request.add_tensors(1);
  const auto stub = v1::OptimizerService::NewStub(client_.channel());
  grpc::ClientContext context;
  const auto stream = stub->ReadTensors(&context, request);
  std::map<v1::Slot, Values> read;
  for (v1::ReadTensorsResponse response; stream->Read(&response);) {
    for (const v1::TensorChunk& chunk : response.chunks()) {
      EXPECT_EQ(chunk.tensor(), 1);
      Values& values = read[chunk.slot() == v1::SLOT_UNSPECIFIED ? v1::SLOT_PARAMETER : chunk.slot()];
      EXPECT_EQ(chunk.offset(), values.size());
      const auto* const elements = reinterpret_cast<const float*>(chunk.data().data());
      values.insert(values.end(), elements, elements + chunk.data().size() / sizeof(float));
    }
  }
  EXPECT_TRUE(stream->Finish().ok());
  const auto expected = [&](const Values& values) {
    return Values(values.begin() + sizes[0], values.begin() + sizes[0] + sizes[1]);
  };
  EXPECT_EQ(read.size(), 2u);
  EXPECT_TRUE(SameBits(read[v1::SLOT_PARAMETER], expected(all->parameters)));
  EXPECT_TRUE(SameBits(read[v1::SLOT_EXP_AVG], expected(all->exp_avg)));
}

TEST_F(SnapshotTest, ReadThatBeganBeforeAStepBringsTheStateBeforeIt) {
  const int64_t count = ParameterCount(spec_);
  SequentialModel model(spec_);
  ASSERT_TRUE(client_.Step(spec_, StepHeader(spec_.name()), Gradient(count, 1)).ok());
  model.Apply(Gradient(count, 1));
  grpc::ClientContext context;
  v1::ReadTensorsRequest request;
  request.set_set(spec_.name());
  auto stream = client_.stub()->ReadTensors(&context, request);
  v1::ReadTensorsResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.header().step(), 1);

  for (int step = 2; step <= 5; ++step) {
    ASSERT_TRUE(client_.Step(spec_, StepHeader(spec_.name()), Gradient(count, step)).ok());
  }

  ChunkCollector collector(TensorSizes(spec_), v1::SLOT_PARAMETER);
  do {
    for (const v1::TensorChunk& chunk : response.chunks()) ASSERT_TRUE(collector.Add(chunk));
  } while (stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(collector.done());
  EXPECT_TRUE(SameBits(collector.values(), model.arrays().parameters));
}

}  // namespace
}  // namespace adamant::e2e
