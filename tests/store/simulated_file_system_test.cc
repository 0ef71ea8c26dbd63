// That the simulated disk forgets what it may forget, and fails where it is told to.
#include "tests/store/simulated_file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"

namespace adamant::store {
namespace {

using core::IsOk;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
using Access = FileSystem::Access;
using Fault = SimulatedFileSystem::Fault;

constexpr int kCuts = 200;

class SimulatedFileSystemTest : public testing::Test {
 protected:
  std::unique_ptr<File> Make(const std::string& path, absl::string_view contents) {
    std::unique_ptr<File> file = *disk_.Create(path, Access::kBuffered);
    EXPECT_THAT(file->Write(0, Bytes(contents)), IsOk());
    return file;
  }

  // What a file may have after a power cut; "none" where it may be gone.
  std::set<std::string> AfterCuts(const std::string& path) {
    std::set<std::string> found;
    for (int seed = 0; seed < kCuts; ++seed) {
      const std::unique_ptr<SimulatedFileSystem> disk = disk_.PowerCut(seed);
      const absl::StatusOr<std::string> contents = ReadFile(disk.get(), path, 1 << 20);
      found.insert(contents.ok() ? *contents : "none");
    }
    return found;
  }

  SimulatedFileSystem disk_;
};

TEST_F(SimulatedFileSystemTest, NeitherContentsNorNameLastUnsynced) {
  Make("/file", "abc");
  EXPECT_THAT(AfterCuts("/file"), UnorderedElementsAre("none", "", std::string(3, '\0'), "abc"));
}

TEST_F(SimulatedFileSystemTest, SyncOfAFileSaysNothingOfItsName) {
  ASSERT_THAT(Make("/file", "abc")->Sync(), IsOk());
  EXPECT_THAT(AfterCuts("/file"), UnorderedElementsAre("none", "abc"));
}

TEST_F(SimulatedFileSystemTest, SyncOfAFolderSaysNothingOfContents) {
  Make("/file", "abc");
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), UnorderedElementsAre("", std::string(3, '\0'), "abc"));
}

TEST_F(SimulatedFileSystemTest, SyncOfAFolderSaysNothingOfItsOwnName) {
  ASSERT_THAT(disk_.MakeDirectory("/folder"), IsOk());
  ASSERT_THAT(Make("/folder/file", "abc")->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/folder"), IsOk());
  EXPECT_THAT(AfterCuts("/folder/file"), UnorderedElementsAre("none", "abc"));
}

TEST_F(SimulatedFileSystemTest, WhatIsSyncedLasts) {
  ASSERT_THAT(Make("/file", "abc")->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), ElementsAre("abc"));
}

TEST_F(SimulatedFileSystemTest, AnyVersionOfASectorMayBeKept) {
  const std::unique_ptr<File> file = Make("/file", "a");
  ASSERT_THAT(file->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  ASSERT_THAT(file->Write(0, Bytes("b")), IsOk());
  ASSERT_THAT(file->Write(0, Bytes("c")), IsOk());
  EXPECT_THAT(AfterCuts("/file"), UnorderedElementsAre("a", "b", "c"));
}

TEST_F(SimulatedFileSystemTest, SectorsAreKeptOneWithoutTheOther) {
  const std::unique_ptr<File> file = Make("/file", std::string(1024, 'a'));
  ASSERT_THAT(file->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  ASSERT_THAT(file->Write(0, Bytes(std::string(1024, 'b'))), IsOk());
  const std::string a(512, 'a');
  const std::string b(512, 'b');
  EXPECT_THAT(AfterCuts("/file"), UnorderedElementsAre(a + a, a + b, b + a, b + b));
}

TEST_F(SimulatedFileSystemTest, ARenameIsKeptWholeOrNotAtAll) {
  ASSERT_THAT(Make("/old", "old")->Sync(), IsOk());
  ASSERT_THAT(Make("/new", "new")->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  ASSERT_THAT(disk_.Rename("/new", "/old"), IsOk());
  EXPECT_THAT(AfterCuts("/old"), UnorderedElementsAre("old", "new"));
  EXPECT_THAT(AfterCuts("/new"), UnorderedElementsAre("new", "none"));
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  EXPECT_THAT(AfterCuts("/old"), ElementsAre("new"));
}

TEST_F(SimulatedFileSystemTest, ARemovedFileMayComeBack) {
  ASSERT_THAT(Make("/file", "abc")->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  ASSERT_THAT(disk_.Remove("/file"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), UnorderedElementsAre("abc", "none"));
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), ElementsAre("none"));
}

TEST_F(SimulatedFileSystemTest, ASyncedMoveToAnotherFolderTakesTheNameFromTheFirst) {
  ASSERT_THAT(disk_.MakeDirectory("/folder"), IsOk());
  ASSERT_THAT(Make("/file", "abc")->Sync(), IsOk());
  ASSERT_THAT(disk_.Rename("/file", "/folder/file"), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/folder"), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), ElementsAre("none"));
  EXPECT_THAT(AfterCuts("/folder/file"), ElementsAre("abc"));
}

TEST_F(SimulatedFileSystemTest, ACutLeavesTheDiskAsItIs) {
  Make("/file", "abc");
  AfterCuts("/file");
  EXPECT_EQ(*ReadFile(&disk_, "/file", 10), "abc");
}

TEST_F(SimulatedFileSystemTest, AfterASyncThatFailedOnlyWhatIsWrittenAnewIsSynced) {
  const std::unique_ptr<File> file = Make("/file", std::string(1024, 'a'));
  ASSERT_THAT(file->Sync(), IsOk());
  ASSERT_THAT(disk_.SyncDirectory("/"), IsOk());
  const std::string a(512, 'a');
  const std::string b(512, 'b');
  ASSERT_THAT(file->Write(0, Bytes(b + b)), IsOk());
  disk_.FailCall(disk_.calls() + 1, Fault::kIoError);
  EXPECT_EQ(file->Sync().code(), absl::StatusCode::kInternal);
  ASSERT_THAT(file->Write(0, Bytes(b)), IsOk());
  EXPECT_THAT(file->Sync(), IsOk());
  EXPECT_EQ(*ReadFile(&disk_, "/file", 1024), b + b);
  EXPECT_THAT(AfterCuts("/file"), testing::IsSubsetOf({b + a, b + b}));
}

TEST_F(SimulatedFileSystemTest, FailsTheCallThatItIsToldTo) {
  const std::unique_ptr<File> file = Make("/file", "a");
  disk_.FailCall(disk_.calls() + 2, Fault::kIoError);
  EXPECT_THAT(file->Size().status(), IsOk());
  EXPECT_EQ(file->Size().status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(file->Size().status(), IsOk());
}

TEST_F(SimulatedFileSystemTest, AWriteThatFailsWritesSomeSectors) {
  std::set<std::string> found;
  for (int i = 0; i < 100; ++i) {
    const std::unique_ptr<File> file = Make("/file", std::string(1024, 'a'));
    disk_.FailCall(disk_.calls() + 1, Fault::kIoError);
    EXPECT_EQ(file->Write(0, Bytes(std::string(1024, 'b'))).code(), absl::StatusCode::kInternal);
    found.insert(*ReadFile(&disk_, "/file", 1024));
  }
  EXPECT_EQ(found.size(), 4);
}

TEST_F(SimulatedFileSystemTest, AFullDiskTakesTheFirstSectorsAndGoesOnOnceThereIsRoom) {
  disk_.SetCapacity(2 * kSectorBytes);
  const std::unique_ptr<File> file = *disk_.Create("/file", Access::kBuffered);
  const std::string large(3 * kSectorBytes, 'x');
  EXPECT_EQ(file->Write(0, Bytes(large)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*file->Size(), 2 * kSectorBytes);
  EXPECT_EQ(*disk_.FreeBytes("/"), 0);
  EXPECT_EQ(file->Allocate(3 * kSectorBytes).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(file->Write(0, Bytes("y")), IsOk()) << "is there already";
  disk_.SetCapacity(3 * kSectorBytes);
  EXPECT_THAT(file->Write(0, Bytes(large)), IsOk());
}

TEST_F(SimulatedFileSystemTest, DirectFilesTakeNoPartsOfSectors) {
  const std::unique_ptr<File> file = *disk_.Create("/file", Access::kDirect);
  SectorMemory memory(2 * kSectorBytes);
  EXPECT_THAT(file->Write(kSectorBytes, memory.span()), IsOk());
  EXPECT_EQ(file->Write(1, memory.span()).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(file->Write(0, memory.span().first(kSectorBytes - 1)).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(file->Read(0, memory.span().subspan(1, kSectorBytes)).code(), absl::StatusCode::kInternal);
}

TEST_F(SimulatedFileSystemTest, WhatReplaceFileHasPutThereLasts) {
  ASSERT_THAT(ReplaceFile(&disk_, "/file", "old"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), ElementsAre("old"));
  ASSERT_THAT(ReplaceFile(&disk_, "/file", "new"), IsOk());
  EXPECT_THAT(AfterCuts("/file"), ElementsAre("new"));
}

// An error at any call of ReplaceFile, and a power cut then, leave what was there, or what is to be.
TEST_F(SimulatedFileSystemTest, ReplaceFileIsWholeOrHasNotHappened) {
  const std::string old(2000, 'a');
  const std::string replaced(3000, 'b');
  ASSERT_THAT(ReplaceFile(&disk_, "/file", old), IsOk());
  const int64_t calls = disk_.calls();
  for (int64_t call = calls + 1; call <= 2 * calls; ++call) {
    SimulatedFileSystem disk;
    ASSERT_THAT(ReplaceFile(&disk, "/file", old), IsOk());
    disk.FailCall(call, Fault::kIoError);
    EXPECT_EQ(ReplaceFile(&disk, "/file", replaced).code(), absl::StatusCode::kInternal) << call;
    for (int seed = 0; seed < kCuts; ++seed) {
      const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
      EXPECT_THAT(*ReadFile(cut.get(), "/file", 5000), testing::AnyOf(old, replaced)) << call << " " << seed;
    }
  }
}

}  // namespace
}  // namespace adamant::store
