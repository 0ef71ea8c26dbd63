// A device that answers later, from its own thread: a turn lasts until then, and nobody waits for it on a thread.
#include "tests/core/late_backend.h"

#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

class LateBackendTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  // The device's thread may still hold what it has answered with.
  ~LateBackendTest() override {
    backend_.LetGo();
    backend_.AwaitIdle();
  }

  // A step that is complete, and under way on the device.
  StepDelivery BeginHeldStep() {
    backend_.Hold();
    StepDelivery step = BeginStep(set_.get(), Header("held", 0));
    EXPECT_THAT(step.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
    EXPECT_THAT(step.Complete(), IsOk());
    return step;
  }

  LateBackend backend_;
  TestServer server_{{.backend = &backend_}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  SequentialAdam model_{GetParam()};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(Every, LateBackendTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(LateBackendTest, StepsWritesAndReadsEndAsOnTheProcessor) {
  for (int64_t step = 0; step < 3; ++step) {
    ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
    model_.Apply(gradient_);
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  }
  const Arrays arrays = model_.arrays();
  EXPECT_THAT(Write(set_.get(), FullHeader(arrays.step), arrays), IsOk());
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(LateBackendTest, CallersDoNotWaitForTheDevice) {
  StepDelivery held = BeginHeldStep();
  EXPECT_FALSE(held.done());
  StepDelivery next = BeginStep(set_.get(), Header("next", 1));
  ASSERT_THAT(next.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
  ASSERT_THAT(next.Complete(), IsOk());
  PendingRead moments(set_.get(), FullReadRequest());
  EXPECT_FALSE(next.done());
  EXPECT_FALSE(moments.begun());
  // What is published stays readable, and what is under way is known.
  EXPECT_EQ((*Read(set_.get(), ReadRequest()))->header().step(), 0);
  EXPECT_EQ(StepResultOf(*set_, "held")->state(), v1::STEP_STATE_IN_FLIGHT);
  backend_.LetGo();
  EXPECT_EQ(held.Take()->result.step(), 1);
  EXPECT_EQ(next.Take()->result.step(), 2);
  EXPECT_EQ((*moments.Take())->header().step(), 2);
}

TEST_P(LateBackendTest, AStepThatIsUnderWayOutlivesItsClientAndTheDoorToItsSet) {
  { const StepDelivery held = BeginHeldStep(); }
  const std::shared_ptr<ParameterSet> set = std::move(set_);
  backend_.LetGo();
  backend_.AwaitIdle();
  EXPECT_EQ(set->Describe().step(), 1);
}

TEST_P(LateBackendTest, ALoadThatFailsPoisonsTheSetUntilAFullWrite) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  const auto poisoned = FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED);
  backend_.FailLoads(true);
  EXPECT_THAT(Write(set_.get(), FullHeader(1), model_.arrays()).status(), poisoned);
  EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_THAT(Step(set_.get(), Header(), gradient_).status(), poisoned);
  // The write had taken what was published before.
  EXPECT_THAT(Read(set_.get(), ReadRequest()).status(), poisoned);
  EXPECT_THAT(Read(set_.get(), FullReadRequest()).status(), poisoned);
  backend_.FailLoads(false);
  EXPECT_THAT(Write(set_.get(), FullHeader(1), model_.arrays()), IsOk());
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(LateBackendTest, AStagedWriteWhoseLoadFailsLeavesTheParametersReadable) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  backend_.FailLoads(true);
  EXPECT_THAT(Write(set_.get(), ParametersHeader(), model_.arrays()).status(),
              FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  EXPECT_TRUE(SameBits(*Fetch(**Read(set_.get(), ReadRequest()), v1::SLOT_PARAMETER), model_.arrays().parameters));
}

}  // namespace
}  // namespace adamant::core
