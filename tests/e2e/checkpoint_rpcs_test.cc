// Checkpoint, ListCheckpoints, RestoreCheckpoint and Fork, as a user has them: by the client's library, to a server
// with a data directory, which is killed and started again.
#include <adamant/client.h>
#include <adamant/error.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A folder of the test's own, gone with it.
class DataDirectory {
 public:
  DataDirectory() {
    static std::atomic<int> number = 0;
    path_ = absl::StrCat(::testing::TempDir(), "adamant-checkpoints-", getpid(), "-", ++number);
    std::filesystem::remove_all(path_);
  }
  ~DataDirectory() { std::filesystem::remove_all(path_); }
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  const std::string& path() const { return path_; }

  // Changes the last byte of the parameters of the one checkpoint that there is of this state.
  void Damage(const v1::Checkpoint& checkpoint) const {
    const std::string folder = absl::StrCat(checkpoint.step(), "-", checkpoint.incarnation());
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
      const std::filesystem::path& path = entry.path();
      if (path.parent_path().filename() == folder && path.extension() == ".safetensors") files.push_back(path);
    }
    ASSERT_FALSE(files.empty()) << folder;
    std::fstream file(*std::ranges::min_element(files), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char last = static_cast<char>(file.get());
    file.seekp(-1, std::ios::end);
    file.put(static_cast<char>(last ^ 1));
    ASSERT_TRUE(file.good());
  }

 private:
  std::string path_;
};

// Values of the step after `step`: the same each time.
Values GradientOf(const v1::ParameterSetSpec& spec, int64_t step) { return Gradient(ParameterCount(spec), step + 1); }

// A server that can be killed and come back, and its clients.
class Service {
 public:
  explicit Service(std::vector<std::string> flags) : flags_(std::move(flags)) { Start(); }

  void Start(const std::vector<std::string>& more = {}) {
    std::vector<std::string> flags = flags_;
    flags.insert(flags.end(), more.begin(), more.end());
    process_.emplace(flags);
    ASSERT_THAT(process_->addresses(), SizeIs(1)) << process_->program().standard_error().AwaitEnd();
    raw_.emplace(process_->address());
    client_.emplace(*Client::Connect(process_->address()));
  }

  void Kill() {
    process_->program().Signal(SIGKILL);
    process_->program().Wait();
  }
  void Stop() {
    process_->program().Signal(SIGTERM);
    EXPECT_EQ(process_->program().Wait(), 0) << process_->program().standard_error().AwaitEnd();
  }

  Client* operator->() { return &*client_; }
  TestClient& raw() { return *raw_; }
  std::string log() { return process_->program().standard_error().text(); }

  v1::ParameterSet Make(const v1::ParameterSetSpec& spec) {
    const absl::StatusOr<v1::CreateParameterSetResponse> created = raw_->Create(spec);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->parameter_set() : v1::ParameterSet();
  }

  // Steps `count` times, each with the gradient that belongs to the set's step; `turn` makes them others.
  void Step(const v1::ParameterSetSpec& spec, int count, int64_t turn = 0) {
    for (int i = 0; i < count; ++i) {
      const absl::StatusOr<v1::ParameterSet> set = raw_->Get(spec.name());
      ASSERT_TRUE(set.ok()) << set.status();
      const absl::StatusOr<StepReply> reply =
          raw_->Step(spec, StepHeader(spec.name(), "", set->step()), GradientOf(spec, set->step() + turn));
      ASSERT_TRUE(reply.ok()) << reply.status();
    }
  }

  Arrays Read(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<Arrays> arrays = raw_->ReadArrays(spec);
    EXPECT_TRUE(arrays.ok()) << arrays.status();
    return arrays.ok() ? *std::move(arrays) : Arrays();
  }

 private:
  const std::vector<std::string> flags_;
  std::optional<ServerProcess> process_;
  std::optional<TestClient> raw_;
  std::optional<Client> client_;
};

v1::ParameterSetSpec Named(v1::ParameterSetSpec spec, absl::string_view name) {
  spec.set_name(std::string(name));
  return spec;
}

constexpr char kEveryStep[] = "every_step";
constexpr char kCheckpoints[] = "checkpoints:1000000";

// What must hold however else a set is kept.
class CheckpointRpcsTest : public ::testing::TestWithParam<const char*> {
 protected:
  CheckpointRpcsTest()
      : service_({absl::StrCat("--data_dir=", directory_.path()), absl::StrCat("--durability=", GetParam())}) {}

  bool keeps_steps() const { return absl::string_view(GetParam()) == kEveryStep; }

  v1::Checkpoint Checkpoint(absl::string_view set) {
    absl::StatusOr<v1::Checkpoint> checkpoint = service_->Checkpoint(set);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : v1::Checkpoint();
  }
  v1::ParameterSet Restore(absl::string_view set, const v1::Checkpoint& checkpoint) {
    absl::StatusOr<v1::ParameterSet> restored = service_->RestoreCheckpoint(set, checkpoint);
    EXPECT_TRUE(restored.ok()) << restored.status();
    return restored.ok() ? *std::move(restored) : v1::ParameterSet();
  }
  std::vector<int64_t> ListedSteps(absl::string_view set) {
    std::vector<int64_t> steps;
    const absl::StatusOr<std::vector<v1::Checkpoint>> listed = service_->ListCheckpoints(set);
    EXPECT_TRUE(listed.ok()) << listed.status();
    if (!listed.ok()) return steps;
    for (const v1::Checkpoint& checkpoint : *listed) steps.push_back(checkpoint.step());
    return steps;
  }

  const DataDirectory directory_;
  Service service_;
  const v1::ParameterSetSpec spec_ = SmallSpec("set");
};

INSTANTIATE_TEST_SUITE_P(EveryDurability, CheckpointRpcsTest, ::testing::Values(kEveryStep, kCheckpoints),
                         [](const auto& info) { return info.index == 0 ? "EveryStep" : "Checkpoints"; });

TEST_P(CheckpointRpcsTest, CheckpointIsOfAStateBetweenRequestAndAnswerWhileStepsGoOn) {
  service_.Make(spec_);
  std::map<int64_t, Values> parameters;
  std::atomic<int64_t> step = 0;
  std::atomic<bool> stop = false;
  std::thread stepper([&] {
    StepStream stream(service_.raw().stub(), absl::Minutes(5));
    while (!stop) {
      stream.Send(StepMessages(StepHeader("set"), Chunks(spec_, GradientOf(spec_, step), 65536)));
      absl::StatusOr<StepReply> reply = stream.ReadReply(spec_);
      if (!reply.ok()) {
        ADD_FAILURE() << reply.status();
        return;
      }
      parameters[reply->result.step()] = std::move(reply->parameters);
      step = reply->result.step();
    }
  });
  std::vector<v1::Checkpoint> made;
  for (int i = 0; i < 20; ++i) {
    const int64_t before = step;
    made.push_back(Checkpoint("set"));
    const absl::StatusOr<v1::ParameterSet> after = service_->GetParameterSet("set");
    ASSERT_TRUE(after.ok()) << after.status();
    EXPECT_GE(made.back().step(), before);
    EXPECT_LE(made.back().step(), after->step());
    EXPECT_EQ(made.back().incarnation(), after->incarnation());
    EXPECT_GT(made.back().bytes(), 0);
  }
  stop = true;
  stepper.join();

  EXPECT_EQ(Restore("set", made.back()).step(), made.back().step());
  if (made.back().step() > 0) {
    EXPECT_TRUE(SameBits(service_.Read(spec_).parameters, parameters[made.back().step()]));
  }
}

TEST_P(CheckpointRpcsTest, ListHasTheNewestTwoAsTheyWereMadeAlsoAfterARestart) {
  service_.Make(spec_);
  EXPECT_THAT(ListedSteps("set"), IsEmpty());
  std::vector<v1::Checkpoint> made;
  for (int i = 0; i < 3; ++i) {
    service_.Step(spec_, 1);
    made.push_back(Checkpoint("set"));
  }
  const auto is_listed = [&] {
    const absl::StatusOr<std::vector<v1::Checkpoint>> listed = service_->ListCheckpoints("set");
    ASSERT_TRUE(listed.ok()) << listed.status();
    ASSERT_THAT(*listed, SizeIs(2));
    EXPECT_EQ((*listed)[0].DebugString(), made[2].DebugString());
    EXPECT_EQ((*listed)[1].DebugString(), made[1].DebugString());
  };
  is_listed();
  service_.Kill();
  service_.Start();
  if (keeps_steps()) {
    is_listed();
    return;
  }
  // What the set was rolled back to may be one of its own by now, as of another incarnation.
  const absl::StatusOr<std::vector<v1::Checkpoint>> listed = service_->ListCheckpoints("set");
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_THAT(*listed, SizeIs(2));
  EXPECT_TRUE(std::ranges::any_of(*listed, [&made](const v1::Checkpoint& checkpoint) {
    return checkpoint.SerializeAsString() == made[2].SerializeAsString();
  }));
}

TEST_P(CheckpointRpcsTest, AThousandStepsWithRestoresInBetweenAreAThousandStepsToTheBit) {
  const v1::ParameterSetSpec twin = Named(spec_, "twin");
  service_.Make(spec_);
  v1::ParameterSetSpec not_kept = twin;
  not_kept.mutable_durability()->mutable_nothing();
  service_.Make(not_kept);
  constexpr int kSteps = 1000 / kFewer;
  for (int step = 10; step <= kSteps; step += 10) {
    service_.Step(spec_, 10);
    service_.Step(twin, 10);
    const v1::Checkpoint checkpoint = Checkpoint("set");
    const Arrays then = service_.Read(spec_);
    // A way that turns out to be wrong.
    service_.Step(spec_, 3, /*turn=*/7);
    const v1::ParameterSet restored = Restore("set", checkpoint);
    ASSERT_EQ(restored.step(), step);
    EXPECT_NE(restored.incarnation(), checkpoint.incarnation());
    ASSERT_TRUE(service_.Read(spec_) == then) << step;
  }
  EXPECT_TRUE(service_.Read(spec_) == service_.Read(twin));
}

TEST_P(CheckpointRpcsTest, LargeSetIsRestoredToTheBit) {
  const v1::ParameterSetSpec large = LargeSpec("large");
  service_.Make(large);
  service_.Step(large, 2);
  const v1::Checkpoint checkpoint = Checkpoint("large");
  const Arrays then = service_.Read(large);
  service_.Step(large, 2);
  Restore("large", checkpoint);
  EXPECT_TRUE(service_.Read(large) == then);
}

TEST_P(CheckpointRpcsTest, WhatIsRestoredBecomesACheckpointAndTheOldestGoes) {
  service_.Make(spec_);
  const v1::Checkpoint first = Checkpoint("set");
  service_.Step(spec_, 1);
  const v1::Checkpoint second = Checkpoint("set");
  const v1::ParameterSet restored = Restore("set", second);
  const absl::StatusOr<std::vector<v1::Checkpoint>> listed = service_->ListCheckpoints("set");
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_THAT(*listed, SizeIs(2));
  EXPECT_EQ((*listed)[0].incarnation(), restored.incarnation());
  EXPECT_EQ((*listed)[1].incarnation(), second.incarnation());
  EXPECT_EQ(ReasonOf(service_->RestoreCheckpoint("set", first).status()), v1::ERROR_REASON_CHECKPOINT_NOT_FOUND);
}

TEST_P(CheckpointRpcsTest, OlderCheckpointCanBeRestoredToo) {
  service_.Make(spec_);
  service_.Step(spec_, 2);
  const v1::Checkpoint older = Checkpoint("set");
  const Arrays then = service_.Read(spec_);
  service_.Step(spec_, 2);
  Checkpoint("set");
  EXPECT_EQ(Restore("set", older).step(), 2);
  EXPECT_TRUE(service_.Read(spec_) == then);
}

// Moments out of all proportion, which may be written, lead to parameters that may not.
TEST_P(CheckpointRpcsTest, ParametersThatNoClientMayWriteAreRestoredAndForked) {
  v1::ParameterSetSpec spec = spec_;
  for (v1::ParameterGroup& group : *spec.mutable_groups()) group.set_learning_rate(1e6);
  const Values zeros(ParameterCount(spec), 0);
  service_.Make(spec);
  v1::WriteHeader header;
  header.set_mode(v1::WRITE_MODE_FULL);
  header.set_step(0);
  const Values largest(zeros.size(), 18446744073709551616.0f);
  ASSERT_TRUE(service_.raw().Write(spec, header, {.parameters = zeros, .exp_avg = largest, .exp_avg_sq = zeros}).ok());
  ASSERT_TRUE(service_.raw().Step(spec, StepHeader("set"), zeros).ok());
  const Arrays then = service_.Read(spec);
  const v1::ParameterSetSpec other = Named(spec, "other");
  service_.Make(other);
  header.set_step(1);
  ASSERT_EQ(ReasonOf(service_.raw().Write(other, header, then).status()), v1::ERROR_REASON_VALUE_OUT_OF_RANGE);

  const v1::Checkpoint checkpoint = Checkpoint("set");
  service_.Step(spec, 1);
  Restore("set", checkpoint);
  EXPECT_TRUE(service_.Read(spec) == then);
  const absl::StatusOr<v1::ParameterSet> fork = service_->Fork("set", "fork");
  EXPECT_TRUE(fork.ok()) << fork.status();
  EXPECT_TRUE(service_.Read(Named(spec, "fork")) == then);
  service_.Kill();
  service_.Start();
  EXPECT_TRUE(service_.Read(spec) == then);
}

TEST_P(CheckpointRpcsTest, DamagedCheckpointIsDataLossAndTheSetGoesOnUnchanged) {
  service_.Make(spec_);
  service_.Step(spec_, 1);
  const v1::Checkpoint older = Checkpoint("set");
  const Arrays then = service_.Read(spec_);
  service_.Step(spec_, 1);
  const v1::Checkpoint newer = Checkpoint("set");
  service_.Step(spec_, 1);
  const absl::StatusOr<SetState> before = service_.raw().ReadState(spec_);
  ASSERT_TRUE(before.ok()) << before.status();

  directory_.Damage(newer);
  const absl::Status status = service_->RestoreCheckpoint("set", newer).status();

  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_DAMAGED);
  EXPECT_EQ(GetErrorDetail(status).set(), "set");
  const absl::StatusOr<SetState> after = service_.raw().ReadState(spec_);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_TRUE(*after == *before) << after->description.ShortDebugString();
  service_.Step(spec_, 1);
  Restore("set", older);
  EXPECT_TRUE(service_.Read(spec_) == then);
}

TEST_P(CheckpointRpcsTest, SetThatCameBackPoisonedIsHealedByACheckpointThatIsWhole) {
  service_.Make(spec_);
  service_.Step(spec_, 1);
  const v1::Checkpoint older = Checkpoint("set");
  const Arrays then = service_.Read(spec_);
  service_.Step(spec_, 1);
  const v1::Checkpoint newer = Checkpoint("set");
  service_.Kill();
  directory_.Damage(newer);
  service_.Start();
  ASSERT_EQ(service_->GetParameterSet("set")->state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_EQ(ReasonOf(service_->Fork("set", "fork").status()), v1::ERROR_REASON_POISONED);
  EXPECT_EQ(ReasonOf(service_->GetParameterSet("fork").status()), v1::ERROR_REASON_SET_NOT_FOUND);

  EXPECT_EQ(Restore("set", older).state(), v1::PARAMETER_SET_STATE_READY);

  EXPECT_TRUE(service_.Read(spec_) == then);
  service_.Step(spec_, 1);
}

TEST_P(CheckpointRpcsTest, RestoredSetComesBackAfterARestart) {
  service_.Make(spec_);
  service_.Step(spec_, 3);
  const v1::Checkpoint checkpoint = Checkpoint("set");
  service_.Step(spec_, 2);
  Restore("set", checkpoint);
  Arrays then = service_.Read(spec_);
  service_.Step(spec_, 2);
  if (keeps_steps()) then = service_.Read(spec_);
  service_.Kill();
  service_.Start();
  EXPECT_TRUE(service_.Read(spec_) == then);

  service_.Step(spec_, 1);
  then = service_.Read(spec_);
  service_.Stop();
  service_.Start();
  EXPECT_TRUE(service_.Read(spec_) == then);
}

TEST_P(CheckpointRpcsTest, ForkedSetComesBackAfterARestart) {
  const v1::ParameterSetSpec fork = Named(spec_, "fork");
  service_.Make(spec_);
  service_.Step(spec_, 3);
  ASSERT_TRUE(service_->Fork("set", "fork").ok());
  Arrays then = service_.Read(fork);
  service_.Step(fork, 2);
  if (keeps_steps()) then = service_.Read(fork);
  service_.Kill();
  service_.Start();
  EXPECT_TRUE(service_.Read(fork) == then);
}

TEST_P(CheckpointRpcsTest, DemandsTheIncarnationThatIsNamed) {
  service_.Make(spec_);
  service_.Step(spec_, 1);
  const v1::Checkpoint checkpoint = Checkpoint("set");
  const uint64_t other = checkpoint.incarnation() + 1;
  const std::vector<absl::Status> ended = {service_->Checkpoint("set", other).status(),
                                           service_->RestoreCheckpoint("set", checkpoint, other).status(),
                                           service_->Fork("set", "fork", {.incarnation = other}).status()};
  for (const absl::Status& status : ended) {
    EXPECT_TRUE(absl::IsAborted(status)) << status;
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_INCARNATION_MISMATCH);
    EXPECT_EQ(GetErrorDetail(status).field(), "incarnation");
  }
  EXPECT_EQ(ReasonOf(service_->GetParameterSet("fork").status()), v1::ERROR_REASON_SET_NOT_FOUND);
  // Of a reply that was lost: the set is of another one already.
  const uint64_t own = checkpoint.incarnation();
  EXPECT_TRUE(service_->RestoreCheckpoint("set", checkpoint, own).ok());
  EXPECT_EQ(ReasonOf(service_->RestoreCheckpoint("set", checkpoint, own).status()),
            v1::ERROR_REASON_INCARNATION_MISMATCH);
}

TEST_P(CheckpointRpcsTest, CheckpointThatIsNoneOfTheSetsIsNotFound) {
  service_.Make(spec_);
  service_.Make(Named(spec_, "other"));
  const v1::Checkpoint others = Checkpoint("other");
  v1::Checkpoint none = Checkpoint("set");
  none.set_step(5);
  v1::Checkpoint senseless;
  senseless.set_step(-1);
  for (const v1::Checkpoint& checkpoint : {others, none, senseless, v1::Checkpoint()}) {
    const absl::Status status = service_->RestoreCheckpoint("set", checkpoint).status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_CHECKPOINT_NOT_FOUND);
    EXPECT_EQ(GetErrorDetail(status).set(), "set");
  }
}

TEST_P(CheckpointRpcsTest, CheckpointFromBeforeTensorsWereAddedIsOfAnotherSchema) {
  service_.Make(spec_);
  service_.Step(spec_, 1);
  const v1::Checkpoint before = Checkpoint("set");
  v1::TensorSpec added;
  added.set_name("added");
  added.add_shape(3);
  added.set_group("slow");
  ASSERT_TRUE(service_->AddTensors("set", {added}).ok());
  v1::ParameterSetSpec grown = spec_;
  *grown.add_tensors() = added;
  service_.Step(grown, 1);
  const absl::StatusOr<SetState> then = service_.raw().ReadState(grown);
  ASSERT_TRUE(then.ok()) << then.status();

  const absl::Status status = service_->RestoreCheckpoint("set", before).status();

  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_SCHEMA_MISMATCH);
  const absl::StatusOr<SetState> after = service_.raw().ReadState(grown);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_TRUE(*after == *then) << after->description.ShortDebugString();
  const v1::Checkpoint now = Checkpoint("set");
  service_.Step(grown, 1);
  Restore("set", now);
  EXPECT_TRUE(service_.Read(grown) == then->arrays);
  ASSERT_TRUE(service_->Fork("set", "fork").ok());
  EXPECT_TRUE(service_.Read(Named(grown, "fork")) == then->arrays);
}

TEST_P(CheckpointRpcsTest, SetThatIsNotKeptHasNoCheckpointsButCanBeForkedIntoOneThatIs) {
  v1::ParameterSetSpec not_kept = spec_;
  not_kept.mutable_durability()->mutable_nothing();
  service_.Make(not_kept);
  service_.Step(spec_, 2);
  EXPECT_EQ(ReasonOf(service_->Checkpoint("set").status()), v1::ERROR_REASON_NO_DATA_DIRECTORY);
  const absl::StatusOr<v1::ParameterSet> alike = service_->Fork("set", "alike");
  ASSERT_TRUE(alike.ok()) << alike.status();
  EXPECT_TRUE(alike->durability().has_nothing());
  v1::Durability durability;
  if (keeps_steps()) {
    durability.mutable_every_step()->set_journal_steps(4);
  } else {
    durability.mutable_checkpoints()->set_steps(1'000'000);
  }
  const absl::StatusOr<v1::ParameterSet> fork = service_->Fork("set", "fork", {.durability = durability});
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->durability().has_every_step(), keeps_steps());
  const Arrays then = service_.Read(spec_);
  service_.Kill();
  service_.Start();
  EXPECT_EQ(ReasonOf(service_->GetParameterSet("set").status()), v1::ERROR_REASON_SET_NOT_FOUND);
  EXPECT_TRUE(service_.Read(Named(spec_, "fork")) == then);
}

TEST_P(CheckpointRpcsTest, ForkIsKeptAsItIsAskedToBe) {
  service_.Make(spec_);
  service_.Step(spec_, 1);
  v1::Durability durability;
  const absl::Status none = service_->Fork("set", "fork", {.durability = durability}).status();
  EXPECT_EQ(ReasonOf(none), v1::ERROR_REASON_INVALID_FIELD);
  EXPECT_EQ(GetErrorDetail(none).field(), "durability");
  durability.mutable_every_step()->set_journal_steps(1);
  const absl::Status too_few = service_->Fork("set", "fork", {.durability = durability}).status();
  EXPECT_EQ(GetErrorDetail(too_few).field(), "durability.every_step.journal_steps");
  durability.mutable_nothing();
  ASSERT_TRUE(service_->Fork("set", "fork", {.durability = durability}).ok());
  service_.Kill();
  service_.Start();
  EXPECT_EQ(ReasonOf(service_->GetParameterSet("fork").status()), v1::ERROR_REASON_SET_NOT_FOUND);
}

TEST_P(CheckpointRpcsTest, EverythingAtOnceEndsInAnAnswerAndASetThatWorks) {
  service_.Make(spec_);
  std::vector<std::thread> threads;
  const auto run = [&](auto call) {
    threads.emplace_back([&, call] {
      for (int i = 0; i < 30 / std::min(kFewer, 10); ++i) {
        const absl::Status status = call(i);
        EXPECT_THAT(status.code(), AnyOf(absl::StatusCode::kOk, absl::StatusCode::kAborted, absl::StatusCode::kNotFound,
                                         absl::StatusCode::kFailedPrecondition, absl::StatusCode::kAlreadyExists))
            << status;
      }
    });
  };
  for (int thread = 0; thread < 2; ++thread) {
    run([&](int) { return service_->Checkpoint("set").status(); });
    run([&](int) {
      const absl::StatusOr<std::vector<v1::Checkpoint>> listed = service_->ListCheckpoints("set");
      if (!listed.ok() || listed->empty()) return listed.status();
      return service_->RestoreCheckpoint("set", listed->back()).status();
    });
    run([&](int) { return service_->Fork("set", "fork").status(); });
    run([&](int) {
      const absl::StatusOr<v1::ParameterSet> fork = service_->GetParameterSet("fork");
      if (!fork.ok()) return fork.status();
      return service_->DeleteParameterSet("fork", fork->incarnation());
    });
    run([&](int i) { return service_.raw().Step(spec_, StepHeader("set"), GradientOf(spec_, i)).status(); });
  }
  for (std::thread& thread : threads) thread.join();
  const v1::Checkpoint checkpoint = Checkpoint("set");
  const Arrays then = service_.Read(spec_);
  service_.Step(spec_, 3);
  Restore("set", checkpoint);
  EXPECT_TRUE(service_.Read(spec_) == then);
  service_.Kill();
  service_.Start();
  EXPECT_TRUE(service_.Read(spec_) == then);
}

// A fork needs no data directory.
class ForkTest : public ::testing::Test {
 protected:
  // All that says what is to be, not what has been.
  static v1::ParameterSet Configuration(v1::ParameterSet set) {
    for (const char* field : {"name", "incarnation", "create_time", "statistics", "config_revision", "last_checkpoint",
                              "restored_from", "durability", "durable_step"}) {
      const auto* descriptor = v1::ParameterSet::descriptor()->FindFieldByName(field);
      if (descriptor != nullptr) set.GetReflection()->ClearField(&set, descriptor);
    }
    return set;
  }

  Service service_{{}};
  const v1::ParameterSetSpec spec_ = SmallSpec("set");
  const v1::ParameterSetSpec fork_ = Named(spec_, "fork");
};

TEST_F(ForkTest, IsWhatTheOtherOneIsAndThenGoesItsOwnWay) {
  v1::ParameterSetSpec spec = spec_;
  (*spec.mutable_labels())["owner"] = "me";
  spec.mutable_clipping()->set_max_norm(2);
  spec.set_max_staleness(4);
  spec.mutable_groups(0)->mutable_adam()->set_weight_decay(0.1);
  spec.mutable_groups(1)->mutable_adam()->set_amsgrad(true);
  service_.Make(spec);
  const v1::ParameterSetSpec fork_spec = Named(spec, "fork");
  service_.Step(spec, 2);
  v1::ParameterGroup faster;
  faster.set_name("fast");
  faster.set_learning_rate(0.5);
  ASSERT_TRUE(service_->UpdateParameterGroup("set", faster, {"learning_rate"}).ok());
  service_.Step(spec, 1);
  // Tensors of which each has had another number of updates.
  v1::StepHeader partial = StepHeader("set");
  partial.add_tensors(1);
  std::vector<v1::TensorChunk> chunks = Only(Chunks(spec, GradientOf(spec, 3), 65536), {1});
  StepStream stream(service_.raw().stub());
  ASSERT_TRUE(stream.Send(StepMessages(partial, chunks)));
  ASSERT_TRUE(stream.ReadReply({0, 16, 0, 0}).ok());
  stream.HalfClose();

  const absl::StatusOr<v1::ParameterSet> fork = service_->Fork("set", "fork");

  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->name(), "fork");
  const absl::StatusOr<v1::ParameterSet> source = service_->GetParameterSet("set");
  EXPECT_NE(fork->incarnation(), source->incarnation());
  EXPECT_EQ(Configuration(*fork).ShortDebugString(), Configuration(*source).ShortDebugString());
  const Arrays then = service_.Read(spec);
  EXPECT_FALSE(then.update_counts.empty());
  EXPECT_TRUE(service_.Read(fork_spec) == then);

  service_.Step(fork_spec, 1, /*turn=*/9);
  EXPECT_TRUE(service_.Read(spec) == then);
  EXPECT_FALSE(service_.Read(fork_spec) == then);
  service_.Step(spec, 1, /*turn=*/9);
  EXPECT_TRUE(service_.Read(fork_spec) == service_.Read(spec));
  ASSERT_TRUE(service_.raw().Delete("set").ok());
  service_.Step(fork_spec, 1);
}

TEST_F(ForkTest, LargeSetIsForkedToTheBitWhileItIsStepped) {
  const v1::ParameterSetSpec large = LargeSpec("large");
  service_.Make(large);
  service_.Step(large, 1);
  const v1::ParameterSetSpec twin = Named(large, "twin");
  std::thread stepper([&] { service_.Step(large, 10 / std::min(kFewer, 5)); });
  const absl::StatusOr<v1::ParameterSet> fork = service_->Fork("large", "fork");
  stepper.join();
  ASSERT_TRUE(fork.ok()) << fork.status();
  service_.Make(twin);
  service_.Step(twin, static_cast<int>(fork->step()));
  EXPECT_TRUE(service_.Read(Named(large, "fork")) == service_.Read(twin));
}

TEST_F(ForkTest, OfASetOfRoundsWaitsForTheSameWorkers) {
  v1::ParameterSetSpec spec = spec_;
  spec.mutable_workers()->set_count(2);
  service_.Make(spec);
  const absl::StatusOr<v1::ParameterSet> fork = service_->Fork("set", "fork");
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->workers().count(), 2);
}

TEST_F(ForkTest, WhatFailsMakesNoSetAndTakesNoMemory) {
  service_.Make(spec_);
  service_.Make(SmallSpec("awaits", v1::INITIALIZATION_WRITTEN));
  service_.Step(spec_, 1);
  const std::map<std::string, int64_t> used = service_.raw().UsedBudgets();
  const auto reason = [&](absl::string_view set, absl::string_view name, const ForkOptions& options = {}) {
    const absl::Status status = service_->Fork(set, name, options).status();
    return v1::ErrorReason_Name(ReasonOf(status));
  };
  v1::Durability kept;
  kept.mutable_every_step();
  EXPECT_EQ(reason("absent", "fork"), "ERROR_REASON_SET_NOT_FOUND");
  EXPECT_EQ(reason("awaits", "fork"), "ERROR_REASON_UNINITIALIZED");
  EXPECT_EQ(reason("set", "set"), "ERROR_REASON_SET_EXISTS");
  EXPECT_EQ(reason("set", "awaits"), "ERROR_REASON_SET_EXISTS");
  EXPECT_EQ(reason("set", ""), "ERROR_REASON_INVALID_FIELD");
  EXPECT_EQ(reason("", "fork"), "ERROR_REASON_INVALID_FIELD");
  EXPECT_EQ(reason("set", std::string(1000, 'x')), "ERROR_REASON_INVALID_FIELD");
  EXPECT_EQ(reason("set", "fork", {.device = "cuda:77"}), "ERROR_REASON_INVALID_FIELD");
  EXPECT_EQ(reason("set", "fork", {.incarnation = 1}), "ERROR_REASON_INCARNATION_MISMATCH");
  EXPECT_EQ(reason("set", "fork", {.durability = kept}), "ERROR_REASON_NO_DATA_DIRECTORY");

  EXPECT_THAT(service_->ListAllParameterSets("fork").value(), IsEmpty());
  EXPECT_TRUE(service_.raw().ReturnsTo(used));
  EXPECT_TRUE(service_->Fork("set", "fork").ok());
}

TEST_F(ForkTest, WithoutADataDirectoryThereAreNoCheckpoints) {
  service_.Make(spec_);
  const std::vector<absl::Status> ended = {service_->Checkpoint("set").status(),
                                           service_->ListCheckpoints("set").status(),
                                           service_->RestoreCheckpoint("set", v1::Checkpoint()).status()};
  for (const absl::Status& status : ended) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_NO_DATA_DIRECTORY);
    EXPECT_EQ(GetErrorDetail(status).set(), "set");
  }
}

}  // namespace
}  // namespace adamant::e2e
