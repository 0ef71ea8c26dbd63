// What comes back with a restart, and as what. See store_life_test.cc for lives of random changes.
#include "server/store/store.h"

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/base/notification.h"
#include "tests/core/manual_clock.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/store_life.h"
#include "tests/store/store_sets.h"
#include "tests/store/temporary_folder.h"

namespace adamant::store {
namespace {

using core::Arrays;
using core::Gradient;
using core::IsOk;
using core::ParameterSet;
using core::SequentialModel;
using core::Values;

TEST(StoreTest, DeletedSetsStayAway) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  for (const char* const name : {"gone", "again", "stays"}) {
    ASSERT_THAT(server->Create(WithEveryStep(MediumSpec(name), 4)), IsOk());
  }
  for (const char* const name : {"gone", "again"}) {
    ASSERT_THAT(server->Delete(name), IsOk());
  }
  ASSERT_THAT(server->Create(WithEveryStep(MediumSpec("again"), 4)), IsOk());
  const uint64_t incarnation = server->Find("again")->Describe().incarnation();
  server.reset();
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
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
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
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
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_EQ(server->Find("set")->Describe().groups(0).learning_rate(), 50 / 64.0);
  EXPECT_EQ(server->Find("set")->Describe().config_revision(), 51);
}

TEST(StoreTest, ASetWhoseFolderIsMissingAwaitsAFullWriteAndTheOthersServe) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  for (const char* const name : {"missing", "other"}) {
    ASSERT_THAT(server->Create(WithEveryStep(MediumSpec(name), 4)), IsOk());
  }
  // What it has been through is in its records.
  ASSERT_THAT(server->Create(WithEveryStep(core::SmallSpec("small"), 4)), IsOk());
  SequentialModel model(MediumSpec("missing"));
  SequentialModel small(core::SmallSpec("small"));
  const auto step = [&](SequentialModel* stepped, const std::string& name) {
    const Values gradient = Gradient(stepped->parameter_count(), 1);
    stepped->Apply(gradient);
    return core::Step(server->Find(name).get(), {}, gradient).status();
  };
  for (const char* const name : {"missing", "other"}) {
    model = SequentialModel(MediumSpec(name));
    ASSERT_THAT(step(&model, name), IsOk());
  }
  ASSERT_THAT(step(&small, "small"), IsOk());
  std::vector<std::string> folders;
  for (const char* const name : {"missing", "small"}) {
    folders.push_back(absl::StrCat(folder.path(), "/sets/", server->Find(name)->Describe().incarnation()));
  }
  server.reset();
  for (const std::string& path : folders) ASSERT_GT(std::filesystem::remove_all(path), 0);

  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_THAT(server->warnings(), ::testing::HasSubstr("set `missing` is POISONED"));
  EXPECT_EQ(server->Find("missing")->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_TRUE(*core::FetchState(server->Find("other").get()) == model.arrays());
  EXPECT_TRUE(*core::FetchState(server->Find("small").get()) == small.arrays());

  ASSERT_THAT(core::Write(server->Find("missing").get(), core::FullHeader(1), model.arrays()), IsOk());
  ASSERT_THAT(step(&model, "missing"), IsOk());
  ASSERT_THAT(step(&small, "small"), IsOk());
  server.reset();
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_EQ(server->warnings(), "");
  EXPECT_TRUE(*core::FetchState(server->Find("missing").get()) == model.arrays());
  EXPECT_TRUE(*core::FetchState(server->Find("small").get()) == small.arrays());
}

// The file for larger elements is made first, and removed if that has failed: a power cut may leave a part of it.
TEST(StoreTest, APartOfAFileForAGrowthThatCameToNothingIsNoDamage) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  SequentialModel model(MediumSpec("set"));
  const auto step = [&](uint64_t seed) {
    const Values gradient = Gradient(model.parameter_count(), seed);
    model.Apply(gradient);
    return core::Step(server->Find("set").get(), {}, gradient).status();
  };
  ASSERT_THAT(step(1), IsOk());
  for (const int bytes : {1, 4096}) {
    server.reset();
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
      const std::vector<std::string> name = absl::StrSplit(entry.path().filename().string(), '-');
      if (name[0] != "elements") continue;
      std::ofstream(entry.path().parent_path() / absl::StrCat("elements-", 10 * bytes, "-", name[2]))
          << std::string(bytes, 0);
      break;
    }
    server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
    ASSERT_THAT(server->status(), IsOk());
    EXPECT_EQ(server->warnings(), "");
    ASSERT_THAT(step(2), IsOk());
    EXPECT_TRUE(*core::FetchState(server->Find("set").get()) == model.arrays());
  }
}

// Of a base whose commit has failed nobody knows whether it is there, after a power cut, too.
// The process was killed when it had made a file for larger elements: to the next one it is there, but a power cut may
// find that nothing of it was synced.
TEST(StoreTest, AFileOfAGrowthThatWasKilledIsSyncedBeforeItIsUsed) {
  SimulatedFileSystem disk;
  const SqliteVfs vfs(&disk);
  StoreOptions options;
  options.directory = "/data";
  options.reserve_bytes = 64 << 10;
  options.sqlite_vfs = vfs.name().c_str();
  auto server = std::make_unique<StoreServer>(&disk, options);
  ASSERT_THAT(server->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  const std::string folder = absl::StrCat("/data/sets/", server->Find("set")->Describe().incarnation());
  server.reset();
  const std::string path = folder + "/elements-1-16384";
  const int64_t bytes = disk.SizeOf(path);
  ASSERT_GT(bytes, 0);
  {
    const auto file = *disk.Create(folder + "/elements-2-16384", FileSystem::Access::kBuffered);
    ASSERT_THAT(file->Allocate(bytes), IsOk());
  }
  server = std::make_unique<StoreServer>(&disk, options);
  ASSERT_THAT(server->status(), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(server->Find("set").get(), &model, 0), IsOk());
  server.reset();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
    const SqliteVfs cut_vfs(cut.get());
    options.sqlite_vfs = cut_vfs.name().c_str();
    StoreServer after(cut.get(), options);
    ASSERT_THAT(after.status(), IsOk());
    ASSERT_EQ(after.warnings(), "") << "power cut " << seed;
    ASSERT_TRUE(*core::FetchState(after.Find("set").get()) == model.arrays());
  }
}

TEST(StoreTest, WhicheverCallOfACheckpointFailsNothingIsLost) {
  bool has_failed = true;
  for (int64_t call = 1; has_failed; ++call) {
    SCOPED_TRACE(absl::StrCat("call ", call));
    SimulatedFileSystem disk;
    SequentialModel model(MediumSpec("set"));
    {
      const SqliteVfs vfs(&disk);
      StoreServer server(&disk, On(vfs));
      ASSERT_THAT(server.Create(WithEveryStep(MediumSpec("set"), 8)), IsOk());
      for (int step = 1; step <= 3; ++step) {
        const Values gradient = Gradient(model.parameter_count(), step);
        model.Apply(gradient);
        ASSERT_THAT(core::Step(server.Find("set").get(), {}, gradient), IsOk());
      }
      ASSERT_THAT(AwaitCheckpoint(server.Find("set").get()), IsOk());
      const Values gradient = Gradient(model.parameter_count(), 4);
      model.Apply(gradient);
      ASSERT_THAT(core::Step(server.Find("set").get(), {}, gradient), IsOk());
      const int64_t before = disk.calls();
      disk.FailCall(before + call, SimulatedFileSystem::Fault::kIoError);
      AwaitCheckpoint(server.Find("set").get()).IgnoreError();
      has_failed = disk.calls() >= before + call;
    }
    for (uint64_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(absl::StrCat("power cut ", seed));
      const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
      const SqliteVfs vfs(cut.get());
      StoreServer server(cut.get(), On(vfs));
      ASSERT_THAT(server.status(), IsOk());
      ASSERT_EQ(server.warnings(), "");
      ASSERT_TRUE(*core::FetchState(server.Find("set").get()) == model.arrays());
    }
  }
}

// The first steps take a checkpoint each, which others may wait for: the last one must be of the state that the set
// has.
TEST(StoreTest, WhatWasFinishedComesBackAsItWas) {
  for (int steps = 1; steps < 12; ++steps) {
    const TemporaryFolder folder;
    auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
    ASSERT_THAT(server->Create(WithCheckpoints(MediumSpec("set"), 1)), IsOk());
    const std::shared_ptr<ParameterSet> set = server->Find("set");
    SequentialModel model(MediumSpec("set"));
    for (int step = 0; step < steps; ++step) {
      ASSERT_THAT(StepOnce(set.get(), &model, step, core::Header(absl::StrCat("step", step), step)), IsOk());
    }
    const uint64_t incarnation = set->Describe().incarnation();
    server->store()->Finish(server->registry(), absl::InfiniteDuration());
    const_cast<std::shared_ptr<ParameterSet>&>(set).reset();
    ASSERT_EQ(server->warnings(), "");
    server.reset();
    server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
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

// Each has its own time to be finished: the first one's end is not everybody's.
TEST(StoreTest, AllSetsAreFinished) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  std::map<std::string, uint64_t> incarnations;
  for (int i = 0; i < 20; ++i) {
    const std::string name = absl::StrCat("set", i);
    ASSERT_THAT(server->Create(WithCheckpoints(MediumSpec(name), 1000)), IsOk());
    SequentialModel model(MediumSpec(name));
    ASSERT_THAT(StepOnce(server->Find(name).get(), &model, 0), IsOk());
    incarnations[name] = server->Find(name)->Describe().incarnation();
  }
  server->store()->Finish(server->registry(), absl::InfiniteDuration());
  EXPECT_EQ(server->warnings(), "");
  server.reset();
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  for (const auto& [name, incarnation] : incarnations) {
    EXPECT_EQ(server->Find(name)->Describe().incarnation(), incarnation);
    EXPECT_EQ(server->Find(name)->Describe().step(), 1);
  }
}

TEST(StoreTest, WhatThereIsNoTimeToFinishIsNamedAndEnded) {
  const TemporaryFolder folder;
  core::ManualClock clock;
  StoreOptions options = In(folder);
  options.clock = &clock;
  options.checkpoint_bytes_per_second = 1;  // and the clock stands still
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), options);
  for (const char* const name : {"first", "second"}) {
    ASSERT_THAT(server->Create(WithCheckpoints(MediumSpec(name), 1000)), IsOk());
    SequentialModel model(MediumSpec(name));
    ASSERT_THAT(StepOnce(server->Find(name).get(), &model, 0), IsOk());
  }
  server->store()->Finish(server->registry(), absl::ZeroDuration());
  EXPECT_THAT(server->warnings(), ::testing::HasSubstr("set `second` has no last checkpoint"));
  // What was under way does not keep anybody waiting.
  server.reset();
}

TEST(StoreTest, ASmallSetsCheckpointDoesNotWaitForALargeSets) {
  const TemporaryFolder folder;
  core::ManualClock clock;
  StoreOptions options = In(folder);
  options.clock = &clock;
  options.checkpoint_bytes_per_second = 1 << 20;
  StoreServer server(PosixFileSystem(), options);
  v1::ParameterSetSpec large = WithCheckpoints(core::SmallSpec("large"), 1000);
  large.mutable_tensors(0)->clear_shape();
  large.mutable_tensors(0)->add_shape(int64_t{4} << 20);
  ASSERT_THAT(server.Create(large), IsOk());
  ASSERT_THAT(server.Create(WithCheckpoints(core::SmallSpec("small"), 1000)), IsOk());
  std::atomic<bool> large_is_made = false;
  core::Notification small_is_made;
  server.Find("large")->Checkpoint(std::nullopt, [&](const absl::Status& status) {
    EXPECT_THAT(status, IsOk());
    large_is_made = true;
  });
  // It waits for its second piece.
  while (clock.pending() == 0) std::this_thread::yield();
  server.Find("small")->Checkpoint(std::nullopt, [&](const absl::Status& status) {
    EXPECT_THAT(status, IsOk());
    EXPECT_FALSE(large_is_made);
    small_is_made.Notify();
  });
  while (!small_is_made.HasBeenNotified()) {
    // Both wait, or it is made.
    if (clock.pending() == 2) clock.Advance(absl::Seconds(4));
    std::this_thread::yield();
  }
  while (!large_is_made) {
    clock.Advance(absl::Seconds(4));
    std::this_thread::yield();
  }
}

// A backup of a part of a directory, or a catalog that was lost: what is left is all that there is.
TEST(StoreTest, FoldersOfSetsThatACatalogHasLostAreKept) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  const auto files = [&] {
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
      if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
    }
    return paths;
  };
  const auto make = [&](const std::string& name) {
    ASSERT_THAT(server->Create(WithEveryStep(MediumSpec(name), 4)), IsOk());
    ASSERT_THAT(AwaitCheckpoint(server->Find(name).get()), IsOk());
  };
  make("old");
  server.reset();
  const std::string backup = folder.path() + "-backup";
  std::filesystem::create_directory(backup);
  for (const char* const name : {"catalog", "catalog-wal"}) {
    if (std::filesystem::exists(folder.path() + "/" + name)) {
      std::filesystem::copy(folder.path() + "/" + name, backup + "/" + name);
    }
  }
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  make("new");
  server.reset();
  const size_t all = files().size();
  ASSERT_GT(all, 0);

  // The catalog is older than the set.
  for (const char* const name : {"catalog", "catalog-wal"}) {
    std::filesystem::remove(folder.path() + "/" + name);
    if (std::filesystem::exists(backup + "/" + name)) {
      std::filesystem::copy(backup + "/" + name, folder.path() + "/" + name);
    }
  }
  std::filesystem::remove_all(backup);
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  EXPECT_EQ(server->status().code(), absl::StatusCode::kDataLoss);
  StoreOptions accepting = In(folder);
  accepting.accept_data_loss = true;
  server = nullptr;
  server = std::make_unique<StoreServer>(PosixFileSystem(), accepting);
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_THAT(server->warnings(), ::testing::HasSubstr("it is lost/"));
  EXPECT_TRUE(server->registry()->Find("old").ok());
  EXPECT_EQ(files().size(), all);
  server.reset();
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_EQ(files().size(), all);
  server.reset();

  // Nothing but the sets is there.
  for (const char* const name : {"catalog", "catalog-wal", "fence"})
    std::filesystem::remove(folder.path() + "/" + name);
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  EXPECT_EQ(server->status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(server->status().message(), ::testing::HasSubstr("has lost its catalog and fence"));
  EXPECT_EQ(files().size(), all);
  server = nullptr;
  server = std::make_unique<StoreServer>(PosixFileSystem(), accepting);
  ASSERT_THAT(server->status(), IsOk());
  make("another");
  server.reset();
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_GT(files().size(), all);
}

// The fence goes with it, and says nothing.
TEST(StoreTest, AnEarlierCatalogWithItsFenceIsFoundOutByALaterCheckpoint) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  for (const char* const name : {"set", "other"}) {
    ASSERT_THAT(server->Create(WithEveryStep(MediumSpec(name), 4)), IsOk());
  }
  server.reset();
  const std::string backup = folder.path() + "-backup";
  std::filesystem::create_directory(backup);
  const char* const names[] = {"catalog", "catalog-wal", "fence"};
  for (const char* const name : names) {
    if (!std::filesystem::exists(folder.path() + "/" + name)) continue;
    std::filesystem::copy(folder.path() + "/" + name, backup + "/" + name);
  }
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(server->Find("set").get(), &model, 0), IsOk());
  ASSERT_THAT(AwaitCheckpoint(server->Find("set").get()), IsOk());
  server.reset();
  for (const char* const name : names) {
    std::filesystem::remove(folder.path() + "/" + name);
    if (std::filesystem::exists(backup + "/" + name)) {
      std::filesystem::copy(backup + "/" + name, folder.path() + "/" + name);
    }
  }
  std::filesystem::remove_all(backup);
  server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->status(), IsOk());
  EXPECT_THAT(server->warnings(), ::testing::HasSubstr("there is a checkpoint of step 1"));
  EXPECT_EQ(server->Find("set")->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_EQ(server->Find("other")->Describe().state(), v1::PARAMETER_SET_STATE_READY);
}

TEST(StoreTest, WhatWasNotFinishedIsOfAnotherIncarnation) {
  const TemporaryFolder folder;
  auto server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
  ASSERT_THAT(server->Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  std::shared_ptr<ParameterSet> set = server->Find("set");
  for (int step = 0; step < 3; ++step) ASSERT_THAT(StepOnce(set.get(), &model, step), IsOk());
  ASSERT_THAT(AwaitCheckpoint(set.get()), IsOk());
  const Arrays checkpointed = model.arrays();
  ASSERT_THAT(StepOnce(set.get(), &model, 3), IsOk());
  const uint64_t incarnation = set->Describe().incarnation();
  set.reset();
  server.reset();
  std::vector<uint64_t> incarnations = {incarnation};
  for (int restart = 0; restart < 3; ++restart) {
    server = std::make_unique<StoreServer>(PosixFileSystem(), In(folder));
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

}  // namespace
}  // namespace adamant::store
