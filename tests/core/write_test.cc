// Writes: which kind goes straight into the state, what each leaves behind when it breaks, and what it ends.
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/gate.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

constexpr absl::StatusCode kAborted = absl::StatusCode::kAborted;
constexpr absl::StatusCode kPrecondition = absl::StatusCode::kFailedPrecondition;

// A state that somebody might restore.
Arrays SomeArrays(int64_t parameter_count, int64_t step) {
  Arrays arrays = {.step = step,
                   .parameters = Gradient(parameter_count, 11),
                   .exp_avg = Gradient(parameter_count, 12),
                   .exp_avg_sq = Gradient(parameter_count, 13)};
  for (float& v : arrays.exp_avg_sq) v = v * v;
  return arrays;
}

class WriteTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  std::shared_ptr<ParameterSet> MakeSet(v1::Initialization initialization) {
    v1::ParameterSetSpec spec = GetParam();
    spec.set_initialization(initialization);
    return server_.MakeSet(spec);
  }

  // A set that has taken two steps.
  std::shared_ptr<ParameterSet> MakeSteppedSet() {
    const std::shared_ptr<ParameterSet> set = MakeSet(v1::INITIALIZATION_ZEROS);
    for (int step = 0; step < 2; ++step) {
      EXPECT_THAT(Step(set.get(), Header(absl::StrCat("step ", step), step), gradient_), IsOk());
      model_.Apply(gradient_);
    }
    server_.AwaitIdle();
    return set;
  }

  TestServer server_;
  SequentialModel model_{GetParam()};
  const Arrays arrays_ = SomeArrays(model_.parameter_count(), 1000);
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(EverySize, WriteTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(WriteTest, ANewSetAwaitsItsFirstWrite) {
  const std::shared_ptr<ParameterSet> set = MakeSet(v1::INITIALIZATION_WRITTEN);
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  EXPECT_THAT(Step(set.get(), Header(), gradient_), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
  EXPECT_THAT(Read(set.get(), ReadRequest()), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));

  const uint64_t before = set->Describe().incarnation();
  const absl::StatusOr<v1::WriteTensorsResponse> response = Write(set.get(), ParametersHeader(), arrays_);
  ASSERT_THAT(response, IsOk());
  EXPECT_NE(response->incarnation(), before);
  EXPECT_EQ(response->incarnation(), set->Describe().incarnation());
  EXPECT_EQ(response->step(), 0);
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_READY);

  *model_.mutable_arrays() = {.step = 0,
                              .parameters = arrays_.parameters,
                              .exp_avg = Values(model_.parameter_count()),
                              .exp_avg_sq = Values(model_.parameter_count())};
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
  ASSERT_THAT(Step(set.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
}

TEST_P(WriteTest, TheFirstWriteGoesStraightIntoTheStateWithoutAGrant) {
  const std::shared_ptr<ParameterSet> set = MakeSet(v1::INITIALIZATION_WRITTEN);
  const WriteDelivery write = BeginWrite(set.get(), ParametersHeader());
  EXPECT_TRUE(write.admitted());
  EXPECT_EQ(server_.used().inflight, 0);
}

TEST_P(WriteTest, AFirstWriteThatBreaksMayBeRepeatedInItsMode) {
  const std::shared_ptr<ParameterSet> set = MakeSet(v1::INITIALIZATION_WRITTEN);
  {
    WriteDelivery write = BeginWrite(set.get(), ParametersHeader());
    ASSERT_THAT(write.Send({0, 0, 3, 0}, arrays_.parameters, v1::SLOT_PARAMETER), IsOk());
  }
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  EXPECT_THAT(Write(set.get(), ParametersHeader(), arrays_), IsOk());
}

TEST_P(WriteTest, ParametersAreReplacedInOneGoAndMomentsAndStepKept) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  WriteDelivery write = BeginWrite(set.get(), ParametersHeader());
  ASSERT_THAT(write.Send(Cut(set->schema(), 1000), arrays_.parameters), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  ASSERT_THAT(write.Complete(), IsOk());
  EXPECT_EQ(write.Take()->step(), 2);
  model_.mutable_arrays()->parameters = arrays_.parameters;
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
}

TEST_P(WriteTest, AParametersWriteThatBreaksChangesNothing) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  const v1::ParameterSet before = set->Describe();
  const UsedBytes used = server_.used();
  {
    WriteDelivery cut = BeginWrite(set.get(), ParametersHeader());
    ASSERT_THAT(cut.Send({0, 0, 3, 0}, arrays_.parameters), IsOk());
  }
  {
    WriteDelivery incomplete = BeginWrite(set.get(), ParametersHeader());
    EXPECT_THAT(incomplete.Complete(), RefusesChunk(v1::ERROR_REASON_INCOMPLETE, 0, 0));
  }
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
  EXPECT_EQ(set->Describe().SerializeAsString(), before.SerializeAsString());
  EXPECT_EQ(StepResultOf(*set, "step 1")->state(), v1::STEP_STATE_COMMITTED);
  EXPECT_EQ(server_.used(), used);
}

TEST_P(WriteTest, AFullWriteRestoresBitForBit) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  const absl::StatusOr<v1::WriteTensorsResponse> response = Write(set.get(), FullHeader(1000), arrays_);
  ASSERT_THAT(response, IsOk());
  EXPECT_EQ(response->step(), 1000);
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
  *model_.mutable_arrays() = arrays_;
  ASSERT_THAT(Step(set.get(), Header("a", 1000), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
}

TEST_P(WriteTest, FromItsFirstMessageToItsCommitAFullWriteLeavesTheSetUninitialized) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  StepDelivery arriving = BeginStep(set.get(), Header());
  ASSERT_THAT(arriving.Send(Cut(set->schema(), kBlockElements), gradient_), IsOk());
  WriteDelivery write = BeginWrite(set.get(), FullHeader(7));
  ASSERT_TRUE(write.admitted());
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  EXPECT_THAT(Read(set.get(), ReadRequest()), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
  EXPECT_THAT(Step(set.get(), Header(), gradient_), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
  ASSERT_THAT(arriving.Complete(), IsOk());
  EXPECT_THAT(arriving.Take(), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
}

TEST_P(WriteTest, AFullWriteThatBreaksIsHealedByAFullWriteOnly) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  {
    WriteDelivery write = BeginWrite(set.get(), FullHeader(7));
    ASSERT_THAT(write.Send({0, 0, 3, 0}, arrays_.parameters), IsOk());
  }
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  EXPECT_THAT(Read(set.get(), FullReadRequest()), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
  EXPECT_THAT(Write(set.get(), ParametersHeader(), arrays_), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
  ASSERT_THAT(Write(set.get(), FullHeader(1000), arrays_), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
}

TEST_P(WriteTest, AReaderKeepsItsSnapshotThroughAFullWrite) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set.get(), FullReadRequest());
  ASSERT_THAT(reading, IsOk());
  ASSERT_THAT(Write(set.get(), FullHeader(1000), arrays_), IsOk());
  EXPECT_TRUE(*Fetch(**reading) == model_.arrays());
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
}

TEST_P(WriteTest, AWriteEndsStepsThatHaveNotArrivedAndForgetsThoseThatHave) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  StepDelivery arriving = BeginStep(set.get(), Header("a", 2));
  ASSERT_THAT(Write(set.get(), ParametersHeader(), arrays_), IsOk());
  ASSERT_TRUE(arriving.done());
  EXPECT_THAT(arriving.Take(), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_EQ(StepResultOf(*set, "step 1")->state(), v1::STEP_STATE_UNKNOWN);
  EXPECT_THAT(Step(set.get(), Header("a", 2, 2), gradient_), IsOk());
}

TEST_P(WriteTest, AWriteIsRepeatedByItsRequestId) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  const absl::StatusOr<v1::WriteTensorsResponse> first = Write(set.get(), FullHeader(1000, "w"), arrays_);
  ASSERT_THAT(first, IsOk());
  EXPECT_FALSE(first->replayed());
  ASSERT_THAT(Step(set.get(), Header(), gradient_), IsOk());
  WriteDelivery retry = BeginWrite(set.get(), FullHeader(1000, "w"));
  ASSERT_TRUE(retry.admitted());
  EXPECT_THAT(retry.Send({99, 0, 1, 0}, arrays_.parameters), IsOk());
  ASSERT_THAT(retry.Complete(), IsOk());
  const absl::StatusOr<v1::WriteTensorsResponse> second = retry.Take();
  ASSERT_THAT(second, IsOk());
  EXPECT_TRUE(second->replayed());
  EXPECT_EQ(second->incarnation(), first->incarnation());
  EXPECT_EQ(set->Describe().step(), 1001);
  EXPECT_THAT(Write(set.get(), FullHeader(1001, "w"), arrays_),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
}

TEST_P(WriteTest, AWriteWhoseStateIsLostIsWrittenAgain) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  ASSERT_THAT(Write(set.get(), FullHeader(1000, "w"), arrays_), IsOk());
  { const WriteDelivery broken = BeginWrite(set.get(), FullHeader(7)); }
  const absl::StatusOr<v1::WriteTensorsResponse> again = Write(set.get(), FullHeader(1000, "w"), arrays_);
  ASSERT_THAT(again, IsOk());
  EXPECT_FALSE(again->replayed());
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
}

TEST_P(WriteTest, ARepeatedWriteThatIsOvertakenByAnotherIsAborted) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  ASSERT_THAT(Write(set.get(), FullHeader(1000, "w"), arrays_), IsOk());
  WriteDelivery retry = BeginWrite(set.get(), FullHeader(1000, "w"));
  ASSERT_THAT(Write(set.get(), FullHeader(5, "x"), arrays_), IsOk());
  ASSERT_THAT(retry.Complete(), IsOk());
  EXPECT_THAT(retry.Take(), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
}

TEST_P(WriteTest, OneWriteAtATime) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  for (const v1::WriteHeader& header : {ParametersHeader("first"), FullHeader(3, "first")}) {
    std::optional<WriteDelivery> first = BeginWrite(set.get(), header);
    EXPECT_THAT(Write(set.get(), FullHeader(7), arrays_), FailsWith(kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS));
    EXPECT_THAT(SendAll(set.get(), &*first, header, arrays_), IsOk());
    first.reset();
  }
  EXPECT_THAT(Write(set.get(), FullHeader(7), arrays_), IsOk());
}

TEST_P(WriteTest, ARepeatedWriteTakesOverFromItsOlderAttempt) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  for (const v1::WriteHeader& header : {ParametersHeader("first"), FullHeader(1000, "second")}) {
    std::optional<WriteDelivery> older = BeginWrite(set.get(), header);
    older->Await();
    ASSERT_THAT(older->Send({0, 0, 3, 0}, Values(3, 77.0f), v1::SLOT_PARAMETER), IsOk());
    WriteDelivery newer = BeginWrite(set.get(), header);
    EXPECT_THAT(older->Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
    // Somebody may be filling the memory that both write to.
    server_.clock().RunDue();
    server_.AwaitIdle();
    EXPECT_FALSE(newer.admitted() || newer.done());
    older.reset();
    server_.clock().RunDue();
    server_.AwaitIdle();
    newer.Await();
    ASSERT_THAT(SendAll(set.get(), &newer, header, arrays_), IsOk());
    ASSERT_THAT(newer.Complete(), IsOk());
    const absl::StatusOr<v1::WriteTensorsResponse> response = newer.Take();
    ASSERT_THAT(response, IsOk());
    EXPECT_FALSE(response->replayed());
  }
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
  EXPECT_EQ(server_.used().inflight, 0);
}

TEST_P(WriteTest, ARepeatedWriteFindsWhatItsOlderAttemptCompleted) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  // A delete that is not for this incarnation holds the turn, and leaves the set as it is.
  Gate deleting;
  Gate go_on;
  std::thread turn([&] {
    set->Delete(
        set->Describe().incarnation() + 1, [] {},
        [&](const absl::Status&) {
          deleting.Open();
          go_on.Pass();
        });
  });
  deleting.Pass();
  WriteDelivery older = BeginWrite(set.get(), ParametersHeader("w"));
  ASSERT_THAT(SendAll(set.get(), &older, ParametersHeader("w"), arrays_), IsOk());
  ASSERT_THAT(older.Complete(), IsOk());
  WriteDelivery newer = BeginWrite(set.get(), ParametersHeader("w"));
  EXPECT_FALSE(older.done() || newer.admitted() || newer.done());
  go_on.Open();
  turn.join();
  server_.clock().RunDue();
  server_.AwaitIdle();
  ASSERT_TRUE(newer.admitted());
  EXPECT_THAT(Write(set.get(), ParametersHeader("x"), arrays_), IsOk())
      << "a repeated write that has nothing to write holds others up";
  EXPECT_THAT(older.Take(), IsOk());
}

TEST_P(WriteTest, AnotherHeaderUnderTheSameNameEndsNothing) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  WriteDelivery first = BeginWrite(set.get(), FullHeader(1000, "w"));
  first.Await();
  EXPECT_THAT(Write(set.get(), ParametersHeader("w"), arrays_),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
  ASSERT_THAT(SendAll(set.get(), &first, FullHeader(1000, "w"), arrays_), IsOk());
  ASSERT_THAT(first.Complete(), IsOk());
  EXPECT_THAT(first.Take(), IsOk());
}

TEST_P(WriteTest, OnlyTheNewestAttemptOfARepeatedWriteWaits) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  std::optional<WriteDelivery> first = BeginWrite(set.get(), FullHeader(1000, "w"));
  first->Await();
  WriteDelivery second = BeginWrite(set.get(), FullHeader(1000, "w"));
  EXPECT_THAT(Write(set.get(), FullHeader(7, "x"), arrays_), FailsWith(kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS));
  EXPECT_THAT(Write(set.get(), FullHeader(7), arrays_), FailsWith(kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS));
  WriteDelivery third = BeginWrite(set.get(), FullHeader(1000, "w"));
  EXPECT_THAT(second.Take(), FailsWith(kAborted, v1::ERROR_REASON_SUPERSEDED));
  first.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  third.Await();
  EXPECT_TRUE(third.admitted());
}

TEST_P(WriteTest, ARepeatedWriteThatGivesUpWaitingIsForgotten) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  std::optional<WriteDelivery> older = BeginWrite(set.get(), FullHeader(1000, "w"));
  older->Await();
  { const WriteDelivery newer = BeginWrite(set.get(), FullHeader(1000, "w")); }
  older.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  EXPECT_THAT(Write(set.get(), FullHeader(1000), arrays_), IsOk());
}

TEST_P(WriteTest, AnyWriteWaitsForTheEndOfOneThatIsOver) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  std::optional<WriteDelivery> cancelled = BeginWrite(set.get(), FullHeader(7));
  cancelled->Await();
  cancelled->Cancel();
  WriteDelivery next = BeginWrite(set.get(), FullHeader(1000));
  EXPECT_FALSE(next.admitted() || next.done());
  cancelled.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  next.Await();
  EXPECT_TRUE(next.admitted());
}

TEST_P(WriteTest, AWriteThatWaitsEndsWithItsSet) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  std::optional<WriteDelivery> older = BeginWrite(set.get(), FullHeader(1000, "w"));
  older->Await();
  WriteDelivery newer = BeginWrite(set.get(), FullHeader(1000, "w"));
  ASSERT_THAT(Delete(set.get()), IsOk());
  older.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  EXPECT_THAT(newer.Take(), FailsWith(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST_P(WriteTest, AWriteThatHasFailedDoesNotHoldUpTheNext) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  for (const v1::WriteHeader& header : {ParametersHeader(), FullHeader(3)}) {
    WriteDelivery incomplete = BeginWrite(set.get(), header);
    ASSERT_FALSE(incomplete.Complete().ok());
    WriteDelivery malformed = BeginWrite(set.get(), header);
    ASSERT_FALSE(malformed.Send({99, 0, 1, 0}, arrays_.parameters).ok());
    EXPECT_THAT(Write(set.get(), FullHeader(1000), arrays_), IsOk());
    // Nor does it harm it.
    malformed.Send({0, 0, 1, 0}, Values(1, 77.0f)).IgnoreError();
    malformed.Complete().IgnoreError();
    EXPECT_TRUE(*FetchState(set.get()) == arrays_);
  }
}

TEST_P(WriteTest, TensorsWithoutElementsNeedNoChunk) {
  v1::ParameterSetSpec spec = WithEmptyTensors(GetParam());
  spec.set_initialization(v1::INITIALIZATION_WRITTEN);
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(spec);
  ASSERT_THAT(Write(set.get(), FullHeader(1000), arrays_), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
  ASSERT_THAT(Write(set.get(), ParametersHeader(), arrays_), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
}

TEST_P(WriteTest, AStagedWriteIsAdmittedLikeAStep) {
  const std::shared_ptr<ParameterSet> set = MakeSteppedSet();
  server_.StopComputing();
  const int64_t coverage = Coverage::MemoryBytes(static_cast<int64_t>(set->schema().tensors().size()));
  const int64_t paid = ArrayBytes(*set) > kSmallStepBytes ? ArrayBytes(*set) + coverage : 0;
  std::optional<WriteDelivery> write = BeginWrite(set.get(), ParametersHeader());
  EXPECT_EQ(server_.used().inflight, paid);
  ASSERT_THAT(write->Send(Cut(set->schema(), kBlockElements), arrays_.parameters), IsOk());
  ASSERT_THAT(write->Complete(), IsOk());
  ASSERT_THAT(write->Take(), IsOk());
  write.reset();
  EXPECT_EQ(server_.used().inflight, 0);
}

TEST(EmptySetTest, ASetWithoutAnyElementsIsWrittenAndRead) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(EmptySpec("empty", v1::INITIALIZATION_WRITTEN));
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  ASSERT_THAT(Write(set.get(), ParametersHeader(), {}), IsOk());
  EXPECT_EQ(FetchState(set.get())->step, 0);
  Arrays arrays;
  arrays.step = 7;
  ASSERT_THAT(Write(set.get(), FullHeader(7), arrays), IsOk());
  ASSERT_THAT(Write(set.get(), ParametersHeader(), arrays), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == arrays);
}

class WriteHeaderTest : public ::testing::Test {
 protected:
  absl::Status Refusal(const v1::WriteHeader& header) {
    WriteDelivery write = BeginWrite(set_.get(), header);
    EXPECT_FALSE(write.admitted());
    return write.done() ? write.Take().status() : absl::OkStatus();
  }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(SmallSpec());
  Arrays arrays_ = SomeArrays(65, 1000);
};

TEST_F(WriteHeaderTest, AModeIsNeeded) { EXPECT_THAT(Refusal(v1::WriteHeader()), RefusesField("header.mode")); }

TEST_F(WriteHeaderTest, AStepGoesWithModeFullAndOnlyWithIt) {
  v1::WriteHeader header = FullHeader(0);
  header.clear_step();
  EXPECT_THAT(Refusal(header), RefusesField("header.step"));
  header = ParametersHeader();
  header.set_step(0);
  EXPECT_THAT(Refusal(header), RefusesField("header.step"));
}

TEST_F(WriteHeaderTest, AStepIsFromZeroTo2To53) {
  EXPECT_THAT(Refusal(FullHeader(-1)), RefusesField("header.step"));
  EXPECT_THAT(Refusal(FullHeader((int64_t{1} << 53) + 1)), RefusesField("header.step"));
  EXPECT_EQ(Write(set_.get(), FullHeader(int64_t{1} << 53), arrays_)->step(), int64_t{1} << 53);
  // What could not be written back is not reached by a step either.
  const Values gradient = Gradient(set_->schema().parameter_count(), 1);
  EXPECT_THAT(Step(set_.get(), Header(), gradient).status(),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  EXPECT_EQ(set_->Describe().step(), int64_t{1} << 53);
  EXPECT_EQ(Write(set_.get(), FullHeader((int64_t{1} << 53) - 1), arrays_)->step(), (int64_t{1} << 53) - 1);
  EXPECT_THAT(Step(set_.get(), Header(), gradient), IsOk());
}

// As JavaScript has to: whole numbers from 2^53 on are not all there.
TEST_F(WriteHeaderTest, IncarnationsOfWritesFitInADouble) {
  std::set<uint64_t> incarnations;
  for (int i = 0; i < 1000; ++i) incarnations.insert(Write(set_.get(), ParametersHeader(), arrays_)->incarnation());
  EXPECT_EQ(incarnations.size(), 1000u);
  EXPECT_GE(*incarnations.begin(), 1u);
  EXPECT_LT(*incarnations.rbegin(), uint64_t{1} << 53);
  EXPECT_GT(*incarnations.rbegin(), uint64_t{1} << 52);
}

TEST_F(WriteHeaderTest, IncarnationAndSchemaAreChecked) {
  v1::WriteHeader header = ParametersHeader();
  header.set_incarnation(set_->Describe().incarnation() + 1);
  EXPECT_THAT(Refusal(header), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  header = ParametersHeader();
  header.set_schema_fingerprint(set_->schema().fingerprint() + 1);
  EXPECT_THAT(Refusal(header), FailsWith(kPrecondition, v1::ERROR_REASON_SCHEMA_MISMATCH));
  EXPECT_THAT(Refusal(ParametersHeader(std::string(65, 'a'))), RefusesField("header.request_id"));
}

TEST_F(WriteHeaderTest, ASlotThatTheModeDoesNotWriteIsRefused) {
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  EXPECT_THAT(write.Send({0, 0, 1, 0}, arrays_.exp_avg, v1::SLOT_EXP_AVG), RefusesField("slot"));
}

TEST_F(WriteHeaderTest, ASlotThatDoesNotExistIsRefused) {
  WriteDelivery write = BeginWrite(set_.get(), FullHeader(0));
  EXPECT_THAT(write.Send({0, 0, 1, 0}, arrays_.exp_avg, static_cast<v1::Slot>(99)), RefusesField("slot"));
}

TEST_F(WriteHeaderTest, ValuesOutOfRangeAreNamed) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const struct {
    v1::Slot slot;
    float good;
    std::vector<float> bad;
  } kCases[] = {
      {v1::SLOT_PARAMETER, -0x1p95f, {kNan, kInfinity, -kInfinity, 0x1.000002p95f, -0x1.000002p95f}},
      {v1::SLOT_EXP_AVG, 0x1p64f, {kNan, kInfinity, 0x1.000002p64f, -0x1.000002p64f}},
      {v1::SLOT_EXP_AVG_SQ, 0x1p127f, {kNan, kInfinity, -1e-30f, 0x1.000002p127f}},
  };
  for (const auto& c : kCases) {
    Values values(65);
    values[33] = c.good;
    for (const float bad : c.bad) {
      WriteDelivery write = BeginWrite(set_.get(), FullHeader(0));
      values[35] = bad;
      EXPECT_THAT(write.Send({0, 0, 32, 0}, values, c.slot), IsOk());
      EXPECT_THAT(write.Send({1, 0, 2, 32}, values, c.slot), IsOk());
      EXPECT_THAT(write.Send({1, 2, 14, 34}, values, c.slot), RefusesChunk(v1::ERROR_REASON_VALUE_OUT_OF_RANGE, 1, 3));
    }
  }
}

// Room for one delivery of LargeSpec, which a step has.
class WriteAdmissionTest : public ::testing::Test {
 protected:
  TestServer server_{{.inflight_bytes = int64_t{2} << 20}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(LargeSpec());
  std::optional<StepDelivery> step_ = BeginStep(set_.get(), Header());
};

TEST_F(WriteAdmissionTest, AWriteThatWaitsTooLongIsToldWhenToComeBackAndDoesNotHoldUpTheNext) {
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  EXPECT_FALSE(write.admitted());
  server_.clock().Advance(absl::Seconds(1));
  server_.AwaitIdle();
  ASSERT_TRUE(write.done());
  const absl::Status status = write.Take().status();
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED));
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  step_.reset();
  EXPECT_TRUE(BeginWrite(set_.get(), ParametersHeader()).admitted());
}

TEST_F(WriteAdmissionTest, AWriteThatIsCancelledWhileItWaitsLosesItsPlace) {
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  StepDelivery behind = BeginStep(set_.get(), Header());
  write.Cancel();
  step_.reset();
  server_.clock().RunDue();
  server_.AwaitIdle();
  EXPECT_FALSE(write.admitted());
  EXPECT_TRUE(behind.admitted());
}

class WriteTurnTest : public ::testing::Test {
 protected:
  // A step inside of the kernel.
  void SetUp() override {
    ASSERT_THAT(step_.Send(pieces_, gradient_), IsOk());
    ASSERT_THAT(step_.Complete(), IsOk());
    backend_.AwaitHeld();
  }
  void TearDown() override { backend_.LetGo(); }

  // Lets the step go. Returns the state that it leaves, where nothing else does.
  Arrays LetGo() {
    backend_.LetGo();
    SequentialModel model(Marked(LargeSpec()));
    model.Apply(gradient_);
    EXPECT_THAT(step_.Take(), IsOk());
    server_.AwaitIdle();
    return model.arrays();
  }

  GatedBackend backend_;
  TestServer server_{{.backend = &backend_}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(Marked(LargeSpec()));
  const std::vector<Piece> pieces_ = Cut(set_->schema(), kBlockElements);
  const Values gradient_ = Gradient(set_->schema().parameter_count(), 1);
  const Arrays arrays_ = SomeArrays(set_->schema().parameter_count(), 7);
  StepDelivery step_ = BeginStep(set_.get(), Header("a", 0));
};

TEST_F(WriteTurnTest, AFullWriteWaitsForTheCommitBeforeIt) {
  WriteDelivery write = BeginWrite(set_.get(), FullHeader(7));
  EXPECT_FALSE(write.admitted());
  EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  StepDelivery behind = BeginStep(set_.get(), Header("b", 1));
  ASSERT_THAT(behind.Send(pieces_, gradient_), IsOk());
  ASSERT_THAT(behind.Complete(), IsOk());
  LetGo();
  EXPECT_THAT(behind.Take(), FailsWith(kPrecondition, v1::ERROR_REASON_UNINITIALIZED));
  ASSERT_TRUE(write.admitted());
  ASSERT_THAT(SendAll(set_.get(), &write, FullHeader(7), arrays_), IsOk());
  ASSERT_THAT(write.Complete(), IsOk());
  EXPECT_THAT(write.Take(), IsOk());
  EXPECT_TRUE(*FetchState(set_.get()) == arrays_);
}

TEST_F(WriteTurnTest, AFullWriteThatIsCancelledBeforeItsTurnChangesNothing) {
  { const WriteDelivery write = BeginWrite(set_.get(), FullHeader(7)); }
  const Arrays stepped = LetGo();
  EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  EXPECT_TRUE(*FetchState(set_.get()) == stepped);
  EXPECT_THAT(Write(set_.get(), FullHeader(7), arrays_), IsOk());
}

TEST_F(WriteTurnTest, AParametersWriteWaitsForTheCommitBeforeIt) {
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  ASSERT_THAT(write.Send(pieces_, arrays_.parameters), IsOk());
  ASSERT_THAT(write.Complete(), IsOk());
  EXPECT_FALSE(write.done());
  Arrays expected = LetGo();
  EXPECT_EQ(write.Take()->step(), 1);
  expected.parameters = arrays_.parameters;
  EXPECT_TRUE(*FetchState(set_.get()) == expected);
}

TEST_F(WriteTurnTest, AWriteThatIsCompleteCommitsThoughItsCallEnds) {
  {
    WriteDelivery write = BeginWrite(set_.get(), ParametersHeader("w"));
    ASSERT_THAT(write.Send(pieces_, arrays_.parameters), IsOk());
    ASSERT_THAT(write.Complete(), IsOk());
  }
  Arrays expected = LetGo();
  expected.parameters = arrays_.parameters;
  EXPECT_TRUE(*FetchState(set_.get()) == expected);
  EXPECT_TRUE(Write(set_.get(), ParametersHeader("w"), arrays_)->replayed());
}

TEST_F(WriteTurnTest, AStepThatIsCompleteBehindAWriteIsOfAnotherIncarnation) {
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  ASSERT_THAT(write.Send(pieces_, arrays_.parameters), IsOk());
  StepDelivery behind = BeginStep(set_.get(), Header());
  ASSERT_THAT(behind.Send(pieces_, gradient_), IsOk());
  ASSERT_THAT(write.Complete(), IsOk());
  ASSERT_THAT(behind.Complete(), IsOk());
  Arrays expected = LetGo();
  EXPECT_THAT(write.Take(), IsOk());
  EXPECT_THAT(behind.Take(), FailsWith(kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  expected.parameters = arrays_.parameters;
  EXPECT_TRUE(*FetchState(set_.get()) == expected);
}

}  // namespace
}  // namespace adamant::core
