// What a watcher is told, in which order, and what it costs a step.
#include "server/core/set/watch.h"

#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/gate.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;

class WatchTest : public ::testing::Test {
 protected:
  std::shared_ptr<Watch> Begin() {
    return *set_->BeginWatch([this] { ++notified_; });
  }
  void StepOnce(uint64_t seed = 1) { ASSERT_THAT(Step(set_.get(), {}, Gradient(65, seed)), IsOk()); }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(SmallSpec());
  int notified_ = 0;
};

TEST_F(WatchTest, FirstComesTheSetAsItIs) {
  StepOnce();
  const std::shared_ptr<Watch> watch = Begin();
  const auto event = watch->Next();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->step(), 1);
  EXPECT_EQ(event->incarnation(), set_->Describe().incarnation());
  EXPECT_EQ(event->current().SerializeAsString(), set_->Describe().SerializeAsString());
  EXPECT_FALSE(watch->Next().has_value());
  EXPECT_EQ(notified_, 0);
}

TEST_F(WatchTest, AStepTellsWhatItsResultSays) {
  const std::shared_ptr<Watch> watch = Begin();
  watch->Next();
  v1::StepHeader header;
  (*header.mutable_metrics())["loss"] = 0.25;
  const absl::StatusOr<StepReply> reply = Step(set_.get(), header, Gradient(65, 1));
  ASSERT_THAT(reply, IsOk());
  const auto event = watch->Next();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->step(), 1);
  EXPECT_EQ(event->committed().grad_norm(), reply->result.grad_norm());
  EXPECT_THAT(event->committed().learning_rates(), ElementsAre(1e-3, 1e-2));
  EXPECT_EQ(event->committed().metrics().at("loss"), 0.25);
  EXPECT_EQ(event->missed(), 0);
}

TEST_F(WatchTest, EverythingThatHappensIsToldInOrder) {
  const std::shared_ptr<Watch> watch = Begin();
  watch->Next();
  StepOnce();
  Values bad = Gradient(65, 2);
  bad[64] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_THAT(Step(set_.get(), {}, bad), IsOk());
  Arrays arrays;
  arrays.parameters = Values(65, 1.0f);
  ASSERT_THAT(Write(set_.get(), ParametersHeader(), arrays), IsOk());
  v1::UpdateParameterSetRequest request;
  request.mutable_update_mask()->add_paths("max_staleness");
  request.mutable_spec()->set_max_staleness(2);
  Gate changed;
  set_->Update(request, [&changed](const absl::StatusOr<v1::ParameterSet>&) { changed.Open(); });
  changed.Pass();
  ASSERT_THAT(Delete(set_.get()), IsOk());

  EXPECT_TRUE(watch->Next()->has_committed());
  const auto skipped = watch->Next();
  EXPECT_EQ(skipped->skipped().non_finite_tensor(), 3);
  EXPECT_EQ(skipped->skipped().non_finite_offset(), 0);
  EXPECT_EQ(skipped->step(), 1);
  const auto written = watch->Next();
  EXPECT_EQ(written->written().mode(), v1::WRITE_MODE_PARAMETERS);
  EXPECT_NE(written->incarnation(), skipped->incarnation());
  const auto config = watch->Next();
  EXPECT_EQ(config->config_changed().max_staleness(), 2);
  EXPECT_EQ(config->config_changed().config_revision(), 2);
  EXPECT_TRUE(watch->Next()->has_deleted());
  EXPECT_FALSE(watch->Next().has_value());
}

TEST_F(WatchTest, ASlowWatcherLosesTheOldestAndIsToldHowMany) {
  const std::shared_ptr<Watch> watch = Begin();
  watch->Next();
  const int steps = static_cast<int>(Watch::kMostEvents) + 3;
  for (int step = 0; step < steps; ++step) StepOnce();
  const auto first = watch->Next();
  EXPECT_EQ(first->missed(), 3);
  EXPECT_EQ(first->step(), 4);
  for (int step = 5; step <= steps; ++step) {
    const auto event = watch->Next();
    EXPECT_EQ(event->missed(), 0);
    EXPECT_EQ(event->step(), step);
  }
  EXPECT_FALSE(watch->Next().has_value());
}

TEST_F(WatchTest, WhoHasFoundNothingIsNotifiedOnce) {
  const std::shared_ptr<Watch> watch = Begin();
  watch->Next();
  EXPECT_FALSE(watch->Next().has_value());
  StepOnce();
  StepOnce();
  EXPECT_EQ(notified_, 1);
  watch->Next();
  watch->Next();
  StepOnce();
  EXPECT_EQ(notified_, 1) << "it has not found out yet that there is nothing";
}

TEST_F(WatchTest, AWatchThatIsGoneIsToldNothing) {
  Begin().reset();
  StepOnce();
  const std::shared_ptr<Watch> watch = Begin();
  EXPECT_EQ(watch->Next()->step(), 1);
  EXPECT_EQ(notified_, 0);
}

TEST_F(WatchTest, ADeletedSetCannotBeWatched) {
  ASSERT_THAT(Delete(set_.get()), IsOk());
  EXPECT_THAT(set_->BeginWatch([] {}).status(), FailsWith(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

}  // namespace
}  // namespace adamant::core
