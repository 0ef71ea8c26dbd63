// Readers beside steps: whatever they read is the whole of one single step.
#include <gtest/gtest.h>

#include <atomic>
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
