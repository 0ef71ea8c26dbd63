// A commit for several contributors, as a round has them.
#include "server/core/set/step_commit.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/spec/slots.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using StepRecorder = Recorder<StepAttempt, StepReply>;

class StepCommitTest : public ::testing::Test {
 protected:
  // A set at step 0, without the door to it.
  StepCommitTest() {
    const v1::ParameterSetSpec spec = SmallSpec();
    std::shared_ptr<const Configuration> configuration = *Configuration::Create(spec);
    std::shared_ptr<const Schema> schema = *Schema::Create(spec, configuration->groups());
    schema_ = schema;
    const Resources resources = server_.resources();
    ArraysLayout layout = {schema, OptimizerSlots(configuration->groups())};
    std::unique_ptr<SlotArrays> arrays = *resources.backend->NewArrays(layout, resources.lender, resources.compute);
    Lifecycle lifecycle(spec.name(), schema->fingerprint(), /*incarnation=*/1);
    lifecycle.Rewrite(/*incarnation=*/1, /*step=*/0);
    set_ = std::make_shared<SetRep>(resources, schema, std::move(configuration), spec.initialization(), Grant(),
                                    std::move(layout), std::move(arrays), lifecycle);
    BlockList zeros = *resources.lender->TakeZeroed(schema->flat_size());
    MutexLock lock(&set_->mutex);
    set_->snapshot = std::make_shared<const Snapshot>(1, 0, std::move(zeros));
  }

  std::shared_ptr<StepAttempt> Contribute(const v1::StepHeader& header, const std::shared_ptr<StepRecorder>& recorder) {
    auto attempt = std::make_shared<StepAttempt>(set_, header, recorder);
    attempt->Start();
    recorder->Await();
    return attempt;
  }

  // Commits what `contributors` made together.
  void Run(std::vector<std::shared_ptr<StepAttempt>> contributors, const Values& gradient) {
    Staging sum(contributors.front()->selection(), *server_.resources().lender->TakeZeroed(schema_->flat_size()),
                server_.resources().backend->host_kernels().measure);
    for (const Piece& piece : Cut(*schema_, kBlockElements)) {
      const float* const from = gradient.data() + piece.begin;
      ASSERT_THAT(
          sum.Add(piece.tensor, piece.offset, piece.count, [from](float* to, int64_t n) { std::copy_n(from, n, to); }),
          IsOk());
    }
    StepCommit::Input input;
    input.contributors = std::move(contributors);
    input.gradient.gradient.emplace(std::move(sum));
    set_->turns->Enqueue([&](TurnQueue::Turn turn) { StepCommit::Run(set_, std::move(input), std::move(turn)); });
  }

  int64_t StepOf(const std::string& request_id) {
    MutexLock lock(&set_->mutex);
    const v1::StepResult* const result = set_->requests.FindResult(request_id);
    return result != nullptr ? result->step() : -1;
  }

  TestServer server_;
  std::shared_ptr<const Schema> schema_;
  std::shared_ptr<SetRep> set_;
  SequentialModel model_{SmallSpec()};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
  std::shared_ptr<StepRecorder> one_ = std::make_shared<StepRecorder>();
  std::shared_ptr<StepRecorder> other_ = std::make_shared<StepRecorder>();
};

TEST_F(StepCommitTest, EachContributorIsAnsweredAndRemembered) {
  Run({Contribute(Header("one", 0), one_), Contribute(Header("other", 0), other_)}, gradient_);
  model_.Apply(gradient_);
  for (StepRecorder* recorder : {one_.get(), other_.get()}) {
    const absl::StatusOr<StepReply> reply = recorder->Take();
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.step(), 1);
    EXPECT_EQ(reply->result.parameters_step(), 1);
    EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters));
  }
  EXPECT_EQ(StepOf("one"), 1);
  EXPECT_EQ(StepOf("other"), 1);
}

TEST_F(StepCommitTest, WhoHasNoPartIsAnsweredAndTheOthersStepIsApplied) {
  v1::StepHeader late = Header("other", 1);
  Run({Contribute(Header("one", 0), one_), Contribute(late, other_)}, gradient_);
  EXPECT_EQ(one_->Take()->result.step(), 1);
  EXPECT_THAT(other_->Take().status(), FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_STEP_MISMATCH));
  EXPECT_EQ(StepOf("one"), 1);
  EXPECT_EQ(StepOf("other"), -1);
}

}  // namespace
}  // namespace adamant::core
