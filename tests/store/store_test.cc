// Sets that come back: lives of random changes, restarts between them, and disks that fail or lose their power.
#include "server/store/store.h"

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/base/notification.h"
#include "server/core/registry.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"

namespace adamant::store {
namespace {

using core::Arrays;
using core::Gradient;
using core::IsOk;
using core::ParameterSet;
using core::SequentialModel;
using core::Values;

// A server whose sets are in a directory.
class Server {
 public:
  // What has become of the start is in `status`.
  Server(FileSystem* file_system, const std::string& directory, const char* sqlite_vfs, bool accept_data_loss = false) {
    StoreOptions options;
    options.directory = directory;
    options.sqlite_vfs = sqlite_vfs;
    options.accept_data_loss = accept_data_loss;
    options.warn = [this](absl::string_view line) {
      core::MutexLock lock(&mutex_);
      absl::StrAppend(&warnings_, line, "\n");
    };
    absl::StatusOr<std::unique_ptr<Store>> opened = Store::Open(file_system, options);
    status_ = opened.status();
    if (!status_.ok()) return;
    store_ = *std::move(opened);
    core::Resources resources = server_.resources();
    resources.journal = store_.get();
    registry_ = std::make_unique<core::Registry>(std::vector<core::Resources>{resources});
    status_ = store_->Restore(registry_.get());
  }
  ~Server() {
    registry_.reset();
    server_.AwaitUnused();
    store_.reset();
  }

  const absl::Status& status() const { return status_; }
  std::string warnings() const {
    core::MutexLock lock(&mutex_);
    return warnings_;
  }
  core::Registry* registry() { return registry_.get(); }
  Store* store() { return store_.get(); }
  std::shared_ptr<ParameterSet> Find(const std::string& name) { return *registry_->Find(name); }
  absl::Status Create(const v1::ParameterSetSpec& spec) {
    v1::CreateParameterSetRequest request;
    *request.mutable_spec() = spec;
    return registry_->Create(request).status();
  }

 private:
  absl::Status status_;
  mutable core::Mutex mutex_;
  std::string warnings_ ABSL_GUARDED_BY(mutex_);
  core::TestServer server_{{.compute_threads = 2}};
  std::unique_ptr<Store> store_;
  std::unique_ptr<core::Registry> registry_;
};

v1::ParameterSetSpec WithEveryStep(v1::ParameterSetSpec spec, int journal_steps) {
  spec.mutable_durability()->mutable_every_step()->set_journal_steps(journal_steps);
  return spec;
}

// 3,082 parameters: its gradients go to slots.
v1::ParameterSetSpec MediumSpec(const std::string& name) {
  v1::ParameterSetSpec spec = core::SmallSpec(name);
  v1::TensorSpec* const tensor = spec.add_tensors();
  tensor->set_name("table");
  tensor->add_shape(431);
  tensor->add_shape(7);
  tensor->set_group("fast");
  return spec;
}

absl::Status Checkpoint(ParameterSet* set) {
  absl::Status status;
  core::Notification done;
  set->Checkpoint(std::nullopt, [&](const absl::Status& made) {
    status = Unshared(made);
    done.Notify();
  });
  done.WaitForNotification();
  return status;
}

// What a client knows of a set, which lives in one server after another.
struct Life {
  explicit Life(const v1::ParameterSetSpec& spec) : model(spec) {}

  SequentialModel model;
  uint64_t incarnation = 0;
  std::string last_step;
  int64_t changes = 0;
  int64_t seed = 0;
};

// Changes a set at random, in one way, as `random` says. What the change leads to is in `next`, whatever becomes of it.
absl::Status Change(ParameterSet* set, std::mt19937* random, const Life& life, Life* next) {
  *next = life;
  ++next->changes;
  const int64_t count = life.model.parameter_count();
  const std::string id = absl::StrCat("change-", life.seed, "-", life.changes);
  const int what = static_cast<int>((*random)() % 16);
  if (what < 10) {
    v1::StepHeader header = core::Header(id, life.model.arrays().step);
    header.set_incarnation(life.incarnation);
    if (what < 3) header.add_tensors(static_cast<int>((*random)() % life.model.tensors()));
    if (what == 4) header.set_grad_scale(8);
    if (what == 5) {
      v1::GroupOverride* const override = header.add_overrides();
      override->set_group("fast");
      override->set_learning_rate(0.125);
    }
    const Values gradient = Gradient(count, (*random)());
    next->model.Apply(gradient, header);
    next->last_step = id;
    return core::Step(set, header, gradient).status();
  }
  if (what < 12) {
    v1::WriteHeader header = core::ParametersHeader(id);
    if (what == 10) header.add_tensors(0);
    Arrays* const arrays = next->model.mutable_arrays();
    Arrays written = *arrays;
    for (size_t i = 0; i < written.parameters.size(); i += 3) written.parameters[i] = static_cast<float>(i) / 4;
    if (what == 10) {
      const auto first = static_cast<size_t>(set->schema().sizes()[0]);
      std::copy_n(written.parameters.begin(), first, arrays->parameters.begin());
    } else {
      arrays->parameters = written.parameters;
    }
    next->last_step.clear();
    absl::StatusOr<v1::WriteTensorsResponse> response = core::Write(set, header, written);
    if (response.ok()) next->incarnation = response->incarnation();
    return response.status();
  }
  if (what == 12) {
    v1::WriteHeader header = core::FullHeader(life.model.arrays().step + 5, id);
    Arrays* const arrays = next->model.mutable_arrays();
    arrays->step += 5;
    arrays->update_counts.clear();
    next->last_step.clear();
    absl::StatusOr<v1::WriteTensorsResponse> response = core::Write(set, header, *arrays);
    if (response.ok()) next->incarnation = response->incarnation();
    return response.status();
  }
  if (what == 13) {
    v1::AddTensorsRequest request = core::Tensors({static_cast<int64_t>((*random)() % 40)});
    request.mutable_tensors(0)->set_name(id);
    next->model.Grow(request);
    next->last_step.clear();
    absl::StatusOr<v1::ParameterSet> grown = core::AddTensors(set, request);
    if (grown.ok()) next->incarnation = grown->incarnation();
    return grown.status();
  }
  if (what == 14) {
    v1::UpdateParameterGroupRequest request;
    request.mutable_group()->set_name("slow");
    request.mutable_group()->set_learning_rate(static_cast<double>((*random)() % 100 + 1) / 1024);
    request.mutable_update_mask()->add_paths("learning_rate");
    next->model.mutable_spec()->mutable_groups(0)->set_learning_rate(request.group().learning_rate());
    return core::Update(set, request).status();
  }
  --next->changes;
  return Checkpoint(set);
}

// Whether the set is as `life` says.
::testing::AssertionResult IsAs(ParameterSet* set, const Life& life) {
  const absl::StatusOr<Arrays> state = core::FetchState(set);
  if (!state.ok()) return ::testing::AssertionFailure() << state.status();
  if (!(*state == life.model.arrays())) {
    return ::testing::AssertionFailure() << "another state, at step " << state->step << " rather than "
                                         << life.model.arrays().step;
  }
  const v1::ParameterSet described = set->Describe();
  if (described.incarnation() != life.incarnation) return ::testing::AssertionFailure() << "another incarnation";
  if (described.groups(0).learning_rate() != life.model.spec().groups(0).learning_rate()) {
    return ::testing::AssertionFailure() << "another configuration";
  }
  if (life.last_step.empty()) return ::testing::AssertionSuccess();
  const absl::StatusOr<v1::GetStepResultResponse> result = core::StepResultOf(*set, life.last_step);
  if (!result.ok() || result->state() != v1::STEP_STATE_COMMITTED) {
    return ::testing::AssertionFailure() << life.last_step << " is not remembered";
  }
  return ::testing::AssertionSuccess();
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "adamant-store-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(StoreTest, SetsComeBackAsTheyWere) {
  const TemporaryFolder folder;
  auto server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
  std::mt19937 random(1);
  std::vector<std::pair<std::string, Life>> lives;
  for (const v1::ParameterSetSpec& spec : {core::SmallSpec("small"), MediumSpec("medium"), core::LargeSpec("large")}) {
    ASSERT_THAT(server->Create(WithEveryStep(spec, 4)), IsOk());
    lives.emplace_back(spec.name(), Life(spec));
    lives.back().second.incarnation = server->Find(spec.name())->Describe().incarnation();
  }
  for (int restart = 0; restart < 12; ++restart) {
    for (int change = 0; change < 15; ++change) {
      for (auto& [name, life] : lives) {
        Life next = life;
        ASSERT_THAT(Change(server->Find(name).get(), &random, life, &next), IsOk());
        life = next;
      }
    }
    for (auto& [name, life] : lives) ASSERT_TRUE(IsAs(server->Find(name).get(), life));
    server.reset();
    server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
    ASSERT_THAT(server->status(), IsOk());
    ASSERT_EQ(server->warnings(), "");
    for (auto& [name, life] : lives)
      ASSERT_TRUE(IsAs(server->Find(name).get(), life)) << name << ", restart " << restart;
  }
}

TEST(StoreTest, DeletedSetsStayAway) {
  const TemporaryFolder folder;
  auto server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
  for (const char* const name : {"gone", "again", "stays"}) {
    ASSERT_THAT(server->Create(WithEveryStep(MediumSpec(name), 4)), IsOk());
  }
  for (const char* const name : {"gone", "again"}) {
    v1::DeleteParameterSetRequest request;
    request.set_name(name);
    core::Notification deleted;
    server->registry()->Delete(request, [&](const absl::Status& status) {
      EXPECT_THAT(status, IsOk());
      deleted.Notify();
    });
    deleted.WaitForNotification();
  }
  ASSERT_THAT(server->Create(WithEveryStep(MediumSpec("again"), 4)), IsOk());
  const uint64_t incarnation = server->Find("again")->Describe().incarnation();
  server.reset();
  server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_FALSE(server->registry()->Find("gone").ok());
  EXPECT_EQ(server->Find("again")->Describe().incarnation(), incarnation);
  EXPECT_TRUE(server->registry()->Find("stays").ok());
  int folders = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path() + "/sets")) ++folders;
  EXPECT_EQ(folders, 2);
}

TEST(StoreTest, ManyConfigurationsTakeNoMoreRoomThanOne) {
  const TemporaryFolder folder;
  auto server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
  ASSERT_THAT(server->Create(WithEveryStep(core::SmallSpec("set"), 4)), IsOk());
  for (int i = 1; i <= 50; ++i) {
    v1::UpdateParameterGroupRequest request;
    request.mutable_group()->set_name("slow");
    request.mutable_group()->set_learning_rate(i / 64.0);
    request.mutable_update_mask()->add_paths("learning_rate");
    ASSERT_THAT(core::Update(server->Find("set").get(), request), IsOk());
  }
  server.reset();
  int records = 0;
  {
    auto catalog = *Catalog::Open(PosixFileSystem(), folder.path(), false);
    ASSERT_THAT(catalog->ForEachRecord(1,
                                       [&](int64_t /*number*/, const absl::StatusOr<StoredRecord>& record) {
                                         ++records;
                                         return record.status();
                                       }),
                IsOk());
  }
  EXPECT_EQ(records, 2);
  server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_EQ(server->Find("set")->Describe().groups(0).learning_rate(), 50 / 64.0);
  EXPECT_EQ(server->Find("set")->Describe().config_revision(), 51);
}

v1::ParameterSetSpec WithCheckpoints(v1::ParameterSetSpec spec, int64_t steps) {
  spec.mutable_durability()->mutable_checkpoints()->set_steps(steps);
  return spec;
}

absl::Status StepOnce(ParameterSet* set, SequentialModel* model, uint64_t seed, const v1::StepHeader& header = {}) {
  const Values gradient = Gradient(model->parameter_count(), seed);
  model->Apply(gradient);
  return core::Step(set, header, gradient).status();
}

// The first steps take a checkpoint each, which others may wait for: the last one must be of the state that the set
// has.
TEST(StoreTest, WhatWasFinishedComesBackAsItWas) {
  for (int steps = 1; steps < 12; ++steps) {
    const TemporaryFolder folder;
    auto server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
    ASSERT_THAT(server->Create(WithCheckpoints(MediumSpec("set"), 1)), IsOk());
    const std::shared_ptr<ParameterSet> set = server->Find("set");
    SequentialModel model(MediumSpec("set"));
    for (int step = 0; step < steps; ++step) {
      ASSERT_THAT(StepOnce(set.get(), &model, step, core::Header(absl::StrCat("step", step), step)), IsOk());
    }
    const uint64_t incarnation = set->Describe().incarnation();
    server->store()->Finish(server->registry(), absl::Hours(1));
    const_cast<std::shared_ptr<ParameterSet>&>(set).reset();
    ASSERT_EQ(server->warnings(), "");
    server.reset();
    server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
    ASSERT_THAT(server->status(), IsOk());
    EXPECT_EQ(server->Find("set")->Describe().incarnation(), incarnation);
    EXPECT_FALSE(server->Find("set")->Describe().has_restored_from());
    for (int step = 0; step < steps; ++step) {
      EXPECT_EQ(core::StepResultOf(*server->Find("set"), absl::StrCat("step", step))->state(),
                v1::STEP_STATE_COMMITTED);
    }
    ASSERT_TRUE(*core::FetchState(server->Find("set").get()) == model.arrays()) << steps << " steps";
  }
}

TEST(StoreTest, WhatWasNotFinishedIsOfAnotherIncarnation) {
  const TemporaryFolder folder;
  auto server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
  ASSERT_THAT(server->Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  std::shared_ptr<ParameterSet> set = server->Find("set");
  for (int step = 0; step < 3; ++step) ASSERT_THAT(StepOnce(set.get(), &model, step), IsOk());
  ASSERT_THAT(Checkpoint(set.get()), IsOk());
  const Arrays checkpointed = model.arrays();
  ASSERT_THAT(StepOnce(set.get(), &model, 3), IsOk());
  const uint64_t incarnation = set->Describe().incarnation();
  set.reset();
  server.reset();
  std::vector<uint64_t> incarnations = {incarnation};
  for (int restart = 0; restart < 3; ++restart) {
    server = std::make_unique<Server>(PosixFileSystem(), folder.path(), nullptr);
    ASSERT_THAT(server->status(), IsOk());
    const v1::ParameterSet described = server->Find("set")->Describe();
    EXPECT_EQ(described.restored_from().step(), 3);
    EXPECT_EQ(described.restored_from().incarnation(), incarnation);
    EXPECT_THAT(incarnations, ::testing::Not(::testing::Contains(described.incarnation())));
    incarnations.push_back(described.incarnation());
    EXPECT_TRUE(*core::FetchState(server->Find("set").get()) == checkpointed);
    server.reset();
  }
}

// A life on a simulated disk, until there is an error that leaves open what is on disk. Returns what may be there.
std::vector<Life> LiveUntilItFails(SimulatedFileSystem* disk, uint64_t seed, int changes, bool* created) {
  const SqliteVfs vfs(disk);
  Server server(disk, "/data", vfs.name().c_str());
  const v1::ParameterSetSpec spec = seed % 2 == 0 ? core::SmallSpec("set") : MediumSpec("set");
  Life life(spec);
  life.seed = static_cast<int64_t>(seed);
  *created = false;
  if (!server.status().ok()) return {};
  const absl::Status made = server.Create(WithEveryStep(spec, 2 + static_cast<int>(seed % 3)));
  if (!made.ok()) return {};
  *created = true;
  std::shared_ptr<ParameterSet> set = server.Find("set");
  life.incarnation = set->Describe().incarnation();
  std::mt19937 random(seed);
  for (int change = 0; change < changes; ++change) {
    Life next = life;
    const absl::Status status = Change(set.get(), &random, life, &next);
    if (status.ok()) {
      life = next;
    } else if (core::ReasonOf(status) == v1::ERROR_REASON_DISK_EXHAUSTED) {
      life.changes = next.changes;
    } else {
      return {life, next};
    }
  }
  return {life};
}

// What a disk has after a power cut is one of `possible`. The incarnation of a change whose outcome is unknown is, too.
void ExpectOneOf(const SimulatedFileSystem& disk, uint64_t seed, std::vector<Life> possible) {
  const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
  const SqliteVfs vfs(cut.get());
  Server server(cut.get(), "/data", vfs.name().c_str());
  ASSERT_THAT(server.status(), IsOk());
  ASSERT_EQ(server.warnings(), "");
  std::shared_ptr<ParameterSet> set = server.Find("set");
  std::string found;
  for (size_t i = 0; i < possible.size(); ++i) {
    if (i > 0) {
      const uint64_t incarnation = set->Describe().incarnation();
      if (incarnation != possible[0].incarnation) possible[i].incarnation = incarnation;
    }
    const ::testing::AssertionResult is_as = IsAs(set.get(), possible[i]);
    if (is_as) return;
    absl::StrAppend(&found, is_as.message(), "; ");
  }
  ADD_FAILURE() << found;
}

int Repetitions(int few) {
  const char* const all = std::getenv("ADAMANT_TEST_MANY_CUTS");
  return all != nullptr ? std::atoi(all) : few;
}

TEST(StoreTest, APowerCutLosesNothing) {
  for (int seed = 0; seed < Repetitions(60); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    SimulatedFileSystem disk;
    bool created = false;
    const std::vector<Life> possible = LiveUntilItFails(&disk, seed, 12, &created);
    ASSERT_TRUE(created);
    ASSERT_EQ(possible.size(), 1);
    for (uint64_t cut = 0; cut < 3; ++cut) ExpectOneOf(disk, cut, possible);
    if (HasFailure()) return;
  }
}

class FaultTest : public ::testing::TestWithParam<SimulatedFileSystem::Fault> {};

TEST_P(FaultTest, WhicheverCallFails) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    int64_t calls;
    {
      SimulatedFileSystem disk;
      bool created = false;
      LiveUntilItFails(&disk, seed, 10, &created);
      calls = disk.calls();
    }
    const int64_t stride = std::max<int64_t>(1, calls / Repetitions(40));
    for (int64_t call = 1 + static_cast<int64_t>(seed) % stride; call <= calls; call += stride) {
      SCOPED_TRACE(absl::StrCat("seed ", seed, ", call ", call, " of ", calls));
      SimulatedFileSystem disk;
      disk.FailCall(call, GetParam());
      bool created = false;
      const std::vector<Life> possible = LiveUntilItFails(&disk, seed, 10, &created);
      // It may be there or not, but for its state there is nobody who knows it.
      if (!created) continue;
      ExpectOneOf(disk, seed, possible);
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Faults, FaultTest,
                         ::testing::Values(SimulatedFileSystem::Fault::kIoError, SimulatedFileSystem::Fault::kNoSpace));

}  // namespace
}  // namespace adamant::store
