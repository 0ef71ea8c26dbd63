// A commit that fails half way: nothing pretends, and nobody else notices.
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

constexpr int kBlocks = 6;  // of LargeSpec

class PoisonTest : public ::testing::TestWithParam<int> {
 protected:
  PoisonTest()
      : server_({.compute_threads = 2, .backend = &backend_}),
        set_(server_.MakeSet(Marked(LargeSpec()))),
        gradient_(Gradient(set_->schema().parameter_count(), 1)) {
    EXPECT_THAT(Step(set_.get(), Header("applied", 0), gradient_), IsOk());
    before_ = *FetchState(set_.get());
  }

  absl::Status Poison() {
    backend_.FailAt(GetParam());
    absl::Status status = Step(set_.get(), Header("failed", 1), gradient_).status();
    backend_.FailAt(-1);
    return status;
  }

  FaultyBackend backend_;
  TestServer server_;
  std::shared_ptr<ParameterSet> set_;
  Values gradient_;
  Arrays before_;
};

INSTANTIATE_TEST_SUITE_P(EveryBlock, PoisonTest, ::testing::Range(0, kBlocks));

TEST_P(PoisonTest, ParametersStayReadableAndSayWhatTheyAre) {
  ASSERT_EQ((set_->schema().flat_size() + kBlockElements - 1) / kBlockElements, kBlocks);
  EXPECT_THAT(Poison(), FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_EQ(set_->Describe().step(), 1);
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), ReadRequest());
  ASSERT_THAT(reading, IsOk());
  EXPECT_EQ((*reading)->header().state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_EQ((*reading)->header().step(), 1);
  EXPECT_TRUE(SameBits(*Fetch(**reading, v1::SLOT_PARAMETER), before_.parameters));
}

TEST_P(PoisonTest, NothingIsToldOfTheBlockThatFailed) {
  // With one thread the blocks are computed in order, and the listener hears of the first four.
  TestServer server({.backend = &backend_});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(Marked(LargeSpec()));
  backend_.FailAt(GetParam());
  auto recorder = std::make_shared<ComputedRecorder>();
  const std::shared_ptr<StepAttempt> attempt = set->NewStep(Header("failed", 0), recorder);
  attempt->Start();
  ASSERT_THAT(Deliver(attempt.get(), set->schema(), gradient_), IsOk());
  server.StopComputing();
  EXPECT_THAT(recorder->reply().status(), FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  EXPECT_LE(recorder->values().size(), static_cast<size_t>(GetParam()) * kBlockElements);
}

TEST_P(PoisonTest, EverythingElseIsDataLoss) {
  StepDelivery arriving = BeginStep(set_.get(), Header());
  ASSERT_THAT(arriving.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  ASSERT_THAT(write.Send(Cut(set_->schema(), kBlockElements), before_.parameters), IsOk());
  ASSERT_FALSE(Poison().ok());

  const auto data_loss = FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED);
  ASSERT_THAT(arriving.Complete(), IsOk());
  EXPECT_THAT(arriving.Take(), data_loss);
  ASSERT_THAT(write.Complete(), IsOk());
  EXPECT_THAT(write.Take(), data_loss);
  write = BeginWrite(set_.get(), ParametersHeader());
  EXPECT_THAT(write.Take(), data_loss);
  EXPECT_THAT(Step(set_.get(), Header(), gradient_), data_loss);
  EXPECT_THAT(Step(set_.get(), Header("failed", 1, 2), gradient_), data_loss);
  EXPECT_THAT(Step(set_.get(), Header("applied", 0, 2), gradient_), data_loss);
  EXPECT_THAT(Read(set_.get(), FullReadRequest()), data_loss);
  EXPECT_THAT(StepResultOf(*set_, "failed"), data_loss);
  EXPECT_THAT(StepResultOf(*set_, "applied"), data_loss);
}

TEST_P(PoisonTest, AFullWriteHeals) {
  ASSERT_FALSE(Poison().ok());
  ASSERT_THAT(Write(set_.get(), FullHeader(before_.step), before_), IsOk());
  EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  EXPECT_TRUE(*FetchState(set_.get()) == before_);
  EXPECT_EQ(StepResultOf(*set_, "failed")->state(), v1::STEP_STATE_UNKNOWN);

  // And the step that failed gives what it would have given.
  const std::shared_ptr<ParameterSet> other = server_.MakeSet(Marked(LargeSpec("other")));
  for (ParameterSet* set : {set_.get(), other.get(), other.get()}) {
    ASSERT_THAT(Step(set, Header(), gradient_), IsOk());
  }
  EXPECT_TRUE(*FetchState(set_.get()) == *FetchState(other.get()));
}

TEST_P(PoisonTest, ReadersOfTheStateBeforeKeepIt) {
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
  ASSERT_FALSE(Poison().ok());
  EXPECT_TRUE(*Fetch(**reading) == before_);
}

TEST_P(PoisonTest, OtherSetsGoOn) {
  const std::shared_ptr<ParameterSet> other = server_.MakeSet(LargeSpec("other"));
  const std::shared_ptr<ParameterSet> small = server_.MakeSet(SmallSpec());
  ASSERT_FALSE(Poison().ok());
  EXPECT_THAT(Step(other.get(), Header(), gradient_), IsOk());
  EXPECT_THAT(Step(small.get(), Header(), Gradient(65, 1)), IsOk());
}

TEST_P(PoisonTest, MemoryComesBackAllTheSame) {
  ASSERT_FALSE(Poison().ok());
  EXPECT_THAT(Delete(set_.get()), IsOk());
  set_.reset();
  server_.StopComputing();
  EXPECT_EQ(server_.used(), (UsedBytes{0, 0, 0}));
}

}  // namespace
}  // namespace adamant::core
