// Lives of a data directory on the system's file system: whatever was answered is there after a restart.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "tests/core/seeded_schedules.h"
#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"
#include "tests/store/store_life.h"

namespace adamant::store {
namespace {

StoreOptions In(const std::string& directory) {
  StoreOptions options;
  options.directory = directory + "/data";
  return options;
}

TEST(StoreLifeTest, WhatWasAnsweredIsThereAfterARestart) {
  core::ForEachSchedule(200, [](uint64_t seed) {
    const TemporaryFolder folder;
    StoreLife life(PosixFileSystem(), In(folder.path()), seed);
    std::string wrong = life.Live(40, /*may_fail=*/false);
    if (wrong.empty()) wrong = life.Restart(PosixFileSystem(), nullptr);
    if (wrong.empty()) wrong = life.GoOn();
    return wrong;
  });
}

}  // namespace
}  // namespace adamant::store
