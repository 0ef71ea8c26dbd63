// Every instruction set folds contributions as rounds.h says, bit for bit, and touches nothing else.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/rounds.h"
#include "tests/conformance/kernel_conformance.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

// By the C library's fma, one by one.
std::vector<float> Expected(float k, const std::vector<float>& g, std::vector<float> sum, bool first) {
  for (size_t i = 0; i < g.size(); ++i) sum[i] = first ? k * g[i] : std::fma(k, g[i], sum[i]);
  return sum;
}

class FoldConformanceTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  void Fold(float k, const float* g, float* sum, int64_t n, bool first) { GetParam()->fold(k, g, sum, n, first); }

  std::vector<float> Actual(float k, const std::vector<float>& g, std::vector<float> sum, bool first) {
    Fold(k, g.data(), sum.data(), static_cast<int64_t>(g.size()), first);
    return sum;
  }
};

std::vector<float> AnyFloats(int64_t size, RandomFloats* random) {
  return Generate(size, [&] { return random->Any(); });
}

TEST_P(FoldConformanceTest, EverySizeIsFoldedAsTheHeaderSays) {
  RandomFloats random(PrintedSeed());
  std::vector<int64_t> sizes(301);
  std::iota(sizes.begin(), sizes.end(), 0);
  sizes.insert(sizes.end(), {4095, 4097, 65535, 65536, 65537, 100003});
  for (int64_t size : sizes) {
    for (const bool first : {true, false}) {
      const float k = random.Signed(0x1p-48, 0x1p48);
      const std::vector<float> g = AnyFloats(size, &random), sum = AnyFloats(size, &random);

      ASSERT_TRUE(SameFloats(Expected(k, g, sum, first), Actual(k, g, sum, first))) << "size " << size;
    }
  }
}

// Products that are rounded before they are added give another sum, and denormals that are taken for zero do.
TEST_P(FoldConformanceTest, TheProductIsNotRoundedAndDenormalsAreKept) {
  EXPECT_TRUE(SameFloats({0x1p-46f}, Actual(1 + 0x1p-23f, {1 + 0x1p-23f}, {-(1 + 0x1p-22f)}, false)));
  EXPECT_TRUE(SameFloats({0x1p-149f}, Actual(0x1p-48f, {0x1p-101f}, {42}, true)));
  EXPECT_TRUE(SameFloats({0x1p-148f}, Actual(1, {0x1p-149f}, {0x1p-149f}, false)));
}

TEST_P(FoldConformanceTest, AlignmentDoesNotMatterAndNothingElseIsWritten) {
  RandomFloats random(PrintedSeed());
  for (int64_t size : {0, 1, 7, 8, 9, 15, 16, 17, 33, 250}) {
    for (int64_t offset = 0; offset < 16; ++offset) {
      for (const bool first : {true, false}) {
        const std::vector<float> g = AnyFloats(size, &random), sum = AnyFloats(size, &random);
        const float k = random.Signed(1e-3, 1e3);
        CanariedArray from(g, random.Index(16)), to(sum, offset), over(g, offset);

        Fold(k, from.data(), to.data(), size, first);
        Fold(k, over.data(), over.data(), size, first);

        ASSERT_TRUE(SameFloats(Expected(k, g, sum, first), to.values())) << "size " << size;
        ASSERT_TRUE(SameFloats(Expected(k, g, g, first), over.values())) << "size " << size;
        ASSERT_TRUE(SameFloats(g, from.values()));
        ASSERT_TRUE(from.NothingOutsideWasWritten());
        ASSERT_TRUE(to.NothingOutsideWasWritten());
        ASSERT_TRUE(over.NothingOutsideWasWritten());
      }
    }
  }
}

TEST_P(FoldConformanceTest, TouchesNoMemoryOutsideOfTheArrays) {
  RandomFloats random(PrintedSeed());
  for (FencedArray::At at : {FencedArray::At::kBegin, FencedArray::At::kEnd}) {
    for (int64_t size = 0; size <= 70; ++size) {
      for (const bool first : {true, false}) {
        const std::vector<float> g = AnyFloats(size, &random), sum = AnyFloats(size, &random);
        FencedArray from(g, at), to(sum, at);

        Fold(0.75f, from.data(), to.data(), size, first);

        ASSERT_TRUE(SameFloats(Expected(0.75f, g, sum, first), to.values())) << "size " << size;
      }
    }
  }
}

#if defined(__x86_64__)
TEST_P(FoldConformanceTest, CallersFloatingPointEnvironmentNeitherChangesTheResultNorIsChanged) {
  RandomFloats random(PrintedSeed());
  const std::vector<float> g = AnyFloats(1003, &random), sum = AnyFloats(1003, &random);
  for (const bool first : {true, false}) {
    const std::vector<float> expected = Expected(1.1f, g, sum, first);
    for (unsigned int environment : FloatingPointEnvironments()) {
      std::vector<float> actual;

      const unsigned int after = CallIn(environment, [&] { actual = Actual(1.1f, g, sum, first); });

      ASSERT_EQ(after, environment);
      ASSERT_TRUE(SameFloats(expected, actual)) << "MXCSR " << environment;
    }
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(EveryIsa, FoldConformanceTest, testing::ValuesIn(SupportedKernels()), KernelName);

}  // namespace
}  // namespace adamant::kernels
