// The --layers flag.
#include "client/programs/layer_widths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace adamant::programs {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(LayerWidthsTest, AreReadAndPrintedAlike) {
  LayerWidths widths;
  std::string error;

  ASSERT_TRUE(AbslParseFlag("2,64,65536,1", &widths, &error)) << error;

  EXPECT_THAT(widths.values, ElementsAre(2, 64, 65536, 1));
  EXPECT_EQ(AbslUnparseFlag(widths), "2,64,65536,1");
}

TEST(LayerWidthsTest, NameTheWidthThatIsWrongAndKeepTheOldValue) {
  for (const char* wrong : {"0", "-1", "65537", "x", "", "1.5", "99999999999"}) {
    LayerWidths widths = {{7, 7}};
    std::string error;

    EXPECT_FALSE(AbslParseFlag(absl::StrCat("2,", wrong, ",1"), &widths, &error)) << wrong;

    EXPECT_THAT(error, HasSubstr(absl::StrCat("'", wrong, "'")));
    EXPECT_THAT(widths.values, ElementsAre(7, 7));
  }
}

TEST(LayerWidthsTest, AreAtLeastTwoAndAtMostSixtyFour) {
  LayerWidths widths;
  std::string error;

  EXPECT_FALSE(AbslParseFlag("2", &widths, &error));
  EXPECT_THAT(error, HasSubstr("2 to 64"));
  EXPECT_TRUE(AbslParseFlag(absl::StrJoin(std::vector<int>(64, 1), ","), &widths, &error));
  EXPECT_FALSE(AbslParseFlag(absl::StrJoin(std::vector<int>(65, 1), ","), &widths, &error));
}

}  // namespace
}  // namespace adamant::programs
