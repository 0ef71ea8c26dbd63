// Every instruction set's measure gives the scalar reference's bits, whatever the input, and reads nothing else.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/norm.h"
#include "tests/conformance/kernel_conformance.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

testing::AssertionResult SameStats(const GradientStats& expected, const GradientStats& actual) {
  const bool same_sum =
      std::bit_cast<uint64_t>(expected.sum_of_squares) == std::bit_cast<uint64_t>(actual.sum_of_squares) ||
      (std::isnan(expected.sum_of_squares) && std::isnan(actual.sum_of_squares));
  if (same_sum && expected.max_magnitude_bits == actual.max_magnitude_bits) return testing::AssertionSuccess();
  return testing::AssertionFailure() << std::hexfloat << "measured " << actual.sum_of_squares << ", " << std::hex
                                     << actual.max_magnitude_bits << " instead of " << expected.sum_of_squares << ", "
                                     << expected.max_magnitude_bits;
}

GradientStats Measure(const KernelTable& kernels, const std::vector<float>& g) {
  return kernels.measure(g.data(), static_cast<int64_t>(g.size()));
}

class MeasureConformanceTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& kernels() const { return *GetParam(); }
};

TEST_P(MeasureConformanceTest, EverySizeGivesTheReferencesBits) {
  RandomFloats random(PrintedSeed());
  std::vector<int64_t> sizes(301);
  std::iota(sizes.begin(), sizes.end(), 0);
  for (int64_t leaves : {1, 2, 3, 16}) {
    for (int64_t more : {-33, -17, -16, -1, 0, 1, 31, 32, 1000}) sizes.push_back(leaves * kNormLeaf + more);
  }
  for (int64_t size : sizes) {
    const std::vector<float> g = Generate(size, [&] { return random.Signed(1e-12, 1e12); });

    EXPECT_TRUE(SameStats(Measure(ScalarKernels(), g), Measure(kernels(), g))) << "size " << size;
  }
}

TEST_P(MeasureConformanceTest, EveryClassOfFloatGivesTheReferencesBits) {
  RandomFloats random(PrintedSeed());
  for (int i = 0; i < 1000; ++i) {
    std::vector<float> g = Generate(random.Index(200), [&] { return random.Signed(1e-3, 1e3); });
    for (int64_t changed = random.Index(3); changed > 0 && !g.empty(); --changed) {
      g[random.Index(static_cast<int64_t>(g.size()))] = random.Any();
    }

    ASSERT_TRUE(SameStats(Measure(ScalarKernels(), g), Measure(kernels(), g))) << "iteration " << i;
  }
}

TEST_P(MeasureConformanceTest, TheLargestMagnitudeIsFoundAtEveryPlace) {
  for (size_t place = 0; place < 300; ++place) {
    std::vector<float> g(300, 0.5f);
    g[place] = -std::numeric_limits<float>::max();

    EXPECT_EQ(Measure(kernels(), g).max_magnitude_bits, 0x7F7FFFFFu) << place;
  }
}

TEST_P(MeasureConformanceTest, AlignmentDoesNotMatter) {
  RandomFloats random(PrintedSeed());
  const std::vector<float> g = Generate(5003, [&] { return random.Signed(1e-12, 1e12); });
  for (int64_t offset = 0; offset < 16; ++offset) {
    CanariedArray array(g, offset);

    EXPECT_TRUE(SameStats(Measure(ScalarKernels(), g), kernels().measure(array.data(), 5003))) << "offset " << offset;
  }
}

TEST_P(MeasureConformanceTest, ReadsNoMemoryOutsideOfTheBlock) {
  RandomFloats random(PrintedSeed());
  for (FencedArray::At at : {FencedArray::At::kBegin, FencedArray::At::kEnd}) {
    for (int64_t size : {0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 63, 65, 4095, 4096, 4097}) {
      const std::vector<float> g = Generate(size, [&] { return random.Signed(1e-12, 1e12); });
      FencedArray array(g, at);

      EXPECT_TRUE(SameStats(Measure(ScalarKernels(), g), kernels().measure(array.data(), size))) << "size " << size;
    }
  }
}

#if defined(__x86_64__)
TEST_P(MeasureConformanceTest, CallersFloatingPointEnvironmentNeitherChangesTheResultNorIsChanged) {
  RandomFloats random(PrintedSeed());
  const std::vector<float> g = Generate(9001, [&] { return random.Signed(1e-44, 1e12); });
  const GradientStats expected = Measure(ScalarKernels(), g);
  for (unsigned int environment : FloatingPointEnvironments()) {
    GradientStats actual;

    const unsigned int after = CallIn(environment, [&] { actual = kernels().measure(g.data(), 9001); });

    ASSERT_EQ(after, environment);
    ASSERT_TRUE(SameStats(expected, actual)) << "MXCSR " << environment;
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(EveryIsa, MeasureConformanceTest, testing::ValuesIn(SupportedKernels()), KernelName);

}  // namespace
}  // namespace adamant::kernels
