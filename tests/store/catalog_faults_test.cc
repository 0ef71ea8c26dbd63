// The life of a catalog on a disk that fails at any call of it, and whose power is cut then.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/store/catalog.h"
#include "tests/core/set_matchers.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/store_matchers.h"

namespace adamant::store {
namespace {

using core::IsOk;
using Fault = SimulatedFileSystem::Fault;

// Calls it takes to make /data, before the life begins.
std::unique_ptr<SimulatedFileSystem> NewDisk() {
  auto disk = std::make_unique<SimulatedFileSystem>();
  EXPECT_THAT(disk->MakeDirectory("/data"), IsOk());
  EXPECT_THAT(disk->SyncDirectory("/"), IsOk());
  return disk;
}

// Steps of the catalog's one set: 0 if there is no set yet. -1, with a failure, if what is there is not a whole
// beginning of the life.
int64_t StepsIn(Catalog* catalog) {
  int64_t sets = 0;
  int64_t steps = 0;
  const absl::Status status = catalog->ForEachSet([&](int64_t set, absl::StatusOr<StoredSet> stored) {
    if (!stored.ok()) return stored.status();
    ++sets;
    return catalog->ForEachRecord(set, [&](int64_t number, absl::StatusOr<StoredRecord> record) {
      if (!record.ok()) return record.status();
      EXPECT_EQ(record->step(), number);
      EXPECT_EQ(number, steps + 1);
      ++steps;
      return absl::OkStatus();
    });
  });
  EXPECT_THAT(status, IsOk());
  EXPECT_EQ(sets, steps == 0 ? 0 : 1);
  return status.ok() ? steps : -1;
}

struct Told {
  int64_t done = 0;      // steps of which it was told that they were committed
  bool unknown = false;  // of one more it is not known
};

// A life of so many steps, one a commit, with a restart in its middle. The first commit makes the set, too. A step for
// which there is no room is tried again. Ends at any other error. `end` is called before the catalog is closed, if it
// is open.
Told Live(SimulatedFileSystem* disk, int64_t steps, size_t record_bytes) {
  Told told;
  SqliteVfs vfs(disk);
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open(disk, "/data", false, vfs.name().c_str());
  int attempts = 0;
  while (catalog.ok() && told.done < steps && attempts++ < 2 * steps) {
    if (told.done == steps / 2) {
      catalog->reset();
      catalog = Catalog::Open(disk, "/data", false, vfs.name().c_str());
      if (!catalog.ok()) break;
    }
    if (!(*catalog)->Begin().ok()) break;
    absl::Status status;
    if (told.done == 0) status = (*catalog)->AddSet({}).status();
    StoredRecord record;
    record.set_step(told.done + 1);
    record.mutable_committed()->mutable_gradient()->set_here(std::string(record_bytes, 'g'));
    if (status.ok()) status = (*catalog)->AddRecord(1, told.done + 1, record);
    if (!status.ok()) {
      (*catalog)->Rollback();
      continue;
    }
    status = (*catalog)->Commit();
    if (status.ok()) {
      ++told.done;
    } else if (!absl::IsResourceExhausted(status)) {
      told.unknown = true;
      EXPECT_FALSE((*catalog)->Begin().ok()) << "nothing more is to be done with it";
      break;
    }
  }
  return told;
}

// What a disk has after a power cut is a catalog with what was told, or what may be.
void ExpectAsTold(const SimulatedFileSystem& disk, const Told& told, const std::string& where) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE(absl::StrCat(where, ", power cut ", seed));
    const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
    const SqliteVfs vfs(cut.get());
    const absl::StatusOr<std::unique_ptr<Catalog>> catalog =
        Catalog::Open(cut.get(), "/data", false, vfs.name().c_str());
    ASSERT_THAT(catalog.status(), IsOk());
    const int64_t steps = StepsIn(catalog->get());
    EXPECT_GE(steps, told.done);
    EXPECT_LE(steps, told.done + (told.unknown ? 1 : 0));
  }
}

constexpr int64_t kSteps = 8;
constexpr size_t kRecordBytes = 1500;

TEST(CatalogFaultsTest, AnErrorAtAnyCallLosesNothingThatWasTold) {
  const std::unique_ptr<SimulatedFileSystem> whole = NewDisk();
  const int64_t first = whole->calls() + 1;
  ASSERT_EQ(Live(whole.get(), kSteps, kRecordBytes).done, kSteps);
  ExpectAsTold(*whole, {.done = kSteps}, "without an error");
  for (int64_t call = first; call <= whole->calls(); ++call) {
    const std::unique_ptr<SimulatedFileSystem> disk = NewDisk();
    disk->FailCall(call, Fault::kIoError);
    ExpectAsTold(*disk, Live(disk.get(), kSteps, kRecordBytes), absl::StrCat("error at call ", call));
  }
}

TEST(CatalogFaultsTest, AFullDiskAtAnyCallDelaysAndLosesNothing) {
  const std::unique_ptr<SimulatedFileSystem> whole = NewDisk();
  const int64_t first = whole->calls() + 1;
  ASSERT_EQ(Live(whole.get(), kSteps, kRecordBytes).done, kSteps);
  for (int64_t call = first; call <= whole->calls(); ++call) {
    const std::unique_ptr<SimulatedFileSystem> disk = NewDisk();
    disk->FailCall(call, Fault::kNoSpace);
    ExpectAsTold(*disk, Live(disk.get(), kSteps, kRecordBytes), absl::StrCat("no room at call ", call));
  }
}

// What a sync that failed was about can be read, until the power is cut: a start is not to believe it, and tell of it.
TEST(CatalogFaultsTest, WhatAStartHasFoundIsThereFromThenOn) {
  const std::unique_ptr<SimulatedFileSystem> whole = NewDisk();
  const int64_t first = whole->calls() + 1;
  Live(whole.get(), kSteps, kRecordBytes);
  int found_more = 0;
  for (int64_t call = first; call <= whole->calls(); ++call) {
    const std::unique_ptr<SimulatedFileSystem> disk = NewDisk();
    disk->FailCall(call, Fault::kIoError);
    const Told told = Live(disk.get(), kSteps, kRecordBytes);
    const SqliteVfs vfs(disk.get());
    absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open(disk.get(), "/data", false, vfs.name().c_str());
    ASSERT_THAT(catalog.status(), IsOk());
    const int64_t found = StepsIn(catalog->get());
    found_more += found > told.done;
    ExpectAsTold(*disk, {.done = found}, absl::StrCat("a start after an error at call ", call));
    catalog->reset();
    ExpectAsTold(*disk, {.done = found}, absl::StrCat("a start and an end after an error at call ", call));
  }
  EXPECT_GT(found_more, 0) << "not all that can be has been tried";
}

// The log begins anew in this life. Not every call: there are thousands.
// What one that failed has written may be in memory alone, and look as it should.
TEST(CatalogFaultsTest, AStartAfterOneThatFailedLosesNothingOfWhatIsToldThen) {
  // What a write that fails leaves goes by the number of its call.
  for (int shift = 0; shift < 8; ++shift) {
    for (int64_t call = 1;; ++call) {
      const std::unique_ptr<SimulatedFileSystem> disk = NewDisk();
      for (int i = 0; i < shift; ++i) ASSERT_THAT(disk->List("/data"), IsOk());
      SqliteVfs vfs(disk.get());
      disk->FailCall(disk->calls() + call, Fault::kIoError);
      const int64_t before = disk->calls();
      if (Catalog::Open(disk.get(), "/data", false, vfs.name().c_str()).ok() && disk->calls() < before + call) break;
      {
        absl::StatusOr<std::unique_ptr<Catalog>> catalog =
            Catalog::Open(disk.get(), "/data", false, vfs.name().c_str());
        ASSERT_THAT(catalog, IsOk());
        ASSERT_THAT((*catalog)->Begin(), IsOk());
        ASSERT_THAT((*catalog)->AddSet({}), IsOk());
        StoredRecord record;
        record.set_step(1);
        ASSERT_THAT((*catalog)->AddRecord(1, 1, record), IsOk());
        ASSERT_THAT((*catalog)->Commit(), IsOk());
      }
      for (uint64_t seed = 0; seed < 5; ++seed) {
        const std::unique_ptr<SimulatedFileSystem> cut = disk->PowerCut(seed);
        SqliteVfs cut_vfs(cut.get());
        const absl::StatusOr<std::unique_ptr<Catalog>> catalog =
            Catalog::Open(cut.get(), "/data", false, cut_vfs.name().c_str());
        ASSERT_THAT(catalog, IsOk()) << "call " << call << ", power cut " << seed;
        ASSERT_EQ(StepsIn(catalog->get()), 1) << "call " << call << ", power cut " << seed;
      }
    }
  }
}

TEST(CatalogFaultsTest, AnErrorWhileTheLogIsCopiedLosesNothing) {
  constexpr int64_t kLongSteps = 12;
  constexpr size_t kLargeBytes = 500'000;
  const std::unique_ptr<SimulatedFileSystem> whole = NewDisk();
  ASSERT_EQ(Live(whole.get(), kLongSteps, kLargeBytes).done, kLongSteps);
  for (int64_t call = 100; call <= whole->calls(); call += 211) {
    const std::unique_ptr<SimulatedFileSystem> disk = NewDisk();
    disk->FailCall(call, Fault::kIoError);
    ExpectAsTold(*disk, Live(disk.get(), kLongSteps, kLargeBytes), absl::StrCat("error at call ", call));
  }
}

// Where there is no more room for a log of a few pages than for some steps, it goes on once there is.
TEST(CatalogFaultsTest, GoesOnWhenThereIsRoomAgain) {
  const std::unique_ptr<SimulatedFileSystem> disk = NewDisk();
  const SqliteVfs vfs(disk.get());
  const std::unique_ptr<Catalog> catalog = *Catalog::Open(disk.get(), "/data", false, vfs.name().c_str());
  ASSERT_THAT(catalog->Begin(), IsOk());
  ASSERT_THAT(catalog->AddSet({}).status(), IsOk());
  ASSERT_THAT(catalog->Commit(), IsOk());
  int64_t done = 0;
  const auto step = [&] {
    EXPECT_THAT(catalog->Begin(), IsOk());
    StoredRecord record;
    record.set_step(done + 1);
    absl::Status status = catalog->AddRecord(1, done + 1, record);
    if (status.ok()) status = catalog->Commit();
    if (!status.ok()) catalog->Rollback();
    return status;
  };
  for (int64_t capacity = 200'000; capacity <= 1'000'000; capacity += 100'000) {
    disk->SetCapacity(capacity);
    absl::Status status;
    while ((status = step()).ok()) ++done;
    EXPECT_THAT(status, IsDiskExhausted());
    EXPECT_THAT(step(), IsDiskExhausted());
    EXPECT_EQ(StepsIn(catalog.get()), done) << "can be read all the same";
    ExpectAsTold(*disk, {.done = done}, absl::StrCat("a disk of ", capacity, " bytes"));
  }
  EXPECT_GT(done, 50);
}

}  // namespace
}  // namespace adamant::store
