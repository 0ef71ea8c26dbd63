// Several threads and several sets at once. Says little by itself: it is for ThreadSanitizer, and for readers to see
// whole snapshots only.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

constexpr int kActions = 300;    // of each thread
constexpr int kKnownSteps = 60;  // no set gets further

// All gradients are the same, so that every state of a set is that of one run: by its step a reader knows each bit of
// it.
class Trajectory {
 public:
  explicit Trajectory(const v1::ParameterSetSpec& spec)
      : gradient_(Gradient(SequentialModel(spec).parameter_count(), 1)) {
    SequentialModel adam(spec);
    for (int step = 0; step <= kKnownSteps; ++step) {
      states_.push_back(adam.arrays());
      adam.Apply(gradient_);
    }
  }

  const Values& gradient() const { return gradient_; }
  const Arrays& At(int64_t step) const { return states_.at(step); }

 private:
  const Values gradient_;
  std::vector<Arrays> states_;
};

// Just over what is computed where it is: 265,005 parameters. The states of a run take 3 MB a step.
v1::ParameterSetSpec PooledSpec(absl::string_view name) {
  v1::ParameterSetSpec spec = LargeSpec(name);
  spec.mutable_tensors(0)->set_shape(0, 70001);
  spec.mutable_tensors(1)->set_shape(0, 195001);
  return spec;
}

struct Target {
  std::string name;
  v1::ParameterSetSpec spec;
  std::shared_ptr<const Trajectory> trajectory;
};

class StressTest : public ::testing::Test {
 protected:
  StressTest() : registry_({server_.resources()}) {
    if (const char* seed = std::getenv("ADAMANT_TEST_SEED"); seed != nullptr) seed_ = std::strtoull(seed, nullptr, 10);
    std::cout << "ADAMANT_TEST_SEED=" << seed_ << std::endl;
    const auto small = std::make_shared<const Trajectory>(SmallSpec());
    const auto large = std::make_shared<const Trajectory>(PooledSpec("large"));
    for (const char* name : {"small/1", "small/2"}) targets_.push_back({name, SmallSpec(name), small});
    targets_.push_back({"large", PooledSpec("large"), large});
    for (const Target& target : targets_) Create(target);
  }

  void Create(const Target& target) {
    v1::CreateParameterSetRequest request;
    *request.mutable_spec() = target.spec;
    request.set_if_exists(v1::IF_EXISTS_USE_IF_SAME_SPEC);
    EXPECT_THAT(registry_.Create(request), IsOk());
  }

  // A set, or nothing if it was just deleted.
  std::shared_ptr<ParameterSet> Find(const Target& target) {
    absl::StatusOr<std::shared_ptr<ParameterSet>> set = registry_.Find(target.name);
    return set.ok() ? *set : nullptr;
  }

  // Whole steps, broken ones, and retries that must not be applied twice.
  void ActAsTrainer(ParameterSet* set, const Trajectory& trajectory, const std::string& id, std::mt19937_64* random) {
    const int64_t step = set->Describe().step();
    if (step >= kKnownSteps) return;
    const v1::StepHeader header = Header(id, step, 1);
    StepDelivery delivery = BeginStep(set, header);
    const std::vector<Piece> pieces = Cut(set->schema(), kBlockElements);
    const size_t sent = (*random)() % 4 == 0 ? (*random)() % (pieces.size() + 1) : pieces.size();
    for (size_t i = 0; i < sent; ++i) {
      if (!delivery.admitted() || !delivery.Send(pieces[i], trajectory.gradient()).ok()) return;
    }
    // A second attempt from another thread, while this one goes on.
    std::thread second;
    if ((*random)() % 8 == 0) {
      second = std::thread([&] { CheckReply(Step(set, Header(id, step, 2), trajectory.gradient()), trajectory); });
    }
    if (!delivery.done() && sent == pieces.size() && delivery.Complete().ok() && (*random)() % 4 > 0) {
      CheckReply(delivery.Take(), trajectory);
    }
    delivery.Cancel();
    if (second.joinable()) second.join();
  }

  void CheckReply(const absl::StatusOr<StepReply>& reply, const Trajectory& trajectory) {
    if (!reply.ok()) {
      CheckError(reply.status());
      return;
    }
    applied_ += reply->result.replayed() ? 0 : 1;
    EXPECT_TRUE(SameBits(Parameters(*reply), trajectory.At(reply->result.parameters_step()).parameters));
  }

  void ActAsReader(ParameterSet* set, const Trajectory& trajectory, std::mt19937_64* random) {
    v1::ReadTensorsRequest request = (*random)() % 2 == 0 ? FullReadRequest() : ReadRequest();
    request.set_may_abort((*random)() % 2 == 0);
    const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set, request);
    if (!reading.ok()) {
      CheckError(reading.status());
      return;
    }
    const Arrays& expected = trajectory.At((*reading)->header().step());
    if ((*reading)->slots().size() == 1) {
      const absl::StatusOr<Values> parameters = Fetch(**reading, v1::SLOT_PARAMETER);
      EXPECT_TRUE(!parameters.ok() || SameBits(*parameters, expected.parameters));
    } else {
      const absl::StatusOr<Arrays> arrays = Fetch(**reading);
      EXPECT_TRUE(!arrays.ok() || *arrays == expected);
    }
    ++read_;
  }

  // Brings the set back to an earlier step of the run, or breaks off half way.
  void ActAsWriter(ParameterSet* set, const Trajectory& trajectory, std::mt19937_64* random) {
    const Arrays& arrays = trajectory.At((*random)() % 8);
    const v1::WriteHeader header = FullHeader(arrays.step);
    WriteDelivery write = BeginWrite(set, header);
    write.Await();
    if (write.done() || (*random)() % 8 == 0) return;
    if (!SendAll(set, &write, header, arrays).ok() || !write.Complete().ok()) return;
    const absl::StatusOr<v1::WriteTensorsResponse> response = write.Take();
    if (!response.ok()) CheckError(response.status());
  }

  void CheckError(const absl::Status& status) {
    const v1::ErrorReason reason = ReasonOf(status);
    EXPECT_TRUE(reason == v1::ERROR_REASON_STEP_MISMATCH || reason == v1::ERROR_REASON_SUPERSEDED ||
                reason == v1::ERROR_REASON_INCARNATION_MISMATCH || reason == v1::ERROR_REASON_UNINITIALIZED ||
                reason == v1::ERROR_REASON_SET_NOT_FOUND || reason == v1::ERROR_REASON_OUTCOME_UNKNOWN ||
                reason == v1::ERROR_REASON_BUDGET_EXHAUSTED)
        << status;
  }

  void Act(int thread) {
    std::mt19937_64 random(seed_ * 1000 + thread);
    for (int action = 0; action < kActions; ++action) {
      const Target& target = targets_[random() % targets_.size()];
      const std::shared_ptr<ParameterSet> set = Find(target);
      if (set == nullptr) {
        Create(target);
        continue;
      }
      switch (random() % 16) {
        case 0:
          ActAsWriter(set.get(), *target.trajectory, &random);
          break;
        case 1: {
          v1::DeleteParameterSetRequest request;
          request.set_name(target.name);
          if (random() % 4 == 0) registry_.Delete(request, [](absl::Status) {});
          break;
        }
        case 2:
          EXPECT_THAT(ListParameterSets(registry_, {}), IsOk());
          StepResultOf(*set, absl::StrCat("t", thread, ".", action - 1)).IgnoreError();
          break;
        case 3:
        case 4:
        case 5:
        case 6:
          ActAsReader(set.get(), *target.trajectory, &random);
          break;
        default:
          ActAsTrainer(set.get(), *target.trajectory, absl::StrCat("t", thread, ".", action), &random);
      }
    }
  }

  uint64_t seed_ = 1;
  // Readers get what they ask for, or less, or nothing.
  TestServer server_{{.read_bytes = 4 << 20, .compute_threads = 2}};
  Registry registry_;
  std::vector<Target> targets_;
  std::atomic<int> applied_ = 0;
  std::atomic<int> read_ = 0;
};

TEST_F(StressTest, ThreadsThatTrainReadWriteAndDeleteSeeWholeSnapshotsOnly) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) threads.emplace_back([this, thread] { Act(thread); });
  for (std::thread& thread : threads) thread.join();
  // Something went on at all.
  EXPECT_GT(applied_, 20);
  EXPECT_GT(read_, 20);
  server_.StopComputing();
  EXPECT_EQ(server_.used().inflight, 0);
  EXPECT_EQ(server_.used().read, 0);
}

}  // namespace
}  // namespace adamant::core
