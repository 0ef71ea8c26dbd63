// The schedules of schedule_test.cc on a CUDA device. ADAMANT_TEST_SEED=N runs schedule N alone,
// ADAMANT_TEST_SCHEDULES=N the first N.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>

#include "gtest/gtest.h"
#include "tests/core/seeded_schedules.h"

namespace adamant::core {
namespace {

class CudaScheduleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return;
    std::cout << "skipped: no CUDA device" << std::endl;
    GTEST_SKIP();
  }

  static uint64_t Count(uint64_t count) {
    const char* const given = std::getenv("ADAMANT_TEST_SCHEDULES");
    return given != nullptr ? std::min<uint64_t>(count, std::strtoull(given, nullptr, 10)) : count;
  }
};

TEST_F(CudaScheduleTest, TenThousandSchedulesOfASmallSetEndAsTheModelDoes) {
  RunSchedules(SetSize::kSmall, Device::kCuda, Count(10000), 100);
}

TEST_F(CudaScheduleTest, SchedulesOfALargeSetEndAsTheModelDoes) {
  RunSchedules(SetSize::kLarge, Device::kCuda, Count(20), 50);
}

}  // namespace
}  // namespace adamant::core
