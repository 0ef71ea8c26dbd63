// How many threads may compute, where affinity and control groups meet.
#include "server/processors.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"

namespace adamant {
namespace {

// Of this process, so that the quota is what decides.
int Affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

class UsableProcessorsTest : public testing::Test {
 protected:
  UsableProcessorsTest()
      : root_(absl::StrCat(testing::TempDir(), "/", testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(root_);
  }
  ~UsableProcessorsTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }

  int Usable() const { return UsableProcessors(root_); }

 private:
  const std::string root_;
};

TEST_F(UsableProcessorsTest, WithoutControlGroupsAreThoseOfTheAffinity) { EXPECT_EQ(Usable(), Affinity()); }

TEST_F(UsableProcessorsTest, AffinityCounts) {
  std::thread([this] {
    cpu_set_t before;
    ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i) {
      if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
    }
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_EQ(Usable(), 1);
  }).join();
}

TEST_F(UsableProcessorsTest, QuotaOfAVersion2GroupCounts) {
  Write("/proc/self/cgroup", "0::/app\n");
  Write("/sys/fs/cgroup/app/cpu.max", "50000 100000\n");
  EXPECT_EQ(Usable(), 1);
}

TEST_F(UsableProcessorsTest, QuotaOfAVersion1GroupCounts) {
  Write("/proc/self/cgroup", "3:cpu,cpuacct:/app\n");
  Write("/sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "100000\n");
  Write("/sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Usable(), 1);
}

TEST_F(UsableProcessorsTest, PartOfAProcessorIsOne) {
  if (Affinity() < 2) GTEST_SKIP() << "this machine has one processor";
  Write("/proc/self/cgroup", "0::/app\n");
  Write("/sys/fs/cgroup/app/cpu.max", "100001 100000\n");
  EXPECT_EQ(Usable(), 2);
}

TEST_F(UsableProcessorsTest, NoQuotaIsNoLimit) {
  Write("/proc/self/cgroup", "0::/app\n3:cpu:/app\n");
  Write("/sys/fs/cgroup/app/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Usable(), Affinity());
}

TEST(CheckThreadsTest, SaysSoWhereThreadsCanBeHad) { EXPECT_TRUE(CheckThreads(8).ok()); }

}  // namespace
}  // namespace adamant
