// A step is applied once, however often it is sent; and streams carry steps in order.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "tests/core/gate.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

class ExactlyOnceTest : public ServerTest {
 protected:
  explicit ExactlyOnceTest(const rpc::ServerOptions& options = SmallServer()) : ServerTest(options) { MakeSet(spec_); }

  Values GradientOf(int64_t step) const { return Gradient(ParameterCount(spec_), step + 1); }

  // The step from `step` on, its header alone, then its gradient.
  std::vector<v1::StepRequest> Messages(const std::string& request_id, int64_t step, int32_t attempt = 1) const {
    return StepMessages(StepHeader(spec_.name(), request_id, step, attempt), Chunks(spec_, GradientOf(step), 20));
  }

  absl::StatusOr<StepReply> Step(const std::string& request_id, int64_t step, int32_t attempt = 1) {
    return client_.Step(spec_, StepHeader(spec_.name(), request_id, step, attempt), GradientOf(step));
  }

  // What so many steps make of the set.
  Arrays After(int64_t steps) const {
    SequentialModel model(spec_);
    for (int64_t step = 0; step < steps; ++step) model.Apply(GradientOf(step));
    return model.arrays();
  }

  const v1::ParameterSetSpec spec_ = SmallSpec();
};

TEST_F(ExactlyOnceTest, RetryGetsTheOriginalResultWithTheParametersOfNow) {
  const absl::StatusOr<StepReply> original = Step("a", 0);
  ASSERT_TRUE(original.ok()) << original.status();
  ASSERT_TRUE(Step("b", 1).ok());

  const absl::StatusOr<StepReply> retry = Step("a", 0, 2);

  ASSERT_TRUE(retry.ok()) << retry.status();
  EXPECT_TRUE(retry->result.replayed());
  EXPECT_EQ(retry->result.step(), 1);
  EXPECT_EQ(retry->result.parameters_step(), 2);
  EXPECT_EQ(retry->result.grad_norm(), original->result.grad_norm());
  EXPECT_TRUE(SameBits(retry->parameters, After(2).parameters));
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(2));
}

TEST_F(ExactlyOnceTest, NewerAttemptEndsAnOlderOneThatIsNotComplete) {
  TestClient other(server_.address());
  StepStream older(client_.stub());
  const std::vector<v1::StepRequest> messages = Messages("a", 0);
  ASSERT_TRUE(older.Send({messages.begin(), messages.end() - 1}));
  ASSERT_TRUE(client_.Reaches("small", "a", v1::STEP_STATE_IN_FLIGHT));
  StepStream newer(other.stub());
  const std::vector<v1::StepRequest> again = Messages("a", 0, 2);
  ASSERT_TRUE(newer.Send(again.front()));

  const absl::Status superseded = older.Finish();
  ASSERT_TRUE(newer.Send({again.begin() + 1, again.end()}));
  const absl::StatusOr<StepReply> reply = newer.ReadReply(spec_);

  EXPECT_EQ(superseded.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(superseded), v1::ERROR_REASON_SUPERSEDED) << superseded;
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_FALSE(reply->result.replayed());
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(1));
}

TEST_F(ExactlyOnceTest, OlderAttemptGivesWayToANewerOneThatIsThere) {
  StepStream newer(client_.stub());
  const std::vector<v1::StepRequest> messages = Messages("a", 0, 2);
  ASSERT_TRUE(newer.Send(messages.front()));
  ASSERT_TRUE(client_.Reaches("small", "a", v1::STEP_STATE_IN_FLIGHT));

  const absl::Status older = Step("a", 0, 1).status();

  EXPECT_EQ(ReasonOf(older), v1::ERROR_REASON_SUPERSEDED) << older;
  ASSERT_TRUE(newer.Send({messages.begin() + 1, messages.end()}));
  EXPECT_TRUE(newer.ReadReply(spec_).ok());
}

TEST_F(ExactlyOnceTest, RepeatedWriteTakesOverFromAConnectionThatTheServerStillBelievesIn) {
  TestClient other(server_.address());
  const Arrays arrays = After(3);
  grpc::ClientContext context;
  v1::WriteTensorsResponse unused;
  const auto older = client_.stub()->WriteTensors(&context, &unused);
  v1::WriteTensorsRequest request;
  *request.mutable_header() = core::FullHeader(arrays.step, "w");
  request.mutable_header()->set_set(spec_.name());
  ASSERT_TRUE(older->Write(request));
  ASSERT_TRUE(
      TestClient::Until([&] { return other.Get(spec_.name())->state() == v1::PARAMETER_SET_STATE_UNINITIALIZED; }));

  const absl::StatusOr<v1::WriteTensorsResponse> newer = other.Write(spec_, core::FullHeader(arrays.step, "w"), arrays);

  ASSERT_TRUE(newer.ok()) << newer.status();
  EXPECT_FALSE(newer->replayed());
  EXPECT_EQ(ReasonOf(wire::FromGrpcStatus(older->Finish())), v1::ERROR_REASON_SUPERSEDED);
  EXPECT_TRUE(*client_.ReadArrays(spec_) == arrays);
}

TEST_F(ExactlyOnceTest, TheLast64StepsAreRemembered) {
  for (int64_t step = 0; step < 65; ++step) ASSERT_TRUE(Step(absl::StrCat("step ", step), step).ok());

  EXPECT_EQ(client_.GetStepResult("small", "step 0")->state(), v1::STEP_STATE_UNKNOWN);
  for (int64_t step = 1; step < 65; ++step) {
    const absl::StatusOr<v1::GetStepResultResponse> result =
        client_.GetStepResult("small", absl::StrCat("step ", step));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->state(), v1::STEP_STATE_COMMITTED);
    EXPECT_EQ(result->result().step(), step + 1);
    EXPECT_TRUE(result->result().replayed());
  }
  const absl::StatusOr<StepReply> retry = Step("step 1", 1, 2);
  ASSERT_TRUE(retry.ok()) << retry.status();
  EXPECT_TRUE(retry->result.replayed());
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(65));
}

TEST_F(ExactlyOnceTest, OutcomeOfARetryThatIsTooOldIsUnknown) {
  for (int64_t step = 0; step < 65; ++step) ASSERT_TRUE(Step(absl::StrCat("step ", step), step).ok());

  EXPECT_EQ(ReasonOf(Step("step 0", 0, 2).status()), v1::ERROR_REASON_OUTCOME_UNKNOWN);
  EXPECT_EQ(ReasonOf(Step("new", 0, 1).status()), v1::ERROR_REASON_STEP_MISMATCH);
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(65));
}

TEST_F(ExactlyOnceTest, ResultOfAStepSaysWhereItIs) {
  EXPECT_EQ(client_.GetStepResult("small", "a")->state(), v1::STEP_STATE_UNKNOWN);
  StepStream stream(client_.stub());
  const std::vector<v1::StepRequest> messages = Messages("a", 0);
  ASSERT_TRUE(stream.Send(messages.front()));
  EXPECT_TRUE(client_.Reaches("small", "a", v1::STEP_STATE_IN_FLIGHT));
  ASSERT_TRUE(stream.Send({messages.begin() + 1, messages.end()}));
  const absl::StatusOr<StepReply> reply = stream.ReadReply(spec_);
  ASSERT_TRUE(reply.ok()) << reply.status();

  const absl::StatusOr<v1::GetStepResultResponse> result = client_.GetStepResult("small", "a");

  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->state(), v1::STEP_STATE_COMMITTED);
  EXPECT_EQ(result->step(), 1);
  EXPECT_EQ(result->incarnation(), reply->result.incarnation());
  EXPECT_EQ(result->result().grad_norm(), reply->result.grad_norm());
}

TEST_F(ExactlyOnceTest, SkippedStepIsNotRememberedAndDoesNotEndItsStream) {
  Values infinite = GradientOf(0);
  infinite[40] = INFINITY;  // the ninth of the second tensor
  StepStream stream(client_.stub());

  ASSERT_TRUE(stream.Send(StepMessage(StepHeader("small", "a", 0), Chunks(spec_, infinite, 100))));
  const absl::StatusOr<StepReply> skipped = stream.ReadReply(spec_);
  ASSERT_TRUE(skipped.ok()) << skipped.status();
  EXPECT_EQ(client_.GetStepResult("small", "a")->state(), v1::STEP_STATE_UNKNOWN);
  ASSERT_TRUE(stream.Send(Messages("a", 0, 2)));
  const absl::StatusOr<StepReply> applied = stream.ReadReply(spec_);

  EXPECT_EQ(skipped->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(skipped->result.step(), 0);
  EXPECT_EQ(skipped->result.non_finite_tensor(), 1);
  EXPECT_EQ(skipped->result.non_finite_offset(), 8);
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(1));
}

TEST_F(ExactlyOnceTest, StepsThatAreSentAheadAreAnsweredInOrder) {
  StepStream stream(client_.stub());
  for (int64_t step = 0; step < 10; ++step) {
    ASSERT_TRUE(stream.Send(Messages(absl::StrCat("step ", step), step)));
  }
  for (int64_t step = 0; step < 10; ++step) {
    const absl::StatusOr<StepReply> reply = stream.ReadReply(spec_);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.step(), step + 1);
    EXPECT_TRUE(SameBits(reply->parameters, After(step + 1).parameters));
  }
  stream.HalfClose();
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(ExactlyOnceTest, OneStreamServesSeveralSets) {
  const v1::ParameterSetSpec large = LargeSpec();
  MakeSet(large);
  SequentialModel large_model(large);
  StepStream stream(client_.stub());
  for (int64_t step = 0; step < 3; ++step) {
    const Values gradient = Gradient(ParameterCount(large), step);
    large_model.Apply(gradient);
    ASSERT_TRUE(stream.Send(Messages(absl::StrCat("step ", step), step)));
    ASSERT_TRUE(stream.ReadReply(spec_).ok());
    ASSERT_TRUE(stream.Send(StepMessages(StepHeader("large"), Chunks(large, gradient, 65536))));
    ASSERT_TRUE(stream.ReadReply(large).ok());
  }
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(3));
  EXPECT_TRUE(*client_.ReadArrays(large) == large_model.arrays());
}

TEST_F(ExactlyOnceTest, NothingBehindAStepThatFailsIsApplied) {
  StepStream stream(client_.stub());
  ASSERT_TRUE(stream.Send(Messages("good", 0)));
  stream.Send(Messages("bad", 7));
  stream.Send(Messages("behind", 1));

  ASSERT_TRUE(stream.ReadReply(spec_).ok());
  const absl::Status status = stream.ReadReply(spec_).status();

  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_STEP_MISMATCH) << status;
  EXPECT_EQ(client_.GetStepResult("small", "behind")->state(), v1::STEP_STATE_UNKNOWN);
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(1));
}

// Every client wants to make every step, and sends each twice; each step is made once.
TEST_F(ExactlyOnceTest, OfSeveralClientsOneMakesEachStep) {
  constexpr int kClients = 4;
  constexpr int64_t kSteps = 30;
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([this, i] {
      TestClient client(server_.address());
      for (int64_t step = 0; step < kSteps; ++step) {
        // Two clients share each name, and so are attempts of one request.
        const v1::StepHeader header = StepHeader("small", absl::StrCat("step ", step, " of ", i / 2), step);
        for (int time = 0; time < 2; ++time) {
          const absl::StatusOr<StepReply> reply = client.Step(spec_, header, GradientOf(step));
          if (reply.ok()) {
            EXPECT_EQ(reply->result.step(), step + 1);
          } else {
            EXPECT_EQ(reply.status().code(), absl::StatusCode::kAborted) << reply.status();
          }
        }
        // The step has been made, or an attempt that took over from this one makes it.
        EXPECT_TRUE(TestClient::Until([&] { return client.Get("small")->step() > step; }));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(kSteps));
}

// A kernel that does not begin before its gate is opened. Kernels are plain functions, hence the globals.
struct GatedKernel {
  core::Gate entered;
  core::Gate gate;
};
GatedKernel* gated_kernel = nullptr;

void RunGatedAdam(const kernels::UpdateScalars& scalars, const kernels::UpdateSpan& span) {
  gated_kernel->entered.Open();
  gated_kernel->gate.Pass();
  kernels::BestKernels().update[kernels::kAdam](scalars, span);
}

bool Always() { return true; }

const kernels::KernelTable kGatedKernels = [] {
  kernels::KernelTable table = kernels::BestKernels();
  table.name = "gated";
  table.supported = &Always;
  table.update[kernels::kAdam] = &RunGatedAdam;
  return table;
}();

rpc::ServerOptions GatedServer() {
  gated_kernel = new GatedKernel;
  rpc::ServerOptions options = SmallServer();
  options.kernels = &kGatedKernels;
  return options;
}

class CommitUnderWayTest : public ExactlyOnceTest {
 protected:
  CommitUnderWayTest() : ExactlyOnceTest(GatedServer()) {}
  ~CommitUnderWayTest() override {
    gated_kernel->gate.Open();
    server_.Drain(kHang);
    delete std::exchange(gated_kernel, nullptr);
  }
};

TEST_F(CommitUnderWayTest, CancelAfterTheLastMessageStillCommits) {
  StepStream stream(client_.stub());
  ASSERT_TRUE(stream.Send(Messages("a", 0)));
  gated_kernel->entered.Pass();

  stream.Cancel();
  EXPECT_EQ(stream.Finish().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(client_.GetStepResult("small", "a")->state(), v1::STEP_STATE_IN_FLIGHT);
  gated_kernel->gate.Open();

  EXPECT_TRUE(client_.Reaches("small", "a", v1::STEP_STATE_COMMITTED));
  const absl::StatusOr<StepReply> retry = Step("a", 0, 2);
  ASSERT_TRUE(retry.ok()) << retry.status();
  EXPECT_TRUE(retry->result.replayed());
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(1));
}

TEST_F(CommitUnderWayTest, NewerAttemptOfACompleteStepFindsItsResult) {
  TestClient other(server_.address());
  StepStream older(client_.stub());
  ASSERT_TRUE(older.Send(Messages("a", 0)));
  gated_kernel->entered.Pass();
  StepStream newer(other.stub());
  ASSERT_TRUE(newer.Send(Messages("a", 0, 2)));

  gated_kernel->gate.Open();
  const absl::StatusOr<StepReply> first = older.ReadReply(spec_);
  const absl::StatusOr<StepReply> second = newer.ReadReply(spec_);

  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_FALSE(first->result.replayed());
  EXPECT_TRUE(second->result.replayed());
  EXPECT_TRUE(*client_.ReadArrays(spec_) == After(1));
}

}  // namespace
}  // namespace adamant::e2e
