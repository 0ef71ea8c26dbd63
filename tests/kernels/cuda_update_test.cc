// What EnqueueUpdate says of its launch. What it computes is the conformance suite's.
#include "kernels/cuda_update.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <iostream>

namespace adamant::kernels {
namespace {

class CudaUpdateTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return;
    cudaGetLastError();
    std::cout << "skipped: no CUDA device" << std::endl;
    GTEST_SKIP();
  }

  const AdamScalars scalars_ =
      MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}, 1, 1);
};

TEST_F(CudaUpdateTest, AnEarlierFailureIsNotTheLaunchs) {
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, sizeof(CudaPiece)), cudaSuccess);
  const CudaPiece nothing = {0, 0, 0};
  ASSERT_EQ(cudaMemcpy(memory, &nothing, sizeof(nothing), cudaMemcpyHostToDevice), cudaSuccess);
  void* too_large = nullptr;
  ASSERT_EQ(cudaMalloc(&too_large, size_t{1} << 50), cudaErrorMemoryAllocation);
  const CudaSpan span = {.arrays = {}, .origin = 0, .pieces = static_cast<const CudaPiece*>(memory), .piece_count = 1};
  EXPECT_EQ(EnqueueUpdate(kAdam, &scalars_, 1, span, nullptr), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

TEST_F(CudaUpdateTest, ALaunchThatCannotBeIsRefused) {
  const CudaSpan span = {.arrays = {}, .origin = 0, .pieces = nullptr, .piece_count = int64_t{1} << 31};
  EXPECT_NE(EnqueueUpdate(kAdam, &scalars_, 1, span, nullptr), cudaSuccess);
  cudaGetLastError();
  EXPECT_EQ(EnqueueUpdate(kUpdates, &scalars_, 1, span, nullptr), cudaErrorInvalidValue);
}

TEST_F(CudaUpdateTest, NoPiecesAreNoLaunch) { EXPECT_EQ(EnqueueUpdate(kAdam, &scalars_, 1, {}, nullptr), cudaSuccess); }

}  // namespace
}  // namespace adamant::kernels
