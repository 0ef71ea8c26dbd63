// Every instruction set's conversions give what the formats' definitions say, bit for bit, and touch nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/formats.h"
#include "tests/conformance/kernel_conformance.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

constexpr uint32_t kInfinity = 0x7F800000;  // the bits of a float

// A format by its definition: a sign, an exponent and a mantissa, in bits. All that follows is of magnitudes.
struct Definition {
  const char* name;
  int exponent_bits;
  int mantissa_bits;

  uint16_t infinity() const { return static_cast<uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits); }
  uint16_t nan() const { return static_cast<uint16_t>(infinity() | 1 << (mantissa_bits - 1)); }
  // What these bits mean. For infinity: what would follow the largest number.
  double Value(uint16_t bits) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    return exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                         : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
};

// By Format16.
constexpr Definition kDefinitions[kFormats16] = {{"bfloat16", 8, 7}, {"float16", 5, 10}};

// Finds the nearest of a format's numbers by looking at them in turn.
class Nearest {
 public:
  explicit Nearest(const Definition& format) : format_(format) { GoTo(0); }

  // Requires: `x` is no NaN, nor negative, nor less than at the last call.
  uint16_t To(double x) {
    if (std::isinf(x)) return format_.infinity();
    while (x >= above_ && below_ + 1 < format_.infinity()) GoTo(below_ + 1);
    if (x < halfway_) return below_;
    return x > halfway_ || below_ % 2 == 1 ? below_ + 1 : below_;
  }

 private:
  void GoTo(uint16_t below) {
    below_ = below;
    above_ = format_.Value(below + 1);
    halfway_ = (format_.Value(below) + above_) / 2;
  }

  const Definition format_;
  uint16_t below_;
  double above_;    // the next one's value
  double halfway_;  // between the two
};

float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }

std::vector<uint16_t> Every16Bits() {
  std::vector<uint16_t> all(65536);
  std::iota(all.begin(), all.end(), uint16_t{0});
  return all;
}

// What floats of these magnitudes, which ascend, become.
std::vector<uint16_t> Narrowed(const std::vector<uint32_t>& magnitudes, const Definition& format) {
  Nearest nearest(format);
  std::vector<uint16_t> narrowed;
  for (const uint32_t bits : magnitudes) {
    narrowed.push_back(bits > kInfinity ? format.nan() : nearest.To(FloatOf(bits)));
  }
  return narrowed;
}

using Parameter = std::tuple<const KernelTable*, Format16>;

class ConvertConformanceTest : public testing::TestWithParam<Parameter> {
 protected:
  const Definition& format() const { return kDefinitions[std::get<Format16>(GetParam())]; }
  WidenFunction widen() const { return std::get<0>(GetParam())->widen[std::get<Format16>(GetParam())]; }
  NarrowFunction narrow() const { return std::get<0>(GetParam())->narrow[std::get<Format16>(GetParam())]; }

  std::vector<float> Widen(const std::vector<uint16_t>& from) const {
    std::vector<float> to(from.size(), 42.0f);
    widen()(from.data(), to.data(), static_cast<int64_t>(from.size()));
    return to;
  }

  // Floats of these magnitudes become `expected`, with either sign, and those that overflow are counted.
  testing::AssertionResult Narrow(const std::vector<uint32_t>& magnitudes, const std::vector<uint16_t>& expected) {
    const int64_t n = static_cast<int64_t>(magnitudes.size());
    int64_t overflown = 0;
    for (int64_t i = 0; i < n; ++i) overflown += magnitudes[i] < kInfinity && expected[i] == format().infinity();
    floats_.resize(n);
    narrowed_.resize(n);
    for (const uint32_t sign : {0u, 0x80000000u}) {
      for (int64_t i = 0; i < n; ++i) floats_[i] = FloatOf(sign | magnitudes[i]);
      const int64_t counted = narrow()(floats_.data(), narrowed_.data(), n);
      if (counted != overflown) {
        return testing::AssertionFailure() << counted << " became infinite instead of " << overflown;
      }
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t with_sign = static_cast<uint16_t>(sign >> 16 | expected[i]);
        if (narrowed_[i] == with_sign) continue;
        return testing::AssertionFailure() << std::hex << "0x" << (sign | magnitudes[i]) << " became 0x" << narrowed_[i]
                                           << " instead of 0x" << with_sign;
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  std::vector<float> floats_;
  std::vector<uint16_t> narrowed_;
};

TEST_P(ConvertConformanceTest, WidensEvery16BitsToTheSameValue) {
  const std::vector<uint16_t> all = Every16Bits();

  const std::vector<float> widened = Widen(all);

  for (const uint16_t bits : all) {
    const uint16_t magnitude = bits & 0x7FFF;
    const double sign = bits == magnitude ? 1 : -1;
    EXPECT_EQ(std::signbit(widened[bits]), sign < 0) << bits;
    if (magnitude > format().infinity()) {
      EXPECT_TRUE(std::isnan(widened[bits])) << bits;
    } else if (magnitude == format().infinity()) {
      EXPECT_EQ(widened[bits], sign * std::numeric_limits<double>::infinity());
    } else {
      EXPECT_EQ(widened[bits], sign * format().Value(magnitude)) << bits;
    }
  }
}

TEST_P(ConvertConformanceTest, NarrowsToTheNearestAboutEveryNumberAndHalfwayBetweenTwo) {
  std::vector<uint32_t> magnitudes = {kInfinity - 1, kInfinity};
  for (uint16_t bits = 0; bits < format().infinity(); ++bits) {
    const double value = format().Value(bits);
    for (const double x : {value, (value + format().Value(bits + 1)) / 2}) {
      const uint32_t at = std::bit_cast<uint32_t>(static_cast<float>(x));
      for (uint32_t near = at - std::min(at, 2u); near <= at + 2; ++near) magnitudes.push_back(near);
    }
  }
  std::sort(magnitudes.begin(), magnitudes.end());

  EXPECT_TRUE(Narrow(magnitudes, Narrowed(magnitudes, format())));
}

// One magnitude in 1,009, or with ADAMANT_TEST_EVERY_FLOAT all 2^31 of them: the test preset every-float.
TEST_P(ConvertConformanceTest, NarrowsEveryFloatToTheNearest) {
  const uint32_t stride = std::getenv("ADAMANT_TEST_EVERY_FLOAT") != nullptr ? 1 : 1009;
  const uint64_t first = PrintedSeed() % stride;
  Nearest nearest(format());
  std::vector<uint32_t> magnitudes;
  std::vector<uint16_t> expected;
  uint64_t tested = 0;
  for (uint64_t bits = first; bits <= 0x7FFFFFFF; bits += stride) {
    magnitudes.push_back(static_cast<uint32_t>(bits));
    expected.push_back(bits > kInfinity ? format().nan() : nearest.To(FloatOf(magnitudes.back())));
    // A number of elements that is no multiple of a vector's.
    if (magnitudes.size() < 65521 && bits + stride <= 0x7FFFFFFF) continue;
    ASSERT_TRUE(Narrow(magnitudes, expected));
    tested += 2 * magnitudes.size();
    magnitudes.clear();
    expected.clear();
  }
  std::cout << "narrowed " << tested << " floats" << std::endl;
}

TEST_P(ConvertConformanceTest, NarrowsBackWhatItWidened) {
  const std::vector<uint16_t> all = Every16Bits();
  const std::vector<float> widened = Widen(all);
  std::vector<uint16_t> narrowed(all.size());

  EXPECT_EQ(narrow()(widened.data(), narrowed.data(), 65536), 0);

  for (const uint16_t bits : all) {
    const bool is_nan = (bits & 0x7FFF) > format().infinity();
    EXPECT_EQ(narrowed[bits], is_nan ? (bits & 0x8000) | format().nan() : bits);
  }
}

TEST_P(ConvertConformanceTest, CountsEveryFloatThatOverflowsWhereverItIs) {
  const float largest = std::numeric_limits<float>::max();
  for (int64_t size = 1; size <= 70; ++size) {
    std::vector<uint16_t> to(size);
    EXPECT_EQ(narrow()(std::vector<float>(size, largest).data(), to.data(), size), size);
    for (int64_t place = 0; place < size; ++place) {
      std::vector<float> one(size, std::numeric_limits<float>::infinity());
      one[place] = -largest;
      EXPECT_EQ(narrow()(one.data(), to.data(), size), 1) << place << " of " << size;
    }
  }
}

std::vector<uint8_t> AnyBytes(int64_t size, RandomFloats* random) {
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random->Index(256));
  return bytes;
}

// One by one, which is what the tests above are about.
std::vector<float> WidenedEach(WidenFunction widen, const std::vector<uint8_t>& from) {
  std::vector<float> to(from.size() / 2);
  for (size_t i = 0; i < to.size(); ++i) widen(&from[2 * i], &to[i], 1);
  return to;
}

std::vector<uint8_t> NarrowedEach(NarrowFunction narrow, const std::vector<float>& from, int64_t* overflown) {
  std::vector<uint8_t> to(2 * from.size());
  *overflown = 0;
  for (size_t i = 0; i < from.size(); ++i) *overflown += narrow(&from[i], &to[2 * i], 1);
  return to;
}

TEST_P(ConvertConformanceTest, WidensEverySizeAndAlignmentAndWritesNothingElse) {
  RandomFloats random(PrintedSeed());
  for (int64_t size = 0; size <= 70; ++size) {
    for (int64_t offset = 0; offset < 64; ++offset) {
      const std::vector<uint8_t> elements = AnyBytes(2 * size, &random);
      CanariedMemory<uint8_t> from(elements, offset);
      CanariedArray to(std::vector<float>(size, 42.0f), random.Index(16));

      widen()(from.data(), to.data(), size);

      SCOPED_TRACE(testing::Message() << "size " << size << " offset " << offset);
      ASSERT_TRUE(SameFloats(WidenedEach(widen(), elements), to.values()));
      ASSERT_TRUE(to.NothingOutsideWasWritten());
      ASSERT_EQ(from.values(), elements);
    }
  }
}

TEST_P(ConvertConformanceTest, NarrowsEverySizeAndAlignmentAndWritesNothingElse) {
  RandomFloats random(PrintedSeed());
  for (int64_t size = 0; size <= 70; ++size) {
    for (int64_t offset = 0; offset < 64; ++offset) {
      const std::vector<float> numbers = Generate(size, [&] { return random.Any(); });
      int64_t overflown;
      const std::vector<uint8_t> expected = NarrowedEach(narrow(), numbers, &overflown);
      CanariedArray from(numbers, random.Index(16));
      CanariedMemory<uint8_t> to(std::vector<uint8_t>(2 * size, 42), offset);

      const int64_t counted = narrow()(from.data(), to.data(), size);

      SCOPED_TRACE(testing::Message() << "size " << size << " offset " << offset);
      ASSERT_EQ(counted, overflown);
      ASSERT_EQ(to.values(), expected);
      ASSERT_TRUE(to.NothingOutsideWasWritten());
      ASSERT_TRUE(SameFloats(numbers, from.values()));
    }
  }
}

TEST_P(ConvertConformanceTest, TouchesNoMemoryOutsideOfTheArrays) {
  RandomFloats random(PrintedSeed());
  using Bytes = FencedMemory<uint8_t>;
  for (const auto& [bytes_at, floats_at] :
       {std::pair(Bytes::At::kBegin, FencedArray::At::kBegin), std::pair(Bytes::At::kEnd, FencedArray::At::kEnd)}) {
    for (int64_t size = 0; size <= 70; ++size) {
      const std::vector<uint8_t> elements = AnyBytes(2 * size, &random);
      const std::vector<float> numbers = Generate(size, [&] { return random.Any(); });
      int64_t overflown;
      const std::vector<uint8_t> expected = NarrowedEach(narrow(), numbers, &overflown);
      Bytes widen_from(elements, bytes_at), narrow_to(elements, bytes_at);
      FencedArray widen_to(numbers, floats_at), narrow_from(numbers, floats_at);

      widen()(widen_from.data(), widen_to.data(), size);
      const int64_t counted = narrow()(narrow_from.data(), narrow_to.data(), size);

      ASSERT_TRUE(SameFloats(WidenedEach(widen(), elements), widen_to.values())) << "size " << size;
      ASSERT_EQ(counted, overflown) << "size " << size;
      ASSERT_EQ(narrow_to.values(), expected) << "size " << size;
    }
  }
}

#if defined(__x86_64__)
TEST_P(ConvertConformanceTest, CallersFloatingPointEnvironmentNeitherChangesTheResultNorIsChanged) {
  const std::vector<uint16_t> all = Every16Bits();
  const std::vector<float> widened = Widen(all);
  std::vector<uint32_t> magnitudes;
  for (uint64_t bits = 0; bits <= 0x7FFFFFFF; bits += 70001) magnitudes.push_back(static_cast<uint32_t>(bits));
  const std::vector<uint16_t> narrowed = Narrowed(magnitudes, format());
  std::vector<float> floats;
  for (const uint32_t bits : magnitudes) floats.push_back(FloatOf(bits));
  for (unsigned int environment : FloatingPointEnvironments()) {
    std::vector<float> to(all.size());
    std::vector<uint16_t> narrow_to(floats.size());

    const unsigned int after_widen = CallIn(environment, [&] { widen()(all.data(), to.data(), 65536); });
    const unsigned int after_narrow =
        CallIn(environment, [&] { narrow()(floats.data(), narrow_to.data(), static_cast<int64_t>(floats.size())); });

    ASSERT_EQ(after_widen, environment);
    ASSERT_EQ(after_narrow, environment);
    ASSERT_TRUE(SameFloats(widened, to)) << "MXCSR " << environment;
    ASSERT_EQ(narrow_to, narrowed) << "MXCSR " << environment;
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(EveryIsa, ConvertConformanceTest,
                         testing::Combine(testing::ValuesIn(SupportedKernels()), testing::Values(kBfloat16, kFloat16)),
                         [](const testing::TestParamInfo<Parameter>& info) {
                           return std::string(std::get<0>(info.param)->name) + "_" +
                                  kDefinitions[std::get<1>(info.param)].name;
                         });

}  // namespace
}  // namespace adamant::kernels
