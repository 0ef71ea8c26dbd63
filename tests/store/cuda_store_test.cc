// Data directories of sets on a CUDA device. Skipped where there is no device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/core/cuda_device.h"
#include "tests/core/seeded_schedules.h"
#include "tests/core/set_matchers.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/store_life.h"

namespace adamant::store {
namespace {

core::CudaDevices& Devices() {
  static core::CudaDevices* const devices = new core::CudaDevices(/*threads=*/3);
  return *devices;
}

StoreOptions On(const SqliteVfs& vfs) {
  StoreOptions options;
  options.directory = "/data";
  options.reserve_bytes = 64 << 10;
  options.sqlite_vfs = vfs.name().c_str();
  return options;
}

class CudaStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_FALSE(Devices().warned());
    if (Devices().empty()) GTEST_SKIP();
  }
};

TEST_F(CudaStoreTest, WhatWasAnsweredIsThereAfterARestart) {
  core::ForEachSchedule(8, [](uint64_t seed) {
    SimulatedFileSystem disk;
    const SqliteVfs vfs(&disk);
    StoreLife life(&disk, On(vfs), seed, /*has_large=*/seed % 2 == 0, Devices().device());
    std::string wrong = life.Live(30, /*may_fail=*/false);
    if (wrong.empty()) wrong = life.Restart(&disk, vfs.name().c_str());
    if (wrong.empty()) wrong = life.GoOn();
    return wrong;
  });
}

std::vector<SetReplay> Replay(SimulatedFileSystem* disk, const StoreOptions& options, core::Backend* device) {
  std::vector<SetReplay> replays;
  core::TestServer server({.backend = device, .idle_arrays = 0});
  const absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(disk, options);
  EXPECT_THAT(store, core::IsOk());
  EXPECT_THAT((*store)->Replay(server.resources(), [&](const SetReplay& replay) { replays.push_back(replay); }),
              core::IsOk());
  server.AwaitUnused();
  return replays;
}

// What differs between what one journal has led to here and there.
std::string Difference(const SetReplay& here, const SetReplay& there, int* digests) {
  if (!here.status.ok() || !there.status.ok()) return absl::StrCat(here.status.ToString(), there.status.ToString());
  if (here.set != there.set || here.steps.size() != there.steps.size()) return "other steps";
  if (here.now.step() != there.now.step() || here.now.incarnation() != there.now.incarnation()) return "another state";
  for (size_t i = 0; i < here.steps.size(); ++i) {
    if (here.steps[i].digest.empty()) continue;
    ++*digests;
    if (here.steps[i].digest != there.steps[i].digest)
      return absl::StrCat("other bits after step ", here.steps[i].step);
  }
  return here.last_digest == there.last_digest ? "" : "another last digest";
}

TEST_F(CudaStoreTest, AJournalOfTheProcessorMakesTheSameBits) {
  int digests = 0;
  core::ForEachSchedule(8, [&](uint64_t seed) -> std::string {
    SimulatedFileSystem disk;
    const SqliteVfs vfs(&disk);
    StoreLife life(&disk, On(vfs), seed, /*has_large=*/seed % 2 == 0);
    std::string wrong = life.Live(30, /*may_fail=*/false);
    life.Close();
    if (!wrong.empty()) return wrong;
    const std::vector<SetReplay> here = Replay(&disk, On(vfs), /*device=*/nullptr);
    const std::vector<SetReplay> there = Replay(&disk, On(vfs), Devices().device());
    if (here.size() != there.size()) return "other sets";
    for (size_t i = 0; i < here.size() && wrong.empty(); ++i) {
      wrong = Difference(here[i], there[i], &digests);
      if (!wrong.empty()) wrong = absl::StrCat(here[i].set, ": ", wrong);
    }
    return wrong;
  });
  EXPECT_GT(digests, 0);
}

}  // namespace
}  // namespace adamant::store
