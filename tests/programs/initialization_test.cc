// First weights against values computed apart from this code, with MT19937 written out from its paper.
#include "client/programs/initialization.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace adamant::programs {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::SizeIs;

TEST(InitialParametersTest, AreWhatPyTorchDrawsAfterManualSeedZero) {
  const std::vector<float> parameters = InitialParameters({2, 16, 1}, 0);

  ASSERT_THAT(parameters, SizeIs(65));
  // The first weights that torch prints: -0.0053, 0.3793, -0.5820, -0.5204.
  EXPECT_THAT(absl::MakeSpan(parameters).first(4),
              ElementsAre(-0x1.5af2p-8f, 0x1.846d3cp-2f, -0x1.29f962p-1f, -0x1.0a703ap-1f));
  EXPECT_EQ(parameters[31], 0x1.38cd3ap-1f) << "last weight of the first layer";
  EXPECT_EQ(parameters[32], -0x1.d5550cp-2f) << "its first bias";
  EXPECT_EQ(parameters[48], -0x1.c62390p-4f) << "first weight of the second layer";
  EXPECT_EQ(parameters[64], 0x1.1912dcp-3f) << "its bias";
}

TEST(InitialParametersTest, DependOnTheSeed) {
  EXPECT_NE(InitialParameters({2, 16, 1}, 0), InitialParameters({2, 16, 1}, 1));
}

TEST(InitialParametersTest, StayWithinTheInverseRootOfTheLayersInputs) {
  const float bound = static_cast<float>(1 / std::sqrt(64.0));

  EXPECT_THAT(InitialParameters({64, 64}, 3), Each(testing::AllOf(testing::Ge(-bound), testing::Lt(bound))));
}

}  // namespace
}  // namespace adamant::programs
