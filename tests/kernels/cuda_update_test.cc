// What EnqueueUpdates says of its recipes and launches. What it computes is the conformance suite's.
#include "kernels/cuda_update.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <utility>
#include <vector>

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

  // Every recipe's step is as long as its index says.
  static std::vector<Recipe> Recipes(int count) {
    std::vector<Recipe> recipes;
    for (int i = 0; i < count; ++i) {
      const double length = i + 1;
      const UpdateScalars adam =
          MakeAdamScalars({.learning_rate = length, .beta1 = 0, .beta2 = 0, .eps = 0x1p-40}, 1, {});
      recipes.push_back(i % 2 == 0 ? Recipe{kSgd, MakeSgdScalars({.learning_rate = length}, 1, {})}
                                   : Recipe{kAdam, adam});
    }
    return recipes;
  }

  static void* OnDevice(const void* host, size_t bytes) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
  }

  // On the default stream, with the span's slots for every update.
  static cudaError_t Enqueue(const Recipe* recipes, int first, int end, const CudaSpan& span) {
    SlotSpan slots[kUpdates][kMaxSlots];
    for (auto& of_update : slots) std::copy_n(span.arrays.slots, kMaxSlots, of_update);
    return EnqueueUpdates(recipes, first, end, span, slots, nullptr);
  }

  // How far each of `count` parameters moves whose gradient is 1 and whose recipe is its index.
  static std::vector<float> Moves(int count, int first, int end) {
    const std::vector<Recipe> recipes = Recipes(count);
    std::vector<CudaPiece> pieces;
    for (int i = 0; i < count; ++i) pieces.push_back({.begin = i, .size = 1, .recipe = i});
    const std::vector<float> zeros(count), ones(count, 1.0f);
    const size_t bytes = count * sizeof(float);
    float* const p = static_cast<float*>(OnDevice(zeros.data(), bytes));
    float* const g = static_cast<float*>(OnDevice(ones.data(), bytes));
    float* const m = static_cast<float*>(OnDevice(zeros.data(), bytes));
    float* const v = static_cast<float*>(OnDevice(zeros.data(), bytes));
    void* const table = OnDevice(pieces.data(), pieces.size() * sizeof(CudaPiece));
    const CudaSpan span = {.arrays = {.size = 0, .g = g, .p_in = p, .p_out = p, .slots = {{m, m}, {v, v}}},
                           .origin = 0,
                           .pieces = static_cast<const CudaPiece*>(table),
                           .piece_count = count};

    EXPECT_EQ(Enqueue(recipes.data(), first, end, span), cudaSuccess);

    std::vector<float> moved(count);
    EXPECT_EQ(cudaMemcpy(moved.data(), p, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    for (void* memory :
         {static_cast<void*>(p), static_cast<void*>(g), static_cast<void*>(m), static_cast<void*>(v), table}) {
      EXPECT_EQ(cudaFree(memory), cudaSuccess);
    }
    for (float& move : moved) move = -move;
    return moved;
  }

  static std::vector<float> LengthsWithin(int count, int first, int end) {
    std::vector<float> lengths(count);
    for (int i = first; i < end; ++i) lengths[i] = static_cast<float>(i + 1);
    return lengths;
  }
};

TEST_F(CudaUpdateTest, EveryPieceIsUpdatedOnceByItsRecipe) {
  for (int count : {1, 2, 59, 60, 61, 120, 121, 200}) {
    EXPECT_EQ(Moves(count, 0, count), LengthsWithin(count, 0, count)) << count;
  }
}

TEST_F(CudaUpdateTest, PiecesOfOtherRecipesAreLeftAlone) {
  for (const auto& [first, end] : {std::pair(0, 1), std::pair(1, 2), std::pair(7, 80), std::pair(70, 130),
                                   std::pair(129, 130), std::pair(50, 50)}) {
    EXPECT_EQ(Moves(130, first, end), LengthsWithin(130, first, end)) << first << " to " << end;
  }
}

TEST_F(CudaUpdateTest, AnEarlierFailureIsNotTheLaunchs) {
  const CudaPiece nothing = {0, 0, 0};
  void* const table = OnDevice(&nothing, sizeof(nothing));
  void* too_large = nullptr;
  ASSERT_EQ(cudaMalloc(&too_large, size_t{1} << 50), cudaErrorMemoryAllocation);
  const CudaSpan span = {.arrays = {}, .origin = 0, .pieces = static_cast<const CudaPiece*>(table), .piece_count = 1};

  EXPECT_EQ(Enqueue(Recipes(1).data(), 0, 1, span), cudaSuccess);

  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaFree(table), cudaSuccess);
}

TEST_F(CudaUpdateTest, ALaunchThatCannotBeIsRefused) {
  const CudaSpan span = {.arrays = {}, .origin = 0, .pieces = nullptr, .piece_count = int64_t{1} << 31};

  EXPECT_NE(Enqueue(Recipes(1).data(), 0, 1, span), cudaSuccess);
  cudaGetLastError();
}

TEST_F(CudaUpdateTest, AnUpdateThatIsNotIsRefused) {
  const CudaSpan span = {.arrays = {}, .origin = 0, .pieces = nullptr, .piece_count = 1};
  for (int update : {-1, static_cast<int>(kUpdates)}) {
    const Recipe recipe = {static_cast<Update>(update), {}};

    EXPECT_EQ(Enqueue(&recipe, 0, 1, span), cudaErrorInvalidValue) << update;
  }
}

TEST_F(CudaUpdateTest, NoPiecesAreNoLaunch) { EXPECT_EQ(Enqueue(Recipes(1).data(), 0, 1, {}), cudaSuccess); }

TEST_F(CudaUpdateTest, EveryKernelCanBeLoaded) { EXPECT_EQ(PrepareUpdates(), cudaSuccess); }

}  // namespace
}  // namespace adamant::kernels
