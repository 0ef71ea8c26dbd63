// What a step stream asks of its connection, where it stands afterwards, and what it refuses.
#include "adamant/step_stream.h"

#include <memory>
#include <vector>

#include "adamant/client.h"
#include "adamant/mocks/mock_connection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace adamant {
namespace {

using ::testing::HasSubstr;
using ::testing::Return;

class StepStreamTest : public ::testing::Test {
 protected:
  StepStreamTest() : client_(connection_) {
    v1::GetParameterSetResponse set;
    set.mutable_parameter_set()->set_name("mlp");
    set.mutable_parameter_set()->set_incarnation(7);
    set.mutable_parameter_set()->set_step(40);
    set.mutable_parameter_set()->set_schema_fingerprint(99);
    ON_CALL(*connection_, GetParameterSet).WillByDefault(Return(set));
    ON_CALL(*connection_, ListTensors).WillByDefault([](const v1::ListTensorsRequest& request) {
      // Two pages of one tensor each.
      v1::ListTensorsResponse response;
      const bool first = request.page_token().empty();
      v1::Tensor* tensor = response.add_tensors();
      tensor->set_index(first ? 0 : 1);
      tensor->set_name(first ? "weight" : "bias");
      tensor->set_element_count(first ? 4 : 2);
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
    return stream->Step(gradient_spans_, parameter_spans_, request_id);
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
