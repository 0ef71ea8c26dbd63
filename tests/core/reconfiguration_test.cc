// Changes of a set's configuration between its steps.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/gate.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;

v1::UpdateParameterGroupRequest ForGroup(const std::string& name, const std::vector<std::string>& paths) {
  v1::UpdateParameterGroupRequest request;
  request.mutable_group()->set_name(name);
  for (const std::string& path : paths) request.mutable_update_mask()->add_paths(path);
  return request;
}

v1::UpdateParameterSetRequest ForSet(const std::vector<std::string>& paths) {
  v1::UpdateParameterSetRequest request;
  for (const std::string& path : paths) request.mutable_update_mask()->add_paths(path);
  return request;
}

class ReconfigurationTest : public ::testing::Test {
 protected:
  static v1::ParameterSetSpec Spec() {
    v1::ParameterSetSpec spec = SmallSpec();
    spec.mutable_groups(1)->mutable_sgd()->set_momentum(0.5);
    return spec;
  }
  void StepBoth(uint64_t seed) {
    const Values gradient = Gradient(65, seed);
    ASSERT_THAT(Step(set_.get(), {}, gradient), IsOk());
    model_.Apply(gradient);
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  }
  template <typename Request>
  absl::Status Refused(const Request& request) {
    const std::string before = set_->Describe().DebugString();
    const absl::Status status = Update(set_.get(), request).status();
    EXPECT_EQ(set_->Describe().DebugString(), before);
    return status;
  }

  TestServer server_;
  const std::shared_ptr<ParameterSet> set_ = server_.MakeSet(Spec());
  SequentialModel model_{Spec()};
};

TEST_F(ReconfigurationTest, AGroupChangesBetweenTwoSteps) {
  StepBoth(1);
  v1::UpdateParameterGroupRequest request =
      ForGroup("slow", {"learning_rate", "adam.weight_decay", "adam.decoupled_weight_decay"});
  request.mutable_group()->set_learning_rate(0.25);
  request.mutable_group()->mutable_adam()->set_weight_decay(0.5);
  request.mutable_group()->mutable_adam()->set_decoupled_weight_decay(true);
  request.mutable_group()->mutable_adam()->set_beta1(0.1);  // not of the mask
  const absl::StatusOr<v1::ParameterSet> changed = Update(set_.get(), request);
  ASSERT_THAT(changed, IsOk());
  EXPECT_EQ(changed->config_revision(), 2);
  EXPECT_EQ(changed->groups(0).learning_rate(), 0.25);
  EXPECT_EQ(changed->groups(0).adam().beta1(), 0.9);
  v1::ParameterGroup* const group = model_.mutable_spec()->mutable_groups(0);
  group->set_learning_rate(0.25);
  group->mutable_adam()->set_weight_decay(0.5);
  group->mutable_adam()->set_decoupled_weight_decay(true);
  StepBoth(2);
}

TEST_F(ReconfigurationTest, AFieldOfTheMaskThatIsNotGivenIsItsDefault) {
  v1::UpdateParameterGroupRequest request = ForGroup("fast", {"learning_rate", "sgd.dampening"});
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  EXPECT_EQ(set_->Describe().groups(1).learning_rate(), 1e-3);
  request = ForGroup("", {"adam"});
  request.mutable_group()->mutable_adam()->set_eps(0.5);
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  EXPECT_EQ(set_->Describe().groups(0).adam().eps(), 0.5);
  EXPECT_EQ(set_->Describe().groups(0).adam().beta2(), 0.999);
}

TEST_F(ReconfigurationTest, AScheduleComesAndGoes) {
  v1::UpdateParameterGroupRequest request = ForGroup("slow", {"schedule"});
  request.mutable_group()->mutable_schedule()->mutable_step()->set_steps(1);
  request.mutable_group()->mutable_schedule()->mutable_step()->set_gamma(0.5);
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  const Values gradient = Gradient(65, 1);
  EXPECT_THAT(Step(set_.get(), {}, gradient)->result.learning_rates(), ElementsAre(1e-3, 1e-2));
  EXPECT_THAT(Step(set_.get(), {}, gradient)->result.learning_rates(), ElementsAre(5e-4, 1e-2));
  ASSERT_THAT(Update(set_.get(), ForGroup("slow", {"schedule"})), IsOk());
  EXPECT_THAT(Step(set_.get(), {}, gradient)->result.learning_rates(), ElementsAre(1e-3, 1e-2));
}

TEST_F(ReconfigurationTest, WhatWouldTakeOtherArraysIsRefused) {
  v1::UpdateParameterGroupRequest request = ForGroup("slow", {"adam.amsgrad"});
  request.mutable_group()->mutable_adam()->set_amsgrad(true);
  EXPECT_THAT(Refused(request), RefusesField("group.adam.amsgrad"));
  request = ForGroup("slow", {"sgd"});
  request.mutable_group()->mutable_sgd();
  EXPECT_THAT(Refused(request), RefusesField("group.sgd"));
  EXPECT_THAT(Refused(ForGroup("fast", {"sgd.momentum"})), RefusesField("group.sgd.momentum"));
}

TEST_F(ReconfigurationTest, WhatIsNoChangeIsRefused) {
  EXPECT_THAT(Refused(ForGroup("slow", {})), RefusesField("update_mask"));
  EXPECT_THAT(Refused(ForGroup("slow", {"frozen", "name"})), RefusesField("update_mask.paths[1]"));
  EXPECT_THAT(Refused(ForGroup("slow", {"adam.beta3"})), RefusesField("update_mask.paths[0]"));
  EXPECT_THAT(Refused(ForGroup("medium", {"frozen"})), RefusesField("group.name"));
  v1::UpdateParameterGroupRequest request = ForGroup("slow", {"learning_rate"});
  request.mutable_group()->set_learning_rate(-1);
  EXPECT_THAT(Refused(request), RefusesField("group.learning_rate"));
  EXPECT_THAT(Refused(ForSet({})), RefusesField("update_mask"));
  EXPECT_THAT(Refused(ForSet({"tensors"})), RefusesField("update_mask.paths[0]"));
  v1::UpdateParameterSetRequest staleness = ForSet({"max_staleness"});
  staleness.mutable_spec()->set_max_staleness(65);
  EXPECT_THAT(Refused(staleness), RefusesField("spec.max_staleness"));
  v1::UpdateParameterSetRequest clipping = ForSet({"clipping"});
  clipping.mutable_spec()->mutable_clipping()->set_max_norm(0);
  EXPECT_THAT(Refused(clipping), RefusesField("spec.clipping.max_norm"));
}

TEST_F(ReconfigurationTest, AChangeMayDemandTheStateThatItsClientKnows) {
  v1::UpdateParameterSetRequest request = ForSet({"max_staleness"});
  request.set_config_revision(2);
  EXPECT_THAT(Refused(request), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED));
  request.set_config_revision(1);
  request.set_incarnation(set_->Describe().incarnation() + 1);
  EXPECT_THAT(Refused(request), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  request.set_incarnation(set_->Describe().incarnation());
  EXPECT_THAT(Update(set_.get(), request), IsOk());
  EXPECT_THAT(Refused(request), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED));
  ASSERT_THAT(Delete(set_.get()), IsOk());
  EXPECT_THAT(Update(set_.get(), ForSet({"max_staleness"})).status(),
              FailsWith(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST_F(ReconfigurationTest, WhatHoldsForAllGroupsChanges) {
  v1::UpdateParameterSetRequest request = ForSet({"clipping", "non_finite_policy", "max_staleness", "labels"});
  request.mutable_spec()->mutable_clipping()->set_max_value(0.125);
  request.mutable_spec()->set_non_finite_policy(v1::NON_FINITE_POLICY_REJECT);
  request.mutable_spec()->set_max_staleness(3);
  (*request.mutable_spec()->mutable_labels())["run"] = "7";
  const absl::StatusOr<v1::ParameterSet> changed = Update(set_.get(), request);
  ASSERT_THAT(changed, IsOk());
  EXPECT_EQ(changed->clipping().max_value(), 0.125);
  EXPECT_EQ(changed->non_finite_policy(), v1::NON_FINITE_POLICY_REJECT);
  EXPECT_EQ(changed->max_staleness(), 3);
  EXPECT_EQ(changed->labels().at("run"), "7");
  model_.mutable_spec()->mutable_clipping()->set_max_value(0.125);
  StepBoth(1);
  ASSERT_THAT(Update(set_.get(), ForSet({"clipping"})), IsOk());
  model_.mutable_spec()->clear_clipping();
  StepBoth(2);
}

TEST_F(ReconfigurationTest, NewLabelsAreCharged) {
  const int64_t before = server_.used().state;
  v1::UpdateParameterSetRequest request = ForSet({"labels"});
  for (int i = 0; i < 32; ++i) (*request.mutable_spec()->mutable_labels())[absl::StrCat(i)] = std::string(255, 'v');
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  EXPECT_GE(server_.used().state, before + 32 * 255);
  ASSERT_THAT(Update(set_.get(), ForSet({"labels"})), IsOk());
  EXPECT_EQ(server_.used().state, before);
}

TEST_F(ReconfigurationTest, AStepUnderWayThatStillFitsUsesWhatIsNew) {
  StepDelivery step = BeginStep(set_.get(), {});
  v1::UpdateParameterGroupRequest request = ForGroup("slow", {"learning_rate"});
  request.mutable_group()->set_learning_rate(0.5);
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  const absl::StatusOr<StepReply> reply = Finish(set_.get(), &step, Gradient(65, 1));
  ASSERT_THAT(reply, IsOk());
  EXPECT_THAT(reply->result.learning_rates(), ElementsAre(0.5, 1e-2));
  EXPECT_EQ(reply->result.config_revision(), 2);
}

TEST_F(ReconfigurationTest, AStepUnderWayThatDoesNotFitAnyMoreIsAborted) {
  v1::StepHeader header;
  header.add_overrides()->set_learning_rate(3);
  StepDelivery overriding = BeginStep(set_.get(), header);
  StepDelivery all = BeginStep(set_.get(), {});
  v1::UpdateParameterGroupRequest request = ForGroup("slow", {"frozen", "adam.eps"});
  request.mutable_group()->set_frozen(true);
  request.mutable_group()->mutable_adam()->set_eps(1e-16);
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  EXPECT_THAT(Finish(set_.get(), &overriding, Gradient(65, 1)).status(),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED));
  EXPECT_THAT(Finish(set_.get(), &all, Gradient(65, 1)).status(),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED));
  EXPECT_EQ(set_->Describe().step(), 0);
}

TEST_F(ReconfigurationTest, ARetryIsAnsweredAsTheStepWasHoweverTheSetIsConfigured) {
  ASSERT_THAT(Step(set_.get(), Header("all", 0), Gradient(65, 1)), IsOk());
  v1::StepHeader some = Header("some", 1);
  some.add_tensors(1);
  v1::GroupOverride* const override = some.add_overrides();
  override->set_group("fast");
  override->set_momentum(0.25);
  ASSERT_THAT(Step(set_.get(), some, Gradient(65, 2)), IsOk());
  v1::UpdateParameterGroupRequest request = ForGroup("fast", {"frozen"});
  request.mutable_group()->set_frozen(true);
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  const absl::StatusOr<StepReply> all = Step(set_.get(), Header("all", 0, 2), Gradient(65, 1));
  ASSERT_THAT(all, IsOk());
  EXPECT_TRUE(all->result.replayed());
  EXPECT_TRUE(all->parameters->selection->all());
  some.set_attempt(2);
  const absl::StatusOr<StepReply> again = Step(set_.get(), some, Gradient(65, 2));
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->result.replayed());
  EXPECT_THAT(again->parameters->selection->sizes(), ElementsAre(0, 16, 0, 0));
}

TEST_F(ReconfigurationTest, AStepThatWasAppliedIsReplayedWhateverHasChangedSince) {
  v1::StepHeader header = Header("again", 0);
  header.add_tensors(0);
  header.add_overrides()->set_learning_rate(3);
  const absl::StatusOr<StepReply> applied = Step(set_.get(), header, Gradient(65, 1));
  ASSERT_THAT(applied, IsOk());
  v1::UpdateParameterGroupRequest request = ForGroup("slow", {"frozen", "adam.eps"});
  request.mutable_group()->set_frozen(true);
  request.mutable_group()->mutable_adam()->set_eps(1e-16);
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  header.set_attempt(2);
  const absl::StatusOr<StepReply> replayed = Step(set_.get(), header, Gradient(65, 1));
  ASSERT_THAT(replayed, IsOk());
  EXPECT_TRUE(replayed->result.replayed());
  EXPECT_THAT(replayed->result.learning_rates(), ElementsAre(3, 1e-2));
  EXPECT_THAT(replayed->parameters->selection->sizes(), ElementsAre(32, 0, 0, 0));
}

TEST_F(ReconfigurationTest, AThawedGroupGoesOnWhereItWas) {
  StepBoth(1);
  v1::UpdateParameterGroupRequest request = ForGroup("fast", {"frozen"});
  for (const bool frozen : {true, false}) {
    request.mutable_group()->set_frozen(frozen);
    ASSERT_THAT(Update(set_.get(), request), IsOk());
    model_.mutable_spec()->mutable_groups(1)->set_frozen(frozen);
    const Values gradient = Gradient(65, 2);
    google::protobuf::RepeatedField<int32_t> tensors;
    if (frozen) {
      for (const int32_t tensor : {0, 2}) tensors.Add(tensor);
    }
    StepDelivery step = BeginStep(set_.get(), {});
    ASSERT_THAT(Finish(set_.get(), &step, gradient, kBlockElements, tensors), IsOk());
    model_.Apply(gradient);
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  }
  EXPECT_THAT(set_->UpdateCountsFrom(0, 4), ElementsAre(3, 2, 3, 2));
}

}  // namespace
}  // namespace adamant::core
