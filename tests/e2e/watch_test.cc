// WatchParameterSet over a socket: what watchers are told, and that nobody waits for them.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/rpc/open_calls.h"
#include "server/rpc/watch_call.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

using Event = v1::WatchParameterSetResponse;

// One call of WatchParameterSet. Cancelled when it is destroyed before its end.
class WatchStream {
 public:
  WatchStream(v1::OptimizerService::Stub* stub, const std::string& set) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    v1::WatchParameterSetRequest request;
    request.set_name(set);
    stream_ = stub->WatchParameterSet(&context_, request);
  }
  ~WatchStream() {
    context_.TryCancel();
    if (!finished_) Finish().IgnoreError();
  }
  WatchStream(const WatchStream&) = delete;
  WatchStream& operator=(const WatchStream&) = delete;

  // The next event; one without any if the stream has ended.
  Event Next() {
    Event event;
    return stream_->Read(&event) ? event : Event();
  }
  // The stream's end, waiting for it.
  absl::Status Finish() {
    Event event;
    while (stream_->Read(&event)) {
    }
    finished_ = true;
    return wire::FromGrpcStatus(stream_->Finish());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<Event>> stream_;
  bool finished_ = false;
};

class WatchTest : public ServerTest {
 protected:
  WatchTest() { MakeSet(spec_); }

  absl::StatusOr<StepReply> Step(const Values& gradient, const v1::StepHeader& header = StepHeader("small")) {
    return client_.Step(spec_, header, gradient);
  }

  const v1::ParameterSetSpec spec_ = SmallSpec();
  const Values gradient_ = Gradient(65, 1);
};

TEST_F(WatchTest, EventsComeInTheOrderInWhichItHappened) {
  ASSERT_TRUE(Step(gradient_).ok());
  WatchStream watch(client_.stub(), "small");
  const Event current = watch.Next();
  ASSERT_TRUE(current.has_current());
  EXPECT_EQ(current.step(), 1);
  EXPECT_EQ(current.current().SerializeAsString(), client_.Get("small")->SerializeAsString());

  v1::StepHeader header = StepHeader("small");
  (*header.mutable_metrics())["loss"] = 0.25;
  const absl::StatusOr<StepReply> reply = Step(gradient_, header);
  ASSERT_TRUE(reply.ok()) << reply.status();
  const Event committed = watch.Next();
  ASSERT_TRUE(committed.has_committed());
  EXPECT_EQ(committed.step(), 2);
  EXPECT_EQ(committed.incarnation(), current.incarnation());
  EXPECT_EQ(committed.committed().grad_norm(), reply->result.grad_norm());
  EXPECT_EQ(committed.committed().learning_rates_size(), 2);
  EXPECT_EQ(committed.committed().metrics().at("loss"), 0.25);

  Values bad = gradient_;
  bad[64] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(Step(bad).ok());
  const Event skipped = watch.Next();
  ASSERT_TRUE(skipped.has_skipped());
  EXPECT_EQ(skipped.step(), 2);
  EXPECT_EQ(skipped.skipped().non_finite_tensor(), 3);

  core::Arrays arrays;
  arrays.parameters = gradient_;
  const auto written = client_.Write(spec_, core::ParametersHeader(), arrays);
  ASSERT_TRUE(written.ok()) << written.status();
  const Event write = watch.Next();
  ASSERT_TRUE(write.has_written());
  EXPECT_EQ(write.written().mode(), v1::WRITE_MODE_PARAMETERS);
  EXPECT_EQ(write.incarnation(), written->incarnation());

  v1::UpdateParameterGroupRequest request;
  request.set_set("small");
  request.mutable_group()->set_learning_rate(0.5);
  request.mutable_update_mask()->add_paths("learning_rate");
  ASSERT_TRUE(client_.Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request).ok());
  const Event changed = watch.Next();
  ASSERT_TRUE(changed.has_config_changed());
  EXPECT_EQ(changed.config_changed().config_revision(), 2);
  EXPECT_EQ(changed.config_changed().groups(0).learning_rate(), 0.5);

  ASSERT_TRUE(client_.Delete("small").ok());
  EXPECT_TRUE(watch.Next().has_deleted());
  EXPECT_TRUE(watch.Finish().ok());
}

TEST_F(WatchTest, RejectedStepIsToldOf) {
  v1::UpdateParameterSetRequest request;
  request.mutable_spec()->set_name("small");
  request.mutable_spec()->set_non_finite_policy(v1::NON_FINITE_POLICY_REJECT);
  request.mutable_update_mask()->add_paths("non_finite_policy");
  ASSERT_TRUE(client_.Call(&v1::OptimizerService::Stub::UpdateParameterSet, request).ok());
  WatchStream watch(client_.stub(), "small");
  ASSERT_TRUE(watch.Next().has_current());
  Values bad = gradient_;
  bad[33] = std::numeric_limits<float>::infinity();

  ASSERT_EQ(ReasonOf(Step(bad).status()), v1::ERROR_REASON_NON_FINITE_GRADIENT);

  const Event skipped = watch.Next();
  ASSERT_TRUE(skipped.has_skipped());
  EXPECT_EQ(skipped.skipped().non_finite_tensor(), 1);
  EXPECT_EQ(skipped.skipped().non_finite_offset(), 1);
}

// A stale step changes nothing, and nobody is told of it.
TEST_F(WatchTest, EveryWatcherOfASetIsToldTheSame) {
  std::vector<std::unique_ptr<WatchStream>> watches;
  for (int i = 0; i < 3; ++i) {
    watches.push_back(std::make_unique<WatchStream>(client_.stub(), "small"));
    ASSERT_TRUE(watches.back()->Next().has_current());
  }
  for (int64_t step = 1; step <= 3; ++step) ASSERT_TRUE(Step(gradient_).ok());
  v1::StepHeader stale = StepHeader("small");
  stale.set_base_step(0);
  ASSERT_EQ(Step(gradient_, stale)->result.outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  ASSERT_TRUE(Step(gradient_).ok());
  for (const auto& watch : watches) {
    for (int64_t step = 1; step <= 4; ++step) {
      const Event event = watch->Next();
      EXPECT_TRUE(event.has_committed());
      EXPECT_EQ(event.step(), step);
      EXPECT_EQ(event.missed(), 0);
    }
  }
}

// Events with 32 metrics, 2 KiB each: 400 of them are far more than lies between a server and a client that does not
// read. All steps are over before it reads on; then it is told how many it missed, and what came last.
TEST_F(WatchTest, SlowWatcherIsToldWhatItMissedAndNoStepWaitsForIt) {
  constexpr int64_t kSteps = 400;
  WatchStream watch(client_.stub(), "small");
  ASSERT_TRUE(watch.Next().has_current());
  v1::StepHeader header = StepHeader("small");
  for (int i = 0; i < 32; ++i) (*header.mutable_metrics())[absl::StrCat(std::string(60, 'm'), i)] = i;
  StepStream stream(client_.stub());
  for (int64_t step = 0; step < kSteps; ++step) {
    ASSERT_TRUE(stream.Send(StepMessage(header, Chunks(spec_, gradient_, 65536))));
    ASSERT_TRUE(stream.ReadReply(spec_).ok());
  }

  int64_t told = 0;
  int64_t missed = 0;
  for (int64_t step = 0; step < kSteps;) {
    const Event event = watch.Next();
    ASSERT_TRUE(event.has_committed());
    EXPECT_EQ(event.step(), step + 1 + event.missed());
    EXPECT_EQ(event.committed().metrics().size(), 32u);
    step = event.step();
    ++told;
    missed += event.missed();
  }
  EXPECT_EQ(told + missed, kSteps);
  EXPECT_GT(missed, 0);
}

TEST_F(WatchTest, WatchEndsWhenTheServerDrains) {
  WatchStream watch(client_.stub(), "small");
  ASSERT_TRUE(watch.Next().has_current());

  server_.Drain(absl::Seconds(10));

  const absl::Status status = watch.Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_DRAINING) << status;
}

// A connection that watches as often as it may makes room for one that does not watch yet.
TEST_F(WatchTest, IdleWatchGivesItsPlaceToAnotherConnection) {
  constexpr size_t kCertainlyLetIn = rpc::kStreamBytes / rpc::kIdleWatchBytes;
  constexpr size_t kWatches = 90;
  static_assert(kCertainlyLetIn < kWatches);
  std::vector<std::unique_ptr<WatchStream>> watches;
  for (size_t i = 0; i < kWatches; ++i) {
    watches.push_back(std::make_unique<WatchStream>(client_.stub(), "small"));
    if (i >= kCertainlyLetIn) continue;
    ASSERT_TRUE(watches.back()->Next().has_current());
  }
  TestClient other(server_.address());
  WatchStream watch(other.stub(), "small");

  EXPECT_TRUE(watch.Next().has_current());

  ASSERT_TRUE(Step(gradient_).ok());
  EXPECT_TRUE(watch.Next().has_committed());
  // Whichever gave way, perhaps one of those that were let in later, was told why.
  for (size_t i = 0; i < kCertainlyLetIn; ++i) {
    if (watches[i]->Next().has_committed()) continue;
    const absl::Status status = watches[i]->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_TOO_MANY_STREAMS) << status;
  }
}

// A watch holds no parameters and no memory that a step wants.
TEST_F(WatchTest, WatchTakesNothingOfTheBudgets) {
  const std::map<std::string, int64_t> budgets = client_.UsedBudgets();
  WatchStream watch(client_.stub(), "small");
  ASSERT_TRUE(watch.Next().has_current());
  EXPECT_TRUE(client_.ReturnsTo(budgets));
}

}  // namespace
}  // namespace adamant::e2e
