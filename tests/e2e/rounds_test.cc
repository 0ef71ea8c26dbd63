// Steps that several workers make together, and gradients that one client accumulates, over a socket.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

v1::ParameterSetSpec WithWorkers(v1::ParameterSetSpec spec, int count, int window = 0, int quorum = 0) {
  v1::Workers* const workers = spec.mutable_workers();
  workers->set_count(count);
  workers->set_window(window);
  workers->set_quorum(quorum);
  return spec;
}

v1::StepHeader Contribution(const std::string& set, int rank, int64_t round) {
  v1::StepHeader header = StepHeader(set);
  header.set_rank(rank);
  header.set_round(round);
  return header;
}

class RoundsTest : public ServerTest {
 protected:
  Values GradientOf(const v1::ParameterSetSpec& spec, int rank, int64_t round) const {
    return Gradient(ParameterCount(spec), 100 * round + rank);
  }
  bool Send(StepStream* stream, const v1::ParameterSetSpec& spec, const v1::StepHeader& header) {
    return stream->Send(StepMessages(header, Chunks(spec, GradientOf(spec, header.rank(), header.round()), 65521)));
  }
  // The step that ranks [0, count) make together.
  void ApplyRound(const v1::ParameterSetSpec& spec, int count, int64_t round, SequentialModel* model) {
    Values sum = GradientOf(spec, 0, round);
    for (int rank = 1; rank < count; ++rank) {
      const Values g = GradientOf(spec, rank, round);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = std::fma(1.0f, g[i], sum[i]);
    }
    v1::StepHeader header;
    header.set_grad_scale(count);
    model->Apply(sum, header);
  }
};

TEST_F(RoundsTest, WorkersOnStreamsOfTheirOwnMakeEachStepTogether) {
  constexpr int kWorkers = 4;
  constexpr int kRounds = 5;
  for (const v1::ParameterSetSpec& of : {SmallSpec(), LargeSpec()}) {
    const v1::ParameterSetSpec spec = WithWorkers(of, kWorkers);
    MakeSet(spec);
    SequentialModel model(spec);
    for (int64_t round = 1; round <= kRounds; ++round) ApplyRound(spec, kWorkers, round, &model);
    std::vector<std::thread> workers;
    for (int rank = 0; rank < kWorkers; ++rank) {
      workers.emplace_back([&, rank] {
        TestClient client(server_.address());
        StepStream stream(client.stub());
        for (int64_t round = 1; round <= kRounds; ++round) {
          ASSERT_TRUE(Send(&stream, spec, Contribution(spec.name(), rank, round)));
          const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);
          ASSERT_TRUE(reply.ok()) << reply.status();
          EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
          EXPECT_EQ(reply->result.step(), round);
          EXPECT_EQ(reply->result.round(), round + 1);
          EXPECT_EQ(reply->result.contributions(), kWorkers);
          if (round < kRounds) continue;
          EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
        }
      });
    }
    for (std::thread& worker : workers) worker.join();
    EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
  }
}

TEST_F(RoundsTest, OneStreamAccumulates) {
  constexpr int kParts = 4;
  for (const v1::ParameterSetSpec& of : {SmallSpec(), LargeSpec()}) {
    const v1::ParameterSetSpec spec = WithWorkers(of, kParts, /*window=*/1);
    MakeSet(spec);
    SequentialModel model(spec);
    StepStream stream(client_.stub());
    for (int64_t round = 1; round <= 3; ++round) {
      for (int rank = 0; rank < kParts; ++rank) {
        v1::StepHeader header = Contribution(spec.name(), rank, round);
        header.set_ack_when_folded(rank + 1 < kParts);
        ASSERT_TRUE(Send(&stream, spec, header));
        const absl::StatusOr<StepReply> reply =
            rank + 1 < kParts ? stream.ReadReply(std::vector<int64_t>(spec.tensors_size())) : stream.ReadReply(spec);
        ASSERT_TRUE(reply.ok()) << reply.status();
        EXPECT_EQ(reply->result.outcome(), rank + 1 < kParts ? v1::STEP_OUTCOME_ACCUMULATED : v1::STEP_OUTCOME_APPLIED);
      }
      ApplyRound(spec, kParts, round, &model);
    }
    EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
  }
}

TEST_F(RoundsTest, AWorkerThatIsCutOffComesBackAndCountsOnce) {
  const v1::ParameterSetSpec spec = WithWorkers(LargeSpec(), 2);
  MakeSet(spec);
  SequentialModel model(spec);
  ApplyRound(spec, 2, 1, &model);
  const auto named = [&](const std::string& id, int rank, int32_t attempt) {
    v1::StepHeader header = StepHeader(spec.name(), id, 0, attempt);
    header.set_rank(rank);
    header.set_round(1);
    return header;
  };
  {
    // In the middle of its gradient.
    TestClient cut(server_.address());
    StepStream stream(cut.stub());
    ASSERT_TRUE(stream.Send(StepMessages(named("zero", 0, 1), Chunks(spec, GradientOf(spec, 0, 1), 65521)).front()));
    ASSERT_TRUE(client_.Reaches(spec.name(), "zero", v1::STEP_STATE_IN_FLIGHT));
  }
  {
    // Once it counts.
    TestClient cut(server_.address());
    StepStream stream(cut.stub());
    ASSERT_TRUE(Send(&stream, spec, named("zero", 0, 2)));
    ASSERT_TRUE(client_.Reaches(spec.name(), "zero", v1::STEP_STATE_ACCUMULATED));
  }
  // Without the gradient, which is there.
  StepStream again(client_.stub());
  v1::StepRequest request;
  *request.mutable_header() = named("zero", 0, 3);
  request.set_last(true);
  ASSERT_TRUE(again.Send(request));
  TestClient other(server_.address());
  StepStream last(other.stub());
  ASSERT_TRUE(Send(&last, spec, named("one", 1, 1)));
  for (StepStream* const stream : {&again, &last}) {
    const absl::StatusOr<StepReply> reply = stream->ReadReply(spec);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
  }
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
}

TEST_F(RoundsTest, WhoComesLateGetsTheParametersAndGoesOnOnItsStream) {
  const v1::ParameterSetSpec spec = WithWorkers(LargeSpec(), 1);
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  for (const int64_t round : {1, 1, 2}) {
    ASSERT_TRUE(Send(&stream, spec, Contribution(spec.name(), 0, round)));
    const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);
    ASSERT_TRUE(reply.ok()) << reply.status();
    const bool late = round < 2 && model.arrays().step == 1;
    EXPECT_EQ(reply->result.outcome(), late ? v1::STEP_OUTCOME_REFUSED_LATE : v1::STEP_OUTCOME_APPLIED);
    if (!late) ApplyRound(spec, 1, round, &model);
    EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
  }
}

TEST_F(RoundsTest, WhoIsMissingIsLeftOutWhenTimeIsOver) {
  v1::ParameterSetSpec spec = WithWorkers(SmallSpec(), 3, 3, /*quorum=*/1);
  spec.mutable_workers()->set_round_timeout_seconds(0.05);
  MakeSet(spec);
  SequentialModel model(spec);
  StepStream stream(client_.stub());
  for (int64_t round = 1; round <= 3; ++round) {
    ASSERT_TRUE(Send(&stream, spec, Contribution(spec.name(), 0, round)));
    const absl::StatusOr<StepReply> reply = stream.ReadReply(spec);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.contributions(), 1);
    ApplyRound(spec, 1, round, &model);
  }
  EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
}

TEST_F(RoundsTest, AServerThatDrainsEndsARoundThatNobodyCanEnd) {
  const v1::ParameterSetSpec spec = WithWorkers(SmallSpec(), 2);
  MakeSet(spec);
  StepStream stream(client_.stub());
  v1::StepHeader header = StepHeader(spec.name(), "zero", 0, 1);
  header.set_rank(0);
  header.set_round(1);
  ASSERT_TRUE(Send(&stream, spec, header));
  ASSERT_TRUE(client_.Reaches(spec.name(), "zero", v1::STEP_STATE_ACCUMULATED));
  server_.Drain(kHang);
  const absl::Status status = stream.Finish();
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_DRAINING) << status;
}

}  // namespace
}  // namespace adamant::e2e
