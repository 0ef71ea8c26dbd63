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

  int64_t Usable() const { return UsableMemory(root_); }

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

TEST(UsableMemoryOfThisMachineTest, IsSomethingSensible) {
  EXPECT_GT(UsableMemory(), 64 * kMiB);
  EXPECT_LT(UsableMemory(), int64_t{1} << 50);
}

constexpr int64_t kStream = 9 * kMiB;

TEST(DivideMemoryTest, DividesWhatTheProgramItselfDoesNotTake) {
  const absl::StatusOr<MemoryShares> shares = DivideMemory(kReservedBytes + 16 * kGiB, kStream, {});
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

TEST(DivideMemoryTest, HasRoomInAContainerOfOneGibibyte) {
  const absl::StatusOr<MemoryShares> shares = DivideMemory(kGiB, kStream, {});
  ASSERT_TRUE(shares.ok()) << shares.status();
  EXPECT_EQ(shares->max_streams, 5);
}

TEST(DivideMemoryTest, TakesWishesAndLeavesTheRestAtItsShare) {
  const absl::StatusOr<MemoryShares> shares = DivideMemory(
      kReservedBytes + 16 * kGiB, kStream, {.state = 5 * kGiB, .inflight = {}, .read = 100 * kMiB, .max_streams = 7});
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
  EXPECT_TRUE(DivideMemory(kReservedBytes + divided, kStream, {.state = most}).ok());
  const absl::Status refused = DivideMemory(kReservedBytes + divided, kStream, {.state = most + kMiB}).status();
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
  EXPECT_TRUE(DivideMemory(kReservedBytes + 16 * kStream, kStream, {}).ok());
  EXPECT_EQ(DivideMemory(kReservedBytes + 16 * kStream - 1, kStream, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace adamant
