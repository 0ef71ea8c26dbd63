// Everything that a step can mean, against the sequential model: each optimizer, clipping, scaled gradients, overrides,
// frozen groups, and steps that bring some tensors only.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/every_optimizer.h"
#include "tests/core/late_backend.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class OptimizerTest : public ::testing::TestWithParam<std::tuple<Groups, bool>> {
 protected:
  static v1::ParameterSetSpec Spec() {
    const auto& [groups, large] = GetParam();
    return WithGroups(large ? LargeSpec() : SmallSpec(), groups);
  }

  // One step on both; they end alike.
  void Step(const v1::StepHeader& header, uint64_t seed) {
    const Values gradient = Gradient(model_.parameter_count(), seed);
    const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, gradient);
    ASSERT_THAT(reply, IsOk());
    model_.Apply(gradient, header);
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(reply->result.grad_norm(),
              model_.Norm(model_.Brought(gradient, header)) / (header.has_grad_scale() ? header.grad_scale() : 1));
  }

  void ExpectSameState() {
    const absl::StatusOr<Arrays> state = FetchState(set_.get());
    ASSERT_THAT(state, IsOk());
    EXPECT_TRUE(*state == model_.arrays());
  }

  // Tensors of the set in any combination but none.
  google::protobuf::RepeatedField<int32_t> AnyTensors() {
    google::protobuf::RepeatedField<int32_t> tensors;
    const auto count = static_cast<int32_t>(set_->schema().tensors().size());
    const uint64_t chosen = 1 + random_.Index((1 << count) - 1);
    for (int32_t i = 0; i < count; ++i) {
      if ((chosen >> i & 1) != 0) tensors.Add(i);
    }
    return tensors;
  }

  TestServer server_;
  const std::shared_ptr<ParameterSet> set_ = server_.MakeSet(Spec());
  SequentialModel model_{Spec()};
  kernels::RandomFloats random_{kernels::PrintedSeed()};
};

TEST_P(OptimizerTest, StepsEndAsTheModelDoes) {
  for (uint64_t step = 1; step <= 5; ++step) Step({}, step);
  ExpectSameState();
}

TEST_P(OptimizerTest, StepsThatBringSomeTensorsEndAsTheModelDoes) {
  for (uint64_t step = 1; step <= 40; ++step) {
    v1::StepHeader header;
    if (random_.Index(3) > 0) *header.mutable_tensors() = AnyTensors();
    Step(header, step);
    if (step % 8 == 0) ExpectSameState();
  }
}

TEST_P(OptimizerTest, AStateWithUnequalCountsGoesOnInAnotherSet) {
  for (uint64_t step = 1; step <= 6; ++step) {
    v1::StepHeader header;
    *header.mutable_tensors() = AnyTensors();
    Step(header, step);
  }
  const Arrays state = *FetchState(set_.get());
  v1::ParameterSetSpec spec = Spec();
  spec.set_name("other");
  const std::shared_ptr<ParameterSet> other = server_.MakeSet(spec);
  v1::WriteHeader header = FullHeader(state.step);
  header.mutable_update_counts()->Add(state.update_counts.begin(), state.update_counts.end());
  ASSERT_THAT(Write(other.get(), header, state), IsOk());
  EXPECT_TRUE(*FetchState(other.get()) == state);
  const Values gradient = Gradient(model_.parameter_count(), 7);
  ASSERT_THAT(core::Step(other.get(), {}, gradient), IsOk());
  model_.Apply(gradient);
  EXPECT_TRUE(*FetchState(other.get()) == model_.arrays());
}

TEST_P(OptimizerTest, CountsThatAWriteMakesUnequalAreEachTensorsOwn) {
  Step({}, 1);
  Arrays arrays = model_.arrays();
  arrays.step = 9;
  for (int i = 0; i < model_.tensors(); ++i) arrays.update_counts.push_back(2 * i);
  v1::WriteHeader header = FullHeader(arrays.step);
  header.mutable_update_counts()->Add(arrays.update_counts.begin(), arrays.update_counts.end());
  ASSERT_THAT(Write(set_.get(), header, arrays), IsOk());
  *model_.mutable_arrays() = arrays;
  Step({}, 2);
  ExpectSameState();
}

TEST_P(OptimizerTest, AReadBesideStepsThatBringSomeTensorsIsOfOneStep) {
  Step({}, 1);
  std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER};
  for (const v1::Slot slot : OptimizerSlots(set_->configuration()->groups())) slots.push_back(slot);
  const auto reading = core::Read(set_.get(), ReadRequest(slots));
  ASSERT_THAT(reading, IsOk());
  const Arrays before = model_.arrays();
  v1::StepHeader header;
  header.add_tensors(1);
  Step(header, 2);
  Step({}, 3);
  EXPECT_TRUE(*Fetch(**reading) == before);
  ExpectSameState();
}

INSTANTIATE_TEST_SUITE_P(EveryOptimizer, OptimizerTest,
                         ::testing::Combine(::testing::ValuesIn(kEveryOptimizer), ::testing::Bool()),
                         [](const auto& test) {
                           return absl::StrCat(std::get<0>(test.param).name,
                                               std::get<1>(test.param) ? "Large" : "Small");
                         });

// A small set of two groups, `slow` (Adam) and `fast` (SGD with momentum), and what each test does with it.
class StepMeaningTest : public ::testing::Test {
 protected:
  static v1::ParameterSetSpec Spec() {
    return WithGroups(SmallSpec(), {"", "learning_rate: 0.01", "learning_rate: 0.1 sgd { momentum: 0.5 }"});
  }
  void Remake(const v1::ParameterSetSpec& spec) {
    set_ = server_.MakeSet(spec);
    model_ = std::make_unique<SequentialModel>(spec);
  }
  void StepBoth(const v1::StepHeader& header, const Values& gradient) {
    ASSERT_THAT(core::Step(set_.get(), header, gradient), IsOk());
    model_->Apply(gradient, header);
    EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  }
  absl::Status Refused(const v1::StepHeader& header) {
    return core::Step(set_.get(), header, Gradient(65, 1)).status();
  }
  v1::GroupOverride* Override(v1::StepHeader* header, const std::string& group) {
    v1::GroupOverride* const override = header->add_overrides();
    override->set_group(group);
    return override;
  }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(Spec());
  std::unique_ptr<SequentialModel> model_ = std::make_unique<SequentialModel>(Spec());
  const Values gradient_ = Gradient(65, 1);
};

TEST_F(StepMeaningTest, AGradientIsClippedByValue) {
  v1::ParameterSetSpec spec = Spec();
  spec.mutable_clipping()->set_max_value(0.125);
  Remake(spec);
  for (uint64_t step = 1; step <= 3; ++step) StepBoth({}, Gradient(65, step));
}

TEST_F(StepMeaningTest, AGradientIsClippedByItsNorm) {
  v1::ParameterSetSpec spec = Spec();
  spec.mutable_clipping()->set_max_norm(0.5);
  Remake(spec);
  for (uint64_t step = 1; step <= 3; ++step) StepBoth({}, Gradient(65, step));
  // One that is short enough is left alone.
  Values small = gradient_;
  for (float& g : small) g *= 0x1p-10f;
  StepBoth({}, small);
}

TEST_F(StepMeaningTest, AScaleIsDividedOutBeforeClipping) {
  v1::ParameterSetSpec spec = Spec();
  spec.mutable_clipping()->set_max_norm(0.5);
  Remake(spec);
  Values scaled = gradient_;
  for (float& g : scaled) g *= 1024;
  v1::StepHeader header;
  header.set_grad_scale(1024);
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, scaled);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.grad_norm(), model_->Norm(scaled) / 1024) << "before clipping, without the scale";
  model_->Apply(scaled, header);
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  // The same as the gradient itself.
  SequentialModel plain(spec);
  plain.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == plain.arrays());
}

TEST_F(StepMeaningTest, OverridesHoldForOneStep) {
  v1::StepHeader header;
  v1::GroupOverride* const slow = Override(&header, "slow");
  slow->set_learning_rate(0.5);
  slow->set_beta1(0.25);
  slow->set_beta2(0.75);
  slow->set_eps(1e-3);
  slow->set_weight_decay(0.125);
  v1::GroupOverride* const fast = Override(&header, "fast");
  fast->set_momentum(0.75);
  fast->set_weight_decay(0.5);
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_THAT(reply->result.learning_rates(), ElementsAre(0.5, 0.1));
  model_->Apply(gradient_, header);
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  StepBoth({}, Gradient(65, 2));
  EXPECT_EQ(set_->Describe().groups(0).learning_rate(), 0.01);
}

TEST_F(StepMeaningTest, AnOverrideWithoutANameIsOfTheFirstGroup) {
  v1::StepHeader header;
  header.add_overrides()->set_learning_rate(0.25);
  EXPECT_THAT(core::Step(set_.get(), header, gradient_)->result.learning_rates(), ElementsAre(0.25, 0.1));
}

TEST_F(StepMeaningTest, OverridesThatDoNotFitAreRefused) {
  v1::StepHeader header;
  Override(&header, "fast")->set_beta1(0.5);
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[0].beta1"));
  header.clear_overrides();
  Override(&header, "slow")->set_momentum(0.5);
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[0].momentum"));
  header.clear_overrides();
  Override(&header, "fast")->set_momentum(0);
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[0].momentum"));
  header.clear_overrides();
  Override(&header, "medium");
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[0].group"));
  header.clear_overrides();
  Override(&header, "slow")->set_learning_rate(0.5);
  Override(&header, "slow")->set_eps(0.5);
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[1].group"));
  header.clear_overrides();
  Override(&header, "slow")->set_beta2(1);
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[0].beta2"));
  header.clear_overrides();
  Override(&header, "slow")->set_learning_rate(-1);
  EXPECT_THAT(Refused(header), RefusesField("header.overrides[0].learning_rate"));
  EXPECT_EQ(set_->Describe().step(), 0);
}

TEST_F(StepMeaningTest, AReplyHasTheTensorsThatTheStepBrought) {
  v1::StepHeader header;
  header.add_tensors(1);
  header.add_tensors(3);
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_THAT(reply->parameters->selection->sizes(), ElementsAre(0, 16, 0, 1));
}

TEST_F(StepMeaningTest, APartialReplyHoldsNoBlockThatItDoesNotNeed) {
  Remake(LargeSpec());
  v1::StepHeader header;
  header.add_tensors(2);
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, Gradient(model_->parameter_count(), 1));
  ASSERT_THAT(reply, IsOk());
  const BlockList& blocks = reply->parameters->snapshot->blocks();
  for (size_t block = 0; block + 1 < blocks.size(); ++block) EXPECT_FALSE(blocks[block]) << block;
  EXPECT_TRUE(blocks.back());
}

TEST_F(StepMeaningTest, AReplyWithoutParametersHoldsNone) {
  v1::StepHeader header;
  header.set_omit_parameters(true);
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->parameters->snapshot, nullptr);
  EXPECT_EQ(reply->result.step(), 1);
}

TEST_F(StepMeaningTest, ANameThatIsNoneOfTheTensorsIsRefused) {
  v1::StepHeader header;
  header.add_tensors(4);
  EXPECT_THAT(Refused(header), RefusesField("header.tensors[0]"));
  header.set_tensors(0, -1);
  EXPECT_THAT(Refused(header), RefusesField("header.tensors[0]"));
  header.set_tensors(0, 2);
  header.add_tensors(2);
  EXPECT_THAT(Refused(header), RefusesField("header.tensors[1]"));
}

TEST_F(StepMeaningTest, AChunkOfATensorThatIsNotBroughtIsRefused) {
  v1::StepHeader header;
  header.add_tensors(1);
  StepDelivery step = BeginStep(set_.get(), header);
  const absl::Status status = step.Send({0, 0, 32, 0}, gradient_);
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_TENSOR_NOT_CARRIED));
  EXPECT_EQ(GetErrorDetail(status).tensor(), 0);
  EXPECT_THAT(std::string(status.message()), HasSubstr("`w1`"));
}

TEST_F(StepMeaningTest, AFrozenGroupKeepsWhatItHas) {
  v1::ParameterSetSpec spec = Spec();
  spec.mutable_groups(1)->set_frozen(true);
  Remake(spec);
  google::protobuf::RepeatedField<int32_t> slow;
  for (const int32_t tensor : {0, 2}) slow.Add(tensor);
  StepDelivery step = BeginStep(set_.get(), {});
  ASSERT_THAT(Finish(set_.get(), &step, gradient_, kBlockElements, slow), IsOk());
  model_->Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  EXPECT_THAT(set_->UpdateCountsFrom(0, 10), ElementsAre(1, 0, 1, 0));
  v1::StepHeader header;
  header.add_tensors(1);
  EXPECT_THAT(Refused(header), RefusesField("header.tensors[0]"));
}

// Where one counter a set made its first updates several times too large.
TEST_F(StepMeaningTest, AThawedTensorsFirstUpdateIsItsFirst) {
  v1::ParameterSetSpec spec = WithGroups(SmallSpec(), {"", "learning_rate: 0.01", "learning_rate: 0.01"});
  Remake(spec);
  v1::StepHeader header;
  header.add_tensors(0);
  const Values ones(65, 1.0f);
  for (int step = 0; step < 1000; ++step) ASSERT_THAT(core::Step(set_.get(), header, ones), IsOk());
  ASSERT_THAT(core::Step(set_.get(), {}, ones), IsOk());
  const Arrays state = *FetchState(set_.get());
  EXPECT_NEAR(state.parameters[64], -0.01, 1e-6);
  EXPECT_THAT(state.update_counts, ElementsAre(1001, 1, 1, 1));
}

TEST_F(StepMeaningTest, ANonFiniteGradientIsSkippedOrRejectedAsTheSetSays) {
  Values bad = gradient_;
  bad[40] = std::numeric_limits<float>::infinity();
  const absl::StatusOr<StepReply> skipped = core::Step(set_.get(), {}, bad);
  ASSERT_THAT(skipped, IsOk());
  EXPECT_EQ(skipped->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(skipped->result.non_finite_tensor(), 1);
  EXPECT_EQ(skipped->result.non_finite_offset(), 8);

  v1::ParameterSetSpec spec = Spec();
  spec.set_non_finite_policy(v1::NON_FINITE_POLICY_REJECT);
  spec.set_name("strict");
  Remake(spec);
  const absl::Status rejected = core::Step(set_.get(), {}, bad).status();
  EXPECT_THAT(rejected, RefusesChunk(v1::ERROR_REASON_NON_FINITE_GRADIENT, 1, 8));
  EXPECT_EQ(set_->Describe().statistics().non_finite(), 1);
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
}

TEST_F(StepMeaningTest, AGradientThatScalingMakesTooLargeIsSkipped) {
  Values large = gradient_;
  large[3] = 0x1p40f;
  v1::StepHeader header;
  header.set_grad_scale(0x1p-23);
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, large);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(reply->result.non_finite_offset(), 3);
  // One that is less than too large is applied.
  large[3] = 0x1.fffffep39f;
  StepBoth(header, large);
}

TEST_F(StepMeaningTest, AStepThatIsTooFarBehindIsRefusedAndOneThatIsNotApplied) {
  v1::ParameterSetSpec spec = Spec();
  spec.set_max_staleness(1);
  Remake(spec);
  v1::StepHeader header;
  header.set_base_step(0);
  for (const int64_t staleness : {0, 1}) {
    const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, gradient_);
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(reply->result.staleness(), staleness);
    model_->Apply(gradient_);
  }
  const absl::StatusOr<StepReply> reply = core::Step(set_.get(), header, gradient_);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  EXPECT_EQ(reply->result.staleness(), 2);
  EXPECT_EQ(reply->result.step(), 2);
  EXPECT_TRUE(SameBits(Parameters(*reply), model_->arrays().parameters));
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  EXPECT_EQ(set_->Describe().statistics().refused(), 1);
}

TEST_F(StepMeaningTest, AStepIsNotBasedOnOneThatIsYetToCome) {
  v1::StepHeader header;
  header.set_base_step(1);
  EXPECT_THAT(Refused(header), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH));
  header.set_expected_step(0);
  EXPECT_THAT(Refused(header), RefusesField("header.base_step"));
  header.clear_expected_step();
  header.set_base_step(-1);
  EXPECT_THAT(Refused(header), RefusesField("header.base_step"));
}

TEST_F(StepMeaningTest, ARefusedRequestIsNotRemembered) {
  v1::ParameterSetSpec spec = Spec();
  Remake(spec);
  ASSERT_THAT(core::Step(set_.get(), {}, gradient_), IsOk());
  v1::StepHeader header = Header("late");
  header.set_base_step(0);
  EXPECT_EQ(core::Step(set_.get(), header, gradient_)->result.outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  EXPECT_EQ(StepResultOf(*set_, "late")->state(), v1::STEP_STATE_UNKNOWN);
  header.set_base_step(1);
  EXPECT_EQ(core::Step(set_.get(), header, gradient_)->result.outcome(), v1::STEP_OUTCOME_APPLIED);
}

TEST_F(StepMeaningTest, HeaderFieldsOutOfRangeAreRefused) {
  v1::StepHeader header;
  header.set_grad_scale(0x1p49);
  EXPECT_THAT(Refused(header), RefusesField("header.grad_scale"));
  header.set_grad_scale(0);
  EXPECT_THAT(Refused(header), RefusesField("header.grad_scale"));
  header.clear_grad_scale();
  header.set_reply_dtype(static_cast<v1::Dtype>(4));
  EXPECT_THAT(Refused(header), RefusesField("header.reply_dtype"));
  header.clear_reply_dtype();
  (*header.mutable_metrics())[std::string(64, 'm')] = 1;
  EXPECT_THAT(Refused(header), RefusesField("header.metrics"));
  header.clear_metrics();
  for (int i = 0; i < 33; ++i) (*header.mutable_metrics())[absl::StrCat(i)] = i;
  EXPECT_THAT(Refused(header), RefusesField("header.metrics"));
}

TEST_F(StepMeaningTest, StatisticsCountWhatBecameOfSteps) {
  v1::StepHeader header = Header("a", 0);
  (*header.mutable_metrics())["loss"] = 0.5;
  ASSERT_THAT(core::Step(set_.get(), header, gradient_), IsOk());
  ASSERT_THAT(core::Step(set_.get(), header, gradient_), IsOk());
  ASSERT_THAT(core::Step(set_.get(), {}, gradient_), IsOk());
  const v1::SetStatistics statistics = set_->Describe().statistics();
  EXPECT_EQ(statistics.applied(), 2);
  EXPECT_EQ(statistics.replayed(), 1);
  EXPECT_EQ(statistics.last_grad_norm(), model_->Norm(gradient_));
  ASSERT_THAT(statistics.last_metrics(), SizeIs(1));
  EXPECT_EQ(statistics.last_metrics().at("loss"), 0.5) << "a step without metrics leaves them";
}

TEST_F(StepMeaningTest, AScheduleFollowsTheSetsStep) {
  v1::ParameterSetSpec spec = Spec();
  spec.mutable_groups(0)->mutable_schedule()->set_warmup_steps(4);
  Remake(spec);
  for (const double factor : {0.0, 0.25, 0.5, 0.75, 1.0, 1.0}) {
    EXPECT_THAT(core::Step(set_.get(), {}, gradient_)->result.learning_rates(), ElementsAre(factor * 0.01, 0.1));
  }
  Remake(spec);
  v1::StepHeader header;
  Override(&header, "slow")->set_learning_rate(0.75);
  EXPECT_THAT(core::Step(set_.get(), header, gradient_)->result.learning_rates(), ElementsAre(0.75, 0.1))
      << "an override wins over a schedule that is at zero";
}

TEST_F(StepMeaningTest, AWriteMayReplaceSomeTensorsParameters) {
  StepBoth({}, gradient_);
  const uint64_t incarnation = set_->Describe().incarnation();
  v1::WriteHeader header = ParametersHeader();
  header.add_tensors(1);
  Arrays arrays;
  arrays.parameters = Gradient(65, 9);
  ASSERT_THAT(Write(set_.get(), header, arrays), IsOk());
  Values* const parameters = &model_->mutable_arrays()->parameters;
  std::copy_n(arrays.parameters.begin() + 32, 16, parameters->begin() + 32);
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  EXPECT_NE(set_->Describe().incarnation(), incarnation);
  StepBoth({}, Gradient(65, 2));
}

TEST_F(StepMeaningTest, APartialWriteOfALargeSetKeepsTheOtherBlocks) {
  Remake(LargeSpec());
  StepBoth({}, Gradient(model_->parameter_count(), 1));
  v1::WriteHeader header = ParametersHeader();
  header.add_tensors(2);
  Arrays arrays;
  arrays.parameters = Values(model_->parameter_count(), 0.5f);
  ASSERT_THAT(Write(set_.get(), header, arrays), IsOk());
  std::fill_n(model_->mutable_arrays()->parameters.end() - 3, 3, 0.5f);
  EXPECT_TRUE(*FetchState(set_.get()) == model_->arrays());
  StepBoth({}, Gradient(model_->parameter_count(), 2));
}

TEST_F(StepMeaningTest, WritesThatNameWhatTheyMayNotAreRefused) {
  const auto refused = [this](const v1::WriteHeader& header) { return Write(set_.get(), header, {}).status(); };
  v1::WriteHeader header = ParametersHeader();
  header.add_tensors(7);
  EXPECT_THAT(refused(header), RefusesField("header.tensors[0]"));
  header = ParametersHeader();
  header.add_update_counts(1);
  EXPECT_THAT(refused(header), RefusesField("header.update_counts"));
  header = FullHeader(3);
  header.add_tensors(0);
  EXPECT_THAT(refused(header), RefusesField("header.tensors"));
  header = FullHeader(3);
  header.add_update_counts(1);
  EXPECT_THAT(refused(header), RefusesField("header.update_counts"));
  for (const int64_t count : {3, 3, 4}) header.add_update_counts(count);
  EXPECT_THAT(refused(header), RefusesField("header.update_counts[3]"));
  Remake(SmallSpec("unwritten", v1::INITIALIZATION_WRITTEN));
  header = ParametersHeader();
  header.add_tensors(0);
  EXPECT_THAT(refused(header), RefusesField("header.tensors"));
}

TEST_F(StepMeaningTest, APartialWriteBesideAFullOneIsToldOfIt) {
  WriteDelivery full = BeginWrite(set_.get(), FullHeader(0));
  full.Await();
  v1::WriteHeader header = ParametersHeader();
  header.add_tensors(0);
  EXPECT_THAT(Write(set_.get(), header, {}).status(),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS));
}

TEST_F(StepMeaningTest, AStepThatWantsNoParametersIsPaidForUntilItIsCommitted) {
  LateBackend late;
  TestServer server({.backend = &late});
  {
    const std::shared_ptr<ParameterSet> set = server.MakeSet(LargeSpec());
    v1::StepHeader header;
    header.set_omit_parameters(true);
    const Values gradient = Gradient(set->schema().parameter_count(), 1);
    StepDelivery step = BeginStep(set.get(), header);
    step.Await();
    late.Hold();
    ASSERT_THAT(step.Send(Cut(set->schema(), kBlockElements), gradient), IsOk());
    ASSERT_THAT(step.Complete(), IsOk());
    EXPECT_GE(server.used().inflight, ArrayBytes(*set));
    late.LetGo();
    ASSERT_THAT(step.Take(), IsOk());
  }
  server.AwaitUnused();
}

TEST_F(StepMeaningTest, APartialStepOfALargeSetIsPaidForByItsBlocks) {
  Remake(LargeSpec());
  v1::StepHeader header;
  header.add_tensors(2);
  StepDelivery small = BeginStep(set_.get(), header);
  ASSERT_TRUE(small.admitted());
  EXPECT_EQ(server_.used().inflight, 0) << "one block: the call pays for it";
  // All blocks but the first.
  header.set_tensors(0, 1);
  StepDelivery large = BeginStep(set_.get(), header);
  ASSERT_TRUE(large.admitted());
  const int64_t blocks = BlockPool::ChargedBytes(set_->schema().flat_size() - kBlockElements);
  EXPECT_GE(server_.used().inflight, blocks);
  EXPECT_LT(server_.used().inflight, blocks + 4096);
}

}  // namespace
}  // namespace adamant::core
