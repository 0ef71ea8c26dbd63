// What a step stream asks of its connection, where it stands afterwards, and what it refuses.
#include "adamant/step_stream.h"

#include <memory>
#include <vector>

#include "adamant/client.h"
#include "adamant/mocks/mock_connection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"

namespace adamant {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Return;

class StepStreamTest : public ::testing::Test {
 protected:
  StepStreamTest() : client_(connection_) {
    v1::ParameterSet* const set = set_.mutable_parameter_set();
    set->set_name("mlp");
    set->set_incarnation(7);
    set->set_step(40);
    set->set_schema_fingerprint(99);
    set->set_config_revision(1);
    for (const char* name : {"weights", "biases"}) set->add_groups()->set_name(name);
    ON_CALL(*connection_, GetParameterSet).WillByDefault([this](const v1::GetParameterSetRequest&) { return set_; });
    ON_CALL(*connection_, ListTensors).WillByDefault([](const v1::ListTensorsRequest& request) {
      // Two pages of one tensor each.
      v1::ListTensorsResponse response;
      const bool first = request.page_token().empty();
      v1::Tensor* tensor = response.add_tensors();
      tensor->set_index(first ? 0 : 1);
      tensor->set_name(first ? "weight" : "bias");
      tensor->set_group(first ? "weights" : "biases");
      tensor->set_element_count(first ? 4 : 2);
      tensor->add_shape(2);
      if (first) tensor->add_shape(2);
      if (first) response.set_next_page_token("more");
      return response;
    });
  }

  StepStream Open() {
    absl::StatusOr<StepStream> stream = client_.OpenStepStream("mlp");
    EXPECT_TRUE(stream.ok()) << stream.status();
    return *std::move(stream);
  }

  absl::StatusOr<v1::StepResult> Step(StepStream* stream, absl::string_view request_id = {}) {
    return stream->Step(gradient_spans_, parameter_spans_, {.request_id = std::string(request_id)});
  }

  // From now on.
  void Freeze(int group, bool frozen) {
    set_.mutable_parameter_set()->mutable_groups(group)->set_frozen(frozen);
    set_.mutable_parameter_set()->set_config_revision(set_.parameter_set().config_revision() + 1);
  }

  static v1::StepResult Result(int64_t step, int64_t parameters_step) {
    v1::StepResult result;
    result.set_outcome(v1::STEP_OUTCOME_APPLIED);
    result.set_incarnation(7);
    result.set_step(step);
    result.set_parameters_step(parameters_step);
    return result;
  }

  const std::shared_ptr<::testing::NiceMock<mocks::MockConnection>> connection_ =
      std::make_shared<::testing::NiceMock<mocks::MockConnection>>();
  v1::GetParameterSetResponse set_;
  Client client_;
  std::vector<float> memory_ = std::vector<float>(12);
  std::vector<absl::Span<const float>> gradient_spans_ = {{memory_.data(), 4}, {memory_.data() + 4, 2}};
  std::vector<absl::Span<float>> parameter_spans_ = {{memory_.data() + 6, 4}, {memory_.data() + 10, 2}};
};

TEST_F(StepStreamTest, OpensWhereTheSetStands) {
  const StepStream stream = Open();
  EXPECT_EQ(stream.set(), "mlp");
  EXPECT_EQ(stream.incarnation(), 7);
  EXPECT_EQ(stream.step(), 40);
  ASSERT_EQ(stream.tensors().size(), 2);
  EXPECT_EQ(stream.tensors()[1].name(), "bias");
}

TEST_F(StepStreamTest, DoesNotOpenWithoutItsSet) {
  EXPECT_CALL(*connection_, GetParameterSet).WillOnce(Return(absl::NotFoundError("no set mlp")));
  EXPECT_EQ(client_.OpenStepStream("mlp").status(), absl::NotFoundError("no set mlp"));
}

TEST_F(StepStreamTest, StepDemandsTheStateThatTheStreamStandsAt) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce([this](const StepCall& call) {
    EXPECT_EQ(call.header.set(), "mlp");
    EXPECT_EQ(call.header.incarnation(), 7);
    EXPECT_EQ(call.header.schema_fingerprint(), 99);
    EXPECT_EQ(call.header.expected_step(), 40);
    EXPECT_EQ(call.header.request_id(), "");
    EXPECT_EQ(call.gradients[1].data(), gradient_spans_[1].data());
    EXPECT_EQ(call.parameters[1].data(), parameter_spans_[1].data());
    return Result(41, 41);
  });
  ASSERT_TRUE(Step(&stream).ok());
  EXPECT_EQ(stream.step(), 41);
}

TEST_F(StepStreamTest, FollowsTheParametersOfAReplayedStep) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce(Return(Result(41, 45)));
  ASSERT_TRUE(Step(&stream).ok());
  EXPECT_EQ(stream.step(), 45);
}

TEST_F(StepStreamTest, StaysWhereItIsWhenAStepIsSkipped) {
  StepStream stream = Open();
  v1::StepResult skipped = Result(40, 40);
  skipped.set_outcome(v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_CALL(*connection_, Step).WillOnce(Return(skipped));

  const absl::StatusOr<v1::StepResult> result = Step(&stream);

  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(stream.step(), 40);
}

TEST_F(StepStreamTest, StaysWhereItIsWhenAStepFailsAndCanBeUsedAgain) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce(Return(absl::UnavailableError("gone"))).WillOnce([](const StepCall& call) {
    EXPECT_EQ(call.header.expected_step(), 40);
    EXPECT_EQ(call.header.request_id(), "mine");
    return Result(41, 41);
  });
  EXPECT_EQ(Step(&stream, "mine").status(), absl::UnavailableError("gone"));
  EXPECT_EQ(stream.step(), 40);
  EXPECT_TRUE(Step(&stream, "mine").ok());
}

TEST_F(StepStreamTest, OptionsAreTheHeadersFields) {
  StepStream stream = Open();
  v1::GroupOverride override;
  override.set_group("biases");
  override.set_learning_rate(0.25);
  EXPECT_CALL(*connection_, Step).WillOnce([](const StepCall& call) {
    EXPECT_EQ(call.header.request_id(), "mine");
    EXPECT_EQ(call.header.overrides_size(), 1);
    EXPECT_EQ(call.header.overrides(0).learning_rate(), 0.25);
    EXPECT_EQ(call.header.grad_scale(), 1024);
    EXPECT_EQ(call.header.metrics().at("loss"), 0.5);
    EXPECT_EQ(call.gradient_dtype, v1::DTYPE_BFLOAT16);
    EXPECT_EQ(call.header.reply_dtype(), v1::DTYPE_FLOAT16);
    EXPECT_FALSE(call.header.omit_parameters());
    return Result(41, 41);
  });
  const StepOptions options = {.request_id = "mine",
                               .overrides = {override},
                               .grad_scale = 1024,
                               .metrics = {{"loss", 0.5}},
                               .gradient_dtype = v1::DTYPE_BFLOAT16,
                               .reply_dtype = v1::DTYPE_FLOAT16};
  ASSERT_TRUE(stream.Step(gradient_spans_, parameter_spans_, options).ok());
}

TEST_F(StepStreamTest, PlainStepHasAPlainHeader) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce([](const StepCall& call) {
    EXPECT_EQ(call.header.ShortDebugString(), "set: \"mlp\" incarnation: 7 schema_fingerprint: 99 expected_step: 40");
    return Result(41, 41);
  });
  ASSERT_TRUE(Step(&stream).ok());
}

TEST_F(StepStreamTest, StepOfSomeTensorsSendsAndReceivesNoOthers) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce([this](const StepCall& call) {
    EXPECT_THAT(call.header.tensors(), ElementsAre(1));
    EXPECT_TRUE(call.gradients[0].empty());
    EXPECT_TRUE(call.parameters[0].empty());
    EXPECT_EQ(call.gradients[1].data(), gradient_spans_[1].data());
    EXPECT_EQ(call.parameters[1].data(), parameter_spans_[1].data());
    return Result(41, 41);
  });
  // What is not brought is not looked at.
  gradient_spans_[0] = {};
  parameter_spans_[0] = parameter_spans_[1];
  ASSERT_TRUE(stream.Step(gradient_spans_, parameter_spans_, {.tensors = {1}}).ok());
  EXPECT_EQ(stream.step(), 41);
}

TEST_F(StepStreamTest, RefusesATensorThatThereIsNot) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).Times(0);
  EXPECT_EQ(stream.Step(gradient_spans_, parameter_spans_, {.tensors = {0, 2}}).status(),
            absl::InvalidArgumentError("tensors: expected indices below 2, got 2"));
}

TEST_F(StepStreamTest, RowsAreAnnouncedAndTheirTensorComesWithNoOtherGradient) {
  StepStream stream = Open();
  const std::vector<int64_t> rows = {1, 0, 1};
  const std::vector<float> values(6);
  EXPECT_CALL(*connection_, Step).WillOnce([&](const StepCall& call) {
    EXPECT_EQ(call.header.sparse_size(), 1);
    EXPECT_EQ(call.header.sparse(0).tensor(), 0);
    EXPECT_EQ(call.header.sparse(0).rows(), 3);
    EXPECT_TRUE(call.gradients[0].empty());
    EXPECT_EQ(call.gradients[1].data(), gradient_spans_[1].data());
    EXPECT_EQ(call.parameters[0].data(), parameter_spans_[0].data());
    EXPECT_EQ(call.rows.size(), 1);
    EXPECT_EQ(call.rows[0].values.data(), values.data());
    return Result(41, 43);
  });
  gradient_spans_[0] = {};
  ASSERT_TRUE(stream.Step(gradient_spans_, parameter_spans_, {.rows = {{0, rows, values}}}).ok());
  // The other rows are older than what came.
  EXPECT_EQ(stream.step(), 40);
}

TEST_F(StepStreamTest, RowsThatFitNoTensorAreRefused) {
  StepStream stream = Open();
  const std::vector<int64_t> rows = {1};
  const std::vector<int64_t> beyond = {2};
  const std::vector<float> values(2);
  const auto step = [&](const std::vector<RowsGradient>& gradient) {
    return std::string(stream.Step(gradient_spans_, parameter_spans_, {.rows = gradient}).status().message());
  };
  EXPECT_EQ(step({{2, rows, values}}), "rows: expected ascending indices of tensors below 2, got 2 after -1");
  EXPECT_EQ(step({{0, rows, values}, {0, rows, values}}),
            "rows: expected ascending indices of tensors below 2, got 0 after 0");
  EXPECT_EQ(step({{1, rows, values}}), "rows of `bias`: expected 1 elements for each of 1, got 2");
  EXPECT_EQ(step({{0, beyond, values}}), "rows of `weight`: expected rows below 2, got 2");
  EXPECT_EQ(step({{0, rows, {memory_.data() + 6, 2}}}), "a span of the gradients overlaps one of the parameters");
}

TEST_F(StepStreamTest, StaysWhenOthersSteppedBetweenAndTheRestOfTheTensorsIsOlder) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce(Return(Result(41, 45))).WillOnce(Return(Result(44, 44)));
  ASSERT_TRUE(stream.Step(gradient_spans_, parameter_spans_, {.tensors = {1}}).ok());
  EXPECT_EQ(stream.step(), 40);
  ASSERT_TRUE(stream.Step(gradient_spans_, parameter_spans_, {.tensors = {1}, .asynchronous = true}).ok());
  EXPECT_EQ(stream.step(), 40);
}

TEST_F(StepStreamTest, AsynchronousStepNamesTheStepOfItsParametersAndFollowsTheReplys) {
  StepStream stream = Open();
  v1::StepResult stale = Result(50, 50);
  stale.set_outcome(v1::STEP_OUTCOME_REFUSED_STALE);
  EXPECT_CALL(*connection_, Step)
      .WillOnce([](const StepCall& call) {
        EXPECT_EQ(call.header.base_step(), 40);
        EXPECT_FALSE(call.header.has_expected_step());
        return Result(43, 43);
      })
      .WillOnce([&](const StepCall& call) {
        EXPECT_EQ(call.header.base_step(), 43);
        return stale;
      });
  const StepOptions options = {.asynchronous = true};
  ASSERT_TRUE(stream.Step(gradient_spans_, parameter_spans_, options).ok());
  const absl::StatusOr<v1::StepResult> result = stream.Step(gradient_spans_, parameter_spans_, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  EXPECT_EQ(stream.step(), 50);
}

TEST_F(StepStreamTest, StepWithoutParametersNeedsNoSpansAndMovesOnOnlyIfNobodyElseMayHave) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).Times(2).WillRepeatedly([](const StepCall& call) {
    EXPECT_TRUE(call.header.omit_parameters());
    EXPECT_TRUE(call.parameters.empty());
    return Result(41, 41);
  });
  ASSERT_TRUE(stream.Step(gradient_spans_, {}, {.omit_parameters = true, .asynchronous = true}).ok());
  EXPECT_EQ(stream.step(), 40);
  ASSERT_TRUE(stream.Step(gradient_spans_, {}, {.omit_parameters = true}).ok());
  EXPECT_EQ(stream.step(), 41);
}

TEST_F(StepStreamTest, TensorsOfFrozenGroupsAreLeftOut) {
  Freeze(0, true);
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).WillOnce([](const StepCall& call) {
    EXPECT_THAT(call.header.tensors(), ElementsAre());
    EXPECT_TRUE(call.gradients[0].empty());
    EXPECT_TRUE(call.parameters[0].empty());
    EXPECT_EQ(call.gradients[1].size(), 2);
    return Result(41, 45);
  });
  ASSERT_TRUE(Step(&stream).ok());
  EXPECT_EQ(stream.step(), 45);
}

TEST_F(StepStreamTest, GroupsThatWereFrozenOrThawedAreLearntOfFromTheRefusal) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step)
      .WillOnce(Return(Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_TENSOR_NOT_CARRIED, "frozen")))
      .WillOnce([](const StepCall& call) {
        EXPECT_TRUE(call.gradients[0].empty());
        return Result(41, 41);
      })
      .WillOnce(Return(Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INCOMPLETE, "not all")))
      .WillOnce([](const StepCall& call) {
        EXPECT_EQ(call.gradients[0].size(), 4);
        return Result(42, 42);
      });
  Freeze(0, true);
  ASSERT_TRUE(Step(&stream).ok());
  Freeze(0, false);
  ASSERT_TRUE(Step(&stream).ok());
}

TEST_F(StepStreamTest, RefusalInAnUnchangedConfigurationIsTheStepsEnd) {
  StepStream stream = Open();
  const absl::Status refused =
      Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_TENSOR_NOT_CARRIED, "not brought");
  EXPECT_CALL(*connection_, Step).WillOnce(Return(refused));
  EXPECT_EQ(Step(&stream).status(), refused);
}

TEST_F(StepStreamTest, RefreshMovesToTheSetsState) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Read).WillOnce([this](const ReadCall& call) {
    EXPECT_EQ(call.request.set(), "mlp");
    EXPECT_FALSE(call.request.has_incarnation());
    EXPECT_EQ(call.targets.at(0).tensors[0].data(), parameter_spans_[0].data());
    v1::ReadHeader header;
    header.set_incarnation(8);
    header.set_step(3);
    return header;
  });
  ASSERT_TRUE(stream.Refresh(parameter_spans_).ok());
  EXPECT_EQ(stream.incarnation(), 8);
  EXPECT_EQ(stream.step(), 3);
}

TEST_F(StepStreamTest, FailedRefreshMovesNothing) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Read).WillOnce(Return(absl::UnavailableError("gone")));
  EXPECT_EQ(stream.Refresh(parameter_spans_), absl::UnavailableError("gone"));
  EXPECT_EQ(stream.incarnation(), 7);
  EXPECT_EQ(stream.step(), 40);
}

TEST_F(StepStreamTest, RefusesSpansThatDoNotFitTheTensors) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).Times(0);
  EXPECT_CALL(*connection_, Read).Times(0);

  gradient_spans_[1] = gradient_spans_[1].first(1);
  EXPECT_EQ(Step(&stream).status(),
            absl::InvalidArgumentError("gradients[1]: expected the 2 elements of `bias`, got 1"));
  parameter_spans_.pop_back();
  EXPECT_EQ(stream.Refresh(parameter_spans_),
            absl::InvalidArgumentError("parameters: expected a span for each of 2 tensors, got 1"));
}

TEST_F(StepStreamTest, RefusesParametersThatOverlapTheGradient) {
  StepStream stream = Open();
  EXPECT_CALL(*connection_, Step).Times(0);
  // By the last element of a gradient; by the first; and inside of a longer one.
  for (const size_t begin : {5, 0, 1}) {
    parameter_spans_[1] = {memory_.data() + begin, 2};
    EXPECT_THAT(std::string(Step(&stream).status().message()), HasSubstr("overlaps"));
  }
}

// A tensor without elements has a span that may lie anywhere.
TEST_F(StepStreamTest, AnEmptySpanOverlapsNothing) {
  v1::ListTensorsResponse tensors;
  for (const int64_t elements : {4, 2, 0}) tensors.add_tensors()->set_element_count(elements);
  EXPECT_CALL(*connection_, ListTensors).WillOnce(Return(tensors));
  StepStream stream = Open();
  gradient_spans_.emplace_back(memory_.data() + 7, 0);
  parameter_spans_.emplace_back(memory_.data() + 1, 0);
  EXPECT_CALL(*connection_, Step).WillOnce(Return(Result(41, 41)));
  EXPECT_TRUE(Step(&stream).ok());
}

TEST_F(StepStreamTest, TakesParametersThatLieBetweenGradients) {
  StepStream stream = Open();
  gradient_spans_ = {{memory_.data(), 4}, {memory_.data() + 8, 2}};
  parameter_spans_ = {{memory_.data() + 4, 4}, {memory_.data() + 10, 2}};
  EXPECT_CALL(*connection_, Step).WillOnce(Return(Result(41, 41)));
  EXPECT_TRUE(Step(&stream).ok());
}

}  // namespace
}  // namespace adamant
