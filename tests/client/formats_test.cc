// The client's conversions to and from 16 bits, against arithmetic in double.
#include "client/src/formats.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
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

class FormatsTest : public testing::TestWithParam<std::tuple<Format, Conversions>> {
 protected:
  static const Format& format() { return std::get<0>(GetParam()); }

  static std::vector<uint16_t> Narrowed(const std::vector<float>& numbers) {
    std::vector<uint16_t> halves(numbers.size());
    std::get<1>(GetParam()).narrow(format().dtype, numbers.data(), static_cast<int64_t>(numbers.size()), halves.data());
    return halves;
  }
  static std::vector<float> Widened(const std::vector<uint16_t>& halves) {
    std::vector<float> numbers(halves.size());
    std::get<1>(GetParam()).widen(format().dtype, halves.data(), static_cast<int64_t>(halves.size()), numbers.data());
    return numbers;
  }
};

INSTANTIATE_TEST_SUITE_P(Each, FormatsTest,
                         testing::Combine(testing::Values(kBfloat16, kFloat16),
                                          testing::ValuesIn(SupportedConversions().begin(),
                                                            SupportedConversions().end())),
                         [](const auto& info) {
                           const bool bfloat16 = std::get<0>(info.param).dtype == v1::DTYPE_BFLOAT16;
                           return std::string(bfloat16 ? "Bfloat16_" : "Float16_") + std::get<1>(info.param).name;
                         });

TEST_P(FormatsTest, WidensEveryHalfExactlyAndNarrowsItBack) {
  std::vector<uint16_t> halves(kHalves);
  for (uint32_t i = 0; i < kHalves; ++i) halves[i] = static_cast<uint16_t>(i);
  const std::vector<float> widened = Widened(halves);
  const std::vector<uint16_t> back = Narrowed(widened);
  for (uint32_t i = 0; i < kHalves; ++i) {
    if (IsNan(format(), halves[i])) {
      EXPECT_TRUE(std::isnan(widened[i])) << std::hex << i;
      EXPECT_EQ(back[i], (i & 0x8000) | format().nan) << std::hex << i;
    } else {
      EXPECT_EQ(widened[i], ValueOf(format(), halves[i])) << std::hex << i;
      EXPECT_EQ(back[i], i) << std::hex << i;
    }
  }
}

TEST_P(FormatsTest, NarrowsToTheNearestOverAllExponents) {
  std::vector<float> numbers;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 9973) {
    numbers.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  const std::vector<uint16_t> halves = Narrowed(numbers);
  for (size_t i = 0; i < numbers.size(); ++i) {
    ASSERT_EQ(halves[i], NearestTo(format(), numbers[i])) << std::hex << std::bit_cast<uint32_t>(numbers[i]);
  }
}

TEST_P(FormatsTest, HalfwayGoesToTheEvenOneAndItsNeighboursToTheNearest) {
  std::vector<float> numbers;
  std::vector<uint16_t> nearest;
  for (int half = 0; half + 1 < format().infinity; ++half) {
    const auto low = static_cast<uint16_t>(half), high = static_cast<uint16_t>(half + 1);
    const auto middle = static_cast<float>((ValueOf(format(), low) + ValueOf(format(), high)) / 2);
    numbers.insert(numbers.end(), {middle, std::nextafter(middle, 0.0f),
                                   std::nextafter(middle, std::numeric_limits<float>::infinity())});
    nearest.insert(nearest.end(), {half % 2 == 0 ? low : high, low, high});
  }
  EXPECT_EQ(Narrowed(numbers), nearest);
}

TEST_P(FormatsTest, ANumberIsTheSameWhereverItIs) {
  for (const size_t count : {1, 7, 8, 15, 16, 31, 32, 33, 100}) {
    const std::vector<float> numbers(count, -0x1.FFp-20f);
    const std::vector<uint16_t> halves(count, NearestTo(format(), numbers[0]));
    EXPECT_EQ(Narrowed(numbers), halves);
    EXPECT_EQ(Widened(halves), std::vector<float>(count, static_cast<float>(ValueOf(format(), halves[0]))));
  }
}

TEST_P(FormatsTest, TakesAnyAlignment) {
  const Conversions& conversions = std::get<1>(GetParam());
  std::vector<float> numbers = {1, -2, 0.5f, 65504, 0x1p-24f};
  numbers.resize(100, 3);
  const auto n = static_cast<int64_t>(numbers.size());
  std::vector<char> bytes(2 * numbers.size() + 1);
  conversions.narrow(format().dtype, numbers.data(), n, bytes.data() + 1);
  std::vector<float> widened(numbers.size());
  conversions.widen(format().dtype, bytes.data() + 1, n, widened.data());
  for (size_t i = 0; i < numbers.size(); ++i) {
    EXPECT_EQ(widened[i], ValueOf(format(), NearestTo(format(), numbers[i])));
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
