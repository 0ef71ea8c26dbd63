// How much memory there is, where limits of several kinds meet, and its division into budgets.
#include "server/memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

namespace adamant {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

// A machine, as far as /proc and /sys tell: one with 8 GiB and no control group, before anything is added.
class UsableMemoryTest : public testing::Test {
 protected:
  UsableMemoryTest()
      : root_(absl::StrCat(testing::TempDir(), "/", testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(root_);
    Write("/proc/meminfo", "MemFree:         1024 kB\nMemTotal:        8388608 kB\nSwapTotal:       4096 kB\n");
  }
  ~UsableMemoryTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }

  int64_t Usable() const { return UsableMemory(root_).value_or(-1); }

  const std::string& Root() const { return root_; }

 private:
  const std::string root_;
};

TEST_F(UsableMemoryTest, WithoutControlGroupsIsTheMachinesMemory) { EXPECT_EQ(Usable(), 8 * kGiB); }

TEST_F(UsableMemoryTest, LimitOfAVersion2GroupCounts) {
  Write("/proc/self/cgroup", "0::/app\n");
  Write("/sys/fs/cgroup/app/memory.max", "1073741824\n");
  EXPECT_EQ(Usable(), kGiB);
}

TEST_F(UsableMemoryTest, Version2GroupWithoutALimitIsTheMachinesMemory) {
  Write("/proc/self/cgroup", "0::/app\n");
  Write("/sys/fs/cgroup/app/memory.max", "max\n");
  EXPECT_EQ(Usable(), 8 * kGiB);
}

TEST_F(UsableMemoryTest, LowestLimitOfNestedGroupsCounts) {
  Write("/proc/self/cgroup", "0::/outer/inner\n");
  Write("/sys/fs/cgroup/outer/inner/memory.max", "3221225472\n");
  Write("/sys/fs/cgroup/outer/memory.max", "2147483648\n");
  EXPECT_EQ(Usable(), 2 * kGiB);
}

TEST_F(UsableMemoryTest, InAContainerTheMountedGroupCountsWhateverItsPathOutside) {
  Write("/proc/self/cgroup", "0::/docker/0123456789abcdef\n");
  Write("/sys/fs/cgroup/memory.max", "1073741824\n");
  EXPECT_EQ(Usable(), kGiB);
}

TEST_F(UsableMemoryTest, LimitOfAVersion1GroupCounts) {
  Write("/proc/self/cgroup", "12:cpu,cpuacct:/app\n11:memory:/app\n");
  Write("/sys/fs/cgroup/memory/app/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(Usable(), kGiB);
}

TEST_F(UsableMemoryTest, Version1GroupOfAnotherControllerDoesNotCount) {
  Write("/proc/self/cgroup", "12:cpu:/app\n");
  Write("/sys/fs/cgroup/memory/app/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(Usable(), 8 * kGiB);
}

TEST_F(UsableMemoryTest, Version1GroupWithoutALimitIsTheMachinesMemory) {
  Write("/proc/self/cgroup", "11:memory:/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Usable(), 8 * kGiB);
}

TEST_F(UsableMemoryTest, ThatCannotBeReadIsAnError) {
  Write("/proc/meminfo", "MemFree: 1024 kB\n");
  EXPECT_EQ(UsableMemory(Root()).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(UsableMemoryOfThisMachineTest, IsSomethingSensible) {
  const absl::StatusOr<int64_t> usable = UsableMemory();
  ASSERT_TRUE(usable.ok()) << usable.status();
  EXPECT_GT(*usable, 64 * kMiB);
  EXPECT_LT(*usable, int64_t{1} << 50);
}

constexpr int64_t kStream = 5 * kMiB + 512 * 1024;

TEST(DivideMemoryTest, DividesWhatTheProgramItselfDoesNotTake) {
  const absl::StatusOr<MemoryShares> shares = DivideMemory(kMostReservedBytes + 16 * kGiB, kStream, {});
  ASSERT_TRUE(shares.ok()) << shares.status();
  EXPECT_EQ(shares->state, 8 * kGiB);
  EXPECT_EQ(shares->inflight, 3 * kGiB);
  EXPECT_EQ(shares->read, 3 * kGiB);
  EXPECT_EQ(shares->max_streams, kGiB / kStream);
}

TEST(DivideMemoryTest, GivesStreamsNoMoreThanTheyMayHave) {
  const absl::StatusOr<MemoryShares> shares = DivideMemory(int64_t{1} << 50, kStream, {});
  ASSERT_TRUE(shares.ok()) << shares.status();
  EXPECT_EQ(shares->max_streams, kMostStreams);
}

TEST(DivideMemoryTest, HasRoomForSixteenStreamsInAContainerOf512Mebibytes) {
  const absl::StatusOr<MemoryShares> shares = DivideMemory(512 * kMiB, kStream, {});
  ASSERT_TRUE(shares.ok()) << shares.status();
  EXPECT_EQ(shares->max_streams, 16);
  EXPECT_GT(shares->state, 128 * kMiB);
}

TEST(DivideMemoryTest, NeverDividesMoreThanThereIs) {
  for (int64_t usable = kLeastUsableBytes; usable < 64 * kGiB; usable += usable / 3) {
    const absl::StatusOr<MemoryShares> shares = DivideMemory(usable, kStream, {});
    ASSERT_TRUE(shares.ok()) << shares.status();
    EXPECT_GE(shares->max_streams, 8);
    EXPECT_LE(ReservedBytes(usable) + shares->state + shares->inflight + shares->read + shares->max_streams * kStream,
              usable);
  }
}

TEST(DivideMemoryTest, LeavesRoomForCallsThatWait) {
  EXPECT_EQ(MaxWaitingCalls(256 * kMiB), 64);
  EXPECT_EQ(MaxWaitingCalls(8 * kGiB), 1024);
  EXPECT_EQ(MaxWaitingCalls(1024 * kGiB), 4096);
}

TEST(DivideMemoryTest, TakesWishesAndLeavesTheRestAtItsShare) {
  const absl::StatusOr<MemoryShares> shares =
      DivideMemory(kMostReservedBytes + 16 * kGiB, kStream,
                   {.state = 5 * kGiB, .inflight = {}, .read = 100 * kMiB, .max_streams = 7});
  ASSERT_TRUE(shares.ok()) << shares.status();
  EXPECT_EQ(shares->state, 5 * kGiB);
  EXPECT_EQ(shares->inflight, 3 * kGiB);
  EXPECT_EQ(shares->read, 100 * kMiB);
  EXPECT_EQ(shares->max_streams, 7);
}

TEST(DivideMemoryTest, RefusesWishesAbove95Percent) {
  // With the other shares, 7/16 of the whole and what is left of a stream, this is 95 % and a little.
  const int64_t divided = 16 * kGiB;
  const int64_t others = 6 * kGiB + kGiB / kStream * kStream;
  const int64_t most = divided / 100 * 95 - others;
  EXPECT_TRUE(DivideMemory(kMostReservedBytes + divided, kStream, {.state = most}).ok());
  const absl::Status refused = DivideMemory(kMostReservedBytes + divided, kStream, {.state = most + kMiB}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.message().find('\n'), absl::string_view::npos);
}

TEST(DivideMemoryTest, RefusesWishesWhoseSumOverflows) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(DivideMemory(16 * kGiB, kStream, {.state = kMost, .inflight = kMost}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(DivideMemoryTest, RefusesWishesThatAreNotPositive) {
  for (const MemoryWishes& wishes : {MemoryWishes{.state = 0}, MemoryWishes{.inflight = -1}, MemoryWishes{.read = 0},
                                     MemoryWishes{.max_streams = -1}, MemoryWishes{.max_streams = 0}}) {
    EXPECT_EQ(DivideMemory(16 * kGiB, kStream, wishes).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(DivideMemoryTest, RefusesAMachineThatIsTooSmall) {
  EXPECT_TRUE(DivideMemory(kLeastUsableBytes, kStream, {}).ok());
  EXPECT_EQ(DivideMemory(kLeastUsableBytes - 1, kStream, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace adamant
