// What FileSystem promises, of the system's files and of the simulated ones alike.
#include "server/store/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"

namespace adamant::store {
namespace {

using core::IsOk;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Access = FileSystem::Access;

constexpr int64_t kMostBytes = 1000;

class FileSystemTest : public OnEveryFileSystem {
 protected:
  void Make(absl::string_view name, absl::string_view contents) {
    absl::StatusOr<std::unique_ptr<File>> file = file_system()->Create(Path(name), Access::kBuffered);
    ASSERT_THAT(file.status(), IsOk());
    ASSERT_THAT((*file)->Write(0, Bytes(contents)), IsOk());
  }

  absl::StatusOr<std::string> Contents(absl::string_view name) {
    return ReadFile(file_system(), Path(name), kMostBytes);
  }
};

TEST_P(FileSystemTest, WhatIsWrittenIsRead) {
  Make("file", "a gradient");
  const std::unique_ptr<File> file = *file_system()->Open(Path("file"), Access::kBuffered);
  ASSERT_THAT(file->Write(2, Bytes("G")), IsOk());
  ASSERT_THAT(file->Sync(), IsOk());
  EXPECT_EQ(*file->Size(), 10);
  EXPECT_EQ(*Contents("file"), "a Gradient");
}

TEST_P(FileSystemTest, WhatWasNotWrittenIsZero) {
  const std::unique_ptr<File> file = *file_system()->Create(Path("file"), Access::kBuffered);
  ASSERT_THAT(file->Write(3, Bytes("x")), IsOk());
  ASSERT_THAT(file->Allocate(6), IsOk());
  EXPECT_EQ(*Contents("file"), std::string("\0\0\0x\0\0", 6));
}

TEST_P(FileSystemTest, AllocateLeavesALongerFileAsItIs) {
  Make("file", "0123456789");
  const std::unique_ptr<File> file = *file_system()->Open(Path("file"), Access::kBuffered);
  ASSERT_THAT(file->Allocate(4), IsOk());
  EXPECT_EQ(*Contents("file"), "0123456789");
}

TEST_P(FileSystemTest, ReadBehindTheEndIsOutOfRange) {
  Make("file", "abc");
  const std::unique_ptr<File> file = *file_system()->Open(Path("file"), Access::kBuffered);
  std::byte bytes[2];
  EXPECT_THAT(file->Read(1, bytes), IsOk());
  const absl::Status status = file->Read(2, bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(status.message(), HasSubstr(Path("file")));
}

TEST_P(FileSystemTest, DirectFilesAreWrittenAndReadInSectors) {
  const std::unique_ptr<File> file = *file_system()->Create(Path("file"), Access::kDirect);
  SectorMemory written(3 * kSectorBytes);
  std::fill(written.span().begin(), written.span().end(), std::byte{7});
  ASSERT_THAT(file->Allocate(4 * kSectorBytes), IsOk());
  ASSERT_THAT(file->Write(kSectorBytes, written.span()), IsOk());
  ASSERT_THAT(file->Sync(), IsOk());
  SectorMemory read(4 * kSectorBytes);
  ASSERT_THAT(file->Read(0, read.span()), IsOk());
  EXPECT_EQ(read.span()[kSectorBytes - 1], std::byte{0});
  EXPECT_EQ(read.span().subspan(kSectorBytes), written.span());
}

TEST_P(FileSystemTest, CreateEmptiesAFileThatIsThere) {
  Make("file", "something long");
  Make("file", "new");
  EXPECT_EQ(*Contents("file"), "new");
}

TEST_P(FileSystemTest, WhatIsNotThereIsNotFoundByName) {
  const absl::Status opened = file_system()->Open(Path("none"), Access::kDirect).status();
  EXPECT_EQ(opened.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(opened.message(), HasSubstr(Path("none")));
  EXPECT_EQ(file_system()->Create(Path("none/file"), Access::kBuffered).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file_system()->List(Path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file_system()->SyncDirectory(Path("none")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file_system()->Rename(Path("none"), Path("other")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file_system()->FreeBytes(Path("none")).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(FileSystemTest, ListsNamesInOrder) {
  ASSERT_THAT(file_system()->MakeDirectory(Path("folder")), IsOk());
  EXPECT_THAT(*file_system()->List(Path("folder")), IsEmpty());
  Make("folder/b", "");
  Make("folder/a", "");
  ASSERT_THAT(file_system()->MakeDirectory(Path("folder/c")), IsOk());
  EXPECT_THAT(*file_system()->List(Path("folder")), ElementsAre("a", "b", "c"));
}

TEST_P(FileSystemTest, MakeDirectoryTakesOneThatIsThereButNoFile) {
  Make("file", "");
  ASSERT_THAT(file_system()->MakeDirectory(Path("folder")), IsOk());
  EXPECT_THAT(file_system()->MakeDirectory(Path("folder")), IsOk());
  EXPECT_EQ(file_system()->MakeDirectory(Path("file")).code(), absl::StatusCode::kInternal);
}

TEST_P(FileSystemTest, RenameTakesTheNameFromWhatHasIt) {
  Make("from", "new");
  Make("to", "old");
  ASSERT_THAT(file_system()->Rename(Path("from"), Path("to")), IsOk());
  EXPECT_EQ(*Contents("to"), "new");
  EXPECT_EQ(Contents("from").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(FileSystemTest, AFileOfThatNameGoesOnWithoutIt) {
  Make("file", "abc");
  const std::unique_ptr<File> file = *file_system()->Open(Path("file"), Access::kBuffered);
  ASSERT_THAT(file_system()->Remove(Path("file")), IsOk());
  EXPECT_EQ(*file->Size(), 3);
  EXPECT_EQ(Contents("file").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(FileSystemTest, RemovesWhatIsThereAndIsContentIfItIsNot) {
  Make("file", "");
  ASSERT_THAT(file_system()->MakeDirectory(Path("folder")), IsOk());
  ASSERT_THAT(file_system()->MakeDirectory(Path("folder/inner")), IsOk());
  Make("folder/inner/file", "");
  EXPECT_THAT(file_system()->Remove(Path("file")), IsOk());
  EXPECT_THAT(file_system()->Remove(Path("file")), IsOk());
  EXPECT_THAT(file_system()->RemoveAll(Path("folder")), IsOk());
  EXPECT_THAT(file_system()->RemoveAll(Path("folder")), IsOk());
  EXPECT_THAT(file_system()->SyncDirectory(Folder()), IsOk());
  EXPECT_THAT(*file_system()->List(Folder()), IsEmpty());
}

TEST_P(FileSystemTest, SaysWhatIsFree) { EXPECT_GT(*file_system()->FreeBytes(Folder()), 0); }

TEST_P(FileSystemTest, ALockKeepsOthersOutUntilItIsDestroyed) {
  absl::StatusOr<std::unique_ptr<FileSystem::Lock>> lock = file_system()->TakeLock(Path("lock"));
  ASSERT_THAT(lock.status(), IsOk());
  const absl::Status refused = file_system()->TakeLock(Path("lock")).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr(Path("lock")));
  lock->reset();
  EXPECT_THAT(file_system()->TakeLock(Path("lock")).status(), IsOk());
}

TEST_P(FileSystemTest, ReadFileRefusesALargeOne) {
  Make("file", std::string(kMostBytes + 1, 'x'));
  EXPECT_EQ(Contents("file").status().code(), absl::StatusCode::kOutOfRange);
}

TEST_P(FileSystemTest, ReplaceFileLeavesOnlyTheNewOne) {
  Make("file", "a long old one");
  ASSERT_THAT(ReplaceFile(file_system(), Path("file"), "new"), IsOk());
  EXPECT_EQ(*Contents("file"), "new");
  EXPECT_THAT(*file_system()->List(Folder()), ElementsAre("file"));
}

ADAMANT_ON_EVERY_FILE_SYSTEM(FileSystemTest);

TEST(PosixFileSystemTest, ALockNamesTheProcessThatHasIt) {
  const TemporaryFolder folder;
  const absl::StatusOr<std::unique_ptr<FileSystem::Lock>> lock = PosixFileSystem()->TakeLock(folder.path() + "/lock");
  ASSERT_THAT(lock.status(), IsOk());
  EXPECT_THAT(PosixFileSystem()->TakeLock(folder.path() + "/lock").status().message(),
              HasSubstr(absl::StrCat("process ", getpid())));
}

// No room is what a limit on the size of files looks like, too.
TEST(PosixFileSystemTest, NoRoomIsToldAsThatWithADelay) {
  const TemporaryFolder folder;
  const std::unique_ptr<File> file = *PosixFileSystem()->Create(folder.path() + "/file", Access::kBuffered);
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {5, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status written = file->Write(0, Bytes("0123456789"));
  const absl::Status allocated = file->Allocate(100);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  for (const absl::Status& status : {written, allocated}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_DISK_EXHAUSTED);
    EXPECT_TRUE(GetRetryDelay(status).has_value());
    EXPECT_THAT(status.message(), HasSubstr(folder.path() + "/file"));
  }
}

// Full at any time, and without O_DIRECT.
TEST(PosixFileSystemTest, AFullDeviceHasNoRoom) {
  const std::unique_ptr<File> file = *PosixFileSystem()->Open("/dev/full", Access::kBuffered);
  EXPECT_EQ(file->Write(0, Bytes("x")).code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace adamant::store
