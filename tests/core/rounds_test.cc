// Steps that several workers make together.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/set/set_rep.h"
#include "server/core/spec/configuration.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::ParameterSetSpec WithWorkers(v1::ParameterSetSpec spec, int count, int window = 0, int quorum = 0) {
  v1::Workers* const workers = spec.mutable_workers();
  workers->set_count(count);
  workers->set_window(window);
  workers->set_quorum(quorum);
  return spec;
}

v1::StepHeader Contribution(int rank, int64_t round = 1) {
  v1::StepHeader header;
  header.set_rank(rank);
  header.set_round(round);
  return header;
}

v1::StepHeader Named(v1::StepHeader header, const std::string& request_id, int64_t expected_step = 0, int attempt = 1) {
  header.set_request_id(request_id);
  header.set_expected_step(expected_step);
  header.set_attempt(attempt);
  return header;
}

v1::StepHeader Weighted(v1::StepHeader header, double weight, double grad_scale = 1) {
  header.set_weight(weight);
  header.set_grad_scale(grad_scale);
  return header;
}

class RoundsTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  void Make(const v1::ParameterSetSpec& spec) {
    set_ = server_.MakeSet(spec);
    model_ = std::make_unique<SequentialModel>(spec);
  }
  void Make(int count, int window = 0, int quorum = 0) { Make(WithWorkers(GetParam(), count, window, quorum)); }

  Values GradientOf(int rank, uint64_t seed = 0) const {
    return Gradient(model_->parameter_count(), 100 * seed + static_cast<uint64_t>(rank));
  }
  StepDelivery Begin(const v1::StepHeader& header) { return BeginStep(set_.get(), header); }
  void Send(StepDelivery* delivery, const Values& gradient) {
    delivery->Await();
    ASSERT_THAT(delivery->Send(Cut(set_->schema(), kBlockElements), gradient), IsOk());
    ASSERT_THAT(delivery->Complete(), IsOk());
  }
  // A contribution that has arrived whole.
  StepDelivery Contribute(const v1::StepHeader& header, const Values& gradient) {
    StepDelivery delivery = Begin(header);
    Send(&delivery, gradient);
    return delivery;
  }
  StepDelivery Contribute(const v1::StepHeader& header) { return Contribute(header, GradientOf(header.rank())); }

  // The step that these contributions make, by rank, as the kernels' reference adds them.
  void ApplyRound(const std::vector<std::pair<v1::StepHeader, Values>>& contributions) {
    Values sum(model_->parameter_count());
    double weights = 0;
    for (size_t i = 0; i < contributions.size(); ++i) {
      const auto& [header, gradient] = contributions[i];
      const double weight = header.has_weight() ? header.weight() : 1;
      const auto k = static_cast<float>(weight / (header.has_grad_scale() ? header.grad_scale() : 1));
      for (size_t j = 0; j < sum.size(); ++j) sum[j] = i == 0 ? k * gradient[j] : std::fma(k, gradient[j], sum[j]);
      weights += weight;
    }
    v1::StepHeader header;
    header.set_grad_scale(weights);
    model_->Apply(sum, header);
  }
  void ApplyRanks(const std::vector<int>& ranks) {
    std::vector<std::pair<v1::StepHeader, Values>> contributions;
    for (const int rank : ranks) contributions.emplace_back(Contribution(rank), GradientOf(rank));
    ApplyRound(contributions);
  }
  void ExpectModelsState() {
    const absl::StatusOr<Arrays> state = FetchState(set_.get());
    ASSERT_THAT(state, IsOk());
    EXPECT_TRUE(*state == model_->arrays());
  }
  // What a round pays for an array.
  int64_t array_bytes() const {
    const absl::StatusOr<std::shared_ptr<const Configuration>> configuration = Configuration::Create(model_->spec());
    return StagingBytes(TensorSelection(*Schema::Create(model_->spec(), (*configuration)->groups())));
  }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_;
  std::unique_ptr<SequentialModel> model_;
};

INSTANTIATE_TEST_SUITE_P(Sizes, RoundsTest, ::testing::Values(SmallSpec(), LargeSpec(), EmptySpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(RoundsTest, ContributionsInAnyOrderBecomeTheSameStep) {
  std::vector<int> order = {0, 1, 2};
  do {
    for (int window = 1; window <= 3; ++window) {
      Make(3, window);
      std::vector<std::pair<v1::StepHeader, Values>> contributions;
      for (int rank = 0; rank < 3; ++rank) {
        contributions.emplace_back(Weighted(Contribution(rank), 1.5 * (rank + 1), rank == 1 ? 1024 : 1),
                                   GradientOf(rank));
      }
      std::vector<StepDelivery> deliveries;
      for (const int rank : order) deliveries.push_back(Begin(contributions[rank].first));
      // As they are admitted, the last to come first.
      std::vector<bool> sent(3);
      for (int left = 3; left > 0; --left) {
        int next = 2;
        while (sent[next] || !deliveries[next].admitted()) next = (next + 2) % 3;
        Send(&deliveries[next], contributions[order[next]].second);
        sent[next] = true;
        server_.AwaitIdle();
      }
      ApplyRound(contributions);
      for (StepDelivery& delivery : deliveries) {
        const absl::StatusOr<StepReply> reply = delivery.Take();
        ASSERT_THAT(reply, IsOk());
        EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
        EXPECT_EQ(reply->result.step(), 1);
        EXPECT_EQ(reply->result.round(), 2);
        EXPECT_EQ(reply->result.contributions(), 3);
        EXPECT_TRUE(SameBits(Parameters(*reply), model_->arrays().parameters));
      }
      ExpectModelsState();
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_P(RoundsTest, OneWorkersRoundsAreItsSteps) {
  Make(1);
  for (int64_t round = 1; round < 4; ++round) {
    const absl::StatusOr<StepReply> reply = Contribute(Contribution(0, round), GradientOf(0, round)).Take();
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.round(), round + 1);
    v1::StepHeader header;
    EXPECT_EQ(reply->result.grad_norm(), model_->GradNorm(GradientOf(0, round), header));
    model_->Apply(GradientOf(0, round));
    ExpectModelsState();
  }
  EXPECT_EQ(set_->Describe().round(), 4);
}

TEST_P(RoundsTest, OnlyTheLowestRanksArrive) {
  Make(4, 2);
  std::vector<StepDelivery> deliveries;
  for (const int rank : {3, 2, 1}) deliveries.push_back(Begin(Contribution(rank)));
  StepDelivery& third = deliveries[0];
  StepDelivery& second = deliveries[1];
  StepDelivery& first = deliveries[2];
  first.Await();
  EXPECT_FALSE(second.admitted());
  EXPECT_EQ(server_.used().inflight, 3 * array_bytes());
  Send(&first, GradientOf(1));
  server_.AwaitIdle();
  EXPECT_FALSE(second.admitted());
  StepDelivery zeroth = Contribute(Contribution(0));
  Send(&second, GradientOf(2));
  Send(&third, GradientOf(3));
  ASSERT_THAT(zeroth.Take(), IsOk());
  ApplyRanks({0, 1, 2, 3});
  ExpectModelsState();
}

TEST_P(RoundsTest, AllThatARoundTookIsGivenBack) {
  Make(3, 1);
  {
    std::vector<StepDelivery> deliveries;
    for (int rank = 0; rank < 3; ++rank) deliveries.push_back(Contribute(Contribution(rank)));
    for (StepDelivery& delivery : deliveries) {
      const absl::StatusOr<StepReply> reply = delivery.Take();
      ASSERT_THAT(reply, IsOk());
      // All replies live in one array.
      EXPECT_LE(server_.used().inflight, array_bytes());
    }
  }
  server_.AwaitIdle();
  EXPECT_EQ(server_.used().inflight, 0);
  EXPECT_EQ(server_.clock().pending(), 0);
}

TEST_P(RoundsTest, ContributionsToAnotherRoundAreRefused) {
  Make(2);
  ASSERT_THAT(Contribute(Contribution(0)).Complete(), IsOk());
  EXPECT_THAT(Begin(Contribution(0, 2)).Take(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_ROUND_MISMATCH));
  StepDelivery other = Contribute(Contribution(1));
  ASSERT_THAT(other.Take(), IsOk());
  // Rank 0's own delivery was destroyed, and counts all the same.
  ApplyRanks({0, 1});
  const absl::StatusOr<StepReply> late = Contribute(Named(Contribution(0, 1), "late")).Take();
  ASSERT_THAT(late, IsOk());
  EXPECT_EQ(late->result.outcome(), v1::STEP_OUTCOME_REFUSED_LATE);
  EXPECT_EQ(late->result.round(), 2);
  EXPECT_EQ(late->result.step(), 1);
  EXPECT_TRUE(SameBits(Parameters(*late), model_->arrays().parameters));
  EXPECT_EQ(set_->Describe().statistics().refused(), 1);
  ExpectModelsState();
}

TEST_P(RoundsTest, ARankCountsOnce) {
  Make(2);
  StepDelivery first = Contribute(Named(Contribution(0), "a"));
  EXPECT_THAT(Begin(Named(Contribution(0), "b")).Take(),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_RANK_TAKEN));
  EXPECT_THAT(Begin(Contribution(0)).Take(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_RANK_TAKEN));
  EXPECT_THAT(Begin(Named(Weighted(Contribution(0), 2), "a")).Take(),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
  StepDelivery last = Contribute(Contribution(1));
  ASSERT_THAT(first.Take(), IsOk());
  ASSERT_THAT(last.Take(), IsOk());
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, OneThatIsArrivingGivesWayToAnotherOfItsRank) {
  Make(2);
  StepDelivery before = Begin(Named(Contribution(0), "a"));
  before.Await();
  StepDelivery after = Contribute(Named(Contribution(0), "b"));
  EXPECT_THAT(before.Take(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED));
  StepDelivery other = Contribute(Contribution(1));
  ASSERT_THAT(after.Take(), IsOk());
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, ARetryOfACountedContributionIsAnsweredWithTheRound) {
  Make(2, 1);
  Contribute(Named(Contribution(0), "a"));  // and gone
  v1::GetStepResultRequest request;
  request.set_request_id("a");
  EXPECT_EQ(set_->FindStepResult(request)->state(), v1::STEP_STATE_ACCUMULATED);
  StepDelivery retry = Contribute(Named(Contribution(0), "a", 0, 2), Values(model_->parameter_count(), 7.0f));
  EXPECT_FALSE(retry.done());
  StepDelivery last = Contribute(Named(Contribution(1), "b"));
  const absl::StatusOr<StepReply> reply = retry.Take();
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  ApplyRanks({0, 1});
  EXPECT_TRUE(SameBits(Parameters(*reply), model_->arrays().parameters));
  ASSERT_THAT(last.Take(), IsOk());
  // Each of them is remembered.
  for (const std::string id : {"a", "b"}) {
    const absl::StatusOr<StepReply> again = Contribute(Named(Contribution(id == "a" ? 0 : 1), id, 0, 3)).Take();
    ASSERT_THAT(again, IsOk());
    EXPECT_TRUE(again->result.replayed());
    EXPECT_EQ(again->result.round(), 2);
    request.set_request_id(id);
    EXPECT_EQ(set_->FindStepResult(request)->state(), v1::STEP_STATE_COMMITTED);
  }
  ExpectModelsState();
}

TEST_P(RoundsTest, ARetryTakesOverFromACallThatStillWaits) {
  Make(2, 1);
  StepDelivery first = Contribute(Named(Contribution(0), "a"));
  StepDelivery retry = Contribute(Named(Contribution(0), "a", 0, 2));
  EXPECT_THAT(first.Take(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED));
  StepDelivery last = Contribute(Contribution(1));
  ASSERT_THAT(retry.Take(), IsOk());
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, ARoundIsToldOfAsOneStep) {
  Make(2);
  const std::shared_ptr<Watch> watch = *set_->BeginWatch([] {});
  watch->Next();
  StepDelivery first = Contribute(Contribution(0));
  ASSERT_THAT(Contribute(Contribution(1)).Take(), IsOk());
  server_.AwaitIdle();
  const auto event = watch->Next();
  ASSERT_TRUE(event.has_value());
  EXPECT_TRUE(event->has_committed()) << event->ShortDebugString();
  EXPECT_FALSE(watch->Next().has_value());
}

TEST_P(RoundsTest, OneClientAccumulates) {
  Make(4, 1);
  for (int64_t round = 1; round < 3; ++round) {
    std::vector<std::pair<v1::StepHeader, Values>> contributions;
    for (int rank = 0; rank < 4; ++rank) {
      v1::StepHeader header = Contribution(rank, round);
      header.set_ack_when_folded(rank < 3);
      contributions.emplace_back(header, GradientOf(rank, round));
      const absl::StatusOr<StepReply> reply = Contribute(header, contributions.back().second).Take();
      ASSERT_THAT(reply, IsOk());
      EXPECT_EQ(reply->result.outcome(), rank < 3 ? v1::STEP_OUTCOME_ACCUMULATED : v1::STEP_OUTCOME_APPLIED);
      EXPECT_EQ(reply->result.step(), rank < 3 ? round - 1 : round);
      EXPECT_EQ(reply->result.round(), rank < 3 ? round : round + 1);
      EXPECT_EQ(reply->parameters->snapshot == nullptr, rank < 3);
      EXPECT_LE(server_.used().inflight, 2 * array_bytes());
    }
    ApplyRound(contributions);
    ExpectModelsState();
  }
}

TEST_P(RoundsTest, ARetryOfAFoldedContributionIsAcknowledgedAtOnce) {
  Make(2, 1);
  v1::StepHeader header = Named(Contribution(0), "a");
  header.set_ack_when_folded(true);
  ASSERT_THAT(Contribute(header).Take(), IsOk());
  header.set_attempt(2);
  const absl::StatusOr<StepReply> reply = Contribute(header, Values(model_->parameter_count(), 7.0f)).Take();
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_ACCUMULATED);
  ASSERT_THAT(Contribute(Contribution(1)).Take(), IsOk());
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, WhoIsNotThereInTimeIsLeftOut) {
  Make(4, 2, /*quorum=*/2);
  StepDelivery third = Contribute(Contribution(1));
  StepDelivery waits = Begin(Contribution(3));
  server_.clock().Advance(absl::Seconds(60));
  server_.AwaitIdle();
  // Ranks 0 and 2 are left out, and 3 arrives.
  Send(&waits, GradientOf(3));
  const absl::StatusOr<StepReply> reply = third.Take();
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(reply->result.contributions(), 2);
  ASSERT_THAT(waits.Take(), IsOk());
  ApplyRanks({1, 3});
  ExpectModelsState();
}

TEST_P(RoundsTest, OneThatIsArrivingWhenTimeIsOverMayEnd) {
  Make(2, 2, /*quorum=*/1);
  StepDelivery arriving = Begin(Contribution(0));
  arriving.Await();
  StepDelivery other = Contribute(Contribution(1));
  server_.clock().Advance(absl::Seconds(60));
  server_.AwaitIdle();
  EXPECT_FALSE(other.done());
  Send(&arriving, GradientOf(0));
  ASSERT_THAT(other.Take(), IsOk());
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, WhoHasNotArrivedInTwiceTheTimeIsLeftOut) {
  Make(3, 3, /*quorum=*/1);
  StepDelivery arriving = Begin(Contribution(0));
  arriving.Await();
  StepDelivery other = Contribute(Contribution(1));
  server_.clock().Advance(absl::Seconds(60));
  server_.AwaitIdle();
  EXPECT_FALSE(other.done());
  server_.clock().Advance(absl::Seconds(60));
  ASSERT_THAT(other.Take(), IsOk());
  ApplyRanks({1});
  ExpectModelsState();
  Send(&arriving, GradientOf(0));
  EXPECT_EQ(arriving.Take()->result.outcome(), v1::STEP_OUTCOME_REFUSED_LATE);
  EXPECT_EQ(server_.clock().pending(), 0);
}

TEST_P(RoundsTest, WhoBreaksOffAfterThatIsLeftOut) {
  Make(2, 2, /*quorum=*/1);
  std::optional<StepDelivery> arriving = Begin(Contribution(0));
  arriving->Await();
  StepDelivery other = Contribute(Contribution(1));
  server_.clock().Advance(absl::Seconds(60));
  server_.AwaitIdle();
  arriving.reset();
  ASSERT_THAT(other.Take(), IsOk());
  ApplyRanks({1});
  ExpectModelsState();
}

TEST_P(RoundsTest, WhoBreaksOffBeforeMayComeAgain) {
  Make(2, 1);
  for (int attempt = 0; attempt < 3; ++attempt) {
    StepDelivery broken = Begin(Contribution(0));
    broken.Await();
  }
  StepDelivery first = Contribute(Contribution(0));
  StepDelivery second = Contribute(Contribution(1));
  ASSERT_THAT(first.Take(), IsOk());
  ASSERT_THAT(second.Take(), IsOk());
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, ARoundWithTooFewFailsForAll) {
  Make(3, 2, /*quorum=*/3);
  const std::shared_ptr<Watch> watch = *set_->BeginWatch([] {});
  watch->Next();
  StepDelivery counted = Contribute(Contribution(0));
  StepDelivery arriving = Begin(Contribution(1));
  arriving.Await();
  server_.clock().Advance(absl::Seconds(60));
  server_.AwaitIdle();
  const absl::StatusOr<StepReply> reply = counted.Take();
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_REFUSED_LATE);
  EXPECT_EQ(reply->result.round(), 2);
  EXPECT_EQ(reply->result.step(), 0);
  EXPECT_TRUE(SameBits(Parameters(*reply), model_->arrays().parameters));
  Send(&arriving, GradientOf(1));
  EXPECT_EQ(arriving.Take()->result.outcome(), v1::STEP_OUTCOME_REFUSED_LATE);
  const auto event = watch->Next();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->round_failed().round(), 1);
  EXPECT_EQ(event->round_failed().contributions(), 1);
  ExpectModelsState();
}

TEST_P(RoundsTest, WhoWaitsInARoundThatFailsIsToldWhenItHasCome) {
  Make(3, 1, /*quorum=*/3);
  StepDelivery waiting = Begin(Contribution(1));
  server_.clock().Advance(absl::Seconds(60));
  server_.AwaitIdle();
  Send(&waiting, GradientOf(1));
  EXPECT_EQ(waiting.Take()->result.outcome(), v1::STEP_OUTCOME_REFUSED_LATE);
}

TEST_P(RoundsTest, ARoundThatNobodyIsInHasNotBegun) {
  Make(2);
  {
    StepDelivery broken = Begin(Contribution(1));
    broken.Await();
  }
  server_.AwaitIdle();
  EXPECT_EQ(server_.used().inflight, 0);
  EXPECT_EQ(server_.clock().pending(), 0);
  EXPECT_EQ(set_->Describe().round(), 1);
}

TEST_P(RoundsTest, AContributionThatIsNotFiniteSkipsTheRound) {
  Make(3, 3);
  if (model_->parameter_count() == 0) GTEST_SKIP() << "it has no elements";
  Values bad = GradientOf(1);
  bad.back() = std::numeric_limits<float>::quiet_NaN();
  StepDelivery last = Contribute(Contribution(2), bad);
  StepDelivery arriving = Begin(Contribution(0));
  StepDelivery middle = Contribute(Contribution(1), bad);
  EXPECT_FALSE(middle.done());
  Send(&arriving, GradientOf(0));
  for (StepDelivery* const delivery : {&arriving, &middle, &last}) {
    const absl::StatusOr<StepReply> reply = delivery->Take();
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
    EXPECT_EQ(reply->result.non_finite_rank(), 1);
    EXPECT_EQ(reply->result.non_finite_tensor(), static_cast<int>(set_->schema().tensors().size()) - 1);
    EXPECT_EQ(reply->result.round(), 2);
    EXPECT_TRUE(SameBits(Parameters(*reply), model_->arrays().parameters));
  }
  EXPECT_EQ(set_->Describe().statistics().non_finite(), 1);
  ExpectModelsState();
  ASSERT_THAT(Contribute(Contribution(0, 2)).Complete(), IsOk());
}

TEST_P(RoundsTest, ASumThatIsNotFiniteSkipsTheRoundToo) {
  Make(2, 2);
  if (model_->parameter_count() == 0) GTEST_SKIP() << "it has no elements";
  Values large = GradientOf(0);
  large[0] = 0x1.8p127f;
  StepDelivery first = Contribute(Contribution(0), large);
  StepDelivery second = Contribute(Contribution(1), large);
  for (StepDelivery* const delivery : {&first, &second}) {
    const absl::StatusOr<StepReply> reply = delivery->Take();
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
    EXPECT_FALSE(reply->result.has_non_finite_rank());
    EXPECT_EQ(reply->result.non_finite_offset(), 0);
  }
  ExpectModelsState();
}

TEST_P(RoundsTest, ASetThatRejectsSaysWhoseItIs) {
  v1::ParameterSetSpec spec = WithWorkers(GetParam(), 2);
  spec.set_non_finite_policy(v1::NON_FINITE_POLICY_REJECT);
  Make(spec);
  if (model_->parameter_count() == 0) GTEST_SKIP() << "it has no elements";
  StepDelivery first = Contribute(Contribution(0));
  StepDelivery second =
      Contribute(Contribution(1), Values(model_->parameter_count(), std::numeric_limits<float>::infinity()));
  for (StepDelivery* const delivery : {&first, &second}) {
    const absl::Status status = delivery->Take().status();
    EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_NON_FINITE_GRADIENT));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  }
}

TEST_P(RoundsTest, AWriteEndsTheRound) {
  for (const bool full : {false, true}) {
    Make(3, 1);
    StepDelivery counted = Contribute(Contribution(0));
    StepDelivery arriving = Begin(Contribution(1));
    arriving.Await();
    StepDelivery waiting = Begin(Contribution(2));
    ASSERT_THAT(Write(set_.get(), full ? FullHeader(0) : ParametersHeader(), model_->arrays()), IsOk());
    for (StepDelivery* const delivery : {&counted, &arriving, &waiting}) {
      const absl::Status status = delivery->Take().status();
      EXPECT_THAT(status, full && delivery != &arriving
                              ? FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_UNINITIALIZED)
                              : FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
    }
    EXPECT_EQ(set_->Describe().round(), 2);
    ASSERT_THAT(Contribute(Contribution(0, 2)).Complete(), IsOk());
  }
}

TEST_P(RoundsTest, AnAdditionOfTensorsAndADeleteEndIt) {
  Make(2);
  StepDelivery counted = Contribute(Contribution(0));
  ASSERT_THAT(AddTensors(set_.get(), Tensors({5})), IsOk());
  EXPECT_THAT(counted.Take(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  StepDelivery another = Begin(Contribution(1, 2));
  another.Await();
  StepDelivery next = Begin(Contribution(0, 2));
  ASSERT_THAT(Delete(set_.get(), set_->Describe().incarnation()), IsOk());
  EXPECT_THAT(another.Take(), FailsWith(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
  EXPECT_THAT(next.Take(), FailsWith(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST_P(RoundsTest, WhatIsChangedInARoundHoldsForIt) {
  Make(2);
  StepDelivery first = Contribute(Contribution(0));
  v1::UpdateParameterGroupRequest request;
  request.mutable_group()->set_name("slow");
  request.mutable_group()->set_learning_rate(0.5);
  request.mutable_update_mask()->add_paths("learning_rate");
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  model_->mutable_spec()->mutable_groups(0)->set_learning_rate(0.5);
  StepDelivery second = Contribute(Contribution(1));
  EXPECT_EQ(first.Take()->result.learning_rates(0), 0.5);
  ApplyRanks({0, 1});
  ExpectModelsState();
}

TEST_P(RoundsTest, ARoundThatDoesNotFitTheConfigurationAnyMoreFails) {
  Make(2);
  StepDelivery first = Contribute(Contribution(0));
  StepDelivery second = Begin(Contribution(1));
  second.Await();
  v1::UpdateParameterGroupRequest request;
  request.mutable_group()->set_name("slow");
  request.mutable_group()->set_frozen(true);
  request.mutable_update_mask()->add_paths("frozen");
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  ASSERT_THAT(second.Send(Cut(set_->schema(), kBlockElements), GradientOf(1)), IsOk());
  ASSERT_THAT(second.Complete(), IsOk());
  for (StepDelivery* const delivery : {&first, &second}) {
    EXPECT_THAT(delivery->Take(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED));
  }
  EXPECT_EQ(set_->Describe().round(), 2);
  ExpectModelsState();
}

TEST_P(RoundsTest, WorkersMayChangeBetweenRounds) {
  Make(2);
  v1::UpdateParameterSetRequest request;
  request.mutable_spec()->mutable_workers()->set_count(1);
  request.mutable_update_mask()->add_paths("workers");
  {
    StepDelivery first = Contribute(Contribution(0));
    EXPECT_THAT(Update(set_.get(), request),
                FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_ROUND_OPEN));
    ASSERT_THAT(Contribute(Contribution(1)).Take(), IsOk());
    ASSERT_THAT(first.Take(), IsOk());
  }
  ApplyRanks({0, 1});
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  ASSERT_THAT(Contribute(Contribution(0, 2)).Take(), IsOk());
  ApplyRanks({0});
  StepDelivery old = Begin(Contribution(0, 3));
  old.Await();
  old.Cancel();
  request.mutable_spec()->clear_workers();
  server_.AwaitIdle();
  ASSERT_THAT(Update(set_.get(), request),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_ROUND_OPEN));
  old = Begin(Contribution(0, 1));  // late, and in no round
  ASSERT_THAT(Update(set_.get(), request), IsOk());
  EXPECT_THAT(Step(set_.get(), Contribution(0, 3), GradientOf(0)), RefusesField("header.rank"));
  ASSERT_THAT(Step(set_.get(), {}, GradientOf(0)), IsOk());
  model_->Apply(GradientOf(0));
  ExpectModelsState();
}

TEST_P(RoundsTest, ContributionsAreAlike) {
  Make(2);
  StepDelivery first = Begin(Contribution(0));
  v1::StepHeader header = Contribution(1);
  header.add_tensors(0);
  EXPECT_THAT(Begin(header).Take(), RefusesField("header.tensors"));
  header = Contribution(1);
  header.add_overrides()->set_learning_rate(3);
  EXPECT_THAT(Begin(header).Take(), RefusesField("header.overrides"));
}

TEST_P(RoundsTest, TheHeaderSaysWhatItIs) {
  Make(2);
  const auto refused = [this](const v1::StepHeader& header) { return Begin(header).Take().status(); };
  EXPECT_THAT(refused({}), RefusesField("header.rank"));
  EXPECT_THAT(refused(Contribution(-1)), RefusesField("header.rank"));
  EXPECT_THAT(refused(Contribution(2)), RefusesField("header.rank"));
  v1::StepHeader header;
  header.set_rank(0);
  EXPECT_THAT(refused(header), RefusesField("header.round"));
  header = Contribution(0);
  header.clear_rank();
  EXPECT_THAT(refused(header), RefusesField("header.round"));
  header.clear_round();
  header.set_weight(1);
  EXPECT_THAT(refused(header), RefusesField("header.weight"));
  header.clear_weight();
  header.set_ack_when_folded(true);
  EXPECT_THAT(refused(header), RefusesField("header.ack_when_folded"));
  header = Contribution(0);
  header.set_base_step(0);
  EXPECT_THAT(refused(header), RefusesField("header.base_step"));
  EXPECT_THAT(refused(Weighted(Contribution(0), 0)), RefusesField("header.weight"));
  EXPECT_THAT(refused(Weighted(Contribution(0), 0x1p49)), RefusesField("header.weight"));
  EXPECT_THAT(refused(Named(Contribution(0), "a", 1)),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH));
  TestServer other;
  EXPECT_THAT(Step(other.MakeSet(GetParam()).get(), Contribution(0), GradientOf(0)), RefusesField("header.rank"));
}

// Rounds whose contributions are not averaged.
class AggregationTest : public RoundsTest {
 protected:
  // The mean of the middle of what the contributions have for one element.
  static float Middle(std::vector<float> values, size_t trim) {
    std::sort(values.begin(), values.end());
    double sum = 0;
    for (size_t i = trim; i < values.size() - trim; ++i) sum += values[i];
    return static_cast<float>(sum / static_cast<double>(values.size() - 2 * trim));
  }
  void ApplyMiddle(const std::vector<int>& ranks, size_t trim) {
    Values middle(model_->parameter_count());
    for (size_t i = 0; i < middle.size(); ++i) {
      std::vector<float> values;
      for (const int rank : ranks) values.push_back(GradientOf(rank)[i]);
      middle[i] = Middle(values, trim);
    }
    model_->Apply(middle);
  }
};

INSTANTIATE_TEST_SUITE_P(Sizes, AggregationTest, ::testing::Values(SmallSpec(), EmptySpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(AggregationTest, ATrimmedMeanLeavesOutTheLargestAndTheSmallest) {
  v1::ParameterSetSpec spec = WithWorkers(GetParam(), 5, 1, 4);
  spec.mutable_workers()->mutable_trimmed_mean()->set_trim(1);
  Make(spec);
  std::vector<StepDelivery> deliveries;
  for (const int rank : {4, 2, 0, 1}) deliveries.push_back(Contribute(Contribution(rank)));
  EXPECT_EQ(server_.used().inflight, 5 * array_bytes());
  server_.clock().Advance(absl::Seconds(60));
  for (StepDelivery& delivery : deliveries) ASSERT_THAT(delivery.Take(), IsOk());
  ApplyMiddle({0, 1, 2, 4}, 1);
  ExpectModelsState();
}

TEST_P(AggregationTest, AMedianIsTheOneInTheMiddle) {
  for (const int count : {1, 2, 3, 4}) {
    v1::ParameterSetSpec spec = WithWorkers(GetParam(), count);
    spec.mutable_workers()->mutable_median();
    Make(spec);
    std::vector<StepDelivery> deliveries;
    std::vector<int> ranks;
    for (int rank = count - 1; rank >= 0; --rank) deliveries.push_back(Contribute(Contribution(rank)));
    for (StepDelivery& delivery : deliveries) ASSERT_THAT(delivery.Take(), IsOk());
    for (int rank = 0; rank < count; ++rank) ranks.push_back(rank);
    ApplyMiddle(ranks, (count - 1) / 2);
    ExpectModelsState();
  }
}

TEST_P(AggregationTest, AContributionThatIsNotFiniteIsLeftOutIfTheQuorumAllows) {
  v1::ParameterSetSpec spec = WithWorkers(GetParam(), 4, 1, 3);
  spec.mutable_workers()->mutable_median();
  Make(spec);
  if (model_->parameter_count() == 0) GTEST_SKIP() << "it has no elements";
  const Values bad(model_->parameter_count(), std::numeric_limits<float>::quiet_NaN());
  std::vector<StepDelivery> deliveries;
  for (int rank = 0; rank < 4; ++rank) {
    deliveries.push_back(Contribute(Contribution(rank), rank == 1 ? bad : GradientOf(rank)));
  }
  for (StepDelivery& delivery : deliveries) {
    const absl::StatusOr<StepReply> reply = delivery.Take();
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.contributions(), 3);
  }
  ApplyMiddle({0, 2, 3}, 1);
  ExpectModelsState();
  // One more than that.
  deliveries.clear();
  for (int rank = 0; rank < 4; ++rank) {
    deliveries.push_back(Contribute(Contribution(rank, 2), rank < 2 ? bad : GradientOf(rank)));
  }
  for (StepDelivery& delivery : deliveries) {
    EXPECT_EQ(delivery.Take()->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  }
}

TEST_P(AggregationTest, WeightsAreForMeans) {
  v1::ParameterSetSpec spec = WithWorkers(GetParam(), 2);
  spec.mutable_workers()->mutable_median();
  Make(spec);
  EXPECT_THAT(Begin(Weighted(Contribution(0), 2)).Take(), RefusesField("header.weight"));
}

TEST_P(AggregationTest, AContributionsNormIsBounded) {
  v1::ParameterSetSpec spec = WithWorkers(GetParam(), 2);
  spec.mutable_workers()->set_max_contribution_norm(0.5);
  Make(spec);
  if (model_->parameter_count() == 0) GTEST_SKIP() << "it has no elements";
  const Values small(model_->parameter_count(), 0.01f);
  const Values large = GradientOf(1);
  StepDelivery first = Contribute(Contribution(0), small);
  StepDelivery second = Contribute(Weighted(Contribution(1), 3, 4), large);
  ASSERT_THAT(first.Take(), IsOk());
  const double norm = model_->Norm(large) / 4;
  ASSERT_GT(norm, 0.5);
  const auto k = static_cast<float>(3.0 / 4 * (0.5 / (norm + 1e-6)));
  Values sum = small;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = std::fma(k, large[i], small[i]);
  v1::StepHeader header;
  header.set_grad_scale(4);
  model_->Apply(sum, header);
  ExpectModelsState();
}

TEST(WorkersTest, WhatIsOutOfRangeIsRefused) {
  TestServer server;
  const auto refused = [&server](const v1::Workers& workers) {
    v1::ParameterSetSpec spec = SmallSpec();
    *spec.mutable_workers() = workers;
    return ParameterSet::Create(server.resources(), spec).status();
  };
  v1::Workers workers;
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.count"));
  workers.set_count(65);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.count"));
  workers.set_count(4);
  workers.set_quorum(5);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.quorum"));
  workers.set_quorum(2);
  workers.set_window(-1);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.window"));
  workers.set_window(5);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.window"));
  workers.set_window(4);
  for (const double seconds : {-1.0, 86401.0, std::numeric_limits<double>::quiet_NaN()}) {
    workers.set_round_timeout_seconds(seconds);
    EXPECT_THAT(refused(workers), RefusesField("spec.workers.round_timeout_seconds"));
  }
  workers.set_round_timeout_seconds(1);
  workers.set_max_contribution_norm(0);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.max_contribution_norm"));
  workers.clear_max_contribution_norm();
  workers.mutable_trimmed_mean()->set_trim(1);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.trimmed_mean"));
  workers.set_quorum(3);
  workers.mutable_trimmed_mean()->set_trim(2);
  EXPECT_THAT(refused(workers), RefusesField("spec.workers.trimmed_mean.trim"));
  workers.mutable_trimmed_mean()->set_trim(1);
  EXPECT_THAT(refused(workers), IsOk());
}

TEST(WorkersTest, DefaultsAreShown) {
  TestServer server;
  const v1::ParameterSet set = server.MakeSet(WithWorkers(SmallSpec(), 3))->Describe();
  EXPECT_EQ(set.workers().quorum(), 3);
  EXPECT_EQ(set.workers().window(), 2);
  EXPECT_EQ(set.workers().round_timeout_seconds(), 60);
  EXPECT_EQ(set.round(), 1);
  EXPECT_FALSE(server.MakeSet(SmallSpec("other"))->Describe().has_workers());
}

TEST(WorkersTest, ARoundThatCouldNeverBeHadIsRefused) {
  TestServer server({.inflight_bytes = int64_t{4} << 20});
  EXPECT_THAT(ParameterSet::Create(server.resources(), WithWorkers(LargeSpec(), 4, 2)), IsOk());
  EXPECT_THAT(ParameterSet::Create(server.resources(), WithWorkers(LargeSpec(), 4, 3)),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  v1::ParameterSetSpec spec = WithWorkers(LargeSpec(), 4, 1);
  spec.mutable_workers()->mutable_median();
  EXPECT_THAT(ParameterSet::Create(server.resources(), spec),
              FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
}

TEST(WorkersTest, ARoundThatFindsNoRoomHasNotBegun) {
  TestServer server({.inflight_bytes = int64_t{4} << 20});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(WithWorkers(LargeSpec(), 2));
  absl::StatusOr<Grant> other = server.inflight().TryReserve(int64_t{1} << 20);
  ASSERT_THAT(other, IsOk());
  StepDelivery first = BeginStep(set.get(), Contribution(0));
  StepDelivery second = BeginStep(set.get(), Contribution(1));
  server.clock().Advance(absl::Seconds(1));
  for (StepDelivery* const delivery : {&first, &second}) {
    EXPECT_THAT(delivery->Take(), FailsWith(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED));
  }
  EXPECT_EQ(set->Describe().round(), 1);
  EXPECT_EQ(server.clock().pending(), 0);
  *other = Grant();
  StepDelivery again = BeginStep(set.get(), Contribution(0));
  again.Await();
  EXPECT_TRUE(again.admitted());
}

TEST(WorkersTest, ASetThatIsDroppedDropsItsRound) {
  TestServer server;
  std::shared_ptr<ParameterSet> set = server.MakeSet(WithWorkers(SmallSpec(), 2));
  StepDelivery counted = BeginStep(set.get(), Contribution(0));
  ASSERT_THAT(counted.Send(Cut(set->schema(), kBlockElements), Gradient(65, 1)), IsOk());
  ASSERT_THAT(counted.Complete(), IsOk());
  set.reset();
  EXPECT_TRUE(absl::IsCancelled(counted.Take().status()));
  EXPECT_EQ(server.used().inflight, 0);
  EXPECT_EQ(server.clock().pending(), 0);
}

TEST(WorkersTest, ARoundEndsForThoseWhoWaitForOthersThatWillNotCome) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(WithWorkers(SmallSpec(), 3, 1));
  StepDelivery counted = BeginStep(set.get(), Contribution(0));
  ASSERT_THAT(counted.Send(Cut(set->schema(), kBlockElements), Gradient(65, 1)), IsOk());
  ASSERT_THAT(counted.Complete(), IsOk());
  StepDelivery arriving = BeginStep(set.get(), Contribution(1));
  StepDelivery waiting = BeginStep(set.get(), Contribution(2));
  set->EndRound(absl::UnavailableError("draining"));
  EXPECT_TRUE(absl::IsUnavailable(counted.Take().status()));
  EXPECT_TRUE(absl::IsUnavailable(waiting.Take().status()));
  ASSERT_THAT(arriving.Send(Cut(set->schema(), kBlockElements), Gradient(65, 1)), IsOk());
  ASSERT_THAT(arriving.Complete(), IsOk());
  EXPECT_EQ(arriving.Take()->result.outcome(), v1::STEP_OUTCOME_REFUSED_LATE);
}

TEST(WorkersTest, ACommitThatFailsPoisonsForAll) {
  FaultyBackend backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(WithWorkers(Marked(SmallSpec()), 2));
  backend.FailAt(0);
  const Values gradient = Gradient(65, 1);
  std::vector<StepDelivery> deliveries;
  for (int rank = 0; rank < 2; ++rank) {
    deliveries.push_back(BeginStep(set.get(), Contribution(rank)));
    deliveries.back().Await();
    ASSERT_THAT(deliveries.back().Send(Cut(set->schema(), kBlockElements), gradient), IsOk());
    ASSERT_THAT(deliveries.back().Complete(), IsOk());
  }
  for (StepDelivery& delivery : deliveries) {
    EXPECT_THAT(delivery.Take(), FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  }
}

}  // namespace
}  // namespace adamant::core
