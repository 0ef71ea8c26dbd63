// A device that answers later, from its own thread: a turn lasts until then, and nobody waits for it on a thread.
#include "tests/core/late_backend.h"

#include <memory>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using Slots = LateBackend::Slots;

class LateBackendTest : public ::testing::TestWithParam<std::tuple<v1::ParameterSetSpec, Slots>> {
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

  bool on_host() const { return backend_.on_host(); }

  LateBackend backend_{std::get<1>(GetParam())};
  TestServer server_{{.backend = &backend_}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(std::get<0>(GetParam()));
  SequentialModel model_{std::get<0>(GetParam())};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(Every, LateBackendTest,
                         ::testing::Combine(::testing::Values(SmallSpec(), LargeSpec()),
                                            ::testing::Values(Slots::kOnHost, Slots::kApart)),
                         [](const auto& test) {
                           const bool on_host = std::get<1>(test.param) == Slots::kOnHost;
                           return absl::StrCat(std::get<0>(test.param).name(), on_host ? "OnHost" : "Apart");
                         });

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
  if (on_host()) {
    // The write had taken what was published before.
    EXPECT_THAT(Read(set_.get(), ReadRequest()).status(), poisoned);
  } else {
    EXPECT_TRUE(SameBits(*Fetch(**Read(set_.get(), ReadRequest()), v1::SLOT_PARAMETER), model_.arrays().parameters));
  }
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

class LostDeviceTest : public LateBackendTest {};

INSTANTIATE_TEST_SUITE_P(Every, LostDeviceTest,
                         ::testing::Combine(::testing::Values(SmallSpec()),
                                            ::testing::Values(Slots::kOnHost, Slots::kApart)));

TEST_P(LostDeviceTest, ItsSetsAnswerReadsOfParametersAlone) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  backend_.Lose();
  const auto lost = FailsWith(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DEVICE_LOST);
  const auto parameters = [&] { return *Fetch(**Read(set_.get(), ReadRequest()), v1::SLOT_PARAMETER); };
  EXPECT_THAT(Write(set_.get(), FullHeader(1), model_.arrays()).status(), lost);
  EXPECT_THAT(Write(set_.get(), ParametersHeader(), model_.arrays()).status(), lost);
  EXPECT_THAT(Read(set_.get(), FullReadRequest()).status(), lost);
  EXPECT_EQ(set_->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  EXPECT_TRUE(SameBits(parameters(), model_.arrays().parameters));
  // Nothing says what a step under way has done.
  EXPECT_THAT(Step(set_.get(), Header(), gradient_).status(),
              FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  EXPECT_TRUE(SameBits(parameters(), model_.arrays().parameters));
  EXPECT_THAT(Write(set_.get(), FullHeader(1), model_.arrays()).status(), lost);
}

// Slots on a device of its own, which nobody can fill in place.
class SlotsApartTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  ~SlotsApartTest() override { backend_.AwaitIdle(); }

  LateBackend backend_{Slots::kApart};
  TestServer server_{{.backend = &backend_}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  SequentialModel model_{GetParam()};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(EverySize, SlotsApartTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(SlotsApartTest, TheHostPaysForTheParametersAlone) {
  LateBackend on_host;
  TestServer other({.backend = &on_host});
  const std::shared_ptr<ParameterSet> set = other.MakeSet(GetParam());
  EXPECT_EQ(set->Describe().state_bytes() - set_->Describe().state_bytes(),
            2 * BlockPool::ChargedBytes(set_->schema().flat_size()));
}

TEST_P(SlotsApartTest, StepsGoOnBesideAFullWriteAndOneThatBreaksChangesNothing) {
  SequentialModel other(GetParam());
  for (int i = 0; i < 3; ++i) other.Apply(gradient_);
  {
    WriteDelivery write = BeginWrite(set_.get(), FullHeader(3));
    write.Await();
    ASSERT_TRUE(write.admitted());
    EXPECT_THAT(write.Send(Cut(set_->schema(), kBlockElements), other.arrays().exp_avg, v1::SLOT_EXP_AVG), IsOk());
    ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
    model_.Apply(gradient_);
  }
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  EXPECT_THAT(Write(set_.get(), FullHeader(3), other.arrays()), IsOk());
  EXPECT_TRUE(*FetchState(set_.get()) == other.arrays());
  server_.AwaitIdle();
  EXPECT_EQ(server_.used(), (UsedBytes{set_->Describe().state_bytes(), 0, 0}));
}

TEST_P(SlotsApartTest, AFullWriteHoldsAllThatItBringsUntilItEnds) {
  {
    WriteDelivery write = BeginWrite(set_.get(), FullHeader(0));
    write.Await();
    ASSERT_TRUE(write.admitted());
    const int64_t one = BlockPool::ChargedBytes(set_->schema().flat_size());
    // The call pays for a small array.
    EXPECT_GE(server_.used().inflight, (IsSmall(set_->schema().flat_size()) ? 2 : 3) * one);
  }
  EXPECT_EQ(server_.used().inflight, 0);
}

TEST_P(SlotsApartTest, ASetThatCouldNeverBeWrittenWholeIsNotCreated) {
  const int64_t one = BlockPool::ChargedBytes(set_->schema().flat_size());
  LateBackend backend(Slots::kApart);
  TestServer server({.inflight_bytes = (IsSmall(set_->schema().flat_size()) ? 2 : 3) * one, .backend = &backend});
  EXPECT_THAT(ParameterSet::Create(server.resources(), GetParam()).status(),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
}

TEST_P(SlotsApartTest, AFirstWriteIsStagedToo) {
  v1::ParameterSetSpec spec = GetParam();
  spec.set_initialization(v1::INITIALIZATION_WRITTEN);
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(spec);
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  { const WriteDelivery broken = BeginWrite(set.get(), ParametersHeader()); }
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  model_.mutable_arrays()->parameters = gradient_;
  ASSERT_THAT(Write(set.get(), ParametersHeader(), model_.arrays()), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
  ASSERT_THAT(Step(set.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set.get()) == model_.arrays());
}

TEST_P(SlotsApartTest, AReaderWithoutRoomCannotHaveTheSlotsInPieces) {
  LateBackend backend(Slots::kApart);
  TestServer server({.read_bytes = 1, .backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(GetParam());
  v1::ReadTensorsRequest request = FullReadRequest();
  request.set_may_abort(true);
  EXPECT_THAT(Read(set.get(), request).status(),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  request.clear_slots();
  EXPECT_THAT(Read(set.get(), request), IsOk());
}

}  // namespace
}  // namespace adamant::core
