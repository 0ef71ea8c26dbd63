// What a restart has to find where something went wrong, or changed, between two states that were whole.
#include <sqlite3.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/base/notification.h"
#include "server/core/registry.h"
#include "server/store/store.h"
#include "tests/core/manual_clock.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/core/sparse_steps.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/store_life.h"
#include "tests/store/store_sets.h"
#include "tests/store/temporary_folder.h"

namespace adamant::store {
namespace {

using core::IsOk;
using core::ParameterSet;
using core::SequentialModel;
using ::testing::HasSubstr;

// A server in a folder of its own, that ends and starts again.
class RestartTest : public ::testing::Test {
 protected:
  RestartTest() { Start(); }

  void Start(bool accept_data_loss = false) {
    StoreOptions options = In(folder_);
    options.accept_data_loss = accept_data_loss;
    server_ = nullptr;
    server_ = std::make_unique<StoreServer>(PosixFileSystem(), std::move(options));
  }
  // As SIGTERM ends it.
  void Finish() {
    server_->store()->Finish(server_->registry(), absl::InfiniteDuration());
    server_ = nullptr;
  }
  std::shared_ptr<ParameterSet> set() { return server_->Find("set"); }
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  std::vector<std::string> NamesIn(const std::string& folder) const {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(Path(folder), error)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }
  // Copies what says which sets there are, from one folder into another.
  static void CopyCatalog(const std::string& from, const std::string& to) {
    for (const char* const name : {"/catalog", "/catalog-wal", "/fence"}) {
      std::filesystem::remove(to + name);
      if (std::filesystem::exists(from + name)) std::filesystem::copy(from + name, to + name);
    }
  }
  int64_t Records() {
    int64_t records = 0;
    const auto catalog = *Catalog::Open(PosixFileSystem(), folder_.path(), false);
    EXPECT_THAT(catalog->ForEachRecord(1,
                                       [&](int64_t /*number*/, const absl::StatusOr<StoredRecord>& record) {
                                         ++records;
                                         return record.status();
                                       }),
                IsOk());
    return records;
  }

  const TemporaryFolder folder_;
  std::unique_ptr<StoreServer> server_;
};

TEST_F(RestartTest, AGroupThatCameWithTensorsIsInLaterCheckpoints) {
  for (const v1::ParameterSetSpec& spec :
       {WithEveryStep(MediumSpec("set"), 4), WithCheckpoints(MediumSpec("set"), 1)}) {
    ASSERT_THAT(server_->Create(spec), IsOk());
    SequentialModel model(spec);
    v1::AddTensorsRequest growth = core::Tensors({5}, "late");
    *growth.add_groups() = spec.groups(1);
    growth.mutable_groups(0)->set_name("late");
    growth.mutable_groups(0)->set_learning_rate(0.25);
    ASSERT_THAT(core::AddTensors(set().get(), growth), IsOk());
    model.Grow(growth);
    ASSERT_THAT(StepOnce(set().get(), &model, 1), IsOk());
    ASSERT_THAT(AwaitCheckpoint(set().get()), IsOk());
    // And in the one behind that, which is made of what the first one has.
    ASSERT_THAT(StepOnce(set().get(), &model, 2), IsOk());
    ASSERT_THAT(AwaitCheckpoint(set().get()), IsOk());
    for (int restart = 0; restart < 2; ++restart) {
      Start();
      ASSERT_THAT(server_->status(), IsOk());
      EXPECT_EQ(server_->warnings(), "");
      const v1::ParameterSet described = set()->Describe();
      EXPECT_EQ(described.state(), v1::PARAMETER_SET_STATE_READY);
      ASSERT_EQ(described.groups_size(), 3);
      EXPECT_EQ(described.groups(2).learning_rate(), 0.25);
      EXPECT_EQ(described.config_revision(), 2);
      EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());
    }
    ASSERT_THAT(server_->Delete("set"), IsOk());
  }
}

// Where a set's last base is of no use it is what it was created as; the others serve.
TEST_F(RestartTest, ASetThatCannotBeMadeOfItsBaseKeepsNobodyFromServing) {
  ASSERT_THAT(server_->Create(WithEveryStep(core::SmallSpec("set"), 4)), IsOk());
  ASSERT_THAT(server_->Create(WithEveryStep(core::SmallSpec("other"), 4)), IsOk());
  server_ = nullptr;
  {
    const auto catalog = *Catalog::Open(PosixFileSystem(), folder_.path(), false);
    StoredRecord base;
    ASSERT_THAT(catalog->ForEachRecord(1,
                                       [&](int64_t /*number*/, const absl::StatusOr<StoredRecord>& record) {
                                         base = *record;
                                         return absl::OkStatus();
                                       }),
                IsOk());
    base.mutable_base()->mutable_configuration()->mutable_set()->mutable_groups()->RemoveLast();
    ASSERT_THAT(catalog->Begin(), IsOk());
    ASSERT_THAT(catalog->ReplaceRecord(1, 1, base), IsOk());
    ASSERT_THAT(catalog->Commit(), IsOk());
  }
  Start();
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_EQ(set()->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
  EXPECT_EQ(server_->Find("other")->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  SequentialModel model(core::SmallSpec("set"));
  ASSERT_THAT(core::Write(set().get(), core::FullHeader(0), model.arrays()).status(), IsOk());
  Start();
  EXPECT_EQ(set()->Describe().state(), v1::PARAMETER_SET_STATE_READY);
}

TEST_F(RestartTest, ARollbackIsPartOfTheCheckpointsBehindIt) {
  ASSERT_THAT(server_->Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(set().get(), &model, 1), IsOk());
  ASSERT_THAT(AwaitCheckpoint(set().get()), IsOk());
  Start();  // as if it was killed
  const uint64_t rolled_back = set()->Describe().incarnation();
  EXPECT_TRUE(set()->Describe().has_restored_from());
  ASSERT_THAT(StepOnce(set().get(), &model, 2, core::Header("x", 1)), IsOk());
  Finish();
  Start();
  EXPECT_EQ(set()->Describe().incarnation(), rolled_back);
  EXPECT_EQ(core::StepResultOf(*set(), "x")->state(), v1::STEP_STATE_COMMITTED);
  EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());

  // Nor does it come back behind a write.
  ASSERT_THAT(core::Write(set().get(), core::ParametersHeader("w"), model.arrays()).status(), IsOk());
  const uint64_t written = set()->Describe().incarnation();
  ASSERT_THAT(StepOnce(set().get(), &model, 3), IsOk());
  Finish();
  Start();
  EXPECT_EQ(set()->Describe().incarnation(), written);
}

TEST_F(RestartTest, CheckpointsAndRestartsLeaveNoRecordsBehind) {
  ASSERT_THAT(server_->Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  for (int round = 0; round < 5; ++round) {
    for (int step = 0; step < 4; ++step) {
      ASSERT_THAT(StepOnce(set().get(), &model, step), IsOk());
      v1::UpdateParameterGroupRequest update;
      update.mutable_group()->set_name("slow");
      update.mutable_group()->set_learning_rate((1 + round * 4 + step) / 64.0);
      update.mutable_update_mask()->add_paths("learning_rate");
      ASSERT_THAT(core::Update(set().get(), update), IsOk());
      for (v1::ParameterGroup& group : *model.mutable_spec()->mutable_groups()) {
        if (group.name() == "slow") group.set_learning_rate(update.group().learning_rate());
      }
      ASSERT_THAT(AwaitCheckpoint(set().get()), IsOk());
    }
    for (int step = 4; step < 8; ++step) {
      ASSERT_THAT(StepOnce(set().get(), &model, step), IsOk());
      ASSERT_THAT(AwaitCheckpoint(set().get()), IsOk());
    }
    if (round % 2 == 0) {
      Finish();
    } else {
      server_ = nullptr;
    }
    EXPECT_LE(Records(), 3);
    Start();
    ASSERT_THAT(server_->status(), IsOk());
    EXPECT_EQ(set()->Describe().groups(0).learning_rate(), (4 + round * 4) / 64.0);
    EXPECT_EQ(set()->Describe().config_revision(), 5 + round * 4);
    EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());
  }
}

TEST_F(RestartTest, ALossIsAcceptedOnceAndCheckpointsBehindItHold) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  SequentialModel model(MediumSpec("set"));
  // The journal is full.
  for (int step = 0; step < 4; ++step) ASSERT_THAT(StepOnce(set().get(), &model, step), IsOk());
  const uint64_t incarnation = set()->Describe().incarnation();
  server_ = nullptr;
  std::filesystem::remove(Path("fence"));
  Start();
  EXPECT_EQ(server_->status().code(), absl::StatusCode::kDataLoss);
  Start(/*accept_data_loss=*/true);
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_NE(set()->Describe().incarnation(), incarnation);
  Start();
  ASSERT_THAT(server_->status(), IsOk()) << "nothing has changed since the loss was accepted";

  ASSERT_THAT(AwaitCheckpoint(set().get()), IsOk());
  Start();
  EXPECT_EQ(server_->warnings(), "");
  EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());
  for (int step = 4; step < 12; ++step) ASSERT_THAT(StepOnce(set().get(), &model, step), IsOk());
  Start();
  EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());
}

// What had been finished is not what the set is any more.
TEST_F(RestartTest, ALossBehindALastCheckpointIsNoEnd) {
  ASSERT_THAT(server_->Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(set().get(), &model, 1), IsOk());
  Finish();
  std::filesystem::remove(Path("fence"));
  StoreOptions options = In(folder_);
  core::ManualClock clock;
  options.accept_data_loss = true;
  options.clock = &clock;
  options.checkpoint_bytes_per_second = 1;  // and the clock stands still
  server_ = std::make_unique<StoreServer>(PosixFileSystem(), options);
  ASSERT_THAT(server_->status(), IsOk());
  const uint64_t after_loss = set()->Describe().incarnation();
  ASSERT_THAT(StepOnce(set().get(), &model, 2), IsOk());
  const TemporaryFolder killed;
  CopyCatalog(folder_.path(), killed.path());
  server_->store()->Finish(server_->registry(), absl::ZeroDuration());
  server_ = nullptr;
  CopyCatalog(killed.path(), folder_.path());
  Start();
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_NE(set()->Describe().incarnation(), after_loss);
  EXPECT_TRUE(set()->Describe().has_restored_from());
}

TEST_F(RestartTest, TheLossOfAllSetsIsAcceptedOnce) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  server_ = nullptr;
  std::filesystem::remove(Path("catalog"));
  std::filesystem::remove(Path("catalog-wal"));
  Start();
  EXPECT_EQ(server_->status().code(), absl::StatusCode::kDataLoss);
  Start(/*accept_data_loss=*/true);
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_EQ(NamesIn("lost").size(), 1);
  Start();
  EXPECT_THAT(server_->status(), IsOk()) << "nothing has changed since the loss was accepted";
}

TEST_F(RestartTest, ASetOfWhichNothingIsKnownIsLeftOutOnce) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("other"), 4)), IsOk());
  const std::string folder = absl::StrCat(set()->Describe().incarnation());
  server_ = nullptr;
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(Path("catalog").c_str(), &database), SQLITE_OK);
  EXPECT_EQ(sqlite3_exec(database, "UPDATE sets SET body = zeroblob(50) WHERE number = 1", nullptr, nullptr, nullptr),
            SQLITE_OK);
  sqlite3_close(database);
  Start();
  EXPECT_THAT(std::string(server_->status().message()), HasSubstr("a set, number 1"));
  Start(/*accept_data_loss=*/true);
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_THAT(NamesIn("lost"), ::testing::ElementsAre(folder));
  Start();
  ASSERT_THAT(server_->status(), IsOk()) << "it was left out already";
  EXPECT_FALSE(server_->registry()->Find("set").ok());
  EXPECT_EQ(server_->Find("other")->Describe().state(), v1::PARAMETER_SET_STATE_READY);
}

// As of a backup of the wrong day: it is to be possible to go back.
TEST_F(RestartTest, FoldersThatAnEarlierCatalogWithItsFenceDoesNotKnowAreKept) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("old"), 4)), IsOk());
  server_ = nullptr;
  const TemporaryFolder earlier, later;
  CopyCatalog(folder_.path(), earlier.path());
  Start();
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(set().get(), &model, 1), IsOk());
  const std::string folder = absl::StrCat(set()->Describe().incarnation());
  server_ = nullptr;
  CopyCatalog(folder_.path(), later.path());
  CopyCatalog(earlier.path(), folder_.path());
  Start();
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_THAT(server_->warnings(), HasSubstr(absl::StrCat("it is lost/", folder)));
  EXPECT_FALSE(server_->registry()->Find("set").ok());
  server_ = nullptr;

  CopyCatalog(later.path(), folder_.path());
  std::filesystem::rename(Path("lost/" + folder), Path("sets/" + folder));
  Start();
  EXPECT_EQ(server_->warnings(), "");
  EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());
}

TEST_F(RestartTest, WhatCreatesAndDeletesHaveLeftIsRemoved) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  const std::string known = absl::StrCat(set()->Describe().incarnation());
  EXPECT_FALSE(std::filesystem::exists(Path("sets/" + known + "/unlisted")));
  server_ = nullptr;
  std::filesystem::create_directory(Path("sets/1"));
  std::filesystem::create_directory(Path("sets/2"));
  std::ofstream(Path("sets/2/unlisted"));
  std::ofstream(Path("sets/2/elements-1-4096"));
  // Somebody else's, which keeps nobody from starting.
  std::ofstream(Path("sets/README"));
  // A delete that came to nothing.
  std::ofstream(Path("sets/" + known + "/unlisted"));
  Start();
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_THAT(NamesIn("sets"), ::testing::ElementsAre(known));
  EXPECT_FALSE(std::filesystem::exists(Path("sets/" + known + "/unlisted")));
  EXPECT_THAT(NamesIn("lost"), ::testing::ElementsAre("README"));
}

// At whatever call a delete is cut off: the set is there, or nothing of it.
TEST(RestartAfterACutOffDeleteTest, NothingIsPutAside) {
  bool has_failed = true;
  for (int64_t call = 1; has_failed; ++call) {
    SCOPED_TRACE(absl::StrCat("call ", call));
    SimulatedFileSystem disk;
    {
      const SqliteVfs vfs(&disk);
      StoreServer server(&disk, On(vfs));
      ASSERT_THAT(server.Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
      ASSERT_THAT(AwaitCheckpoint(server.Find("set").get()), IsOk());
      const int64_t before = disk.calls();
      disk.FailCall(before + call, SimulatedFileSystem::Fault::kPowerOff);
      server.Delete("set").IgnoreError();
      server.registry()->Clear();
      has_failed = disk.calls() >= before + call;
    }
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
      const SqliteVfs vfs(cut.get());
      StoreServer server(cut.get(), On(vfs));
      ASSERT_THAT(server.status(), IsOk());
      EXPECT_EQ(server.warnings(), "");
      EXPECT_EQ(cut->List("/data/sets")->size(), server.registry()->Find("set").ok() ? 1 : 0);
    }
  }
}

TEST_F(RestartTest, AStartThatFailsChangesNoIncarnation) {
  ASSERT_THAT(server_->Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(set().get(), &model, 1, core::Header("x", 0)), IsOk());
  const uint64_t incarnation = set()->Describe().incarnation();
  Finish();
  {
    // It does not come to begin changes: a port that is taken, a set that finds no room.
    core::CpuBackend backend(kernels::BestKernels());
    core::TestServer machine({.backend = &backend});
    const std::unique_ptr<Store> store = *Store::Open(PosixFileSystem(), In(folder_));
    core::Resources resources = machine.resources();
    resources.journal = store.get();
    auto registry = std::make_unique<core::Registry>(std::vector<core::Resources>{resources});
    ASSERT_THAT(store->Restore(registry.get()), IsOk());
    registry.reset();
    machine.AwaitUnused();
  }
  Start();
  EXPECT_EQ(set()->Describe().incarnation(), incarnation);
  EXPECT_FALSE(set()->Describe().has_restored_from());
  EXPECT_EQ(core::StepResultOf(*set(), "x")->state(), v1::STEP_STATE_COMMITTED);
}

TEST_F(RestartTest, ASetWithoutACheckpointSaysThatItWasTakenBack) {
  SimulatedFileSystem disk;
  core::ManualClock clock;
  const SqliteVfs vfs(&disk);
  StoreOptions options = On(vfs);
  options.clock = &clock;
  options.checkpoint_bytes_per_second = 1;  // and the clock stands still
  StoreServer server(&disk, options);
  ASSERT_THAT(server.Create(WithCheckpoints(MediumSpec("set"), 1000)), IsOk());
  ASSERT_THAT(server.Create(WithCheckpoints(core::SmallSpec("awaits", v1::INITIALIZATION_WRITTEN), 1000)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(server.Find("set").get(), &model, 1), IsOk());
  // Nothing keeps what was written, and the set is what it has grown to all the same.
  ASSERT_THAT(
      core::Write(server.Find("awaits").get(), core::ParametersHeader("w"), SequentialModel(core::SmallSpec()).arrays())
          .status(),
      IsOk());
  v1::AddTensorsRequest growth = core::Tensors({5}, "late");
  growth.add_groups()->set_name("late");
  v1::UpdateParameterGroupRequest update;
  update.mutable_group()->set_name("slow");
  update.mutable_group()->set_learning_rate(0.5);
  update.mutable_update_mask()->add_paths("learning_rate");
  ASSERT_THAT(core::Update(server.Find("awaits").get(), update), IsOk());
  ASSERT_THAT(core::AddTensors(server.Find("awaits").get(), growth), IsOk());
  const v1::ParameterSet set = server.Find("set")->Describe();
  const v1::ParameterSet awaits = server.Find("awaits")->Describe();

  const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(1);
  const SqliteVfs cut_vfs(cut.get());
  options.sqlite_vfs = cut_vfs.name().c_str();
  options.checkpoint_bytes_per_second = 0;
  StoreServer after(cut.get(), options);
  ASSERT_THAT(after.status(), IsOk());
  EXPECT_EQ(after.warnings(), "");
  const v1::ParameterSet back = after.Find("set")->Describe();
  EXPECT_EQ(back.step(), 0);
  EXPECT_NE(back.incarnation(), set.incarnation());
  EXPECT_EQ(back.restored_from().step(), 0);
  EXPECT_EQ(back.restored_from().incarnation(), set.incarnation());
  EXPECT_EQ(back.restored_from().time().seconds(), set.create_time().seconds());
  const v1::ParameterSet grown = after.Find("awaits")->Describe();
  EXPECT_EQ(grown.state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
  EXPECT_EQ(grown.tensor_count(), awaits.tensor_count());
  EXPECT_EQ(grown.schema_fingerprint(), awaits.schema_fingerprint());
  EXPECT_EQ(grown.groups_size(), 3);
  EXPECT_EQ(grown.groups(0).learning_rate(), 0.5);
  EXPECT_EQ(grown.config_revision(), awaits.config_revision());
  EXPECT_FALSE(grown.has_restored_from());
  server.store()->Finish(server.registry(), absl::ZeroDuration());
}

// Whichever call of a step fails, its record may be on disk, and what comes after it must leave it what it refers to.
TEST(RestartAfterAnUnknownStepTest, TheSlotOfAStepOfWhichNobodyKnowsIsNotUsedAgain) {
  bool has_failed = true;
  for (int64_t call = 1; has_failed; ++call) {
    SCOPED_TRACE(absl::StrCat("call ", call));
    SimulatedFileSystem disk;
    SequentialModel model(MediumSpec("set"));
    {
      const SqliteVfs vfs(&disk);
      StoreServer server(&disk, On(vfs));
      const std::string name = "set";
      ASSERT_THAT(server.Create(WithEveryStep(MediumSpec(name), 8)), IsOk());
      ASSERT_THAT(StepOnce(server.Find(name).get(), &model, 1), IsOk());
      const int64_t before = disk.calls();
      disk.FailCall(before + call, SimulatedFileSystem::Fault::kIoError);
      SequentialModel maybe = model;
      StepOnce(server.Find(name).get(), &maybe, 2).IgnoreError();
      has_failed = disk.calls() >= before + call;
      StepOnce(server.Find(name).get(), &maybe, 3).IgnoreError();
    }
    // As it is, and as a power cut may leave it.
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
      SimulatedFileSystem* const left = seed == 0 ? &disk : cut.get();
      const SqliteVfs vfs(left);
      StoreServer server(left, On(vfs));
      ASSERT_THAT(server.status(), IsOk());
      EXPECT_EQ(server.warnings(), "");
      EXPECT_EQ(server.Find("set")->Describe().state(), v1::PARAMETER_SET_STATE_READY);
      EXPECT_GE(server.Find("set")->Describe().step(), 1);
    }
  }
}

// All rows of a table, and the blocks that begin and end it.
TEST_F(RestartTest, RowsThatDoNotFitIntoASlotAreInTheRecord) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  SequentialModel model(MediumSpec("set"));
  core::BroughtRows rows = {.tensor = 4, .rows = {}, .values = core::Gradient(431 * 7, 5)};
  for (int64_t row = 0; row < 431; ++row) rows.rows.push_back(430 - row);
  const core::Values gradient = core::Gradient(model.parameter_count(), 6);
  const v1::StepHeader header = core::WithRows(core::Header("rows", 0), {0, 1, 2, 3}, {rows});
  ASSERT_THAT(core::StepRows(set().get(), header, {0, 1, 2, 3}, gradient, {rows}), IsOk());
  model.Apply(gradient, header, {rows});
  Start();
  EXPECT_EQ(server_->warnings(), "");
  EXPECT_TRUE(*core::FetchState(set().get()) == model.arrays());
}

TEST_F(RestartTest, ARecordOfASlotThatIsTooSmallIsDamage) {
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(set().get(), &model, 1), IsOk());
  server_ = nullptr;
  {
    const auto catalog = *Catalog::Open(PosixFileSystem(), folder_.path(), false);
    StoredRecord step;
    ASSERT_THAT(catalog->ForEachRecord(1,
                                       [&](int64_t /*number*/, const absl::StatusOr<StoredRecord>& record) {
                                         step = *record;
                                         return absl::OkStatus();
                                       }),
                IsOk());
    step.mutable_committed()->mutable_gradient()->mutable_slot()->set_slot_bytes(4096);
    ASSERT_THAT(catalog->Begin(), IsOk());
    ASSERT_THAT(catalog->ReplaceRecord(1, 2, step), IsOk());
    ASSERT_THAT(catalog->Commit(), IsOk());
  }
  Start();
  ASSERT_THAT(server_->status(), IsOk());
  EXPECT_EQ(set()->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
}

// They would make a record as large as a set.
TEST_F(RestartTest, RowsOfManyTablesBesideManyBlocksAreRefused) {
  v1::ParameterSetSpec spec = core::SmallSpec("set");
  spec.clear_tensors();
  constexpr int kTables = 68;
  std::vector<int> whole;
  for (int i = 0; i < 2 * kTables; ++i) {
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat("tensor", i));
    tensor->set_group("slow");
    tensor->add_shape(255);
    if (i % 2 == 1) tensor->add_shape(256);
    if (i % 2 == 0) whole.push_back(i);
  }
  ASSERT_THAT(server_->Create(WithEveryStep(spec, 2)), IsOk());
  std::vector<core::BroughtRows> all;
  for (int i = 1; i < 2 * kTables; i += 2) {
    core::BroughtRows& rows =
        all.emplace_back(core::BroughtRows{.tensor = i, .rows = {}, .values = core::Gradient(255 * 256, i)});
    for (int64_t row = 0; row < 255; ++row) rows.rows.push_back(row);
  }
  const core::Values gradient = core::Gradient(set()->schema().parameter_count(), 6);
  const v1::StepHeader header = core::WithRows(core::Header("rows", 0), whole, all);
  const absl::Status refused = core::StepRows(set().get(), header, whole, gradient, all).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_EQ(core::ReasonOf(refused), v1::ERROR_REASON_TOO_LARGE);
  EXPECT_EQ(set()->Describe().step(), 0);
  // The set goes on, and the store does.
  ASSERT_THAT(core::Step(set().get(), {}, gradient), IsOk());
  Start();
  EXPECT_EQ(set()->Describe().step(), 1);
}

// Its name is the set's that the disk has: another one of that name would hide it, or be hidden.
TEST(RestartAfterAForkTest, AForkThatCannotBeTakenBackIsThere) {
  int there = 0;
  bool has_failed = true;
  for (int64_t call = 1; has_failed; ++call) {
    SimulatedFileSystem disk;
    const SqliteVfs vfs(&disk);
    StoreServer server(&disk, On(vfs));
    ASSERT_THAT(server.Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
    v1::ForkRequest request;
    request.set_set("set");
    request.set_name("fork");
    request.mutable_durability()->mutable_every_step()->set_journal_steps(4);
    const int64_t before = disk.calls();
    disk.FailCall(before + call, SimulatedFileSystem::Fault::kIoError);
    const bool was_made = server.registry()->Fork(request).ok();
    has_failed = disk.calls() >= before + call;
    if (was_made) continue;
    if (server.registry()->Find("fork").ok()) {
      ++there;
      EXPECT_EQ(server.Find("fork")->Describe().state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
    }
  }
  EXPECT_GT(there, 0);
}

// What is being written of a set that keeps each step is for nothing by then.
TEST_F(RestartTest, TheEndWaitsForNoCheckpointOfASetThatKeepsEachStep) {
  core::ManualClock clock;
  StoreOptions options = In(folder_);
  options.clock = &clock;
  options.checkpoint_bytes_per_second = 1;  // and the clock stands still
  server_ = nullptr;
  server_ = std::make_unique<StoreServer>(PosixFileSystem(), options);
  ASSERT_THAT(server_->Create(WithEveryStep(MediumSpec("set"), 4)), IsOk());
  SequentialModel model(MediumSpec("set"));
  ASSERT_THAT(StepOnce(set().get(), &model, 1), IsOk());
  absl::Status made;
  core::Notification ended;
  set()->Checkpoint(std::nullopt, [&](const absl::Status& status) {
    made = Unshared(status);
    ended.Notify();
  });
  server_->store()->Finish(server_->registry(), absl::InfiniteDuration());
  ended.WaitForNotification();
  EXPECT_TRUE(absl::IsCancelled(made)) << made;
  EXPECT_EQ(server_->warnings(), "");
}

}  // namespace
}  // namespace adamant::store
