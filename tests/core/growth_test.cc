// Tensors that are added to a set: what they are, and that nothing else moves.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/gate.h"
#include "tests/core/late_backend.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;

class GrowthTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  void StepBoth(uint64_t seed) {
    const Values gradient = Gradient(model_->parameter_count(), seed);
    ASSERT_THAT(Step(set_.get(), {}, gradient), IsOk());
    model_->Apply(gradient);
    EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  }
  // Grows the model, too.
  void Grow(const v1::AddTensorsRequest& request) {
    ASSERT_THAT(AddTensors(set_.get(), request), IsOk());
    model_->Grow(request);
  }

  TestServer server_;
  const std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  const std::unique_ptr<SequentialModel> model_ = std::make_unique<SequentialModel>(GetParam());
};

TEST_P(GrowthTest, WhatIsAddedIsZeroAndNothingElseMoves) {
  StepBoth(1);
  const v1::ParameterSet before = set_->Describe();
  Grow(Tensors({5, 0, 3}));
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  const v1::ParameterSet after = set_->Describe();
  EXPECT_EQ(after.step(), before.step());
  EXPECT_NE(after.incarnation(), before.incarnation());
  EXPECT_NE(after.schema_fingerprint(), before.schema_fingerprint());
  EXPECT_EQ(after.config_revision(), before.config_revision());
  EXPECT_EQ(after.schema_fingerprint(), server_
                                            .MakeSet([&] {
                                              v1::ParameterSetSpec spec = model_->spec();
                                              spec.set_name("other");
                                              return spec;
                                            }())
                                            ->Describe()
                                            .schema_fingerprint());
  EXPECT_EQ(after.tensor_count(), before.tensor_count() + 3);
  EXPECT_GT(after.state_bytes(), before.state_bytes());
  StepBoth(2);
  StepBoth(3);
}

TEST_P(GrowthTest, ManyBlocksMayCome) {
  StepBoth(1);
  Grow(Tensors({kBlockElements, 200'000}, "fast"));
  StepBoth(2);
  Grow(Tensors({1}));
}

TEST_P(GrowthTest, ANewGroupMayCome) {
  StepBoth(1);
  v1::AddTensorsRequest request = Tensors({7}, "new");
  v1::ParameterGroup* const group = request.add_groups();
  group->set_name("new");
  group->set_learning_rate(0.5);
  group->mutable_adam()->set_weight_decay(0.25);
  Grow(request);
  StepBoth(2);
  EXPECT_EQ(set_->Describe().groups_size(), 3);
  EXPECT_EQ(set_->Describe().config_revision(), 2);
}

TEST_P(GrowthTest, AReadThatHasBegunIsOfTheSetBefore) {
  StepBoth(1);
  const Arrays before = model_->arrays();
  const auto reading = Read(set_.get(), FullReadRequest());
  ASSERT_THAT(reading, IsOk());
  Grow(Tensors({100'000}));
  const auto later = Read(set_.get(), FullReadRequest());
  StepBoth(2);
  StepBoth(3);
  EXPECT_TRUE(*Fetch(**reading) == before);
  EXPECT_EQ((*later)->schema().tensors().size(), set_->schema().tensors().size());
}

TEST_P(GrowthTest, StepsUnderWayAreOfTheSetBefore) {
  StepDelivery step = BeginStep(set_.get(), {});
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  write.Await();
  const Arrays arrays = {.parameters = Values(model_->parameter_count(), 1.0f)};
  ASSERT_THAT(SendAll(set_.get(), &write, ParametersHeader(), arrays), IsOk());
  Grow(Tensors({5}));
  EXPECT_THAT(step.Take().status(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  ASSERT_THAT(write.Complete(), IsOk());
  EXPECT_THAT(write.Take().status(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  StepBoth(1);
}

TEST_P(GrowthTest, WhatWasAppliedBeforeIsNotRememberedAnyMore) {
  const Values gradient(model_->parameter_count(), 1.0f);
  ASSERT_THAT(Step(set_.get(), Header("r1", 0), gradient), IsOk());
  ASSERT_EQ(StepResultOf(*set_, "r1")->state(), v1::STEP_STATE_COMMITTED);
  Grow(Tensors({5}));
  EXPECT_EQ(StepResultOf(*set_, "r1")->state(), v1::STEP_STATE_UNKNOWN);
  EXPECT_THAT(Step(set_.get(), Header("r1", 0, 2), gradient).status(),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH));
}

TEST_P(GrowthTest, WhatDoesNotFitIsRefusedAndChangesNothing) {
  StepBoth(1);
  const std::string before = set_->Describe().DebugString();
  const auto refused = [this](const v1::AddTensorsRequest& request) {
    return AddTensors(set_.get(), request).status();
  };
  EXPECT_THAT(refused({}), RefusesField("tensors"));
  EXPECT_THAT(refused(Tensors({-1})), RefusesField("tensors[0].shape[0]"));
  EXPECT_THAT(refused(Tensors({1}, "medium")), RefusesField("tensors[0].group"));
  v1::AddTensorsRequest request = Tensors({1, 1});
  request.mutable_tensors(1)->set_name(GetParam().tensors(0).name());
  EXPECT_THAT(refused(request), RefusesField("tensors[1].name"));
  request = Tensors({1});
  request.add_groups()->set_name("fast");
  EXPECT_THAT(refused(request), RefusesField("groups[0].name"));
  request.mutable_groups(0)->set_name("averaging");
  request.mutable_groups(0)->mutable_adam()->set_amsgrad(true);
  EXPECT_THAT(refused(request), RefusesField("groups[0]"));
  request = Tensors({1});
  request.set_schema_fingerprint(1);
  EXPECT_THAT(refused(request), FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_SCHEMA_MISMATCH));
  request = Tensors({1});
  request.set_incarnation(1);
  EXPECT_THAT(refused(request), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_THAT(refused(Tensors({int64_t{1} << 28})),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  EXPECT_EQ(set_->Describe().DebugString(), before);
  StepBoth(2);
}

TEST_P(GrowthTest, WhatItTookIsGivenBack) {
  Grow(Tensors({100'000, 5}));
  StepBoth(1);
  EXPECT_GE(server_.used().state, 12 * model_->parameter_count());
}

INSTANTIATE_TEST_SUITE_P(Sizes, GrowthTest, ::testing::Values(SmallSpec(), LargeSpec(), EmptySpec()),
                         [](const auto& test) { return test.param.name(); });

// Opens the gate of each outcome.
struct Added {
  Gate gate;
  absl::StatusOr<v1::ParameterSet> set;
};

TEST(TwoGrowthsTest, OfTwoAtTheSameTimeTheSecondComesToNothing) {
  GatedBackend backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(Marked(LargeSpec()));
  StepDelivery step = BeginStep(set.get(), {});
  step.Await();
  const Values gradient = Gradient(set->schema().parameter_count(), 1);
  ASSERT_THAT(step.Send(Cut(set->schema(), kBlockElements), gradient), IsOk());
  ASSERT_THAT(step.Complete(), IsOk());
  backend.AwaitHeld();
  Added added[2];
  for (int i = 0; i < 2; ++i) {
    set->AddTensors(Tensors({100 + i}), [one = &added[i]](absl::StatusOr<v1::ParameterSet> grown) {
      one->set = std::move(grown);
      one->gate.Open();
    });
  }
  backend.LetGo();
  for (Added& one : added) one.gate.Pass();
  ASSERT_THAT(added[0].set, IsOk());
  EXPECT_EQ(added[0].set->tensor_count(), 4);
  EXPECT_THAT(added[1].set.status(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_EQ(set->schema().tensors().size(), 4u);
}

// Slots that are not the host's, on a device that answers later.
TEST(GrowthOfADeviceTest, SlotsOfADeviceGrowWithTheSet) {
  LateBackend backend(LateBackend::Slots::kApart);
  TestServer server({.backend = &backend});
  {
    const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec());
    SequentialModel before(SmallSpec());
    ASSERT_THAT(Step(set.get(), {}, Gradient(65, 1)), IsOk());
    before.Apply(Gradient(65, 1));
    backend.LetGo();
    ASSERT_THAT(AddTensors(set.get(), Tensors({70'000})), IsOk());
    const absl::StatusOr<Arrays> state = FetchState(set.get());
    ASSERT_THAT(state, IsOk());
    EXPECT_TRUE(SameBits(state->exp_avg, AndZeros(before.arrays().exp_avg, 70'000)));
    EXPECT_THAT(set->UpdateCountsFrom(0, 9), ElementsAre(1, 1, 1, 1, 0));
    ASSERT_THAT(Step(set.get(), {}, Gradient(70'065, 2)), IsOk());
  }
  backend.AwaitIdle();
}

}  // namespace
}  // namespace adamant::core
