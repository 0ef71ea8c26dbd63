// The client's conversions to and from 16 bits, against arithmetic in double.
#include "client/src/formats.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace adamant {
namespace {

constexpr uint32_t kHalves = 1 << 16;

// What is particular to a format: bits of its significand behind the leading one, and its least normal exponent.
struct Format {
  v1::Dtype dtype;
  int fraction_bits;
  int least_exponent;
  uint16_t infinity;
  uint16_t nan;
};
constexpr Format kBfloat16 = {v1::DTYPE_BFLOAT16, 7, -126, 0x7F80, 0x7FC0};
constexpr Format kFloat16 = {v1::DTYPE_FLOAT16, 10, -14, 0x7C00, 0x7E00};

// The number that a half is, in the format's definition. Requires: it is no NaN.
double ValueOf(const Format& format, uint16_t half) {
  const int magnitude = half & 0x7FFF;
  const int fraction = magnitude & ((1 << format.fraction_bits) - 1);
  const int biased = magnitude >> format.fraction_bits;
  double value = std::ldexp(fraction, format.least_exponent - format.fraction_bits);
  if (biased > 0) {
    value =
        std::ldexp((1 << format.fraction_bits) + fraction, format.least_exponent - format.fraction_bits + biased - 1);
  }
  if (magnitude == format.infinity) value = std::numeric_limits<double>::infinity();
  return (half & 0x8000) != 0 ? -value : value;
}

bool IsNan(const Format& format, uint16_t half) { return (half & 0x7FFF) > format.infinity; }

// The nearest half, found through the unit in the last place of where `x` is.
uint16_t NearestTo(const Format& format, float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return sign | format.nan;
  if (std::isinf(x)) return sign | format.infinity;
  const double magnitude = std::fabs(static_cast<double>(x));
  const int exponent = magnitude == 0 ? format.least_exponent : std::max(std::ilogb(magnitude), format.least_exponent);
  // Units of the last place, to the even one; those from 2^fraction_bits on go on into the exponent.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, format.fraction_bits - exponent)));
  const int bits = ((exponent - format.least_exponent) << format.fraction_bits) + units;
  return static_cast<uint16_t>(sign | std::min<int>(bits, format.infinity));
}

uint16_t Narrowed(const Format& format, float x) {
  uint16_t half;
  Narrow(format.dtype, &x, 1, &half);
  return half;
}

class FormatsTest : public testing::TestWithParam<Format> {};

INSTANTIATE_TEST_SUITE_P(Each, FormatsTest, testing::Values(kBfloat16, kFloat16), [](const auto& info) {
  return std::string(info.param.dtype == v1::DTYPE_BFLOAT16 ? "Bfloat16" : "Float16");
});

TEST_P(FormatsTest, WidensEveryHalfExactlyAndNarrowsItBack) {
  std::vector<uint16_t> halves(kHalves);
  for (uint32_t i = 0; i < kHalves; ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> widened(kHalves);
  Widen(GetParam().dtype, halves.data(), kHalves, widened.data());
  std::vector<uint16_t> back(kHalves);
  Narrow(GetParam().dtype, widened.data(), kHalves, back.data());
  for (uint32_t i = 0; i < kHalves; ++i) {
    if (IsNan(GetParam(), halves[i])) {
      EXPECT_TRUE(std::isnan(widened[i])) << std::hex << i;
      EXPECT_EQ(back[i], (i & 0x8000) | GetParam().nan) << std::hex << i;
    } else {
      EXPECT_EQ(widened[i], ValueOf(GetParam(), halves[i])) << std::hex << i;
      EXPECT_EQ(back[i], i) << std::hex << i;
    }
  }
}

TEST_P(FormatsTest, NarrowsToTheNearestOverAllExponents) {
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 9973) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    ASSERT_EQ(Narrowed(GetParam(), x), NearestTo(GetParam(), x)) << std::hex << bits;
  }
}

TEST_P(FormatsTest, HalfwayGoesToTheEvenOneAndItsNeighboursToTheNearest) {
  for (int half = 0; half + 1 < GetParam().infinity; ++half) {
    const auto low = static_cast<uint16_t>(half), high = static_cast<uint16_t>(half + 1);
    const auto middle = static_cast<float>((ValueOf(GetParam(), low) + ValueOf(GetParam(), high)) / 2);
    ASSERT_EQ(Narrowed(GetParam(), middle), half % 2 == 0 ? low : high) << std::hex << half;
    ASSERT_EQ(Narrowed(GetParam(), std::nextafter(middle, 0.0f)), low) << std::hex << half;
    ASSERT_EQ(Narrowed(GetParam(), std::nextafter(middle, std::numeric_limits<float>::infinity())), high)
        << std::hex << half;
  }
}

TEST_P(FormatsTest, TakesAnyAlignment) {
  const std::vector<float> numbers = {1, -2, 0.5f, 65504, 0x1p-24f};
  const auto n = static_cast<int64_t>(numbers.size());
  std::vector<char> bytes(2 * numbers.size() + 1);
  Narrow(GetParam().dtype, numbers.data(), n, bytes.data() + 1);
  std::vector<float> widened(numbers.size());
  Widen(GetParam().dtype, bytes.data() + 1, n, widened.data());
  for (size_t i = 0; i < numbers.size(); ++i) {
    EXPECT_EQ(widened[i], ValueOf(GetParam(), NearestTo(GetParam(), numbers[i])));
  }
}

TEST(RoundTest, CountsWhatBecomesInfinite) {
  std::vector<float> numbers(3000, 65519);
  numbers[0] = 65520;
  numbers[2999] = -1e30f;
  numbers[5] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Round(v1::DTYPE_FLOAT16, absl::MakeSpan(numbers)), 2);
  EXPECT_EQ(numbers[1], 65504);
  EXPECT_EQ(numbers[2999], -std::numeric_limits<float>::infinity());
}

TEST(RoundTest, LeavesFloatsAsTheyAre) {
  std::vector<float> numbers = {0.1f};
  EXPECT_EQ(Round(v1::DTYPE_FLOAT32, absl::MakeSpan(numbers)), 0);
  EXPECT_EQ(numbers[0], 0.1f);
}

}  // namespace
}  // namespace adamant
