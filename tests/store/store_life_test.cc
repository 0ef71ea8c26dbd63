// Lives of a data directory on the system's file system: whatever was answered is there after a restart.
#include "tests/store/store_life.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/core/seeded_schedules.h"
#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"

namespace adamant::store {
namespace {

StoreOptions In(const std::string& directory) {
  StoreOptions options;
  options.directory = directory + "/data";
  options.reserve_bytes = 64 << 10;
  return options;
}

TEST(StoreLifeTest, WhatWasAnsweredIsThereAfterARestart) {
  core::ForEachSchedule(40, [](uint64_t seed) {
    const TemporaryFolder folder;
    StoreLife life(PosixFileSystem(), In(folder.path()), seed, /*has_large=*/seed % 4 == 0);
    std::string wrong = life.Live(40, /*may_fail=*/false);
    if (wrong.empty()) wrong = life.Restart(PosixFileSystem(), nullptr);
    if (wrong.empty()) wrong = life.GoOn();
    return wrong;
  });
}

// A machine that has other instructions makes the same steps again, to the bit.
TEST(StoreLifeTest, OtherKernelsBringBackTheSameBits) {
  core::ForEachSchedule(20, [](uint64_t seed) {
    SimulatedFileSystem disk;
    const SqliteVfs vfs(&disk);
    StoreOptions options = In("");
    options.sqlite_vfs = vfs.name().c_str();
    StoreLife life(&disk, options, seed);
    const std::string wrong = life.Live(30, /*may_fail=*/false);
    life.Close();
    if (!wrong.empty()) return wrong;
    StoreServer server(&disk, options, "scalar");
    return server.status().ok() ? life.Check(server.registry()) : server.status().ToString();
  });
}

constexpr int kActions = 30;
using Fault = SimulatedFileSystem::Fault;

// What is wrong with a disk on which a life ended, after power cuts, and without any.
std::string AfterPowerCuts(const SimulatedFileSystem& disk, const StoreLife& life, uint64_t first, uint64_t cuts) {
  for (uint64_t seed = first; seed < first + cuts; ++seed) {
    const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
    const SqliteVfs vfs(cut.get());
    StoreLife after = life.AsTold();
    std::string wrong = after.Restart(cut.get(), vfs.name().c_str());
    if (wrong.empty()) wrong = after.GoOn();
    after.Close();
    if (wrong.empty()) wrong = after.Restart(cut.get(), vfs.name().c_str());
    if (!wrong.empty()) return absl::StrCat("power cut ", seed, ": ", wrong);
  }
  return "";
}

StoreOptions On(const SqliteVfs& vfs) {
  StoreOptions options = In("");
  options.sqlite_vfs = vfs.name().c_str();
  return options;
}

// A life, of which each call in turn may fail.
constexpr uint64_t kLivesBySeed = 16;

// How many calls a life makes, unless something is wrong with it.
std::string CountCalls(uint64_t life_seed, int actions, int64_t* calls) {
  SimulatedFileSystem whole;
  const SqliteVfs vfs(&whole);
  StoreLife life(&whole, On(vfs), life_seed);
  const std::string wrong = life.Live(actions, /*may_fail=*/false);
  *calls = whole.calls();
  return wrong.empty() ? "" : absl::StrCat("without a fault: ", wrong);
}

// Lives until a call that fails, and looks at what the disk has then.
std::string LiveUntil(uint64_t life_seed, int actions, int64_t call, Fault fault, uint64_t first_cut, uint64_t cuts) {
  SimulatedFileSystem disk;
  const SqliteVfs vfs(&disk);
  disk.FailCall(call, fault);
  StoreLife life(&disk, On(vfs), life_seed);
  std::string wrong = life.Live(actions, /*may_fail=*/true);
  life.Close();
  if (wrong.empty()) wrong = AfterPowerCuts(disk, life, first_cut, cuts);
  return wrong.empty() ? "" : absl::StrCat("call ", call, ": ", wrong);
}

// The same somewhere in a life.
std::string LiveWithFault(uint64_t seed, Fault fault, uint64_t cuts, std::map<uint64_t, int64_t>* calls_of) {
  const uint64_t life_seed = seed / kLivesBySeed;
  int64_t& calls = (*calls_of)[life_seed];
  if (calls == 0) {
    std::string wrong = CountCalls(life_seed, kActions, &calls);
    if (!wrong.empty()) return wrong;
  }
  std::mt19937_64 random(seed);
  const int64_t call = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(calls));
  return LiveUntil(life_seed, kActions, call, fault, seed * cuts, cuts);
}

void LiveWithFaults(Fault fault, uint64_t cuts) {
  std::map<uint64_t, int64_t> calls_of;
  core::ForEachSchedule(100, [&](uint64_t seed) { return LiveWithFault(seed, fault, cuts, &calls_of); });
}

TEST(StoreLifeTest, AnErrorLosesNothingThatWasTold) { LiveWithFaults(Fault::kIoError, 2); }

TEST(StoreLifeTest, AFullDiskDelaysAndLosesNothing) { LiveWithFaults(Fault::kNoSpace, 1); }

TEST(StoreLifeTest, APowerCutLosesNothingThatWasTold) { LiveWithFaults(Fault::kPowerOff, 3); }

// In a few short lives, each call fails in turn, in each way: by default of one of them.
class EveryCallTest : public ::testing::TestWithParam<Fault> {};

INSTANTIATE_TEST_SUITE_P(Fails, EveryCallTest, ::testing::Values(Fault::kIoError, Fault::kNoSpace, Fault::kPowerOff),
                         [](const auto& test) {
                           return test.param == Fault::kIoError   ? "WithAnError"
                                  : test.param == Fault::kNoSpace ? "WithAFullDisk"
                                                                  : "WithAPowerCut";
                         });

TEST_P(EveryCallTest, OfAShortLife) {
  constexpr int kFewActions = 6;
  int64_t calls = 0;
  core::ForEachSchedule(1, [&](uint64_t seed) {
    std::string wrong = CountCalls(seed, kFewActions, &calls);
    for (int64_t call = 1; call <= calls && wrong.empty(); ++call) {
      wrong = LiveUntil(seed, kFewActions, call, GetParam(), /*first_cut=*/call, /*cuts=*/1);
    }
    return wrong;
  });
  EXPECT_GT(calls, 100);
  RecordProperty("calls", std::to_string(calls));
}

// All files below a folder, in order.
void AddFiles(SimulatedFileSystem* disk, const std::string& path, std::vector<std::string>* files) {
  const absl::StatusOr<std::vector<std::string>> names = disk->List(path);
  if (!names.ok()) {
    files->push_back(path);
    return;
  }
  for (const std::string& name : *names) AddFiles(disk, absl::StrCat(path, "/", name), files);
}

// Whatever becomes of a file: what was told is there, or the start names what is not, or the set is POISONED.
std::string LiveWithDamage(uint64_t seed, int* harmless, int* noticed) {
  std::mt19937_64 random(seed);
  SimulatedFileSystem whole;
  const SqliteVfs whole_vfs(&whole);
  StoreLife life(&whole, On(whole_vfs), seed);
  std::string wrong = life.Live(kActions, /*may_fail=*/false);
  life.Close();
  for (int damage = 0; damage < 10 && wrong.empty(); ++damage) {
    const std::unique_ptr<SimulatedFileSystem> disk = whole.PowerCut(0);
    std::vector<std::string> files;
    AddFiles(disk.get(), "/data", &files);
    const std::string& file = files[random() % files.size()];
    const int64_t size = disk->SizeOf(file);
    const uint64_t how = random() % 5;
    std::string folder = ParentDirectory(file);
    if (how == 4 && folder != "/data" && random() % 2 == 0) folder = ParentDirectory(folder);
    if (how == 4 && folder != "/data") {
      EXPECT_THAT(disk->RemoveAll(folder), core::IsOk());
    } else if (how == 0) {
      EXPECT_THAT(disk->Remove(file), core::IsOk());
    } else if (how == 1) {
      const int64_t shorter = static_cast<int64_t>(random() % static_cast<uint64_t>(size + 1));
      EXPECT_THAT(SimulatedFileSystem::Resize(disk->Open(file, FileSystem::Access::kBuffered)->get(), shorter),
                  core::IsOk());
    } else if (size > 0) {
      disk->FlipBit(file, static_cast<int64_t>(random() % static_cast<uint64_t>(8 * size)));
    }
    const SqliteVfs vfs(disk.get());
    StoreServer server(disk.get(), On(vfs));
    if (!server.status().ok()) {
      ++*noticed;
      if (server.status().code() == absl::StatusCode::kDataLoss) continue;
      if (server.status().code() == absl::StatusCode::kFailedPrecondition) continue;
      wrong = server.status().ToString();
    } else {
      StoreLife after = life.AsTold();
      int poisoned = 0;
      wrong = after.Check(server.registry(), &poisoned);
      ++*(poisoned > 0 ? noticed : harmless);
    }
    if (!wrong.empty())
      wrong = absl::StrCat(file, " of ", size, " bytes, damage ", damage, " of kind ", how, ": ", wrong);
  }
  return wrong;
}

TEST(StoreLifeTest, DamageIsNoticedOrHarmless) {
  int harmless = 0;
  int noticed = 0;
  core::ForEachSchedule(30, [&](uint64_t seed) { return LiveWithDamage(seed, &harmless, &noticed); });
  EXPECT_GT(harmless, 0);
  EXPECT_GT(noticed, 0);
}

}  // namespace
}  // namespace adamant::store
