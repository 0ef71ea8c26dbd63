// A request is applied once: retries, attempts that supersede each other, and what the set remembers.
#include <limits>
#include <memory>
#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

constexpr absl::StatusCode kAborted = absl::StatusCode::kAborted;

class ExactlyOnceTest : public ::testing::Test {
 protected:
  // `count` steps that are nobody's.
  void StepOn(int count) {
    for (int i = 0; i < count; ++i) {
      const Values gradient = Gradient(model_.parameter_count(), 100 + i);
      ASSERT_THAT(Step(set_.get(), Header(), gradient), IsOk());
      model_.Apply(gradient);
    }
  }

  void ApplyFirst() {
    ASSERT_THAT(Step(set_.get(), Header("a", 0), gradient_), IsOk());
    model_.Apply(gradient_);
  }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(SmallSpec());
  SequentialModel model_{SmallSpec()};
  const Values gradient_ = Gradient(65, 1);
};

TEST_F(ExactlyOnceTest, ARetryGetsTheOriginalResultWithTheParametersOfNow) {
  ApplyFirst();
  StepOn(3);
  const absl::StatusOr<StepReply> reply = Step(set_.get(), Header("a", 0, 2), gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_TRUE(reply->result.replayed());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(reply->result.step(), 1);
  EXPECT_EQ(reply->result.grad_norm(), model_.Norm(gradient_));
  EXPECT_EQ(reply->result.learning_rates_size(), 2);
  EXPECT_EQ(reply->result.parameters_step(), 4);
  EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters));
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_F(ExactlyOnceTest, TheGradientOfARetryIsDroppedUnread) {
  ApplyFirst();
  StepDelivery retry = BeginStep(set_.get(), Header("a", 0));
  ASSERT_TRUE(retry.admitted());
  EXPECT_THAT(retry.Send({7, -5, 0, 0}, gradient_), IsOk());
  ASSERT_THAT(retry.Complete(), IsOk());
  EXPECT_TRUE(retry.Take()->result.replayed());
}

TEST_F(ExactlyOnceTest, ARememberedIdWithAnotherHeaderIsRefused) {
  ApplyFirst();
  EXPECT_THAT(Step(set_.get(), Header("a", 1), gradient_),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
  v1::StepHeader header = Header("a", 0);
  header.set_incarnation(set_->Describe().incarnation());
  EXPECT_THAT(Step(set_.get(), header, gradient_),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
}

TEST_F(ExactlyOnceTest, ARequestThatWasSkippedIsNotRemembered) {
  Values bad = gradient_;
  bad[0] = std::numeric_limits<float>::infinity();
  ASSERT_THAT(Step(set_.get(), Header("a", 0), bad), IsOk());
  const absl::StatusOr<StepReply> reply = Step(set_.get(), Header("a", 0, 2), gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_FALSE(reply->result.replayed());
  EXPECT_EQ(reply->result.step(), 1);
}

TEST_F(ExactlyOnceTest, TheLast64StepsAreRemembered) {
  ApplyFirst();
  StepOn(63);
  EXPECT_TRUE(Step(set_.get(), Header("a", 0, 2), gradient_)->result.replayed());
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_COMMITTED);
  StepOn(1);
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_UNKNOWN);
  EXPECT_THAT(Step(set_.get(), Header("a", 0, 2), gradient_), FailsWith(kAborted, v1::ERROR_REASON_OUTCOME_UNKNOWN));
  EXPECT_THAT(Step(set_.get(), Header("a", 0), gradient_), FailsWith(kAborted, v1::ERROR_REASON_STEP_MISMATCH));
}

TEST_F(ExactlyOnceTest, ARequestThatWouldBeRememberedWasNotApplied) {
  StepOn(64);
  EXPECT_THAT(Step(set_.get(), Header("never applied", 0, 2), gradient_),
              FailsWith(kAborted, v1::ERROR_REASON_STEP_MISMATCH));
  StepOn(1);
  EXPECT_THAT(Step(set_.get(), Header("never applied", 0, 2), gradient_),
              FailsWith(kAborted, v1::ERROR_REASON_OUTCOME_UNKNOWN));
}

TEST_F(ExactlyOnceTest, ARetryThatOutlivesTheMemoryHasAnUnknownOutcome) {
  ApplyFirst();
  StepDelivery retry = BeginStep(set_.get(), Header("a", 0));
  StepOn(64);
  EXPECT_THAT(Finish(set_.get(), &retry, gradient_), FailsWith(kAborted, v1::ERROR_REASON_OUTCOME_UNKNOWN));
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_F(ExactlyOnceTest, AHigherAttemptEndsTheOneThatIsArriving) {
  StepDelivery first = BeginStep(set_.get(), Header("a", 0, 1));
  ASSERT_THAT(first.Send({0, 0, 32, 0}, gradient_), IsOk());
  StepDelivery second = BeginStep(set_.get(), Header("a", 0, 2));
  ASSERT_TRUE(first.done());
  EXPECT_THAT(first.Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
  EXPECT_THAT(first.Send({1, 0, 16, 32}, gradient_), IsOk());  // what was under way still comes, and is for nothing
  const absl::StatusOr<StepReply> reply = Finish(set_.get(), &second, gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_FALSE(reply->result.replayed());
  EXPECT_EQ(set_->Describe().step(), 1);
}

TEST_F(ExactlyOnceTest, ASupersededStepCannotCommit) {
  StepDelivery first = BeginStep(set_.get(), Header("a", 0, 1));
  ASSERT_THAT(first.Send(Cut(set_->schema(), 64), gradient_), IsOk());
  StepDelivery second = BeginStep(set_.get(), Header("a", 0, 2));
  EXPECT_THAT(first.Complete(), IsOk());
  EXPECT_THAT(first.Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
  EXPECT_EQ(set_->Describe().step(), 0);
}

TEST_F(ExactlyOnceTest, AnEqualAttemptEndsTheOneThatIsArriving) {
  StepDelivery first = BeginStep(set_.get(), Header("a", 0));
  StepDelivery second = BeginStep(set_.get(), Header("a", 0));
  EXPECT_THAT(first.Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
  EXPECT_THAT(Finish(set_.get(), &second, gradient_), IsOk());
}

TEST_F(ExactlyOnceTest, ALowerAttemptIsRefused) {
  StepDelivery second = BeginStep(set_.get(), Header("a", 0, 2));
  StepDelivery first = BeginStep(set_.get(), Header("a", 0, 1));
  ASSERT_TRUE(first.done());
  EXPECT_THAT(first.Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
  EXPECT_FALSE(second.done());
  EXPECT_THAT(Finish(set_.get(), &second, gradient_), IsOk());
}

TEST_F(ExactlyOnceTest, ALowerAttemptOfARememberedRequestIsAnsweredAndEndsNoHigherOne) {
  ASSERT_THAT(Step(set_.get(), Header("a", 0, 1), gradient_), IsOk());
  StepDelivery third = BeginStep(set_.get(), Header("a", 0, 3));
  const absl::StatusOr<StepReply> second = Step(set_.get(), Header("a", 0, 2), gradient_);
  ASSERT_THAT(second, IsOk());
  EXPECT_TRUE(second->result.replayed());
  EXPECT_FALSE(third.done());
  const absl::StatusOr<StepReply> last = Finish(set_.get(), &third, gradient_);
  ASSERT_THAT(last, IsOk());
  EXPECT_TRUE(last->result.replayed());
}

TEST_F(ExactlyOnceTest, ALowerAttemptIsTakenOnceTheHigherOneIsGone) {
  { StepDelivery second = BeginStep(set_.get(), Header("a", 0, 2)); }
  EXPECT_THAT(Step(set_.get(), Header("a", 0, 1), gradient_), IsOk());
}

TEST_F(ExactlyOnceTest, StepsWithoutRequestIdDoNotEndEachOther) {
  StepDelivery first = BeginStep(set_.get(), Header());
  StepDelivery second = BeginStep(set_.get(), Header());
  EXPECT_THAT(Finish(set_.get(), &first, gradient_), IsOk());
  EXPECT_THAT(Finish(set_.get(), &second, gradient_), IsOk());
}

TEST_F(ExactlyOnceTest, AnAttemptEndsOneThatWaitsToBeAdmittedAndTakesItsPlace) {
  const int64_t kStepBytes = BlockPool::ChargedBytes(100016 + 230000 + 16) + 3 * 8;  // of LargeSpec, with its coverage
  TestServer server({.inflight_bytes = kStepBytes});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(LargeSpec());
  std::optional<StepDelivery> other = BeginStep(set.get(), Header());
  StepDelivery first = BeginStep(set.get(), Header("a", 0, 1));
  StepDelivery second = BeginStep(set.get(), Header("a", 0, 2));
  EXPECT_THAT(first.Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
  other.reset();
  server.clock().RunDue();
  server.AwaitIdle();
  EXPECT_FALSE(first.admitted());
  EXPECT_TRUE(second.admitted());
}

TEST_F(ExactlyOnceTest, WhatBecameOfAStepCanBeAskedFor) {
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_UNKNOWN);
  StepDelivery delivery = BeginStep(set_.get(), Header("a", 0));
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_IN_FLIGHT);
  ASSERT_THAT(Finish(set_.get(), &delivery, gradient_), IsOk());
  const absl::StatusOr<v1::GetStepResultResponse> response = StepResultOf(*set_, "a");
  EXPECT_EQ(response->state(), v1::STEP_STATE_COMMITTED);
  EXPECT_EQ(response->result().step(), 1);
  EXPECT_TRUE(response->result().replayed());
  EXPECT_EQ(response->step(), 1);
  EXPECT_EQ(response->incarnation(), set_->Describe().incarnation());
}

TEST_F(ExactlyOnceTest, AskingNeedsAValidRequestIdAndTheIncarnation) {
  EXPECT_THAT(StepResultOf(*set_, ""), RefusesField("request_id"));
  v1::GetStepResultRequest request;
  request.set_request_id("a");
  request.set_incarnation(set_->Describe().incarnation() + 1);
  EXPECT_THAT(set_->FindStepResult(request), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
}

// A large set whose steps stay in the kernel until they are let go: complete, and not committed.
class HeldCommitTest : public ::testing::Test {
 protected:
  HeldCommitTest() : server_({.backend = &backend_}), set_(server_.MakeSet(Marked(LargeSpec()))) {}

  // A step that is complete and inside of the kernel.
  StepDelivery Hold(const v1::StepHeader& header) {
    StepDelivery delivery = BeginStep(set_.get(), header);
    EXPECT_THAT(delivery.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
    EXPECT_THAT(delivery.Complete(), IsOk());
    backend_.AwaitHeld();
    return delivery;
  }

  GatedBackend backend_;
  TestServer server_;
  std::shared_ptr<ParameterSet> set_;
  const Values gradient_ = Gradient(100001 + 229993 + 3, 1);
};

TEST_F(HeldCommitTest, AnOlderAttemptThatIsCompleteCommitsAndTheNewerFindsItsResult) {
  StepDelivery older = Hold(Header("a", 0, 1));
  EXPECT_EQ(StepResultOf(*set_, "a")->state(), v1::STEP_STATE_IN_FLIGHT);
  StepDelivery newer = BeginStep(set_.get(), Header("a", 0, 2));
  ASSERT_TRUE(newer.admitted());
  EXPECT_FALSE(older.done());
  ASSERT_THAT(newer.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
  ASSERT_THAT(newer.Complete(), IsOk());
  backend_.LetGo();
  EXPECT_FALSE(older.Take()->result.replayed());
  const absl::StatusOr<StepReply> reply = newer.Take();
  ASSERT_THAT(reply, IsOk());
  EXPECT_TRUE(reply->result.replayed());
  EXPECT_EQ(reply->result.step(), 1);
  EXPECT_EQ(set_->Describe().step(), 1);
}

TEST_F(HeldCommitTest, ACancelledStepThatIsCompleteStillCommitsForItsRetry) {
  { StepDelivery older = Hold(Header("a", 0, 1)); }
  StepDelivery newer = BeginStep(set_.get(), Header("a", 0, 2));
  ASSERT_THAT(newer.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
  ASSERT_THAT(newer.Complete(), IsOk());
  backend_.LetGo();
  EXPECT_TRUE(newer.Take()->result.replayed());
  EXPECT_EQ(set_->Describe().step(), 1);
}

TEST_F(HeldCommitTest, AnIdTakenAgainWithAnotherHeaderMeanwhileIsRefusedAtItsTurn) {
  StepDelivery older = Hold(Header("a", 0));
  StepDelivery reused = BeginStep(set_.get(), Header("a", 1));
  ASSERT_THAT(reused.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
  ASSERT_THAT(reused.Complete(), IsOk());
  backend_.LetGo();
  EXPECT_THAT(older.Take(), IsOk());
  EXPECT_THAT(reused.Take(), FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
}

TEST_F(HeldCommitTest, StepsCommitInTheOrderInWhichTheyBecameComplete) {
  StepDelivery first = Hold(Header("a", 0));
  StepDelivery third = BeginStep(set_.get(), Header("c", 2));
  StepDelivery second = BeginStep(set_.get(), Header("b", 1));
  for (StepDelivery* delivery : {&second, &third}) {
    ASSERT_THAT(delivery->Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
    ASSERT_THAT(delivery->Complete(), IsOk());
    EXPECT_FALSE(delivery->done());
  }
  backend_.LetGo();
  EXPECT_EQ(first.Take()->result.step(), 1);
  EXPECT_EQ(second.Take()->result.step(), 2);
  EXPECT_EQ(third.Take()->result.step(), 3);
}

// What other threads do just when a step has begun to wait.
class InterruptingClock final : public Clock {
 public:
  explicit InterruptingClock(absl::AnyInvocable<void()> interruption) : interruption_(std::move(interruption)) {}

  absl::Duration Now() override { return clock_.Now(); }
  TimerId Schedule(absl::Duration delay, absl::AnyInvocable<void()> callback) override {
    const TimerId timer = clock_.Schedule(delay, std::move(callback));
    if (delay > absl::ZeroDuration()) interruption_();
    return timer;
  }
  bool Cancel(TimerId timer) override { return clock_.Cancel(timer); }

 private:
  ManualClock clock_;
  absl::AnyInvocable<void()> interruption_;
};

TEST(InterruptedAdmissionTest, AStepThatEndsWhileItBeginsToWaitLosesItsPlace) {
  std::shared_ptr<StepAttempt> second;
  InterruptingClock clock([&second] { second->Cancel(); });
  const int64_t kStepBytes = BlockPool::ChargedBytes(100016 + 230000 + 16) + 3 * 8;
  TestServer server;
  Budget inflight("inflight", kStepBytes, &clock);
  Resources resources = server.resources();
  resources.inflight = &inflight;
  const std::shared_ptr<ParameterSet> set = *ParameterSet::Create(resources, LargeSpec());
  std::optional<StepDelivery> first = BeginStep(set.get(), Header());
  first->Await();
  ASSERT_TRUE(first->admitted());
  second = set->NewStep(Header(), std::make_shared<Recorder<StepAttempt, StepReply>>());
  second->Start();
  first.reset();
  second.reset();
  server.AwaitIdle();
  EXPECT_EQ(inflight.used(), 0);
  StepDelivery third = BeginStep(set.get(), Header());
  third.Await();
  EXPECT_TRUE(third.admitted());
}

}  // namespace
}  // namespace adamant::core
