// Reads: one snapshot each, whatever commits meanwhile, paid by the reader.
#include <algorithm>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;

constexpr absl::StatusCode kAborted = absl::StatusCode::kAborted;

class ReadTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  void StepOn() {
    const Values gradient = Gradient(model_.parameter_count(), 1 + model_.arrays().step);
    ASSERT_THAT(Step(set_.get(), Header(), gradient), IsOk());
    model_.Apply(gradient);
  }

  // Uses up what readers may hold.
  Grant FillReadBudget() { return *server_.read().TryReserve(server_.read().capacity() - server_.used().read); }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  SequentialModel model_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(EverySize, ReadTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(ReadTest, AReaderKeepsTheWholeStateOfOneStepWhileStepsGoOn) {
  std::vector<std::unique_ptr<Reading>> readings;
  std::vector<Arrays> expected;
  for (int i = 0; i < 5; ++i) {
    absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
    ASSERT_THAT(reading, IsOk());
    readings.push_back(*std::move(reading));
    expected.push_back(model_.arrays());
    StepOn();
  }
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(readings[i]->header().step(), i);
    EXPECT_EQ(readings[i]->header().incarnation(), set_->Describe().incarnation());
    EXPECT_EQ(readings[i]->header().state(), v1::PARAMETER_SET_STATE_READY);
    EXPECT_TRUE(*Fetch(*readings[i]) == expected[i]) << "step " << i;
  }
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

// Where a reading has it.
const float* FirstElement(const Reading& reading, v1::Slot slot) {
  const float* first = nullptr;
  reading.Visit(slot, 0, 1, [&first](const float* elements, int64_t) { first = elements; });
  return first;
}

TEST_P(ReadTest, WhatIsNotHeldAnyMoreIsWrittenInPlace) {
  const float* moments;
  {
    const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
    moments = FirstElement(**reading, v1::SLOT_EXP_AVG);
  }
  StepOn();
  EXPECT_EQ(FirstElement(**Read(set_.get(), FullReadRequest()), v1::SLOT_EXP_AVG), moments);
}

TEST_P(ReadTest, HeldMomentsAreReplacedByFreshBlocks) {
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), ReadRequest({v1::SLOT_EXP_AVG}));
  const float* moments = FirstElement(**reading, v1::SLOT_EXP_AVG);
  StepOn();
  EXPECT_NE(FirstElement(**Read(set_.get(), FullReadRequest()), v1::SLOT_EXP_AVG), moments);
  EXPECT_TRUE(SameBits(*Fetch(**reading, v1::SLOT_EXP_AVG), Values(model_.parameter_count())));
}

TEST_P(ReadTest, AReaderLetsGoOfBlocksOneByOneWhileStepsGoOn) {
  StepOn();
  const Arrays then = model_.arrays();
  std::unique_ptr<Reading> reading = *Read(set_.get(), FullReadRequest());
  // Another one needs what the first has let go of.
  const std::unique_ptr<Reading> other = *Read(set_.get(), FullReadRequest());
  const Schema& schema = reading->schema();
  for (const v1::Slot slot : {v1::SLOT_EXP_AVG, v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG_SQ}) {
    Values read(schema.flat_size());
    for (int64_t begin = 0; begin < schema.flat_size(); begin += kBlockElements / 2) {
      const int64_t end = std::min(begin + kBlockElements / 2, schema.flat_size());
      ASSERT_THAT(reading->Copy(slot, begin, end, read.data() + begin), IsOk());
      const int64_t before = server_.read().used();
      reading->ReleaseBefore(slot, end);
      const bool ends = end / kBlockElements > begin / kBlockElements;
      EXPECT_EQ(before - server_.read().used(), ends ? BlockPool::ChargedBytes(kBlockElements) : 0);
      StepOn();
    }
    const Values& expected = slot == v1::SLOT_PARAMETER ? then.parameters
                             : slot == v1::SLOT_EXP_AVG ? then.exp_avg
                                                        : then.exp_avg_sq;
    Values elements;
    for (const Schema::Tensor& tensor : schema.tensors()) {
      elements.insert(elements.end(), read.begin() + tensor.begin, read.begin() + tensor.end);
    }
    EXPECT_TRUE(SameBits(elements, expected));
  }
  reading.reset();
  EXPECT_TRUE(*Fetch(*other) == then);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(ReadTest, SlotsComeInTheOrderAskedForAndParametersByDefault) {
  EXPECT_THAT((*Read(set_.get(), ReadRequest()))->slots(), ElementsAre(v1::SLOT_PARAMETER));
  EXPECT_THAT((*Read(set_.get(), ReadRequest({v1::SLOT_EXP_AVG_SQ, v1::SLOT_PARAMETER})))->slots(),
              ElementsAre(v1::SLOT_EXP_AVG_SQ, v1::SLOT_PARAMETER));
}

TEST_P(ReadTest, ASlotIsKnownAndAskedForOnce) {
  EXPECT_THAT(Read(set_.get(), ReadRequest({v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG})), RefusesField("slots[1]"));
  EXPECT_THAT(Read(set_.get(), ReadRequest({v1::SLOT_UNSPECIFIED})), RefusesField("slots[0]"));
  EXPECT_THAT(Read(set_.get(), ReadRequest({static_cast<v1::Slot>(17)})), RefusesField("slots[0]"));
}

TEST_P(ReadTest, AnotherIncarnationIsAborted) {
  v1::ReadTensorsRequest request;
  request.set_incarnation(set_->Describe().incarnation() + 1);
  EXPECT_THAT(Read(set_.get(), request), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
}

TEST_P(ReadTest, NothingIsHeldUnlessTheSetIsNewer) {
  StepOn();
  v1::ReadTensorsRequest request;
  request.set_if_newer_than_step(1);
  const UsedBytes before = server_.used();
  absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  ASSERT_THAT(reading, IsOk());
  EXPECT_TRUE((*reading)->header().not_modified());
  EXPECT_EQ((*reading)->header().step(), 1);
  EXPECT_TRUE((*reading)->slots().empty());
  EXPECT_EQ(server_.used(), before);

  request.set_if_newer_than_step(0);
  reading = Read(set_.get(), request);
  EXPECT_FALSE((*reading)->header().not_modified());
  EXPECT_TRUE(SameBits(*Fetch(**reading, v1::SLOT_PARAMETER), model_.arrays().parameters));
}

TEST_P(ReadTest, AReadPaysFourBytesAParameterForEachSlotUntilItIsOver) {
  {
    const auto parameters = Read(set_.get(), ReadRequest());
    EXPECT_EQ(server_.used().read, ArrayBytes(*set_));
    const auto everything = Read(set_.get(), FullReadRequest());
    EXPECT_EQ(server_.used().read, 4 * ArrayBytes(*set_));
  }
  EXPECT_EQ(server_.used().read, 0);
}

TEST_P(ReadTest, AReadOfSomeTensorsPaysForTheirBlocksAloneAndLeavesTheOthersToSteps) {
  v1::ReadTensorsRequest request;
  request.add_tensors(1);
  absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  ASSERT_THAT(reading, IsOk());
  const Schema& schema = (*reading)->schema();
  const Schema::Tensor& tensor = schema.tensors()[1];
  EXPECT_EQ((*reading)->sizes()[0], 0);
  EXPECT_EQ((*reading)->sizes()[1], tensor.size());
  int64_t elements = 0;
  ForEachRun(tensor.begin, tensor.end, [&](int64_t block, int64_t, int64_t) {
    elements += std::min(kBlockElements, schema.flat_size() - block * kBlockElements);
  });
  EXPECT_EQ(server_.used().read, BlockPool::ChargedBytes(elements));
  Values before(tensor.size());
  ASSERT_THAT((*reading)->Copy(v1::SLOT_PARAMETER, tensor.begin, tensor.end, before.data()), IsOk());
  StepOn();
  Values after(tensor.size());
  ASSERT_THAT((*reading)->Copy(v1::SLOT_PARAMETER, tensor.begin, tensor.end, after.data()), IsOk());
  EXPECT_TRUE(SameBits(before, after));
  reading->reset();
  EXPECT_EQ(server_.used().read, 0);
}

TEST_P(ReadTest, AReadOfSomeTensorsOfEverySlotPaysForAllOfTheOptimizers) {
  v1::ReadTensorsRequest request = FullReadRequest();
  request.add_tensors(0);
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  ASSERT_THAT(reading, IsOk());
  EXPECT_EQ(server_.used().read, 3 * ArrayBytes(*set_));
  EXPECT_EQ((*reading)->sizes()[1], 0);
}

TEST_P(ReadTest, ATensorIsKnownAndAskedForOnce) {
  const auto with = [](const std::vector<int32_t>& tensors) {
    v1::ReadTensorsRequest request;
    request.mutable_tensors()->Add(tensors.begin(), tensors.end());
    return request;
  };
  EXPECT_THAT(Read(set_.get(), with({0, 0})), RefusesField("tensors[1]"));
  EXPECT_THAT(Read(set_.get(), with({1, 0})), RefusesField("tensors[1]"));
  EXPECT_THAT(Read(set_.get(), with({-1})), RefusesField("tensors[0]"));
  EXPECT_THAT(Read(set_.get(), with({0, 1000})), RefusesField("tensors[1]"));
}

TEST_P(ReadTest, AReadWithoutRoomIsRefusedAndAStepIsNot) {
  const absl::StatusOr<std::unique_ptr<Reading>> held = Read(set_.get(), FullReadRequest());
  const Grant grant = FillReadBudget();
  const absl::Status status = Read(set_.get(), ReadRequest()).status();
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED));
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  StepOn();
}

TEST_P(ReadTest, AReadThatMayAbortReadsWithoutRoomUntilTheNextCommit) {
  StepOn();
  const Grant grant = FillReadBudget();
  v1::ReadTensorsRequest request = FullReadRequest();
  request.set_may_abort(true);
  const UsedBytes before = server_.used();
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  ASSERT_THAT(reading, IsOk());
  EXPECT_EQ(server_.used(), before);
  EXPECT_TRUE(*Fetch(**reading) == model_.arrays());
  StepOn();
  float copy[16];
  for (const v1::Slot slot : {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ}) {
    EXPECT_THAT((*reading)->Copy(slot, 0, 16, copy), FailsWith(kAborted, v1::ERROR_REASON_SNAPSHOT_GONE));
  }
}

TEST_P(ReadTest, AReadThatMayAbortEndsWhenAFullWriteBegins) {
  const Grant grant = FillReadBudget();
  v1::ReadTensorsRequest request;
  request.set_may_abort(true);
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  float copy[16];
  ASSERT_THAT((*reading)->Copy(v1::SLOT_PARAMETER, 0, 16, copy), IsOk());
  const WriteDelivery write = BeginWrite(set_.get(), FullHeader(0));
  EXPECT_THAT((*reading)->Copy(v1::SLOT_PARAMETER, 0, 16, copy), FailsWith(kAborted, v1::ERROR_REASON_SNAPSHOT_GONE));
}

TEST_P(ReadTest, AReadThatMayAbortEndsWhenItsSetIsDeleted) {
  const Grant grant = FillReadBudget();
  v1::ReadTensorsRequest request;
  request.set_may_abort(true);
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  float copy[16];
  ASSERT_THAT(Delete(set_.get()), IsOk());
  EXPECT_THAT((*reading)->Copy(v1::SLOT_PARAMETER, 0, 16, copy), FailsWith(kAborted, v1::ERROR_REASON_SNAPSHOT_GONE));
}

TEST_P(ReadTest, AReadThatMayAbortIsPaidWhereThereIsRoom) {
  v1::ReadTensorsRequest request;
  request.set_may_abort(true);
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
  EXPECT_EQ(server_.used().read, ArrayBytes(*set_));
  StepOn();
  EXPECT_TRUE(SameBits(*Fetch(**reading, v1::SLOT_PARAMETER), Values(model_.parameter_count())));
}

TEST_P(ReadTest, RangesAreVisitedWhereTheyAreAndCopied) {
  StepOn();
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
  const int64_t size = set_->schema().flat_size();
  for (const v1::Slot slot : {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ}) {
    Values all(size);
    ASSERT_THAT((*reading)->Copy(slot, 0, size, all.data()), IsOk());
    int64_t begin = size / 3;
    (*reading)->Visit(slot, begin, size - 1, [&](const float* elements, int64_t count) {
      EXPECT_TRUE(std::equal(elements, elements + count, all.begin() + begin));
      begin += count;
    });
    EXPECT_EQ(begin, size - 1);
  }
}

TEST(ReadTurnTest, NothingWaitsForWhatAReaderDoesWithItsRead) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec());
  Gate done;
  set->BeginRead(FullReadRequest(), [&](const absl::StatusOr<std::unique_ptr<Reading>>& reading) {
    EXPECT_THAT(reading, IsOk());
    // Would never have its turn if the reader had it still.
    EXPECT_THAT(Step(set.get(), Header(), Gradient(set->schema().parameter_count(), 1)), IsOk());
    done.Open();
  });
  done.Pass();
}

class ReadDuringCommitTest : public ::testing::Test {
 protected:
  // A step inside of the kernel.
  void SetUp() override {
    ASSERT_THAT(step_.Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
    ASSERT_THAT(step_.Complete(), IsOk());
    backend_.AwaitHeld();
  }
  void TearDown() override { backend_.LetGo(); }

  GatedBackend backend_;
  TestServer server_{{.backend = &backend_}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(Marked(LargeSpec()));
  const Values gradient_ = Gradient(set_->schema().parameter_count(), 1);
  StepDelivery step_ = BeginStep(set_.get(), Header());
};

TEST_F(ReadDuringCommitTest, ParametersAreThoseOfTheStepBefore) {
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), ReadRequest());
  ASSERT_THAT(reading, IsOk());
  EXPECT_EQ((*reading)->header().step(), 0);
  backend_.LetGo();
  ASSERT_THAT(step_.Take(), IsOk());
  EXPECT_TRUE(SameBits(*Fetch(**reading, v1::SLOT_PARAMETER), Values(gradient_.size())));
}

TEST_F(ReadDuringCommitTest, AReadOfMomentsWaitsForThePublish) {
  PendingRead read(set_.get(), FullReadRequest());
  EXPECT_FALSE(read.begun());
  backend_.LetGo();
  const absl::StatusOr<std::unique_ptr<Reading>> reading = read.Take();
  ASSERT_THAT(reading, IsOk());
  EXPECT_EQ((*reading)->header().step(), 1);
  EXPECT_TRUE(SameBits(Fetch(**reading)->parameters, Parameters(*step_.Take())));
}

TEST_F(ReadDuringCommitTest, ADeleteWaitsForTheCommitAndTheWaitingReadGetsItsState) {
  PendingRead read(set_.get(), FullReadRequest());
  Gate deleted;
  set_->Delete(
      {}, [] {}, [&deleted](absl::Status) { deleted.Open(); });
  backend_.LetGo();
  deleted.Pass();
  EXPECT_EQ((*read.Take())->header().step(), 1);
  EXPECT_THAT(step_.Take(), IsOk());
}

TEST(ReadThatMayAbortTest, ACommitTakesTheMomentsAtItsTurnAndTheParametersAtItsPublish) {
  GatedBackend backend;
  TestServer server({.read_bytes = 16, .backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(Marked(LargeSpec()));
  v1::ReadTensorsRequest request = FullReadRequest();
  request.set_may_abort(true);
  const std::unique_ptr<Reading> reading = *Read(set.get(), request);
  StepDelivery step = BeginStep(set.get(), Header());
  ASSERT_THAT(step.Send(Cut(set->schema(), kBlockElements), Values(set->schema().parameter_count())), IsOk());
  float copy[16];
  EXPECT_THAT(reading->Copy(v1::SLOT_EXP_AVG, 0, 16, copy), IsOk());
  ASSERT_THAT(step.Complete(), IsOk());
  backend.AwaitHeld();

  const auto gone = FailsWith(kAborted, v1::ERROR_REASON_SNAPSHOT_GONE);
  EXPECT_THAT(reading->Copy(v1::SLOT_EXP_AVG, 0, 16, copy), gone);
  EXPECT_THAT(reading->Copy(v1::SLOT_PARAMETER, 0, 16, copy), IsOk());
  backend.LetGo();
  ASSERT_THAT(step.Take(), IsOk());
  EXPECT_THAT(reading->Copy(v1::SLOT_PARAMETER, 0, 16, copy), gone);
}

}  // namespace
}  // namespace adamant::core
