// What the connection repeats, and what it asks before it does: over a server in miniature, with time in the test's
// hands.
#include "client/src/retrying_connection.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fake_set.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"

namespace adamant {
namespace {

using ::testing::_;
using ::testing::AtLeast;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Le;
using ::testing::NiceMock;
using ::testing::Return;

const absl::Status kGone = absl::UnavailableError("gone");
const absl::Status kRefused = absl::UnavailableError("server:1: Connection refused");

// Two tensors of which the second does not fit into a message: a step is its header, then three messages.
const std::vector<int64_t> kSizes = {3, 600};
constexpr int kRequestMessages = 4;
constexpr int kReplyMessages = 2;

std::vector<absl::Span<const float>> Const(const std::vector<std::vector<float>>& tensors) {
  return {tensors.begin(), tensors.end()};
}

class RetryingConnectionTest : public ::testing::Test {
 protected:
  RetryingConnectionTest() : set_(kSizes), connection_(MakeStub(), Options()) {
    for (int64_t size : kSizes) {
      std::vector<float>& gradient = gradients_.emplace_back(size);
      std::iota(gradient.begin(), gradient.end(), 1.0f);
      parameters_.emplace_back(size);
    }
    for (std::vector<float>& tensor : parameters_) parameter_spans_.push_back(absl::MakeSpan(tensor));
  }

  std::unique_ptr<Stub> MakeStub() {
    auto stub = std::make_unique<NiceMock<FakeStub>>(&set_);
    stub_ = stub.get();
    return stub;
  }

  ClientOptions Options() {
    ClientOptions options;
    options.message_bytes = 1 << 10;
    options.retry.jitter = 0;
    options.retry.initial_backoff = absl::Seconds(1);
    options.retry.max_attempts = 4;
    options.now = [this] { return now_; };
    options.sleep = [this](absl::Duration wait) {
      waits_.push_back(wait);
      now_ += wait;
    };
    options.on_wait = [this](const absl::Status& reason) { reasons_.push_back(reason); };
    options.request_id = [this] { return std::string(1, next_id_++); };
    return options;
  }

  // From now on there is no connection for so long.
  void Disconnect(absl::Duration duration) {
    ON_CALL(*stub_, Connect).WillByDefault([this, end = now_ + duration](absl::Duration timeout) {
      if (now_ >= end) return absl::OkStatus();
      now_ += std::min(timeout, end - now_);
      return now_ >= end ? absl::OkStatus() : kRefused;
    });
  }

  ClientOptions WithOneAttempt() {
    ClientOptions options = Options();
    options.retry.max_attempts = 1;
    return options;
  }

  absl::StatusOr<v1::StepResult> Step() { return Step(&connection_); }

  absl::StatusOr<v1::StepResult> Step(Connection* connection) {
    StepCall call;
    call.header.set_set("mlp");
    call.header.set_expected_step(set_.step);
    const std::vector<absl::Span<const float>> gradients = Const(gradients_);
    call.gradients = gradients;
    call.parameters = parameter_spans_;
    return connection->Step(call);
  }

  absl::StatusOr<v1::ReadHeader> Read(const v1::ReadTensorsRequest& request = {}) {
    return connection_.Read({request, {{v1::SLOT_PARAMETER, parameter_spans_}}});
  }

  FakeSet set_;
  FakeStub* stub_ = nullptr;
  absl::Duration now_;
  std::vector<absl::Duration> waits_;
  std::vector<absl::Status> reasons_;
  char next_id_ = 'a';
  std::vector<std::vector<float>> gradients_;
  std::vector<std::vector<float>> parameters_;
  std::vector<absl::Span<float>> parameter_spans_;
  RetryingConnection connection_;
};

TEST_F(RetryingConnectionTest, StepBringsTheParametersOfItsStep) {
  const absl::StatusOr<v1::StepResult> result = Step();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->parameters_step(), 1);
  EXPECT_EQ(parameters_, gradients_);
}

TEST_F(RetryingConnectionTest, StepsShareAStreamAndEachHasItsOwnRequestId) {
  ASSERT_TRUE(Step().ok());
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "Step b#1"));
}

TEST_F(RetryingConnectionTest, RequestIdOfTheCallerIsKept) {
  StepCall call;
  call.header.set_request_id("mine");
  const std::vector<absl::Span<const float>> gradients = Const(gradients_);
  call.gradients = gradients;
  call.parameters = parameter_spans_;
  ASSERT_TRUE(connection_.Step(call).ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step mine#1"));
}

TEST_F(RetryingConnectionTest, StepWhoseReplyWasLostIsReadAndNotSentAgain) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};

  const absl::StatusOr<v1::StepResult> result = Step();

  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Read"));
  EXPECT_TRUE(result->replayed());
  EXPECT_EQ(result->outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(result->step(), 1);
  EXPECT_EQ(result->parameters_step(), 1);
  EXPECT_EQ(parameters_, gradients_);
}

TEST_F(RetryingConnectionTest, ParametersThatAreReadAfterALostReplyMayBeOfALaterStep) {
  set_.faults = {{.reply_messages = 1, .status = kGone}};
  EXPECT_CALL(*stub_, GetStepResult).WillOnce([this](const v1::GetStepResultRequest& request, absl::Duration) {
    set_.Commit("another client's", gradients_);
    return set_.GetStepResult(request);
  });

  const absl::StatusOr<v1::StepResult> result = Step();

  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step(), 1);
  EXPECT_EQ(result->parameters_step(), 2);
  EXPECT_EQ(parameters_, set_.parameters);
}

TEST_F(RetryingConnectionTest, StepThatDidNotArriveIsSentAgainAsTheNextAttemptOfTheSameRequest) {
  set_.faults = {{.request_messages = 2, .status = kGone}};
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Open", "Step a#2"));
  EXPECT_EQ(set_.step, 1);
}

TEST_F(RetryingConnectionTest, StepThatIsStillArrivingIsSupersededByTheNextAttempt) {
  set_.faults = {{.request_messages = 2, .status = absl::DeadlineExceededError("no answer")}};
  set_.not_committed = v1::STEP_STATE_IN_FLIGHT;
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Open", "Step a#2"));
}

TEST_F(RetryingConnectionTest, AskingForTheOutcomeIsRepeatedToo) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  EXPECT_CALL(*stub_, GetStepResult)
      .WillOnce(Return(kGone))
      .WillOnce(
          [this](const v1::GetStepResultRequest& request, absl::Duration) { return set_.GetStepResult(request); });
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Read"));
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(1), absl::Seconds(2)));
}

TEST_F(RetryingConnectionTest, ReadingAfterALostReplyIsRepeatedWithoutSendingTheGradientAgain) {
  set_.faults = {{.reply_messages = 0, .status = kGone}, {.reply_messages = 1, .status = kGone}};
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Read", "GetStepResult a", "Read"));
  EXPECT_EQ(parameters_, set_.parameters);
}

TEST_F(RetryingConnectionTest, StepEndsWhenTheSetIsGone) {
  set_.faults = {{.request_messages = 0, .status = kGone}};
  EXPECT_CALL(*stub_, GetStepResult).WillOnce(Return(absl::NotFoundError("no set mlp")));
  EXPECT_EQ(Step().status(), absl::NotFoundError("no set mlp"));
}

TEST_F(RetryingConnectionTest, StepIsNotRepeatedAfterAnErrorThatWouldComeAgain) {
  const absl::Status elsewhere = Error(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH, "at step 9");
  set_.faults = {{.reply_messages = 0, .status = elsewhere}};
  EXPECT_EQ(Step().status(), elsewhere);
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1"));
  EXPECT_THAT(waits_, IsEmpty());
}

TEST_F(RetryingConnectionTest, StepAfterAFailedOneOpensAStreamOfItsOwn) {
  set_.faults = {{.request_messages = 0, .status = absl::AbortedError("no")}};
  ASSERT_FALSE(Step().ok());
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Open", "Step b#1"));
}

TEST_F(RetryingConnectionTest, StreamThatEndedBetweenStepsIsReplacedAtOnce) {
  ASSERT_TRUE(Step().ok());
  stub_->last_step_stream->Kill();
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "Open", "Step b#1"));
  EXPECT_THAT(waits_, IsEmpty());
}

// The server ends an idle stream, and its client learns of it only when the next step is on its way.
TEST_F(RetryingConnectionTest, StepThatMeetsTheEndOfAStalledStreamGoesOverANewOneAtOnce) {
  const absl::Status stalled = Error(absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED, "awaited a step");
  set_.faults = {Fault(), {.request_messages = 0, .status = stalled}};
  ASSERT_TRUE(Step().ok());
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "Open", "Step b#1"));
  EXPECT_THAT(waits_, IsEmpty());
}

TEST_F(RetryingConnectionTest, StepThatMeetsAnotherEndOfAnIdleStreamIsSentAgainOverANewOne) {
  const absl::Status full = WithRetryDelay(
      Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS, "full"), absl::Seconds(1));
  set_.faults = {Fault(), {.request_messages = 0, .status = full}, Fault(), {.request_messages = 0, .status = kGone}};
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult b", "Open", "Step b#2", "GetStepResult c",
                                    "Open", "Step c#2"));
}

TEST_F(RetryingConnectionTest, StepThatStallsOnAStreamOfItsOwnIsAnError) {
  const absl::Status stalled = Error(absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED, "too slow");
  set_.faults = {{.request_messages = 1, .status = stalled}};
  EXPECT_EQ(Step().status(), stalled);
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1"));
}

TEST_F(RetryingConnectionTest, FullServerIsGivenTheTimeThatItAsksFor) {
  const absl::Status full = WithRetryDelay(
      Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "full"), absl::Seconds(5));
  set_.faults = {{.request_messages = 1, .status = full}};
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(5)));
}

TEST_F(RetryingConnectionTest, DeadServerIsGivenUpAfterAllAttempts) {
  set_.faults.assign(4, {.request_messages = 0, .status = kGone});
  const absl::Status status = Step().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "gone (gave up after 4 attempts in 7s)");
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(1), absl::Seconds(2), absl::Seconds(4)));
}

TEST_F(RetryingConnectionTest, CallBeforeItsServerIsUpWaitsForItAndUsesUpNoAttempt) {
  RetryingConnection connection(MakeStub(), WithOneAttempt());
  Disconnect(absl::Seconds(29));
  EXPECT_CALL(*stub_, GetServerInfo).WillOnce(Return(v1::GetServerInfoResponse()));
  EXPECT_TRUE(connection.GetServerInfo({}).ok());
  EXPECT_EQ(now_, absl::Seconds(29));
  EXPECT_THAT(waits_, IsEmpty());
}

TEST_F(RetryingConnectionTest, TargetIsTriedSeveralTimesASecond) {
  Disconnect(absl::Seconds(29));
  EXPECT_CALL(*stub_, Connect(Le(absl::Milliseconds(300)))).Times(AtLeast(29));
  EXPECT_CALL(*stub_, GetServerInfo).WillOnce(Return(v1::GetServerInfoResponse()));
  EXPECT_TRUE(connection_.GetServerInfo({}).ok());
}

TEST_F(RetryingConnectionTest, ServerThatIsNotThereIsGivenUpAfterTheConnectTimeout) {
  Disconnect(absl::InfiniteDuration());
  EXPECT_CALL(*stub_, GetServerInfo).Times(0);
  EXPECT_EQ(connection_.GetServerInfo({}).status(),
            absl::UnavailableError("no connection within 30s: server:1: Connection refused"));
  EXPECT_EQ(now_, absl::Seconds(30));
}

TEST_F(RetryingConnectionTest, TotalTimeoutBoundsTheWaitForAConnection) {
  ClientOptions options = Options();
  options.retry.total_timeout = absl::Milliseconds(4250);
  RetryingConnection connection(MakeStub(), options);
  Disconnect(absl::InfiniteDuration());
  EXPECT_EQ(connection.GetServerInfo({}).status(),
            absl::UnavailableError("no connection within 4.25s: server:1: Connection refused"));
  EXPECT_EQ(now_, absl::Milliseconds(4250));
}

TEST_F(RetryingConnectionTest, StepWhoseServerWentAwayGoesOnWhenItIsBack) {
  ClientOptions options = Options();
  options.retry.max_attempts = 2;
  options.sleep = [this](absl::Duration) { Disconnect(absl::Seconds(25)); };
  RetryingConnection connection(MakeStub(), options);
  set_.faults = {{.request_messages = 2, .status = kGone}};
  ASSERT_TRUE(Step(&connection).ok());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Open", "Step a#2"));
  EXPECT_EQ(now_, absl::Seconds(25));
}

TEST_F(RetryingConnectionTest, WaitsAreToldOnceEachWithTheirReason) {
  Disconnect(absl::Seconds(5));
  set_.faults = {{.request_messages = 0, .status = kGone}};
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(reasons_, ElementsAre(kRefused, kGone));
}

TEST_F(RetryingConnectionTest, WaitBetweenAttemptsEndsWithTheConnection) {
  ClientOptions options = Options();
  options.sleep = nullptr;
  RetryingConnection connection(MakeStub(), options);
  EXPECT_CALL(*stub_, GetServerInfo).WillOnce(Return(kGone)).WillOnce(Return(v1::GetServerInfoResponse()));
  EXPECT_CALL(*stub_, AwaitDisconnect(absl::Seconds(1)));
  EXPECT_TRUE(connection.GetServerInfo({}).ok());
}

TEST_F(RetryingConnectionTest, InterruptedWaitForAConnectionIsTheCallsEnd) {
  ClientOptions options = Options();
  options.interrupted = [this] { return now_ >= absl::Seconds(2); };
  RetryingConnection connection(MakeStub(), options);
  Disconnect(absl::InfiniteDuration());
  EXPECT_EQ(connection.GetServerInfo({}).status(), absl::CancelledError("interrupted: server:1: Connection refused"));
  EXPECT_LT(now_, absl::Seconds(3));
}

TEST_F(RetryingConnectionTest, InterruptedWaitBetweenAttemptsIsTheCallsEnd) {
  ClientOptions options = Options();
  options.sleep = nullptr;
  int asked = 0;
  options.interrupted = [&asked] { return ++asked > 3; };
  RetryingConnection connection(MakeStub(), options);
  EXPECT_CALL(*stub_, GetServerInfo).WillOnce(Return(kGone));
  EXPECT_CALL(*stub_, AwaitDisconnect(absl::Milliseconds(100))).Times(3).WillRepeatedly(Return(false));
  EXPECT_EQ(connection.GetServerInfo({}).status(), absl::CancelledError("interrupted: gone"));
}

TEST_F(RetryingConnectionTest, ReplyThatEndsBeforeItsResultIsNoSuccess) {
  set_.faults.assign(4, {.reply_messages = 1, .status = absl::InternalError("cut")});
  EXPECT_EQ(Step().status(), absl::InternalError("cut"));
}

TEST_F(RetryingConnectionTest, NothingRefersToTheGradientAfterSuccessOrFailure) {
  set_.faults = {Fault(), {.request_messages = 3, .status = absl::AbortedError("no")}};
  ASSERT_TRUE(Step().ok());
  EXPECT_THAT(set_.held, IsEmpty());
  ASSERT_FALSE(Step().ok());
  EXPECT_THAT(set_.held, IsEmpty());
}

// Every place where two attempts in a row can break: before any message of the request, before any of the reply.
class TwoFaultsTest : public RetryingConnectionTest, public ::testing::WithParamInterface<std::tuple<int, int>> {
 protected:
  static Fault Break(int place) {
    if (place < kRequestMessages) return {.request_messages = place, .status = kGone};
    return {.reply_messages = place - kRequestMessages, .status = kGone};
  }
};

TEST_P(TwoFaultsTest, StepIsAppliedOnceAndItsParametersAreWhole) {
  set_.faults = {Break(std::get<0>(GetParam())), Break(std::get<1>(GetParam()))};

  const absl::StatusOr<v1::StepResult> result = Step();

  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(set_.step, 1);
  EXPECT_EQ(set_.parameters, gradients_);
  EXPECT_EQ(parameters_, gradients_);
  EXPECT_EQ(result->parameters_step(), 1);
}

INSTANTIATE_TEST_SUITE_P(EveryPlace, TwoFaultsTest,
                         ::testing::Combine(::testing::Range(0, kRequestMessages + kReplyMessages),
                                            ::testing::Range(0, kRequestMessages + kReplyMessages)));

TEST_F(RetryingConnectionTest, StepOfSomeTensorsSendsAndReceivesThoseAlone) {
  StepCall call;
  call.header.add_tensors(1);
  const std::vector<absl::Span<const float>> gradients = {{}, gradients_[1]};
  parameter_spans_[0] = {};
  call.gradients = gradients;
  call.parameters = parameter_spans_;
  ASSERT_TRUE(connection_.Step(call).ok());
  EXPECT_EQ(parameters_[0], std::vector<float>(3));
  EXPECT_EQ(parameters_[1], gradients_[1]);
}

TEST_F(RetryingConnectionTest, LostReplyToAStepOfSomeTensorsIsReadIntoThoseAlone) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  set_.parameters[0] = {7, 7, 7};
  StepCall call;
  call.header.add_tensors(1);
  const std::vector<absl::Span<const float>> gradients = {{}, gradients_[1]};
  parameter_spans_[0] = {};
  call.gradients = gradients;
  call.parameters = parameter_spans_;
  const absl::StatusOr<v1::StepResult> result = connection_.Step(call);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Read"));
  EXPECT_EQ(parameters_[0], std::vector<float>(3));
  EXPECT_EQ(parameters_[1], gradients_[1]);
}

TEST_F(RetryingConnectionTest, LostReplyWithoutParametersNeedsNoRead) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  StepCall call;
  call.header.set_omit_parameters(true);
  const std::vector<absl::Span<const float>> gradients = Const(gradients_);
  call.gradients = gradients;
  const absl::StatusOr<v1::StepResult> result = connection_.Step(call);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->replayed());
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a"));
  ASSERT_TRUE(connection_.Step(call).ok());
  EXPECT_EQ(set_.step, 2);
}

// With 600 elements of which each has more bits than a half: whether the reply comes or is lost and read in fp32.
TEST_F(RetryingConnectionTest, SixteenBitsAreRoundedOnceAndTheSameWhetherAReplyIsLostOrNot) {
  for (const v1::Dtype dtype : {v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
    for (std::vector<float>& tensor : gradients_) {
      for (float& element : tensor) element = std::fmod(element + 0.1234567f, 600.0f);
    }
    std::vector<std::vector<float>> expected = gradients_;
    for (std::vector<float>& tensor : expected) Round(dtype, absl::MakeSpan(tensor));
    for (const bool lost : {false, true}) {
      for (std::vector<float>& tensor : set_.parameters) std::fill(tensor.begin(), tensor.end(), 0.0f);
      if (lost) set_.faults = {{.reply_messages = 0, .status = kGone}};
      StepCall call;
      call.header.set_reply_dtype(dtype);
      const std::vector<absl::Span<const float>> gradients = Const(gradients_);
      call.gradients = gradients;
      call.parameters = parameter_spans_;
      call.gradient_dtype = dtype;
      ASSERT_TRUE(connection_.Step(call).ok());
      EXPECT_EQ(set_.gradient_dtype, dtype);
      EXPECT_EQ(set_.parameters, expected);
      EXPECT_EQ(parameters_, expected);
    }
  }
}

TEST_F(RetryingConnectionTest, LostReplyIsRoundedAsTheReplyWouldHaveBeen) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  gradients_[0] = {1e30f, 0.1f, -1e30f};
  StepCall call;
  call.header.set_reply_dtype(v1::DTYPE_FLOAT16);
  const std::vector<absl::Span<const float>> gradients = Const(gradients_);
  call.gradients = gradients;
  call.parameters = parameter_spans_;
  const absl::StatusOr<v1::StepResult> result = connection_.Step(call);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->overflowed(), 2);
  EXPECT_EQ(parameters_[0][1], 0.0999755859375f);
}

TEST_F(RetryingConnectionTest, WatchGivesEveryEventAndThenNothing) {
  set_.step = 3;
  const absl::StatusOr<std::unique_ptr<EventStream>> events = connection_.Watch({});
  ASSERT_TRUE(events.ok()) << events.status();
  const auto first = (*events)->Next();
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_TRUE((*first)->has_current());
  EXPECT_EQ((*first)->step(), 3);
  EXPECT_TRUE((*(*events)->Next())->has_deleted());
  EXPECT_EQ((*events)->Next()->has_value(), false);
}

TEST_F(RetryingConnectionTest, WatchIsRepeatedUntilItHasBegunAndNoMoreThen) {
  set_.faults = {{.reply_messages = 0, .status = kGone}, {.reply_messages = 1, .status = kGone}};
  const absl::StatusOr<std::unique_ptr<EventStream>> events = connection_.Watch({});
  ASSERT_TRUE(events.ok()) << events.status();
  EXPECT_THAT(set_.log, ElementsAre("Watch", "Watch"));
  EXPECT_TRUE((*events)->Next().ok());
  EXPECT_EQ((*events)->Next().status(), kGone);
  EXPECT_THAT(set_.log, ElementsAre("Watch", "Watch"));
}

TEST_F(RetryingConnectionTest, UpdatesAreRepeated) {
  EXPECT_CALL(*stub_, UpdateParameterGroup)
      .WillOnce(Return(kGone))
      .WillOnce(Return(v1::UpdateParameterGroupResponse()));
  EXPECT_TRUE(connection_.UpdateParameterGroup({}).ok());
  EXPECT_CALL(*stub_, AddTensors).WillOnce(Return(kGone)).WillOnce(Return(v1::AddTensorsResponse()));
  EXPECT_TRUE(connection_.AddTensors({}).ok());
  EXPECT_CALL(*stub_, UpdateParameterSet).WillOnce(Return(kGone)).WillOnce(Return(v1::UpdateParameterSetResponse()));
  EXPECT_TRUE(connection_.UpdateParameterSet({}).ok());
}

// Of one attempt.
const absl::Duration kTransferTimeout = ClientOptions().transfer_timeout;

TEST_F(RetryingConnectionTest, WhatTakesAllOfASetIsRepeatedAndMayTakeAsLongAsATransfer) {
  EXPECT_CALL(*stub_, Checkpoint(_, kTransferTimeout))
      .WillOnce(Return(kGone))
      .WillOnce(Return(v1::CheckpointResponse()));
  EXPECT_TRUE(connection_.Checkpoint({}).ok());
  EXPECT_CALL(*stub_, ListCheckpoints(_, kTransferTimeout))
      .WillOnce(Return(kGone))
      .WillOnce(Return(v1::ListCheckpointsResponse()));
  EXPECT_TRUE(connection_.ListCheckpoints({}).ok());
  EXPECT_CALL(*stub_, RestoreCheckpoint(_, kTransferTimeout))
      .WillOnce(Return(kGone))
      .WillOnce(Return(v1::RestoreCheckpointResponse()));
  EXPECT_TRUE(connection_.RestoreCheckpoint({}).ok());
  EXPECT_CALL(*stub_, Fork(_, kTransferTimeout)).WillOnce(Return(kGone)).WillOnce(Return(v1::ForkResponse()));
  EXPECT_TRUE(connection_.Fork({}).ok());
}

TEST_F(RetryingConnectionTest, WriteIsRepeatedUnderItsRequestId) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  const std::vector<absl::Span<const float>> values = Const(gradients_);

  const absl::StatusOr<v1::WriteTensorsResponse> response = connection_.Write({{}, {{v1::SLOT_PARAMETER, values}}});

  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->incarnation(), 8);
  EXPECT_THAT(set_.log, ElementsAre("Write a", "Write a"));
  EXPECT_EQ(set_.parameters, gradients_);
  EXPECT_THAT(set_.held, IsEmpty());
}

// Reads `elements`, of which the test's spans have no more than the size.
ElementReader ReaderOf(const std::vector<std::vector<float>>& elements) {
  return [&elements](v1::Slot, int32_t tensor, int64_t begin, absl::Span<float> to) {
    std::copy_n(elements[tensor].begin() + begin, to.size(), to.begin());
    return absl::OkStatus();
  };
}

std::vector<absl::Span<const float>> SizesOf(const std::vector<std::vector<float>>& elements) {
  std::vector<absl::Span<const float>> spans;
  for (const std::vector<float>& tensor : elements) spans.emplace_back(nullptr, tensor.size());
  return spans;
}

TEST_F(RetryingConnectionTest, ElementsMayComeFromElsewhereThanMemoryInEveryAttempt) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  const std::vector<absl::Span<const float>> sizes = SizesOf(gradients_);
  WriteCall call = {{}, {{v1::SLOT_PARAMETER, sizes}}};
  call.read = ReaderOf(gradients_);

  ASSERT_TRUE(connection_.Write(call).ok());

  EXPECT_THAT(set_.log, ElementsAre("Write a", "Write a"));
  EXPECT_EQ(set_.parameters, gradients_);
  EXPECT_THAT(set_.held, IsEmpty());
}

TEST_F(RetryingConnectionTest, GradientMayComeFromElsewhereThanMemoryAndIsRoundedAllTheSame) {
  for (std::vector<float>& tensor : gradients_) {
    for (float& element : tensor) element = 1 + element / 256;
  }
  const std::vector<absl::Span<const float>> sizes = SizesOf(gradients_);
  StepCall call;
  call.header.set_expected_step(0);
  call.gradients = sizes;
  call.parameters = parameter_spans_;
  call.gradient_dtype = v1::DTYPE_BFLOAT16;
  call.read = ReaderOf(gradients_);
  ASSERT_TRUE(connection_.Step(call).ok());
  FakeSet other(kSizes);
  std::swap(other.parameters, set_.parameters);
  set_.step = 0;
  const std::vector<std::vector<float>> after = parameters_;
  const std::vector<absl::Span<const float>> gradients = Const(gradients_);
  call.gradients = gradients;
  call.read = nullptr;
  ASSERT_TRUE(connection_.Step(call).ok());
  EXPECT_EQ(parameters_, after);
}

TEST_F(RetryingConnectionTest, ElementsThatCannotBeReadEndTheCallAndAreNotAskedForAgain) {
  const std::vector<absl::Span<const float>> sizes = SizesOf(gradients_);
  const absl::Status broken = absl::InvalidArgumentError("w.raw: others have cut it off");
  WriteCall call = {{}, {{v1::SLOT_PARAMETER, sizes}}};
  call.read = [&](v1::Slot, int32_t tensor, int64_t, absl::Span<float>) {
    return tensor == 0 ? absl::OkStatus() : broken;
  };

  EXPECT_EQ(connection_.Write(call).status(), broken);

  EXPECT_THAT(set_.log, ElementsAre("Write a"));
  EXPECT_THAT(waits_, IsEmpty());
  EXPECT_THAT(set_.held, IsEmpty());
}

// What a transfer has been told of its progress, which also has to come to its end.
using Told = std::vector<std::pair<int64_t, int64_t>>;

TEST_F(RetryingConnectionTest, WriteTellsHowFarItHasComeAndBeginsAnewWithAnAttempt) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  const std::vector<absl::Span<const float>> values = Const(gradients_);
  Told told;

  const absl::StatusOr<v1::WriteTensorsResponse> response = connection_.Write(
      {{}, {{v1::SLOT_PARAMETER, values}}, [&](int64_t done, int64_t total) { told.emplace_back(done, total); }});

  ASSERT_TRUE(response.ok()) << response.status();
  // Of each attempt three messages: the header has no elements.
  ASSERT_EQ(told.size(), 6);
  EXPECT_EQ(told[2], std::pair(int64_t{603}, int64_t{603}));
  EXPECT_TRUE(std::is_sorted(told.begin(), told.begin() + 3));
  EXPECT_GT(told[0].first, 0);
  EXPECT_EQ(Told(told.begin(), told.begin() + 3), Told(told.begin() + 3, told.end()));
}

TEST_F(RetryingConnectionTest, StepTellsHowFarItHasComeUpAndDown) {
  const std::vector<absl::Span<const float>> gradients = Const(gradients_);
  StepCall call;
  call.header.set_expected_step(0);
  call.gradients = gradients;
  call.parameters = parameter_spans_;
  Told told;
  call.progress = [&](int64_t done, int64_t total) { told.emplace_back(done, total); };

  ASSERT_TRUE(connection_.Step(call).ok());

  // The header has no elements.
  ASSERT_EQ(told.size(), kRequestMessages - 1 + kReplyMessages);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told[kRequestMessages - 2], std::pair(int64_t{603}, int64_t{1206}));
  EXPECT_EQ(told.back(), std::pair(int64_t{1206}, int64_t{1206}));
}

TEST_F(RetryingConnectionTest, ReadOfSomeTensorsTellsHowFarItHasCome) {
  set_.parameters = gradients_;
  parameter_spans_[0] = {};
  Told told;
  const auto progress = [&](int64_t done, int64_t total) { told.emplace_back(done, total); };

  v1::ReadTensorsRequest request;
  request.add_tensors(1);

  const absl::StatusOr<v1::ReadHeader> header =
      connection_.Read({request, {{v1::SLOT_PARAMETER, parameter_spans_}}, progress});

  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(parameters_[1], gradients_[1]);
  EXPECT_EQ(parameters_[0], std::vector<float>(3));
  ASSERT_FALSE(told.empty());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), std::pair(int64_t{600}, int64_t{600}));
  EXPECT_FALSE(connection_.Read({{}, {{v1::SLOT_PARAMETER, parameter_spans_}}}).ok());
}

TEST_F(RetryingConnectionTest, OfAnEmptySpanNothingIsSent) {
  const std::vector<absl::Span<const float>> values = {gradients_[0], gradients_[1], {}};
  const absl::StatusOr<v1::WriteTensorsResponse> response = connection_.Write({{}, {{v1::SLOT_PARAMETER, values}}});
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(set_.parameters, gradients_);
}

TEST_F(RetryingConnectionTest, IntoAnEmptySpanNothingIsRead) {
  set_.parameters = gradients_;
  parameter_spans_.emplace_back();
  ASSERT_TRUE(Read().ok());
  EXPECT_EQ(parameters_, gradients_);
}

TEST_F(RetryingConnectionTest, ReadThatBreaksStartsAgain) {
  set_.parameters = gradients_;
  set_.step = 12;
  set_.faults = {{.reply_messages = 1, .status = kGone}};

  const absl::StatusOr<v1::ReadHeader> header = Read();

  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->step(), 12);
  EXPECT_EQ(parameters_, gradients_);
  EXPECT_THAT(set_.log, ElementsAre("Read", "Read"));
}

TEST_F(RetryingConnectionTest, ReadOfASetThatIsNotNewerTouchesNothing) {
  set_.parameters = gradients_;
  v1::ReadTensorsRequest request;
  request.set_if_newer_than_step(0);

  const absl::StatusOr<v1::ReadHeader> header = Read(request);

  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_TRUE(header->not_modified());
  EXPECT_EQ(parameters_[0], std::vector<float>(3));
}

TEST_F(RetryingConnectionTest, ReadIntoASpanShorterThanItsTensorIsRefused) {
  parameter_spans_[1] = parameter_spans_[1].first(599);
  const absl::Status status = Read().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "the span for tensor 1: expected at least 600 elements, got 599");
}

TEST_F(RetryingConnectionTest, ReadIntoASpanLongerThanItsTensorIsRefused) {
  std::vector<float> longer(601);
  parameter_spans_[1] = absl::MakeSpan(longer);
  const absl::Status status = Read().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "the span for tensor 1: expected 600 elements, got 601");
}

TEST_F(RetryingConnectionTest, ReadIntoTooFewSpansIsRefused) {
  parameter_spans_.pop_back();
  const absl::Status status = Read().status();
  EXPECT_EQ(status, absl::InvalidArgumentError("expected a span for every tensor, 1 among them, got spans for 1"));
}

class RowsTest : public RetryingConnectionTest {
 protected:
  absl::StatusOr<v1::StepResult> StepRows(Connection* connection) {
    StepCall call;
    call.header.set_set("mlp");
    call.header.set_expected_step(set_.step);
    v1::SparseRows* const sparse = call.header.add_sparse();
    sparse->set_tensor(1);
    sparse->set_rows(static_cast<int64_t>(rows_.size()));
    const std::vector<absl::Span<const float>> gradients(2);
    const std::vector<absl::Span<float>> parameters = {{}, absl::MakeSpan(parameters_[1])};
    const RowsGradient rows[] = {{.tensor = 1, .rows = rows_, .values = values_}};
    call.gradients = gradients;
    call.parameters = parameters;
    call.rows = rows;
    return connection->Step(call);
  }
  // Of the second tensor, whose rows have two elements.
  static std::vector<float> With(std::vector<float> before, const std::vector<std::pair<int, float>>& changes) {
    for (const auto& [index, value] : changes) before[index] = value;
    return before;
  }

  std::vector<int64_t> rows_ = {250, 3, 250};
  std::vector<float> values_ = {1, 2, 3, 4, 10, 20};
};

TEST_F(RowsTest, RowsComeIntoTheirPlacesAndNothingElseIsTouched) {
  parameters_[1] = std::vector<float>(600, -1);
  const absl::StatusOr<v1::StepResult> result = StepRows(&connection_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(parameters_[1], With(std::vector<float>(600, -1), {{500, 11}, {501, 22}, {6, 3}, {7, 4}}));
}

TEST_F(RowsTest, ManyRowsTakeSeveralMessages) {
  rows_.clear();
  values_.clear();
  for (int i = 0; i < 900; ++i) {
    rows_.push_back(i * 7 % 300);
    values_.insert(values_.end(), {1, 2});
  }
  ASSERT_TRUE(StepRows(&connection_).ok());
  EXPECT_EQ(parameters_[1][0], 3);
  EXPECT_EQ(parameters_[1][599], 6);
}

TEST_F(RowsTest, TheWholeIsReadWhereTheReplyWasLost) {
  set_.faults = {{.reply_messages = 0, .status = kGone}};
  const absl::StatusOr<v1::StepResult> result = StepRows(&connection_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->replayed());
  EXPECT_EQ(parameters_[1], set_.parameters[1]);
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "GetStepResult a", "Read"));
}

// Between the question and the attempt that follows the step may be applied after all.
TEST_F(RowsTest, TheWholeIsReadWhereTheServerSaysThatItWasAppliedBefore) {
  set_.committed["a"].set_incarnation(7);
  const absl::StatusOr<v1::StepResult> result = StepRows(&connection_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->replayed());
  EXPECT_EQ(parameters_[1], set_.parameters[1]);
  EXPECT_THAT(set_.log, ElementsAre("Open", "Step a#1", "Read"));
}

TEST_F(RetryingConnectionTest, UnaryCallIsRepeatedWithinItsTimeouts) {
  EXPECT_CALL(*stub_, GetServerInfo(_, absl::Seconds(10)))
      .WillOnce(Return(kGone))
      .WillOnce(Return(v1::GetServerInfoResponse()));
  EXPECT_TRUE(connection_.GetServerInfo({}).ok());
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(1)));
}

TEST_F(RetryingConnectionTest, DeleteThatFindsNothingHasSucceededIfItWasTriedBefore) {
  EXPECT_CALL(*stub_, DeleteParameterSet).WillOnce(Return(kGone)).WillOnce(Return(absl::NotFoundError("no set")));
  EXPECT_TRUE(connection_.DeleteParameterSet({}).ok());

  EXPECT_CALL(*stub_, DeleteParameterSet).WillOnce(Return(absl::NotFoundError("no set")));
  EXPECT_EQ(connection_.DeleteParameterSet({}).status(), absl::NotFoundError("no set"));
}

TEST(MakeConnectionTest, RefusesArgumentsThatMakeNoSense) {
  EXPECT_EQ(MakeConnection("").status(), absl::InvalidArgumentError("target is out of its range"));
  ClientOptions options;
  options.message_bytes = 5 << 20;
  EXPECT_EQ(MakeConnection("localhost:1", options).status(),
            absl::InvalidArgumentError("message_bytes is out of its range"));
  options = ClientOptions();
  options.retry.max_attempts = 0;
  EXPECT_EQ(MakeConnection("localhost:1", options).status(),
            absl::InvalidArgumentError("retry.max_attempts is out of its range"));
}

TEST(MakeConnectionTest, RequestIdsAre128RandomBitsByDefault) {
  FakeSet set({1});
  RetryingConnection connection(std::make_unique<NiceMock<FakeStub>>(&set), ClientOptions());
  const std::vector<float> gradient = {1};
  std::vector<float> parameter = {0};
  const absl::Span<const float> gradients[] = {gradient};
  const absl::Span<float> parameters[] = {absl::MakeSpan(parameter)};
  ASSERT_TRUE(connection.Step({{}, gradients, parameters}).ok());
  ASSERT_TRUE(connection.Step({{}, gradients, parameters}).ok());
  ASSERT_EQ(set.committed.size(), 2);
  for (const auto& [request_id, result] : set.committed) {
    EXPECT_THAT(request_id, ::testing::MatchesRegex("[0-9a-f]{32}"));
  }
}

}  // namespace
}  // namespace adamant
