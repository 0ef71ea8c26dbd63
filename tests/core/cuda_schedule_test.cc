// The schedules of schedule_test.cc on a CUDA device: seeded_schedules.h says how to choose among them.
#include <cuda_runtime_api.h>

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
};

TEST_F(CudaScheduleTest, TenThousandSchedulesOfASmallSetEndAsTheModelDoes) {
  RunSchedules(SetSize::kSmall, Device::kCuda, 10000, 100);
}

TEST_F(CudaScheduleTest, SchedulesOfALargeSetEndAsTheModelDoes) {
  RunSchedules(SetSize::kLarge, Device::kCuda, 20, 50);
}

}  // namespace
}  // namespace adamant::core
