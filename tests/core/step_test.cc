// A step from its header to its reply: what is refused, what is applied, what a cut leaves behind, and who pays.
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

constexpr absl::StatusCode kAborted = absl::StatusCode::kAborted;

class StepTest : public ::testing::Test {
 protected:
  // Is refused without a gradient.
  absl::Status Refusal(const v1::StepHeader& header) {
    StepDelivery delivery = BeginStep(set_.get(), header);
    EXPECT_FALSE(delivery.admitted());
    return delivery.done() ? delivery.Take().status() : absl::OkStatus();
  }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(SmallSpec());
  SequentialModel model_{SmallSpec()};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
};

TEST_F(StepTest, AStepIsAdamWithEachGroupsLearningRate) {
  for (int64_t step = 1; step <= 5; ++step) {
    const Values gradient = Gradient(model_.parameter_count(), step);
    model_.Apply(gradient);
    const absl::StatusOr<StepReply> reply = Step(set_.get(), Header(), gradient);
    ASSERT_THAT(reply, IsOk());
    EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters));
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(reply->result.step(), step);
    EXPECT_EQ(reply->result.parameters_step(), step);
    EXPECT_EQ(reply->result.incarnation(), set_->Describe().incarnation());
    EXPECT_EQ(reply->result.grad_norm(), model_.Norm(gradient));
    EXPECT_THAT(reply->result.learning_rates(), ElementsAre(1e-3, 1e-2));
    EXPECT_EQ(reply->result.config_revision(), 1);
    EXPECT_FALSE(reply->result.replayed());
  }
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

// A step of a large set on `server`, and what its listener heard.
std::shared_ptr<ComputedRecorder> RecordComputed(TestServer* server, const v1::ParameterSetSpec& spec) {
  const std::shared_ptr<ParameterSet> set = server->MakeSet(spec);
  auto recorder = std::make_shared<ComputedRecorder>();
  const std::shared_ptr<StepAttempt> attempt = set->NewStep(Header(), recorder);
  attempt->Start();
  EXPECT_THAT(Deliver(attempt.get(), set->schema(), Gradient(set->schema().parameter_count(), 1)), IsOk());
  server->StopComputing();
  return recorder;
}

// Whether what was told of is what the reply has.
void ExpectToldAsReplied(const ComputedRecorder& recorder) {
  ASSERT_THAT(recorder.reply(), IsOk());
  const std::shared_ptr<const StepParameters> replied = (*recorder.reply()).parameters;
  const Values told = recorder.values();
  Values begin;
  for (const BlockRef& block : replied->snapshot->blocks())
    begin.insert(begin.end(), block.data(), block.data() + block.size());
  begin.resize(told.size());
  EXPECT_TRUE(SameBits(told, begin));
  if (!told.empty()) {
    EXPECT_EQ(recorder.parameters(), replied);
  }
}

TEST_F(StepTest, TellsOfTheBlocksThatAreComputedBeforeAllAre) {
  TestServer server({.compute_threads = 1});
  const std::shared_ptr<ComputedRecorder> recorder = RecordComputed(&server, LargeSpec());
  EXPECT_EQ(recorder->values().size(), 4 * kBlockElements);
  ExpectToldAsReplied(*recorder);
}

TEST_F(StepTest, TellsOfNoBlockThatFollowsOneThatIsNotComputed) {
  FirstBlockLastBackend backend(6);
  TestServer server({.compute_threads = 2, .backend = &backend});
  ExpectToldAsReplied(*RecordComputed(&server, Marked(LargeSpec())));
}

TEST_F(StepTest, TensorsWithoutElementsNeedNoChunk) {
  const v1::ParameterSetSpec spec = WithEmptyTensors(SmallSpec());
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(spec);
  ASSERT_THAT(Step(set.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
}

// A loop over all tensors sends one.
TEST_F(StepTest, TensorsWithoutElementsTakeAnEmptyChunk) {
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(WithEmptyTensors(SmallSpec()));
  StepDelivery delivery = BeginStep(set.get(), Header());
  for (const int32_t tensor : {0, 2, 4, 6, 8}) ASSERT_THAT(delivery.Send({tensor, 0, 0, 0}, gradient_), IsOk());
  const absl::StatusOr<StepReply> reply = Finish(set.get(), &delivery, gradient_);
  ASSERT_THAT(reply, IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters));

  StepDelivery other = BeginStep(set.get(), Header());
  EXPECT_THAT(other.Send({1, 0, 0, 0}, gradient_), RefusesChunk(v1::ERROR_REASON_MALFORMED_CHUNK, 1, 0));
}

TEST_F(StepTest, TheFirstBadElementIsNamedBesideTensorsWithoutElements) {
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(WithEmptyTensors(SmallSpec()));
  Values gradient = gradient_;
  gradient[32] = std::numeric_limits<float>::infinity();  // the first of b1
  const absl::StatusOr<StepReply> reply = Step(set.get(), Header(), gradient);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.non_finite_tensor(), 3);
  EXPECT_EQ(reply->result.non_finite_offset(), 0);
}

TEST_F(StepTest, ASetWithoutAnyElementsIsStepped) {
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(EmptySpec());
  EXPECT_EQ(set->Describe().parameter_count(), 0);
  for (int64_t step = 1; step <= 2; ++step) {
    const absl::StatusOr<StepReply> reply = Step(set.get(), Header("", step - 1), {});
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(reply->result.step(), step);
    EXPECT_EQ(reply->result.grad_norm(), 0);
    EXPECT_TRUE(Parameters(*reply).empty());
  }
  Arrays expected;
  expected.step = 2;
  EXPECT_TRUE(*FetchState(set.get()) == expected);
}

TEST_F(StepTest, NeighboursOfOneGroupAreEachStepped) {
  v1::ParameterSetSpec spec = SmallSpec();
  for (const int tensor : {0, 1, 3}) spec.mutable_tensors(tensor)->set_group("fast");
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(spec);
  SequentialModel model(spec);
  ASSERT_THAT(Step(set.get(), Header(), gradient_), IsOk());
  model.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set.get()) == model.arrays());
}

TEST_F(StepTest, AStepWithoutRequestIdIsAppliedEachTimeThatItIsSent) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  EXPECT_EQ(set_->Describe().step(), 2);
}

TEST_F(StepTest, ChunksOfSeveralTensorsMayInterleave) {
  StepDelivery delivery = BeginStep(set_.get(), Header());
  ASSERT_THAT(delivery.Send({{3, 0, 1, 64}, {0, 0, 10, 0}, {2, 0, 16, 48}, {0, 10, 22, 10}, {1, 0, 16, 32}}, gradient_),
              IsOk());
  ASSERT_THAT(delivery.Complete(), IsOk());
  ASSERT_THAT(delivery.Take(), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_F(StepTest, ARequestIdNeedsAnExpectedStep) {
  EXPECT_THAT(Refusal(Header("a")), RefusesField("header.expected_step"));
}

TEST_F(StepTest, ARequestIdIsUpTo64PrintableAsciiCharacters) {
  EXPECT_THAT(Refusal(Header(std::string(65, 'a'), 0)), RefusesField("header.request_id"));
  EXPECT_THAT(Refusal(Header("line\n", 0)), RefusesField("header.request_id"));
  EXPECT_THAT(Refusal(Header("caf\xC3\xA9", 0)), RefusesField("header.request_id"));
  EXPECT_THAT(Step(set_.get(), Header(std::string(32, ' ') + std::string(32, '~'), 0), gradient_), IsOk());
}

TEST_F(StepTest, AttemptsCountFromOneAndNeedARequestId) {
  EXPECT_THAT(Refusal(Header("a", 0, 0)), RefusesField("header.attempt"));
  EXPECT_THAT(Refusal(Header("a", 0, -1)), RefusesField("header.attempt"));
  EXPECT_THAT(Refusal(Header("", 0, 1)), RefusesField("header.attempt"));
}

TEST_F(StepTest, AnExpectedStepIsNotNegative) {
  EXPECT_THAT(Refusal(Header("", -1)), RefusesField("header.expected_step"));
}

TEST_F(StepTest, AnotherIncarnationIsAborted) {
  v1::StepHeader header = Header();
  header.set_incarnation(set_->Describe().incarnation() + 1);
  EXPECT_THAT(Refusal(header), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  header.set_incarnation(set_->Describe().incarnation());
  EXPECT_THAT(Step(set_.get(), header, gradient_), IsOk());
}

TEST_F(StepTest, AnotherSchemaIsAFailedPrecondition) {
  v1::StepHeader header = Header();
  header.set_schema_fingerprint(set_->schema().fingerprint() + 1);
  EXPECT_THAT(Refusal(header), FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_SCHEMA_MISMATCH));
  header.set_schema_fingerprint(set_->schema().fingerprint());
  EXPECT_THAT(Step(set_.get(), header, gradient_), IsOk());
}

TEST_F(StepTest, AnExpectedStepThatHasPassedIsRefusedBeforeTheGradient) {
  ASSERT_THAT(Step(set_.get(), Header("", 0), gradient_), IsOk());
  const absl::Status status = Refusal(Header("", 0));
  EXPECT_THAT(status, FailsWith(kAborted, v1::ERROR_REASON_STEP_MISMATCH));
  EXPECT_EQ(GetErrorDetail(status).step(), 1);
  EXPECT_EQ(GetErrorDetail(status).set(), "small");
}

TEST_F(StepTest, StepsSentAheadCommitOneAfterTheOther) {
  StepDelivery second = BeginStep(set_.get(), Header("second", 1));
  ASSERT_THAT(second.Send(Cut(set_->schema(), 64), gradient_), IsOk());
  ASSERT_THAT(Step(set_.get(), Header("first", 0), gradient_), IsOk());
  ASSERT_THAT(second.Complete(), IsOk());
  EXPECT_EQ(second.Take()->result.step(), 2);
}

TEST_F(StepTest, AStepThatIsCompleteBeforeItsExpectedStepIsAborted) {
  EXPECT_THAT(Step(set_.get(), Header("second", 1), gradient_), FailsWith(kAborted, v1::ERROR_REASON_STEP_MISMATCH));
  EXPECT_EQ(set_->Describe().step(), 0);
}

TEST_F(StepTest, AMissingElementIsNamed) {
  StepDelivery delivery = BeginStep(set_.get(), Header());
  ASSERT_THAT(delivery.Send({{0, 0, 32, 0}, {1, 0, 15, 32}, {2, 0, 16, 48}}, gradient_), IsOk());
  EXPECT_THAT(delivery.Complete(), RefusesChunk(v1::ERROR_REASON_INCOMPLETE, 1, 15));
  EXPECT_EQ(set_->Describe().step(), 0);
}

TEST_F(StepTest, AWrongChunkIsNamedAndEndsTheStep) {
  const struct {
    Piece piece;
    v1::ErrorReason reason;
  } kWrong[] = {
      {{1, 2, 1, 0}, v1::ERROR_REASON_CHUNK_OUT_OF_ORDER},                                    // missing
      {{1, 0, 1, 0}, v1::ERROR_REASON_CHUNK_OUT_OF_ORDER},                                    // repeated
      {{1, 1, 16, 0}, v1::ERROR_REASON_CHUNK_OUT_OF_RANGE},                                   // over the end
      {{1, -1, 1, 0}, v1::ERROR_REASON_CHUNK_OUT_OF_RANGE},                                   // before the start
      {{1, 1, std::numeric_limits<int64_t>::max(), 0}, v1::ERROR_REASON_CHUNK_OUT_OF_RANGE},  // end overflows
      {{1, 1, 0, 0}, v1::ERROR_REASON_MALFORMED_CHUNK},
      {{4, 0, 1, 0}, v1::ERROR_REASON_UNKNOWN_TENSOR},
      {{-1, 0, 1, 0}, v1::ERROR_REASON_UNKNOWN_TENSOR},
  };
  for (const auto& wrong : kWrong) {
    StepDelivery delivery = BeginStep(set_.get(), Header());
    ASSERT_THAT(delivery.Send({1, 0, 1, 32}, gradient_), IsOk());
    EXPECT_THAT(delivery.Send(wrong.piece, gradient_),
                RefusesChunk(wrong.reason, wrong.piece.tensor, wrong.piece.offset));
    EXPECT_FALSE(delivery.done());
  }
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_F(StepTest, AStepThatHadAWrongChunkNeverCommits) {
  StepDelivery delivery = BeginStep(set_.get(), Header());
  ASSERT_THAT(delivery.Send(Cut(set_->schema(), 64), gradient_), IsOk());
  ASSERT_FALSE(delivery.Send({0, 0, 1, 0}, gradient_).ok());
  delivery.Complete().IgnoreError();
  EXPECT_EQ(set_->Describe().step(), 0);
  EXPECT_FALSE(delivery.done());
}

TEST_F(StepTest, AGradientHasNoSlot) {
  StepDelivery delivery = BeginStep(set_.get(), Header());
  EXPECT_THAT(delivery.Send({0, 0, 32, 0}, gradient_, v1::SLOT_PARAMETER), RefusesField("slot"));
}

TEST_F(StepTest, CancelAfterTheLastMessageStillCommits) {
  StepDelivery delivery = BeginStep(set_.get(), Header("a", 0));
  ASSERT_THAT(delivery.Send(Cut(set_->schema(), 64), gradient_), IsOk());
  ASSERT_THAT(delivery.Complete(), IsOk());
  delivery.Cancel();
  EXPECT_EQ(set_->Describe().step(), 1);
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_COMMITTED);
}

TEST_F(StepTest, CancelBeforeTheLastMessageWithdraws) {
  StepDelivery delivery = BeginStep(set_.get(), Header("a", 0));
  ASSERT_THAT(delivery.Send(Cut(set_->schema(), 64), gradient_), IsOk());
  delivery.Cancel();
  ASSERT_THAT(delivery.Complete(), IsOk());
  EXPECT_FALSE(delivery.done());
  EXPECT_EQ(set_->Describe().step(), 0);
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_UNKNOWN);
}

TEST_F(StepTest, ANonFiniteGradientIsSkippedAndItsLowestPlaceNamed) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), -0x1p63f}) {
    Values gradient = gradient_;
    gradient[32 + 5] = bad;
    gradient[64] = std::numeric_limits<float>::quiet_NaN();
    const absl::StatusOr<StepReply> reply = Step(set_.get(), Header("skipped", 1), gradient);
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
    EXPECT_EQ(reply->result.non_finite_tensor(), 1);
    EXPECT_EQ(reply->result.non_finite_offset(), 5);
    EXPECT_EQ(reply->result.step(), 1);
    EXPECT_EQ(reply->result.learning_rates_size(), 0);
    EXPECT_FALSE(std::isfinite(reply->result.grad_norm()));
    EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters));
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
    EXPECT_EQ(StepResultOf(*set_, "skipped")->state(), v1::STEP_STATE_UNKNOWN);
  }
}

TEST_F(StepTest, AGradientJustBelowTheLimitIsApplied) {
  Values gradient = gradient_;
  gradient[0] = std::nextafter(0x1p63f, 0.0f);
  const absl::StatusOr<StepReply> reply = Step(set_.get(), Header(), gradient);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_THAT(reply->result.grad_norm(), DoubleEq(gradient[0]));
}

// Small and large sets: computed where the step is and on the pool, paid by the call and by the budget.
class AnyStepTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  SequentialModel model_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(EverySize, AnyStepTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(AnyStepTest, ACutAfterAnyMessageChangesNothingAndTheRetryGetsTheBitsOfARunWithoutCuts) {
  const Values first = Gradient(model_.parameter_count(), 1);
  ASSERT_THAT(Step(set_.get(), Header("first", 0), first), IsOk());
  model_.Apply(first);
  const UsedBytes before = server_.used();

  const std::vector<Piece> messages = Cut(set_->schema(), model_.parameter_count() / 7);
  for (size_t cut = 0; cut <= messages.size(); ++cut) {
    const std::string id = absl::StrCat("cut after ", cut);
    const int64_t step = set_->Describe().step();
    const Values gradient = Gradient(model_.parameter_count(), 2 + cut);
    const v1::StepHeader header = Header(absl::StrCat("r", cut), step, 1);
    {
      StepDelivery delivery = BeginStep(set_.get(), header);
      for (size_t i = 0; i < cut; ++i) ASSERT_THAT(delivery.Send(messages[i], gradient), IsOk()) << id;
    }
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays()) << id;
    EXPECT_EQ(StepResultOf(*set_, header.request_id())->state(), v1::STEP_STATE_UNKNOWN) << id;
    EXPECT_EQ(StepResultOf(*set_, "first")->state(), v1::STEP_STATE_COMMITTED) << id;
    EXPECT_EQ(server_.used(), before) << id;

    const absl::StatusOr<StepReply> reply = Step(set_.get(), Header(header.request_id(), step, 2), gradient);
    ASSERT_THAT(reply, IsOk()) << id;
    model_.Apply(gradient);
    EXPECT_FALSE(reply->result.replayed()) << id;
    EXPECT_EQ(reply->result.grad_norm(), model_.Norm(gradient)) << id;
    EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters)) << id;
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays()) << id;
  }
  server_.StopComputing();
  EXPECT_EQ(server_.used(), before);
}

TEST_P(AnyStepTest, TheBitsDoNotDependOnHowTheGradientIsCut) {
  for (const int64_t most : {int64_t{7}, int64_t{4096}, int64_t{65536}, int64_t{1} << 40}) {
    const Values gradient = Gradient(model_.parameter_count(), most);
    StepDelivery delivery = BeginStep(set_.get(), Header());
    const absl::StatusOr<StepReply> reply = Finish(set_.get(), &delivery, gradient, most);
    ASSERT_THAT(reply, IsOk());
    model_.Apply(gradient);
    EXPECT_EQ(reply->result.grad_norm(), model_.Norm(gradient));
  }
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(AnyStepTest, AReplyKeepsItsParametersWhileLaterStepsCommit) {
  const Values gradient = Gradient(model_.parameter_count(), 1);
  const absl::StatusOr<StepReply> first = Step(set_.get(), Header(), gradient);
  ASSERT_THAT(first, IsOk());
  model_.Apply(gradient);
  const Values after_one = model_.arrays().parameters;
  for (int i = 0; i < 3; ++i) ASSERT_THAT(Step(set_.get(), Header(), gradient), IsOk());
  EXPECT_TRUE(SameBits(Parameters(*first), after_one));
}

TEST_P(AnyStepTest, BrokenDeliveriesLeaveNothingBehind) {
  const UsedBytes before = server_.used();
  const Values gradient = Gradient(model_.parameter_count(), 1);
  {
    StepDelivery incomplete = BeginStep(set_.get(), Header("a", 0));
    EXPECT_FALSE(incomplete.Complete().ok());
    StepDelivery malformed = BeginStep(set_.get(), Header("b", 0));
    EXPECT_FALSE(malformed.Send({99, 0, 1, 0}, gradient).ok());
    StepDelivery cancelled = BeginStep(set_.get(), Header("c", 0));
    cancelled.Cancel();
    StepDelivery too_early = BeginStep(set_.get(), Header("d", 1));
    EXPECT_FALSE(Finish(set_.get(), &too_early, gradient).ok());
  }
  EXPECT_EQ(server_.used(), before);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

class AdmissionTest : public ::testing::Test {
 protected:
  // Of LargeSpec: padding included, and what tells how far each of three tensors has come.
  const int64_t kStepBytes = BlockPool::ChargedBytes(100016 + 230000 + 16) + 3 * 8;

  // Room for one step and a half.
  TestServer server_{{.inflight_bytes = kStepBytes * 3 / 2}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(LargeSpec());
  const Values gradient_ = Gradient(set_->schema().parameter_count(), 1);
};

TEST_F(AdmissionTest, AStepTakesFourBytesForEachElementOfItsBlocksAndEightForEachTensor) {
  const StepDelivery delivery = BeginStep(set_.get(), Header());
  EXPECT_TRUE(delivery.admitted());
  EXPECT_EQ(server_.used().inflight, kStepBytes);
}

TEST_F(AdmissionTest, StepsThatWaitAreAdmittedInTheOrderInWhichTheyCame) {
  std::optional<StepDelivery> first = BeginStep(set_.get(), Header());
  std::optional<StepDelivery> second = BeginStep(set_.get(), Header());
  StepDelivery third = BeginStep(set_.get(), Header());
  ASSERT_TRUE(first->admitted());
  EXPECT_FALSE(second->admitted());
  first.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  EXPECT_TRUE(second->admitted());
  EXPECT_FALSE(third.admitted());
  second.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  EXPECT_TRUE(third.admitted());
  EXPECT_THAT(Finish(set_.get(), &third, gradient_), IsOk());
}

TEST_F(AdmissionTest, AStepThatWaitsTooLongIsToldWhenToComeBack) {
  const StepDelivery first = BeginStep(set_.get(), Header());
  StepDelivery second = BeginStep(set_.get(), Header("a", 0));
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_IN_FLIGHT);
  server_.clock().Advance(absl::Milliseconds(999));
  server_.AwaitIdle();
  EXPECT_FALSE(second.done());
  server_.clock().Advance(absl::Milliseconds(1));
  server_.AwaitIdle();
  ASSERT_TRUE(second.done());
  const absl::Status status = second.Take().status();
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED));
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_UNKNOWN);
  EXPECT_EQ(server_.used().inflight, kStepBytes);
}

TEST_F(AdmissionTest, AStepThatIsCancelledWhileItWaitsLosesItsPlace) {
  std::optional<StepDelivery> first = BeginStep(set_.get(), Header());
  StepDelivery second = BeginStep(set_.get(), Header());
  StepDelivery third = BeginStep(set_.get(), Header());
  second.Cancel();
  first.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  EXPECT_FALSE(second.admitted());
  EXPECT_TRUE(third.admitted());
  server_.clock().Advance(absl::Seconds(2));
  server_.AwaitIdle();
  EXPECT_FALSE(second.done());
}

TEST_F(AdmissionTest, ASmallStepIsPaidByItsCall) {
  const StepDelivery first = BeginStep(set_.get(), Header());
  const StepDelivery second = BeginStep(set_.get(), Header());
  const std::shared_ptr<ParameterSet> small = server_.MakeSet(SmallSpec());
  EXPECT_THAT(Step(small.get(), Header(), Gradient(65, 1)), IsOk());
  EXPECT_EQ(server_.used().inflight, kStepBytes);
}

TEST_F(AdmissionTest, AReplyPaysForItsParametersUntilItIsLetGo) {
  absl::StatusOr<StepReply> reply = Step(set_.get(), Header(), gradient_);
  ASSERT_THAT(reply, IsOk());
  server_.StopComputing();
  EXPECT_EQ(server_.used().inflight, kStepBytes);
  reply = absl::CancelledError("let go");
  EXPECT_EQ(server_.used().inflight, 0);
}

TEST_F(AdmissionTest, ASetThatCouldNeverBeSteppedIsNotCreated) {
  TestServer server({.inflight_bytes = kStepBytes - 1});
  EXPECT_THAT(ParameterSet::Create(server.resources(), LargeSpec()),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  EXPECT_EQ(server.used().state, 0);
}

TEST_F(AdmissionTest, ASetThatCanJustBeSteppedIsCreated) {
  TestServer server({.inflight_bytes = kStepBytes});
  EXPECT_THAT(ParameterSet::Create(server.resources(), LargeSpec()), IsOk());
}

TEST_F(AdmissionTest, ASetThatCouldNeverBeHeldIsNotCreated) {
  TestServer server({.state_bytes = 3 * kStepBytes});
  EXPECT_THAT(ParameterSet::Create(server.resources(), LargeSpec()),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
}

TEST_F(AdmissionTest, ASetThatHasNoRoomNowIsToldToComeBack) {
  TestServer server({.state_bytes = 5 * kStepBytes});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(LargeSpec());
  const absl::Status status = ParameterSet::Create(server.resources(), LargeSpec("other")).status();
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED));
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  EXPECT_EQ(server.used().state, set->Describe().state_bytes());
}

}  // namespace
}  // namespace adamant::core
