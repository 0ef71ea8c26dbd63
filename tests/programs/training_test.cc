// The training loop against a server that the test plays.
#include "client/programs/training.h"

#include <adamant/mocks/mock_connection.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "client/programs/initialization.h"
#include "client/programs/regression.h"

namespace adamant::programs {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::NiceMock;
using testing::Pointwise;
using testing::Return;

constexpr char kName[] = "sanity-train/1";

// Answers like a server of the set `kName`, whose step is plain gradient descent with a rate of 0.1.
class TrainingTest : public testing::Test {
 protected:
  TrainingTest() {
    ON_CALL(*connection_, CreateParameterSet).WillByDefault([this](const v1::CreateParameterSetRequest& request) {
      spec_ = request.spec();
      v1::CreateParameterSetResponse response;
      response.set_created(true);
      *response.mutable_parameter_set() = Set();
      return response;
    });
    ON_CALL(*connection_, Write).WillByDefault([this](const WriteCall& call) {
      for (absl::Span<const float> tensor : call.sources.at(0).tensors) {
        parameters_.insert(parameters_.end(), tensor.begin(), tensor.end());
      }
      written_ = parameters_;
      v1::WriteTensorsResponse response;
      response.set_incarnation(++incarnation_);
      return response;
    });
    ON_CALL(*connection_, GetParameterSet).WillByDefault([this](const v1::GetParameterSetRequest&) {
      v1::GetParameterSetResponse response;
      *response.mutable_parameter_set() = Set();
      return response;
    });
    ON_CALL(*connection_, ListTensors).WillByDefault([this](const v1::ListTensorsRequest&) {
      v1::ListTensorsResponse response;
      for (const v1::TensorSpec& tensor : spec_.tensors()) {
        v1::Tensor* added = response.add_tensors();
        added->set_index(response.tensors_size() - 1);
        added->set_name(tensor.name());
        *added->mutable_shape() = tensor.shape();
        added->set_element_count(1);
        for (int64_t extent : tensor.shape()) added->set_element_count(added->element_count() * extent);
      }
      return response;
    });
    ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) { return Descend(call); });
    ON_CALL(*connection_, DeleteParameterSet).WillByDefault([this](const v1::DeleteParameterSetRequest& request) {
      deleted_.push_back(request.name());
      deleted_incarnation_ = request.incarnation();
      return v1::DeleteParameterSetResponse();
    });
  }

  v1::ParameterSet Set() const {
    v1::ParameterSet set;
    if (spec_.has_workers()) set.set_round(1);
    set.set_name(kName);
    set.set_incarnation(incarnation_);
    set.set_step(step_);
    set.set_tensor_count(spec_.tensors_size());
    return set;
  }

  v1::StepResult Descend(const StepCall& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    last_call_ = call.header;
    gradient_dtype_ = call.gradient_dtype;
    size_t i = 0;
    for (size_t tensor = 0; tensor < call.gradients.size(); ++tensor) {
      for (size_t e = 0; e < call.gradients[tensor].size(); ++e, ++i) {
        parameters_[i] -= 0.1f * call.gradients[tensor][e];
        call.parameters[tensor][e] = parameters_[i];
      }
    }
    v1::StepResult result;
    result.set_outcome(v1::STEP_OUTCOME_APPLIED);
    result.set_incarnation(incarnation_);
    result.set_step(++step_);
    result.set_parameters_step(step_);
    return result;
  }

  // Answers as Descend does, with the weighted mean of all contributions of a round, to all but those that do not wait.
  v1::StepResult Contribute(const StepCall& call) {
    std::unique_lock<std::mutex> lock(mutex_);
    contributions_.push_back(call.header);
    const int64_t round = call.header.round();
    EXPECT_EQ(round, step_ + 1);
    const float weight = call.header.has_weight() ? static_cast<float>(call.header.weight()) : 1;
    sum_.resize(parameters_.size());
    size_t i = 0;
    for (absl::Span<const float> tensor : call.gradients) {
      for (const float element : tensor) sum_[i++] += weight * element;
    }
    weights_ += weight;
    v1::StepResult result;
    result.set_incarnation(incarnation_);
    result.set_round(round);
    if (++contributed_ == spec_.workers().count()) {
      for (size_t j = 0; j < sum_.size(); ++j) parameters_[j] -= 0.1f * sum_[j] / weights_;
      sum_.clear();
      weights_ = 0;
      contributed_ = 0;
      ++step_;
      round_done_.notify_all();
    } else if (call.header.ack_when_folded()) {
      result.set_outcome(v1::STEP_OUTCOME_ACCUMULATED);
      return result;
    } else {
      round_done_.wait(lock, [&] { return step_ == round; });
    }
    i = 0;
    for (absl::Span<float> tensor : call.parameters) {
      for (float& element : tensor) element = parameters_[i++];
    }
    result.set_outcome(v1::STEP_OUTCOME_APPLIED);
    result.set_step(step_);
    result.set_parameters_step(step_);
    result.set_round(round + 1);
    return result;
  }

  // The losses of a training by one worker, epoch by epoch.
  std::vector<double> LossesOfOneWorker(const TrainingPlan& plan) {
    std::vector<float> parameters = InitialParameters(plan.widths, plan.seed);
    std::vector<float> gradient(parameters.size());
    Mlp mlp(plan.widths);
    std::vector<double> losses;
    for (int epoch = 0; epoch < plan.epochs; ++epoch) {
      double sum = 0;
      for (const Batch& batch : SplitIntoBatches(plan.data, plan.batch_size)) {
        sum += mlp.LossAndGradient(parameters, batch, absl::MakeSpan(gradient)) * batch.samples;
        for (size_t i = 0; i < gradient.size(); ++i) parameters[i] -= 0.1f * gradient[i];
      }
      losses.push_back(sum / plan.data.samples);
    }
    return losses;
  }
  std::vector<double> LossesTold() const {
    std::vector<double> losses;
    for (const TrainingProgress& progress : progress_) {
      if (progress.epoch_done) losses.push_back(progress.loss);
    }
    return losses;
  }

  absl::StatusOr<TrainingSummary> RunTraining(const TrainingPlan& plan) {
    return Train(plan, kName, Client(connection_), [this](const TrainingProgress& progress) {
      progress_.push_back(progress);
      return progress.steps_done < stop_after_;
    });
  }

  TrainingPlan Plan() {
    v1::ParameterGroup group;
    group.set_learning_rate(0.125);
    return {.widths = {2, 8, 1},
            .data = MakeRegression(2, 1, 10, 1),
            .epochs = 30,
            .batch_size = 4,
            .group = group,
            .seed = 3};
  }

  std::shared_ptr<NiceMock<mocks::MockConnection>> connection_ = std::make_shared<NiceMock<mocks::MockConnection>>();
  int64_t stop_after_ = INT64_MAX;
  std::vector<TrainingProgress> progress_;

  std::mutex mutex_;  // for workers, who step at the same time
  std::condition_variable round_done_;
  std::vector<v1::StepHeader> contributions_;
  int contributed_ = 0;  // to the round that is open
  std::vector<float> sum_;
  float weights_ = 0;
  v1::StepHeader last_call_;
  v1::Dtype gradient_dtype_ = v1::DTYPE_UNSPECIFIED;
  v1::ParameterSetSpec spec_;
  uint64_t incarnation_ = 7;
  int64_t step_ = 0;
  std::vector<float> parameters_;
  std::vector<float> written_;
  std::vector<std::string> deleted_;
  uint64_t deleted_incarnation_ = 0;
};

TEST_F(TrainingTest, CreatesASetThatTheServerDoesNotInitialize) {
  ASSERT_TRUE(RunTraining(Plan()).ok());

  EXPECT_EQ(spec_.name(), kName);
  EXPECT_EQ(spec_.initialization(), v1::INITIALIZATION_WRITTEN);
  ASSERT_EQ(spec_.tensors_size(), 4);
  EXPECT_THAT(spec_.tensors(0).shape(), ElementsAre(8, 2));
  ASSERT_EQ(spec_.groups_size(), 1);
  EXPECT_EQ(spec_.groups(0).learning_rate(), 0.125);
  EXPECT_THAT(written_, ElementsAreArray(InitialParameters({2, 8, 1}, 3)));
}

TEST_F(TrainingTest, StepsOnceForEachBatchOfEachEpochToAFallingLoss) {
  const absl::StatusOr<TrainingSummary> summary = RunTraining(Plan());

  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->steps, 30 * 3);
  EXPECT_EQ(step_, 30 * 3);
  ASSERT_EQ(progress_.size(), 90);
  EXPECT_EQ(progress_.back().steps_done, 90);
  EXPECT_EQ(progress_.back().steps_in_all, 90);
  EXPECT_EQ(progress_.back().epoch, 30);
  EXPECT_FALSE(progress_[1].epoch_done);
  EXPECT_TRUE(progress_[2].epoch_done);
  EXPECT_LT(progress_.back().loss, 0.5 * progress_[2].loss);
}

TEST_F(TrainingTest, WeighsTheLossesOfAnEpochsBatchesBySamples) {
  TrainingPlan plan = Plan();
  plan.epochs = 1;
  // Without updates the loss over batches is that over all samples at once.
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) {
    const std::vector<float> kept = parameters_;
    v1::StepResult result = Descend(call);
    parameters_ = kept;
    size_t i = 0;
    for (absl::Span<float> tensor : call.parameters) {
      for (float& element : tensor) element = kept[i++];
    }
    return result;
  });
  Mlp mlp(plan.widths);
  std::vector<float> gradient(mlp.parameter_count());
  const float loss =
      mlp.LossAndGradient(InitialParameters(plan.widths, plan.seed), plan.data, absl::MakeSpan(gradient));

  ASSERT_TRUE(RunTraining(plan).ok());

  EXPECT_NEAR(progress_.back().loss, loss, 1e-6);
}

TEST_F(TrainingTest, PassesOnWhatThePlanSaysOfTheOptimizer) {
  TrainingPlan plan = Plan();
  plan.group.mutable_sgd()->set_momentum(0.9);
  plan.clipping.set_max_norm(2);
  plan.dtype = v1::DTYPE_BFLOAT16;

  ASSERT_TRUE(RunTraining(plan).ok());

  EXPECT_EQ(spec_.groups(0).sgd().momentum(), 0.9);
  EXPECT_EQ(spec_.clipping().max_norm(), 2);
  EXPECT_EQ(spec_.max_staleness(), 0);
  EXPECT_EQ(last_call_.reply_dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(gradient_dtype_, v1::DTYPE_BFLOAT16);
  EXPECT_TRUE(last_call_.has_expected_step());
}

TEST_F(TrainingTest, WorkersShareTheBatchesAndMayBeBehind) {
  TrainingPlan plan = Plan();
  plan.workers = 4;

  const absl::StatusOr<TrainingSummary> summary = RunTraining(plan);

  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->steps, 90);
  EXPECT_EQ(step_, 90);
  EXPECT_EQ(spec_.max_staleness(), 3);
  EXPECT_TRUE(last_call_.has_base_step());
  // Every epoch is done once, in order, and of all of its samples.
  std::vector<int> done;
  for (const TrainingProgress& progress : progress_) {
    if (progress.epoch_done) done.push_back(progress.epoch);
  }
  ASSERT_EQ(done.size(), 30);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(done[i], i + 1);
  EXPECT_LT(progress_.back().loss, 0.5 * progress_[2].loss);
}

TEST_F(TrainingTest, StaleGradientIsComputedAgainFromTheParametersThatCameBack) {
  TrainingPlan plan = Plan();
  plan.workers = 2;
  bool refused = false;
  ON_CALL(*connection_, Step).WillByDefault([&](const StepCall& call) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!std::exchange(refused, true)) {
        size_t i = 0;
        for (absl::Span<float> tensor : call.parameters) {
          for (float& element : tensor) element = parameters_[i++];
        }
        v1::StepResult result;
        result.set_outcome(v1::STEP_OUTCOME_REFUSED_STALE);
        result.set_parameters_step(step_);
        return result;
      }
    }
    return Descend(call);
  });

  ASSERT_TRUE(RunTraining(plan).ok());

  EXPECT_TRUE(refused);
  EXPECT_EQ(step_, 90);
}

TEST_F(TrainingTest, SynchronousWorkersMakeTheStepsOfOne) {
  TrainingPlan plan = Plan();
  plan.batch_size = 7;  // and 3
  plan.workers = 3;
  plan.synchronous = true;
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) { return Contribute(call); });

  const absl::StatusOr<TrainingSummary> summary = RunTraining(plan);

  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->steps, 60);
  EXPECT_EQ(step_, 60);
  EXPECT_EQ(spec_.workers().count(), 3);
  EXPECT_EQ(spec_.max_staleness(), 0);
  EXPECT_THAT(LossesTold(), Pointwise(DoubleNear(1e-5), LossesOfOneWorker(plan)));
  // Told of after each step, which is not each contribution.
  ASSERT_EQ(progress_.size(), 60);
  EXPECT_EQ(progress_.back().steps_done, 60);
  // Each rank has its own part of every batch, and that its weight, which is 1 where none is given.
  ASSERT_EQ(contributions_.size(), 180);
  for (const v1::StepHeader& header : contributions_) {
    const bool is_of_seven = header.expected_step() % 2 == 0;
    EXPECT_EQ(header.weight(), is_of_seven ? (header.rank() == 2 ? 3 : 2) : 0) << header.rank();
    EXPECT_FALSE(header.ack_when_folded());
  }
}

TEST_F(TrainingTest, AccumulatesPartsOfABatchOneAfterTheOther) {
  TrainingPlan plan = Plan();
  plan.batch_size = 5;
  plan.accumulate = 4;
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) { return Contribute(call); });

  const absl::StatusOr<TrainingSummary> summary = RunTraining(plan);

  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->steps, 60);
  EXPECT_EQ(step_, 60);
  EXPECT_EQ(spec_.workers().count(), 4);
  EXPECT_EQ(spec_.workers().window(), 1);
  EXPECT_THAT(LossesTold(), Pointwise(DoubleNear(1e-5), LossesOfOneWorker(plan)));
  ASSERT_EQ(contributions_.size(), 240);
  for (size_t i = 0; i < 240; ++i) {
    EXPECT_EQ(contributions_[i].rank(), i % 4);
    EXPECT_EQ(contributions_[i].ack_when_folded(), i % 4 != 3);
  }
}

TEST_F(TrainingTest, SynchronousWorkersAreInterruptedBetweenTwoSteps) {
  TrainingPlan plan = Plan();
  plan.workers = 3;
  plan.batch_size = 5;
  plan.synchronous = true;
  stop_after_ = 2;
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) { return Contribute(call); });

  EXPECT_TRUE(absl::IsCancelled(RunTraining(plan).status()));

  EXPECT_EQ(step_, 2);
  EXPECT_EQ(contributions_.size(), 6);
  EXPECT_THAT(deleted_, ElementsAre(kName));
}

TEST_F(TrainingTest, ContributionThatIsLateEndsTheTraining) {
  TrainingPlan plan = Plan();
  plan.accumulate = 2;
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) {
    v1::StepResult result = Contribute(call);
    if (result.step() == 5) result.set_outcome(v1::STEP_OUTCOME_REFUSED_LATE);
    return result;
  });

  const absl::Status status = RunTraining(plan).status();

  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("in time"));
  EXPECT_THAT(deleted_, ElementsAre(kName));
}

TEST_F(TrainingTest, OneWorkersErrorEndsAll) {
  TrainingPlan plan = Plan();
  plan.workers = 3;
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall& call) -> absl::StatusOr<v1::StepResult> {
    const v1::StepResult result = Descend(call);
    if (result.step() >= 5) return absl::AbortedError("no");
    return result;
  });

  EXPECT_TRUE(absl::IsAborted(RunTraining(plan).status()));

  EXPECT_LE(step_, 7);
  EXPECT_THAT(deleted_, ElementsAre(kName));
}

TEST_F(TrainingTest, DeletesTheIncarnationThatItTrained) {
  ASSERT_TRUE(RunTraining(Plan()).ok());

  EXPECT_THAT(deleted_, ElementsAre(kName));
  EXPECT_EQ(deleted_incarnation_, 8);
}

TEST_F(TrainingTest, DeletesTheSetWhenAStepFails) {
  ON_CALL(*connection_, Step).WillByDefault(Return(absl::AbortedError("another client stepped")));

  const absl::Status status = RunTraining(Plan()).status();

  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 1: another client stepped"));
  EXPECT_THAT(deleted_, ElementsAre(kName));
}

TEST_F(TrainingTest, DeletesTheSetWhenItIsInterrupted) {
  stop_after_ = 2;

  EXPECT_TRUE(absl::IsCancelled(RunTraining(Plan()).status()));

  EXPECT_EQ(step_, 2);
  EXPECT_THAT(deleted_, ElementsAre(kName));
}

TEST_F(TrainingTest, EndsAtASkippedStep) {
  ON_CALL(*connection_, Step).WillByDefault([this](const StepCall&) {
    v1::StepResult result;
    result.set_outcome(v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
    result.set_incarnation(incarnation_);
    return result;
  });

  const absl::Status status = RunTraining(Plan()).status();

  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("not finite"));
  EXPECT_THAT(deleted_, ElementsAre(kName));
}

TEST_F(TrainingTest, DoesNotWaitForALostServerTwice) {
  ON_CALL(*connection_, Step).WillByDefault(Return(absl::UnavailableError("connection refused")));
  EXPECT_CALL(*connection_, DeleteParameterSet).Times(0);

  const absl::Status status = RunTraining(Plan()).status();

  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr(kName));
}

TEST_F(TrainingTest, SaysWhenTheSetCannotBeDeleted) {
  ON_CALL(*connection_, DeleteParameterSet).WillByDefault(Return(absl::InternalError("no")));

  const absl::Status status = RunTraining(Plan()).status();

  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot delete"));
}

}  // namespace
}  // namespace adamant::programs
