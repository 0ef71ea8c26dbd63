// The trainer's data.
#include "client/programs/regression.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace adamant::programs {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::Ge;
using testing::Lt;
using testing::SizeIs;

TEST(RegressionTest, IsTheSameForTheSameSeedOnly) {
  const Batch data = MakeRegression(3, 2, 50, 11);

  EXPECT_EQ(MakeRegression(3, 2, 50, 11).inputs, data.inputs);
  EXPECT_EQ(MakeRegression(3, 2, 50, 11).targets, data.targets);
  EXPECT_NE(MakeRegression(3, 2, 50, 12).inputs, data.inputs);
  EXPECT_NE(MakeRegression(3, 2, 50, 12).targets, data.targets);
}

TEST(RegressionTest, HasTheseBitsOnEveryMachine) {
  const Batch data = MakeRegression(1, 1, 2, 0);

  // MT19937's outputs after seed 0 are 2357136044, 2546248239, 3071714933 and 3626093760, of which the upper 24 bits
  // count.
  EXPECT_THAT(data.inputs, ElementsAre(9207562 * 0x1p-23f - 1, 9946282 * 0x1p-23f - 1));
  const float linear = 11998886 * 0x1p-23f - 1;
  const float quadratic = 14164428 * 0x1p-23f - 1;
  EXPECT_THAT(data.targets, ElementsAre((linear + quadratic * data.inputs[0]) * data.inputs[0],
                                        (linear + quadratic * data.inputs[1]) * data.inputs[1]));
}

TEST(RegressionTest, HasInputsBetweenMinusOneAndOne) {
  const Batch data = MakeRegression(4, 3, 1000, 1);

  EXPECT_THAT(data.inputs, AllOf(SizeIs(4000), Each(AllOf(Ge(-1), Lt(1)))));
  EXPECT_THAT(data.targets, SizeIs(3000));
}

TEST(RegressionTest, SplitsIntoBatchesOfConsecutiveSamples) {
  const Batch data = {.samples = 3, .inputs = {1, 2, 3, 10, 20, 30}, .targets = {7, 8, 9}};

  const std::vector<Batch> batches = SplitIntoBatches(data, 2);

  ASSERT_THAT(batches, SizeIs(2));
  EXPECT_EQ(batches[0].samples, 2);
  EXPECT_THAT(batches[0].inputs, ElementsAre(1, 2, 10, 20));
  EXPECT_THAT(batches[0].targets, ElementsAre(7, 8));
  EXPECT_EQ(batches[1].samples, 1);
  EXPECT_THAT(batches[1].inputs, ElementsAre(3, 30));
  EXPECT_THAT(batches[1].targets, ElementsAre(9));
}

TEST(RegressionTest, SplitsEvenlyIntoPartsOfConsecutiveSamples) {
  const Batch data = {.samples = 5, .inputs = {1, 2, 3, 4, 5, 10, 20, 30, 40, 50}, .targets = {5, 6, 7, 8, 9}};

  const std::vector<Batch> parts = SplitEvenly(data, 3);

  ASSERT_THAT(parts, SizeIs(3));
  EXPECT_THAT(parts[0].inputs, ElementsAre(1, 10));
  EXPECT_THAT(parts[0].targets, ElementsAre(5));
  EXPECT_EQ(parts[1].samples, 2);
  EXPECT_THAT(parts[1].inputs, ElementsAre(2, 3, 20, 30));
  EXPECT_THAT(parts[2].inputs, ElementsAre(4, 5, 40, 50));
  EXPECT_THAT(parts[2].targets, ElementsAre(8, 9));
}

TEST(RegressionTest, SplitsIntoOneBatchThatTakesAll) {
  const Batch data = MakeRegression(2, 1, 5, 0);

  const std::vector<Batch> batches = SplitIntoBatches(data, 1 << 30);

  ASSERT_THAT(batches, SizeIs(1));
  EXPECT_EQ(batches[0].inputs, data.inputs);
}

}  // namespace
}  // namespace adamant::programs
