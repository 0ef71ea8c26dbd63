// While the system takes its time to find memory for one set's step, write or read, nobody else waits, and neither does
// who asked for it.
#include <atomic>
#include <memory>
#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/gate.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/core/system_calls.h"

namespace adamant::core {
namespace {

class MappingTest : public ::testing::Test {
 protected:
  MappingTest() {
    // Leaves idle what the next one needs.
    EXPECT_THAT(Step(other_.get(), Header(), gradient_of_other_), IsOk());
  }
  ~MappingTest() override { memory_.Open(); }

  // From here on whoever populates memory, or the first who does, stands still until `memory_` opens.
  void HoldMemory(bool first_only = false) {
    hold_.emplace([this, first_only] {
      if (populates_++ > 0 && first_only) return Populating::kDone;
      populating_.Open();
      memory_.Pass();
      return Populating::kDone;
    });
  }

  // Everybody else goes on: the callers, the clock, other sets.
  void ExpectOthersGoOn() {
    populating_.Pass();
    server_.clock().RunDue();
    EXPECT_THAT(Step(other_.get(), Header(), gradient_of_other_), IsOk());
    EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_READY);
    EXPECT_THAT(Read(set_.get(), ReadRequest()), IsOk());
  }

  TestServer server_{{.inflight_bytes = int64_t{2} << 20, .idle_arrays = 0}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(LargeSpec());
  const Values gradient_ = Gradient(set_->schema().parameter_count(), 1);
  std::shared_ptr<ParameterSet> other_ = server_.MakeSet(SmallSpec());
  const Values gradient_of_other_ = Gradient(other_->schema().parameter_count(), 2);
  std::atomic<int> populates_ = 0;
  Gate memory_;
  Gate populating_;
  std::optional<PopulateHook> hold_;
};

TEST_F(MappingTest, AStepsFirstMemory) {
  HoldMemory();
  StepDelivery step = BeginStep(set_.get(), Header());
  ExpectOthersGoOn();
  EXPECT_FALSE(step.admitted());
  memory_.Open();
  EXPECT_THAT(Finish(set_.get(), &step, gradient_), IsOk());
}

TEST_F(MappingTest, AStepThatHadToWaitForRoom) {
  std::optional<Grant> room = *server_.inflight().TryReserve(int64_t{1} << 20);
  StepDelivery step = BeginStep(set_.get(), Header());
  HoldMemory();
  room.reset();
  server_.clock().RunDue();
  ExpectOthersGoOn();
  memory_.Open();
  EXPECT_THAT(Finish(set_.get(), &step, gradient_), IsOk());
}

TEST_F(MappingTest, AWritesMemory) {
  HoldMemory();
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  ExpectOthersGoOn();
  EXPECT_FALSE(write.admitted());
  memory_.Open();
  write.Await();
  EXPECT_TRUE(write.admitted());
}

TEST_F(MappingTest, TheBlocksThatAReaderBringsWhileTheSetItselfSteps) {
  // Leaves idle what its next step needs.
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  StepDelivery step = BeginStep(set_.get(), Header());
  ASSERT_TRUE(step.admitted());
  HoldMemory();
  PendingRead read(set_.get(), FullReadRequest());
  ExpectOthersGoOn();
  EXPECT_THAT(Finish(set_.get(), &step, gradient_), IsOk());
  EXPECT_FALSE(read.begun());
  memory_.Open();
  EXPECT_EQ((*read.Take())->header().step(), 2);
}

TEST_F(MappingTest, WhatAFullWriteNeedsInPlaceOfBlocksThatAreRead) {
  const std::unique_ptr<Reading> reading = *Read(set_.get(), ReadRequest());
  HoldMemory();
  WriteDelivery write = BeginWrite(set_.get(), FullHeader(3));
  populating_.Pass();
  EXPECT_THAT(Step(other_.get(), Header(), gradient_of_other_), IsOk());
  EXPECT_FALSE(write.admitted());
  memory_.Open();
  write.Await();
  EXPECT_TRUE(write.admitted());
  EXPECT_TRUE(SameBits(*Fetch(*reading, v1::SLOT_PARAMETER), Values(gradient_.size())));
}

TEST_F(MappingTest, ASmallStepDoesNotWaitForALargeOnesMemory) {
  const std::shared_ptr<ParameterSet> fresh = server_.MakeSet(SmallSpec("fresh"));
  HoldMemory(/*first_only=*/true);
  StepDelivery large = BeginStep(set_.get(), Header());
  populating_.Pass();
  // More than lie idle.
  StepDelivery one = BeginStep(fresh.get(), Header());
  StepDelivery another = BeginStep(fresh.get(), Header());
  EXPECT_THAT(Finish(fresh.get(), &one, gradient_of_other_), IsOk());
  EXPECT_THAT(Finish(fresh.get(), &another, gradient_of_other_), IsOk());
  EXPECT_GT(populates_, 1);
  EXPECT_FALSE(large.admitted());
  memory_.Open();
  large.Await();
}

TEST_F(MappingTest, AStepBesideAFullReadPopulatesNothing) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  const std::unique_ptr<Reading> reading = *Read(set_.get(), FullReadRequest());
  server_.AwaitIdle();
  memory_.Open();
  HoldMemory();
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  EXPECT_EQ(populates_, 0);
}

TEST_F(MappingTest, AFullWriteThatIsCancelledBeforeItIsAdmittedChangesNothing) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  const Arrays before = *FetchState(set_.get());
  const std::unique_ptr<Reading> reading = *Read(set_.get(), FullReadRequest());
  server_.AwaitIdle();
  // Takes what lies idle.
  StepDelivery step = BeginStep(set_.get(), Header());
  step.Await();
  HoldMemory();
  {
    const WriteDelivery write = BeginWrite(set_.get(), FullHeader(3));
    populating_.Pass();
    EXPECT_FALSE(write.admitted());
  }
  memory_.Open();
  // Takes a turn, after the write's.
  EXPECT_FALSE(Delete(set_.get(), /*incarnation=*/0).ok());
  EXPECT_TRUE(*FetchState(set_.get()) == before);
}

}  // namespace
}  // namespace adamant::core
