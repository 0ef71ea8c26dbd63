// The server is killed again and again, at any point of its steps, checkpoints and restarts, while clients go on as
// docs/clients.md says. No step is lost that was answered, none counts twice, and the bits are those of a life without
// an end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/core/base/mutex.h"
#include "tests/e2e/durable_server.h"

namespace adamant::e2e {
namespace {

// How often the server is killed while it serves: ADAMANT_TEST_KILLS where it is set. After every third of these it is
// killed while it starts, too.
int64_t Kills() {
  const char* const given = std::getenv("ADAMANT_TEST_KILLS");
  int64_t kills = 0;
  return given != nullptr && absl::SimpleAtoi(given, &kills) ? kills : ADAMANT_SANITIZED ? 10 : 50;
}

// Where the server of now is; and how far the clients have come. Thread-safe.
class Meeting {
 public:
  struct Server {
    int64_t life = 0;  // from 1
    std::string address;
  };

  void Announce(const std::string& address) {
    core::MutexLock lock(&mutex_);
    server_ = {server_.life + 1, address};
    changed_.NotifyAll();
  }
  void Stop() {
    core::MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  // The server after the one of this life; nothing once there will be no other.
  std::optional<Server> AwaitAfter(int64_t life) {
    core::MutexLock lock(&mutex_);
    while (server_.life == life && !stopped_) changed_.Wait(&mutex_);
    if (server_.life == life) return std::nullopt;
    return server_;
  }
  bool stopped() const {
    core::MutexLock lock(&mutex_);
    return stopped_;
  }

  void CountReply() {
    core::MutexLock lock(&mutex_);
    ++replies_;
    changed_.NotifyAll();
  }
  int64_t replies() const {
    core::MutexLock lock(&mutex_);
    return replies_;
  }
  // Waits for so many; false if a client has given up.
  bool AwaitReplies(int64_t replies) {
    core::MutexLock lock(&mutex_);
    while (replies_ < replies && !stopped_) changed_.Wait(&mutex_);
    return !stopped_;
  }

 private:
  mutable core::Mutex mutex_;
  core::CondVar changed_;
  Server server_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t replies_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What clients met, for the test's last line.
struct Tally {
  std::atomic<int64_t> steps{0};
  std::atomic<int64_t> broken{0};    // calls that a kill ended
  std::atomic<int64_t> resolved{0};  // of these: GetStepResult knew them
  std::atomic<int64_t> replayed{0};  // were answered as replayed when they were sent again
};

v1::ParameterSetSpec KilledSpec(int number) {
  const std::string name = absl::StrCat("set-", number);
  v1::ParameterSetSpec spec = SmallSpec(name);
  if (number % 3 == 1) {
    spec.mutable_tensors(0)->set_shape(0, 4096);
    spec.mutable_tensors(0)->set_shape(1, 1);
  }
  if (number % 4 == 3) spec = LargeSpec(name);
  if (number % 2 == 1) spec.set_max_staleness(64);
  for (v1::ParameterGroup& group : *spec.mutable_groups()) {
    if (number % 3 == 2) group.mutable_sgd()->set_momentum(0.9);
    if (number % 4 == 0 && !group.has_sgd()) group.mutable_adam()->set_amsgrad(true);
  }
  // So few that there is always a checkpoint to be killed in.
  spec.mutable_durability()->mutable_every_step()->set_journal_steps(2 + number);
  return spec;
}

// One client with a set of its own, which it steps until there is no server any more; its model is what the set must
// be.
class KilledClient {
 public:
  KilledClient(int number, uint64_t seed, Meeting* meeting, Tally* tally)
      : spec_(KilledSpec(number)), model_(spec_), random_(seed + number), meeting_(meeting), tally_(tally) {}

  // Creates the set.
  void Begin(TestClient* client) {
    const absl::StatusOr<v1::CreateParameterSetResponse> created = client->Create(spec_);
    ASSERT_TRUE(created.ok()) << created.status();
    incarnation_ = created->parameter_set().incarnation();
  }

  void Run() {
    Walk();
    // A client that has failed lets the others go.
    if (testing::Test::HasFailure()) meeting_->Stop();
  }

  // Everything that a client can see is what the steps made of it, each once.
  void CheckSet(TestClient* client) {
    const absl::StatusOr<SetState> state = client->ReadState(spec_);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_TRUE(state->arrays == model_.arrays()) << spec_.name() << " at step " << model_.arrays().step;
    EXPECT_EQ(state->description.step(), model_.arrays().step);
    EXPECT_EQ(state->description.incarnation(), incarnation_);
    EXPECT_EQ(state->description.statistics().applied(), model_.arrays().step);
    EXPECT_FALSE(state->description.has_restored_from());
  }

 private:
  void Walk() {
    std::optional<Meeting::Server> server = meeting_->AwaitAfter(0);
    while (server.has_value()) {
      TestClient client(server->address);
      // What was sent to the server before is known here, or was never heard of.
      if (!RunOn(&client)) return;
      server = meeting_->AwaitAfter(server->life);
    }
  }

  // Steps until the server is gone; false if something is wrong, or all is over and no step under way.
  bool RunOn(TestClient* client) {
    StepStream stream(client->stub());
    while (under_way_ || !meeting_->stopped()) {
      if (!under_way_) Prepare();
      // Every other retry asks before it sends the gradient again.
      if (attempt_ > 0 && random_() % 2 == 0) {
        const absl::StatusOr<v1::GetStepResultResponse> known =
            client->GetStepResult(spec_.name(), header_.request_id());
        if (!known.ok()) return Broken(known.status());
        if (known->state() == v1::STEP_STATE_COMMITTED) {
          ++tally_->resolved;
          if (!Take(known->result())) return false;
          continue;
        }
        EXPECT_EQ(known->state(), v1::STEP_STATE_UNKNOWN);
      }
      header_.set_attempt(++attempt_);
      if (!stream.Send(StepMessages(header_, Only(Chunks(spec_, gradient_, 65521), Brought())))) {
        return Broken(stream.Finish());
      }
      std::vector<int64_t> sizes = TensorSizes(spec_);
      const std::vector<int32_t> brought = Brought();
      for (int32_t i = 0; i < static_cast<int32_t>(sizes.size()); ++i) {
        if (!absl::c_linear_search(brought, i)) sizes[i] = 0;
      }
      const absl::StatusOr<StepReply> reply = stream.ReadReply(sizes);
      if (!reply.ok()) return Broken(reply.status());
      if (reply->result.replayed()) ++tally_->replayed;
      if (reply->result.replayed() && attempt_ == 1) ADD_FAILURE() << "a first attempt was replayed";
      if (!Take(reply->result)) return false;
      if (!SameBits(reply->parameters, Parameters(sizes))) {
        ADD_FAILURE() << spec_.name() << ": other bits at step " << model_.arrays().step;
        return false;
      }
      EXPECT_EQ(reply->result.durable_step(), reply->result.step());
      meeting_->CountReply();
    }
    return false;
  }

  // The next step: of all tensors, or of one.
  void Prepare() {
    const int64_t step = model_.arrays().step;
    gradient_ = Gradient(model_.parameter_count(), random_());
    header_ = StepHeader(spec_.name(), absl::StrCat("step ", step));
    header_.set_incarnation(incarnation_);
    if (spec_.max_staleness() > 0) {
      // Two of the same would both be applied.
      header_.set_base_step(step);
    } else {
      header_.set_expected_step(step);
    }
    if (random_() % 4 == 0) header_.add_tensors(static_cast<int32_t>(random_() % spec_.tensors_size()));
    attempt_ = 0;
    under_way_ = true;
  }

  std::vector<int32_t> Brought() const {
    std::vector<int32_t> brought;
    for (int32_t i = 0; i < spec_.tensors_size(); ++i) {
      if (model_.IsBrought(i, header_)) brought.push_back(i);
    }
    return brought;
  }

  // The model's parameters of those tensors that have a size here.
  Values Parameters(const std::vector<int64_t>& sizes) const {
    Values brought;
    auto next = model_.arrays().parameters.begin();
    const std::vector<int64_t> all = TensorSizes(spec_);
    for (size_t i = 0; i < all.size(); ++i) {
      brought.insert(brought.end(), next, next + sizes[i]);
      next += all[i];
    }
    return brought;
  }

  // The step counts; false if its result is not the one that it must have.
  bool Take(const v1::StepResult& result) {
    EXPECT_EQ(result.grad_norm(), model_.GradNorm(gradient_, header_));
    model_.Apply(gradient_, header_);
    under_way_ = false;
    ++tally_->steps;
    EXPECT_EQ(result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(result.step(), model_.arrays().step) << spec_.name();
    EXPECT_EQ(result.incarnation(), incarnation_);
    EXPECT_EQ(result.staleness(), 0);
    return !testing::Test::HasFailure();
  }

  // A call has ended: the server's death is the only reason that there may be.
  bool Broken(const absl::Status& status) {
    ++tally_->broken;
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << spec_.name() << ": " << status;
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_UNSPECIFIED) << spec_.name() << ": " << status;
    return !testing::Test::HasFailure();
  }

  const v1::ParameterSetSpec spec_;
  SequentialModel model_;
  std::mt19937_64 random_;
  Meeting* const meeting_;
  Tally* const tally_;
  uint64_t incarnation_ = 0;

  // The step that is under way.
  bool under_way_ = false;
  v1::StepHeader header_;
  Values gradient_;
  int32_t attempt_ = 0;
};

TEST(KillTest, NoStepIsLostOrDoubled) {
  const char* const given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  Meeting meeting;
  Tally tally;
  DurableServer server;
  std::vector<std::unique_ptr<KilledClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<KilledClient>(i, seed, &meeting, &tally));
    clients.back()->Begin(&server.client());
  }
  std::vector<std::thread> threads;
  for (const std::unique_ptr<KilledClient>& client : clients) threads.emplace_back([&client] { client->Run(); });
  meeting.Announce(server.process().address());

  absl::Duration start_time;
  const int64_t kills = Kills();
  for (int64_t i = 0; i < kills; ++i) {
    if (!meeting.AwaitReplies(meeting.replies() + 1 + static_cast<int64_t>(random() % 40))) break;
    // Waits for nothing: so that it is not always right behind a reply.
    absl::SleepFor(absl::Microseconds(random() % 5000));
    server.End(SIGKILL);
    if (i % 3 == 2) server.StartAndKill(start_time * (static_cast<double>(random() % 1000) / 1000));
    const absl::Time begin = absl::Now();
    server.Start();
    start_time = absl::Now() - begin;
    meeting.Announce(server.process().address());
  }
  meeting.Stop();
  for (std::thread& thread : threads) thread.join();

  for (const std::unique_ptr<KilledClient>& client : clients) client->CheckSet(&server.client());
  std::cout << tally.steps << " steps; " << tally.broken << " calls broken off, " << tally.resolved
            << " of them known to GetStepResult, " << tally.replayed << " replayed" << std::endl;
}

}  // namespace
}  // namespace adamant::e2e
