// The progress bar: what it draws, and that it stays out of a pipe.
#include "client/programs/progress.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace adamant::programs {
namespace {

TEST(RenderProgressTest, FillsFromEmptyToFull) {
  EXPECT_EQ(RenderProgress(0, 8, 4, "loss 0.5"), "[>   ]   0 % loss 0.5");
  EXPECT_EQ(RenderProgress(2, 8, 4, "loss 0.5"), "[=>  ]  25 % loss 0.5");
  EXPECT_EQ(RenderProgress(7, 8, 4, "loss 0.5"), "[===>]  87 % loss 0.5");
  EXPECT_EQ(RenderProgress(8, 8, 4, "loss 0.5"), "[====] 100 % loss 0.5");
}

TEST(RenderProgressTest, KeepsItsWidthForTotalsOfAnySize) {
  constexpr int64_t kTotal = int64_t{1} << 53;

  EXPECT_EQ(RenderProgress(kTotal - 1, kTotal, 10, ""), "[=========>]  99 % ");
  EXPECT_EQ(RenderProgress(1, 3, 10, ""), "[===>      ]  33 % ");
}

TEST(ProgressBarTest, WritesNothingWhereThereIsNoTerminal) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);

  {
    ProgressBar bar(file);
    bar.Update(5, 10, "loss 0.5");
    bar.Clear();
    bar.Update(10, 10, "loss 0.4");
  }

  EXPECT_EQ(std::ftell(file), 0);
  std::fclose(file);
}

}  // namespace
}  // namespace adamant::programs
