// Which checkpoints of a set there are, whatever came between writing and removing them.
#include "server/store/checkpoint_keeper.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/spec/schema.h"
#include "server/store/checkpoint.h"
#include "tests/store/every_file_system.h"
#include "tests/store/simulated_file_system.h"

namespace adamant::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// Writes a checkpoint of one element, at this time.
absl::Status Write(FileSystem* file_system, const std::string& path, int64_t step, int64_t time) {
  v1::ParameterSetSpec spec;
  spec.add_tensors()->set_name("x");
  v1::ParameterGroup group;
  group.set_name("default");
  CheckpointInfo info;
  info.step = step;
  info.incarnation = 5;
  info.create_time = absl::FromUnixSeconds(time);
  return WriteCheckpoint(
             file_system, path, info, **core::Schema::Create(spec, {group}), {v1::SLOT_PARAMETER},
             [](v1::Slot, int64_t, int64_t, absl::FunctionRef<void(const float*, int64_t)> visit) {
               const float one = 1;
               visit(&one, 1);
             },
             [](int64_t) { return absl::OkStatus(); })
      .status();
}

std::unique_ptr<CheckpointKeeper> Open(FileSystem* file_system, const std::string& directory) {
  absl::StatusOr<std::unique_ptr<CheckpointKeeper>> keeper = CheckpointKeeper::Open(file_system, directory);
  EXPECT_TRUE(keeper.ok()) << keeper.status();
  return *std::move(keeper);
}

std::vector<std::string> Names(const CheckpointKeeper& keeper) {
  std::vector<std::string> names;
  for (const KeptCheckpoint& checkpoint : keeper.List()) names.push_back(checkpoint.name);
  return names;
}

// Writes one that the keeper knows, and returns its name.
std::string WriteAndAdd(FileSystem* file_system, CheckpointKeeper* keeper, int64_t step, int64_t time) {
  const std::string name = keeper->NewName(step, 5);
  EXPECT_EQ(Write(file_system, keeper->PathOf(name), step, time), absl::OkStatus());
  keeper->Add({.name = name, .incarnation = 5, .step = step, .create_time = absl::FromUnixSeconds(time)});
  return name;
}

class CheckpointKeeperOnEveryFileSystemTest : public OnEveryFileSystem {};
ADAMANT_ON_EVERY_FILE_SYSTEM(CheckpointKeeperOnEveryFileSystemTest);

TEST_P(CheckpointKeeperOnEveryFileSystemTest, ListsTheNewestFirstAndAfterARestart) {
  const std::string directory = Path("checkpoints");
  {
    const auto keeper = Open(file_system(), directory);
    EXPECT_THAT(keeper->List(), IsEmpty());
    // By the time at which they were written, not by their steps.
    for (const auto& [step, time] : {std::pair(100, 1), {9, 2}, {10, 3}}) {
      WriteAndAdd(file_system(), keeper.get(), step, time);
    }
    EXPECT_THAT(Names(*keeper), ElementsAre("10-5", "9-5", "100-5"));
  }
  const auto keeper = Open(file_system(), directory);
  EXPECT_THAT(Names(*keeper), ElementsAre("10-5", "9-5", "100-5"));
  const KeptCheckpoint newest = keeper->List().front();
  EXPECT_EQ(newest.step, 10);
  EXPECT_EQ(newest.incarnation, 5);
  EXPECT_EQ(newest.create_time, absl::FromUnixSeconds(3));
  EXPECT_EQ(newest.bytes, Checkpoint::Open(file_system(), keeper->PathOf("10-5"))->bytes());
  EXPECT_THAT(keeper->unusable(), IsEmpty());
}

TEST_P(CheckpointKeeperOnEveryFileSystemTest, KeepsTheNewestTwoAndTheBase) {
  const auto keeper = Open(file_system(), Path("checkpoints"));
  for (int step = 1; step <= 5; ++step) WriteAndAdd(file_system(), keeper.get(), step, step);
  ASSERT_EQ(keeper->RemoveOld("2-5"), absl::OkStatus());
  EXPECT_THAT(Names(*keeper), ElementsAre("5-5", "4-5", "2-5"));
  EXPECT_THAT(*file_system()->List(Path("checkpoints")), ElementsAre("2-5", "4-5", "5-5"));
  ASSERT_EQ(keeper->RemoveOld("5-5"), absl::OkStatus());
  EXPECT_THAT(*file_system()->List(Path("checkpoints")), ElementsAre("4-5", "5-5"));
}

TEST_P(CheckpointKeeperOnEveryFileSystemTest, OpenRemovesWhatWasNotFinishedAndLeavesWhatIsNotItsOwn) {
  const std::string directory = Path("checkpoints");
  {
    const auto keeper = Open(file_system(), directory);
    WriteAndAdd(file_system(), keeper.get(), 1, 1);
  }
  for (const char* const name : {"2-5.new", "1-5-2.new", "notes", "notes.new", "1-", "-", "1-2-3-4"}) {
    ASSERT_EQ(file_system()->MakeDirectory(absl::StrCat(directory, "/", name)), absl::OkStatus());
  }
  ASSERT_TRUE(file_system()->Create(directory + "/2-5.new/x", FileSystem::Access::kBuffered).ok());
  const auto keeper = Open(file_system(), directory);
  EXPECT_THAT(Names(*keeper), ElementsAre("1-5"));
  EXPECT_THAT(*file_system()->List(directory), ElementsAre("-", "1-", "1-2-3-4", "1-5", "notes", "notes.new"));
}

TEST_P(CheckpointKeeperOnEveryFileSystemTest, ANameIsNeverTakenTwice) {
  const std::string directory = Path("checkpoints");
  {
    const auto keeper = Open(file_system(), directory);
    EXPECT_EQ(WriteAndAdd(file_system(), keeper.get(), 7, 1), "7-5");
    EXPECT_EQ(WriteAndAdd(file_system(), keeper.get(), 7, 2), "7-5-2");
  }
  const auto keeper = Open(file_system(), directory);
  EXPECT_EQ(keeper->NewName(7, 5), "7-5-3");
  EXPECT_EQ(keeper->NewName(7, 5), "7-5-4");
  EXPECT_EQ(keeper->NewName(7, 6), "7-6");
}

TEST(CheckpointKeeperTest, KeepsWhatSomebodyHolds) {
  SimulatedFileSystem disk;
  const auto keeper = Open(&disk, "/k");
  for (int step = 1; step <= 4; ++step) WriteAndAdd(&disk, keeper.get(), step, step);
  std::shared_ptr<const KeptCheckpoint> held = keeper->Hold(/*incarnation=*/5, /*step=*/1);
  ASSERT_NE(held, nullptr);
  EXPECT_EQ(held->name, "1-5");
  EXPECT_EQ(keeper->Hold(5, 7), nullptr);
  EXPECT_EQ(keeper->Hold(6, 1), nullptr);
  ASSERT_EQ(keeper->RemoveOld(""), absl::OkStatus());
  EXPECT_THAT(Names(*keeper), ElementsAre("4-5", "3-5", "1-5"));
  EXPECT_EQ(keeper->Hold(5, 2), nullptr);
  held.reset();
  ASSERT_EQ(keeper->RemoveOld(""), absl::OkStatus());
  EXPECT_THAT(*disk.List("/k"), ElementsAre("3-5", "4-5"));
}

TEST(CheckpointKeeperTest, WhatIsAddedIsTheNewestWhateverTheClockSays) {
  SimulatedFileSystem disk;
  const auto keeper = Open(&disk, "/k");
  for (const int64_t time : {100, 50, 20}) WriteAndAdd(&disk, keeper.get(), 1000 - time, time);
  ASSERT_EQ(keeper->RemoveOld(""), absl::OkStatus());
  EXPECT_THAT(Names(*keeper), ElementsAre("980-5", "950-5"));
}

TEST(CheckpointKeeperTest, WhatIsDamagedIsToldAndLeftAlone) {
  SimulatedFileSystem disk;
  {
    const auto keeper = Open(&disk, "/k");
    for (int step = 1; step <= 4; ++step) WriteAndAdd(&disk, keeper.get(), step, step);
  }
  disk.FlipBit("/k/3-5/MANIFEST.json", 100);
  ASSERT_EQ(disk.Remove("/k/4-5/parameters.safetensors"), absl::OkStatus());
  const auto keeper = Open(&disk, "/k");
  EXPECT_THAT(Names(*keeper), ElementsAre("2-5", "1-5"));
  ASSERT_EQ(keeper->unusable().size(), 2);
  EXPECT_EQ(keeper->unusable()[0].first, "3-5");
  EXPECT_EQ(keeper->unusable()[1].first, "4-5");
  EXPECT_THAT(std::string(keeper->unusable()[1].second.message()), HasSubstr("/k/4-5/parameters.safetensors"));
  // They take the place of none that is whole.
  ASSERT_EQ(keeper->RemoveOld(""), absl::OkStatus());
  EXPECT_THAT(*disk.List("/k"), ElementsAre("1-5", "2-5", "3-5", "4-5"));
}

TEST(CheckpointKeeperTest, AnErrorOfTheDiskIsNoDamage) {
  SimulatedFileSystem disk;
  {
    const auto keeper = Open(&disk, "/k");
    WriteAndAdd(&disk, keeper.get(), 1, 1);
  }
  const int64_t before = disk.calls();
  Open(&disk, "/k");
  const int64_t calls = disk.calls() - before;
  for (int64_t call = 1; call <= calls; ++call) {
    disk.FailCall(disk.calls() + call, SimulatedFileSystem::Fault::kIoError);
    EXPECT_EQ(CheckpointKeeper::Open(&disk, "/k").status().code(), absl::StatusCode::kInternal) << "call " << call;
  }
}

TEST(CheckpointKeeperTest, WhatIsBeingRemovedNeverLooksLikeACheckpoint) {
  SimulatedFileSystem good;
  const auto write_four = [](SimulatedFileSystem* disk) {
    auto keeper = Open(disk, "/k");
    for (int step = 1; step <= 4; ++step) WriteAndAdd(disk, keeper.get(), step, step);
    return keeper;
  };
  const auto keeper_of_good = write_four(&good);
  const int64_t before = good.calls();
  ASSERT_EQ(keeper_of_good->RemoveOld(""), absl::OkStatus());
  const int64_t calls = good.calls() - before;
  ASSERT_GE(calls, 6);
  for (int64_t call = 1; call <= calls; ++call) {
    SimulatedFileSystem disk;
    const auto keeper = write_four(&disk);
    disk.FailCall(disk.calls() + call, SimulatedFileSystem::Fault::kIoError);
    EXPECT_EQ(keeper->RemoveOld("").code(), absl::StatusCode::kInternal) << "call " << call;
    for (uint64_t seed = 0; seed < 50; ++seed) {
      const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
      const auto after = Open(cut.get(), "/k");
      EXPECT_THAT(after->unusable(), IsEmpty()) << "call " << call << " seed " << seed;
      EXPECT_GE(after->List().size(), 2);
    }
    // The next time there is nothing left of it.
    ASSERT_EQ(Open(&disk, "/k")->RemoveOld(""), absl::OkStatus());
    EXPECT_THAT(*disk.List("/k"), ElementsAre("3-5", "4-5"));
  }
}

TEST(CheckpointKeeperTest, ItsFolderSurvivesAPowerCut) {
  SimulatedFileSystem disk;
  const auto keeper = Open(&disk, "/k");
  WriteAndAdd(&disk, keeper.get(), 1, 1);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_THAT(Names(*Open(disk.PowerCut(seed).get(), "/k")), ElementsAre("1-5")) << "seed " << seed;
  }
}

}  // namespace
}  // namespace adamant::store
