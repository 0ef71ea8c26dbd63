// What changes how steps are applied, over a socket: changes of the configuration between the steps of an open stream,
// overrides in a header, bounded staleness, and what GetParameterSet counts of it all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

using ::testing::ElementsAre;

class ConfigurationTest : public ServerTest {
 protected:
  ConfigurationTest() { MakeSet(spec_); }

  absl::StatusOr<StepReply> Step(StepStream* stream, const v1::StepHeader& header, const Values& gradient) {
    if (!stream->Send(StepMessages(header, Chunks(spec_, gradient, 65536)))) return stream->Finish();
    return stream->ReadReply(spec_);
  }
  absl::StatusOr<v1::UpdateParameterGroupResponse> Update(const v1::UpdateParameterGroupRequest& request) {
    return client_.Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request);
  }
  absl::StatusOr<v1::UpdateParameterSetResponse> Update(const v1::UpdateParameterSetRequest& request) {
    return client_.Call(&v1::OptimizerService::Stub::UpdateParameterSet, request);
  }
  void AllowStaleness(int32_t steps) {
    v1::UpdateParameterSetRequest request;
    request.mutable_spec()->set_name("small");
    request.mutable_spec()->set_max_staleness(steps);
    request.mutable_update_mask()->add_paths("max_staleness");
    ASSERT_TRUE(Update(request).ok());
  }
  v1::SetStatistics Statistics() { return client_.Get("small")->statistics(); }

  const v1::ParameterSetSpec spec_ = SmallSpec();
  const Values gradient_ = Gradient(65, 1);
};

TEST_F(ConfigurationTest, GroupChangesBetweenTwoStepsOfAnOpenStream) {
  SequentialModel model(spec_);
  StepStream stream(client_.stub());
  ASSERT_TRUE(Step(&stream, StepHeader("small"), gradient_).ok());
  model.Apply(gradient_);
  v1::UpdateParameterGroupRequest request;
  request.set_set("small");
  request.set_config_revision(1);
  request.mutable_group()->set_name("fast");
  request.mutable_group()->set_learning_rate(0.25);
  request.mutable_group()->mutable_adam()->set_weight_decay(0.5);
  for (const char* path : {"learning_rate", "adam.weight_decay"}) request.mutable_update_mask()->add_paths(path);

  const absl::StatusOr<v1::UpdateParameterGroupResponse> updated = Update(request);
  const absl::StatusOr<StepReply> reply = Step(&stream, StepHeader("small"), gradient_);

  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_EQ(updated->parameter_set().config_revision(), 2);
  EXPECT_EQ(updated->parameter_set().groups(1).adam().weight_decay(), 0.5);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->result.config_revision(), 2);
  EXPECT_THAT(reply->result.learning_rates(), ElementsAre(1e-3, 0.25));
  model.mutable_spec()->mutable_groups(1)->set_learning_rate(0.25);
  model.mutable_spec()->mutable_groups(1)->mutable_adam()->set_weight_decay(0.5);
  model.Apply(gradient_);
  EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
}

TEST_F(ConfigurationTest, WhatASetHasBesideItsGroupsChangesToo) {
  SequentialModel model(spec_);
  v1::UpdateParameterSetRequest request;
  request.mutable_spec()->set_name("small");
  request.mutable_spec()->mutable_clipping()->set_max_norm(0.125);
  (*request.mutable_spec()->mutable_labels())["run"] = "7";
  for (const char* path : {"clipping", "labels"}) request.mutable_update_mask()->add_paths(path);
  model.mutable_spec()->mutable_clipping()->set_max_norm(0.125);
  model.Apply(gradient_);
  StepStream stream(client_.stub());

  const absl::StatusOr<v1::UpdateParameterSetResponse> updated = Update(request);
  const absl::StatusOr<StepReply> reply = Step(&stream, StepHeader("small"), gradient_);

  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_EQ(updated->parameter_set().labels().at("run"), "7");
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
  EXPECT_EQ(reply->result.grad_norm(), model.Norm(gradient_)) << "before clipping";
}

// What the turn finds: a step that has begun, and brings what is frozen by then.
TEST_F(ConfigurationTest, StepUnderWayThatDoesNotFitAnyMoreIsAborted) {
  StepStream stream(client_.stub());
  const std::vector<v1::StepRequest> messages =
      StepMessages(StepHeader("small", "one", 0), Chunks(spec_, gradient_, 65536));
  ASSERT_TRUE(stream.Send(messages.front()));
  ASSERT_TRUE(client_.Reaches("small", "one", v1::STEP_STATE_IN_FLIGHT));
  v1::UpdateParameterGroupRequest request;
  request.set_set("small");
  request.mutable_group()->set_name("fast");
  request.mutable_group()->set_frozen(true);
  request.mutable_update_mask()->add_paths("frozen");
  ASSERT_TRUE(Update(request).ok());

  stream.Send({messages.begin() + 1, messages.end()});
  const absl::Status status = stream.Finish();

  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_CONFIG_CHANGED) << status;
  EXPECT_EQ(client_.Get("small")->step(), 0);
}

TEST_F(ConfigurationTest, OverridesHoldForOneStep) {
  SequentialModel model(spec_);
  StepStream stream(client_.stub());
  v1::StepHeader overriding = StepHeader("small");
  v1::GroupOverride* fast = overriding.add_overrides();
  fast->set_group("fast");
  fast->set_learning_rate(0.5);
  fast->set_beta1(0.75);
  fast->set_beta2(0.875);
  fast->set_eps(0.25);
  fast->set_weight_decay(0.125);
  overriding.set_grad_scale(1024);
  for (const v1::StepHeader& header : {StepHeader("small"), overriding, StepHeader("small")}) {
    model.Apply(gradient_, header);

    const absl::StatusOr<StepReply> reply = Step(&stream, header, gradient_);

    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.learning_rates(1), header.overrides().empty() ? 1e-2 : 0.5);
    EXPECT_EQ(reply->result.grad_norm(), model.Norm(gradient_) / (header.has_grad_scale() ? 1024 : 1));
    EXPECT_TRUE(SameBits(reply->parameters, model.arrays().parameters));
  }
}

// The whole life of a stale gradient: it is refused with the parameters to compute another one from, on the same
// stream.
TEST_F(ConfigurationTest, StaleStepIsRefusedAndItsStreamGoesOn) {
  AllowStaleness(1);
  SequentialModel model(spec_);
  StepStream ahead(client_.stub());
  for (int64_t step = 0; step < 2; ++step) {
    model.Apply(gradient_);
    ASSERT_TRUE(Step(&ahead, StepHeader("small"), gradient_).ok());
  }
  StepStream stream(client_.stub());
  v1::StepHeader header = StepHeader("small", "stale");
  header.set_base_step(0);

  const absl::StatusOr<StepReply> refused = Step(&stream, header, gradient_);

  ASSERT_TRUE(refused.ok()) << refused.status();
  EXPECT_EQ(refused->result.outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  EXPECT_EQ(refused->result.staleness(), 2);
  EXPECT_EQ(refused->result.step(), 2);
  EXPECT_EQ(refused->result.parameters_step(), 2);
  EXPECT_TRUE(SameBits(refused->parameters, model.arrays().parameters));
  EXPECT_EQ(client_.GetStepResult("small", "stale")->state(), v1::STEP_STATE_UNKNOWN);

  header.set_base_step(1);
  model.Apply(gradient_);
  const absl::StatusOr<StepReply> applied = Step(&stream, header, gradient_);

  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(applied->result.staleness(), 1);
  EXPECT_EQ(applied->result.step(), 3);
  EXPECT_TRUE(SameBits(applied->parameters, model.arrays().parameters));
}

TEST_F(ConfigurationTest, StatisticsCountWhatBecameOfTheSteps) {
  StepStream stream(client_.stub());
  v1::StepHeader header = StepHeader("small", "one", 0);
  (*header.mutable_metrics())["loss"] = 0.5;
  (*header.mutable_metrics())["accuracy"] = 0.75;
  const absl::StatusOr<StepReply> applied = Step(&stream, header, gradient_);
  ASSERT_TRUE(applied.ok()) << applied.status();
  header.set_attempt(2);
  EXPECT_TRUE(Step(&stream, header, gradient_)->result.replayed());
  Values bad = gradient_;
  bad[33] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Step(&stream, StepHeader("small"), bad)->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  v1::StepHeader stale = StepHeader("small");
  stale.set_base_step(0);
  EXPECT_EQ(Step(&stream, stale, gradient_)->result.outcome(), v1::STEP_OUTCOME_REFUSED_STALE);

  v1::SetStatistics statistics = Statistics();

  EXPECT_EQ(statistics.applied(), 1);
  EXPECT_EQ(statistics.replayed(), 1);
  EXPECT_EQ(statistics.non_finite(), 1);
  EXPECT_EQ(statistics.refused(), 1);
  EXPECT_EQ(statistics.last_grad_norm(), applied->result.grad_norm());
  EXPECT_EQ(statistics.last_metrics().at("loss"), 0.5);
  EXPECT_EQ(statistics.last_metrics().at("accuracy"), 0.75);

  // Metrics stay until a step brings others; a write sets nothing back.
  ASSERT_TRUE(Step(&stream, StepHeader("small"), Values(65)).ok());
  core::Arrays arrays;
  arrays.parameters = gradient_;
  ASSERT_TRUE(client_.Write(spec_, core::ParametersHeader(), arrays).ok());
  statistics = Statistics();
  EXPECT_EQ(statistics.applied(), 2);
  EXPECT_EQ(statistics.last_grad_norm(), 0);
  EXPECT_EQ(statistics.last_metrics().size(), 2u);
}

// Such a set ends the stream, and nothing of the step is left but that it was counted.
TEST_F(ConfigurationTest, RejectedStepEndsItsStreamAndIsCounted) {
  v1::UpdateParameterSetRequest request;
  request.mutable_spec()->set_name("small");
  request.mutable_spec()->set_non_finite_policy(v1::NON_FINITE_POLICY_REJECT);
  request.mutable_update_mask()->add_paths("non_finite_policy");
  ASSERT_TRUE(Update(request).ok());
  StepStream stream(client_.stub());
  Values bad = gradient_;
  bad[40] = std::numeric_limits<float>::quiet_NaN();

  const absl::Status status = Step(&stream, StepHeader("small"), bad).status();

  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_NON_FINITE_GRADIENT) << status;
  EXPECT_EQ(GetErrorDetail(status).tensor(), 1);
  EXPECT_EQ(GetErrorDetail(status).offset(), 8);
  EXPECT_EQ(Statistics().non_finite(), 1);
  EXPECT_TRUE(SameBits(client_.ReadArrays(spec_)->parameters, Values(65)));
}

}  // namespace
}  // namespace adamant::e2e
