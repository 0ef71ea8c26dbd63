// The reference measure against a plain computation of the order that norm.h promises.
#include "kernels/norm.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

GradientStats Measure(const std::vector<float>& g) {
  return FindKernels("scalar")->measure(g.data(), static_cast<int64_t>(g.size()));
}

// Sum of the squares of the elements first, first + stride, ... of a leaf that is padded with zeros: the lanes fold in
// halves, which is a binary tree whose two sides are the even and the odd multiples of `stride` apart.
double Fold(const std::vector<float>& leaf, size_t first, size_t stride) {
  if (stride == 32) {
    double lane = 0;
    for (size_t i = first; i < leaf.size(); i += 32) lane += static_cast<double>(leaf[i]) * leaf[i];
    return lane;
  }
  return Fold(leaf, first, stride * 2) + Fold(leaf, first + stride, stride * 2);
}

double SumOfSquares(std::vector<float> g) {
  g.resize((g.size() + 4095) / 4096 * 4096);
  double sum = 0;
  for (size_t begin = 0; begin < g.size(); begin += 4096) {
    sum += Fold(std::vector<float>(g.begin() + begin, g.begin() + begin + 4096), 0, 1);
  }
  return sum;
}

TEST(NormTest, AnEmptyBlockIsZero) {
  EXPECT_EQ(Measure({}).sum_of_squares, 0);
  EXPECT_EQ(Measure({}).max_magnitude_bits, 0u);
}

TEST(NormTest, AddsInTheFixedOrder) {
  RandomFloats random(PrintedSeed());
  for (int64_t size : {1, 15, 16, 17, 31, 32, 33, 64, 1000, 4095, 4096, 4097, 8192, 10000, 65535, 65536}) {
    const std::vector<float> g = Generate(size, [&] { return random.Signed(1e-6, 1e6); });

    EXPECT_EQ(Measure(g).sum_of_squares, SumOfSquares(g)) << size;
  }
}

TEST(NormTest, LanesFoldInHalvesBeforeLeavesAdd) {
  // Next to 2^54 doubles are 4 apart: one 1.25^2 that is added to it vanishes, two that met before count as 4.
  std::vector<float> g(4097);
  g[0] = 0x1p27f;
  g[1] = g[17] = 1.25f;  // lanes 1 and 17 meet first
  g[2] = 1.25f;          // meets lane 0 alone
  g[4096] = 1.25f;       // the second leaf

  EXPECT_EQ(Measure(g).sum_of_squares, 0x1p54 + 4);
}

TEST(NormTest, SumIsCloseToTheExactOne) {
  RandomFloats random(PrintedSeed());
  const std::vector<float> g = Generate(65536, [&] { return random.Signed(1e-3, 1e3); });
  long double exact = 0;
  for (float x : g) exact += static_cast<long double>(x) * x;

  // 128 additions in a lane, 5 folds and 16 leaves, each within half a unit of the last place.
  EXPECT_NEAR(Measure(g).sum_of_squares, static_cast<double>(exact), static_cast<double>(exact) * 149 * 0x1p-53);
}

TEST(NormTest, TheLargestFiniteGradientsDoNotOverflow) {
  const std::vector<float> g(65536, std::numeric_limits<float>::max());

  EXPECT_NEAR(Measure(g).sum_of_squares / 0x1p272, 1, 1e-6);
}

TEST(NormTest, LargestMagnitudeIgnoresTheSignAndItsPlace) {
  for (size_t place : {0, 7, 8, 31, 32, 4095, 4096, 4999}) {
    std::vector<float> g(5000, 1.0f);
    g[place] = -3.0f;

    EXPECT_EQ(Measure(g).max_magnitude_bits, std::bit_cast<uint32_t>(3.0f)) << place;
  }
}

TEST(NormTest, InfinityExceedsEveryFiniteMagnitudeAndNanExceedsInfinity) {
  EXPECT_EQ(Measure({1, -kInfinity, std::numeric_limits<float>::max()}).max_magnitude_bits, 0x7F800000u);
  EXPECT_GT(Measure({kInfinity, -kNan, 2}).max_magnitude_bits, 0x7F800000u);
}

TEST(NormTest, SumIsNotFiniteWhereAnElementIsNot) {
  EXPECT_FALSE(std::isfinite(Measure({1, kInfinity, 2}).sum_of_squares));
  EXPECT_FALSE(std::isfinite(Measure({1, kNan, 2}).sum_of_squares));
}

}  // namespace
}  // namespace adamant::kernels
