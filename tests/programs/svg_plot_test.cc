#include "client/programs/cli/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace adamant::programs::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(TicksTest, AreRoundNumbers) {
  EXPECT_THAT(Ticks(0, 12, false), ElementsAre(0, 2, 4, 6, 8, 10, 12));
  EXPECT_THAT(Ticks(-1, 1, false), ElementsAre(-1, -0.5, 0, 0.5, 1));
  EXPECT_THAT(Ticks(1, 1000, true), ElementsAre(1, 10, 100, 1000));
  EXPECT_THAT(Ticks(1, 20, true), ElementsAre(1, 2, 5, 10, 20));
}

TEST(TicksTest, AreSomeAndWithinTheAxisHoweverFarItReaches) {
  for (double least = 1e-30; least < 1e30; least *= 37) {
    for (double factor = 1.001; factor < 1e30; factor *= 11) {
      for (const bool logarithmic : {false, true}) {
        const std::vector<double> ticks = Ticks(least, least * factor, logarithmic);
        ASSERT_GE(ticks.size(), 2) << least << " " << factor << " " << logarithmic;
        ASSERT_LE(ticks.size(), 12) << least << " " << factor << " " << logarithmic;
        EXPECT_TRUE(std::is_sorted(ticks.begin(), ticks.end()));
        EXPECT_GE(ticks.front(), least * (1 - 1e-6) - (logarithmic ? 0 : 1e-8 * least * factor));
        EXPECT_LE(ticks.back(), least * factor * (1 + 1e-6));
      }
    }
  }
}

TEST(SvgTest, HasATitleALegendAndNamesThatAreTexts) {
  const std::string svg =
      RenderSvg({.title = "a <b>",
                 .horizontal_title = "step & time",
                 .panels = {{.title = "two", .series = {{"x\"y", {{0, 1}, {1, 2}}}, {"z", {{0, 3}}}}}}});
  EXPECT_THAT(svg, AllOf(HasSubstr("a &lt;b&gt;"), HasSubstr("step &amp; time"), HasSubstr(">x&quot;y</text>"),
                         HasSubstr(">z</text>"), Not(HasSubstr("<b>"))));
  const std::string one =
      RenderSvg({.title = "", .horizontal_title = "", .panels = {{.title = "", .series = {{"alone", {}}}}}});
  EXPECT_THAT(one, Not(HasSubstr("alone")));
}

TEST(SvgTest, WhatCannotBeShownIsAGapAndNoNumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
  for (const bool logarithmic : {false, true}) {
    for (const std::vector<std::pair<double, double>>& points : std::vector<std::vector<std::pair<double, double>>>{
             {}, {{1, nan}}, {{1, 1}}, {{1, 0}}, {{1, 1}, {2, nan}, {3, 2}, {4, infinite}, {5, -1}, {6, 0}}}) {
      const std::string svg =
          RenderSvg({.title = "",
                     .horizontal_title = "",
                     .panels = {{.title = "", .series = {{"", points}}, .logarithmic = logarithmic}},
                     .logarithmic = logarithmic});
      EXPECT_THAT(svg, AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
    }
  }
  const std::string gap = RenderSvg(
      {.title = "", .horizontal_title = "", .panels = {{.title = "", .series = {{"", {{0, 1}, {1, nan}, {2, 1}}}}}}});
  const size_t path = gap.find("<path d=\"");
  ASSERT_NE(path, std::string::npos);
  const std::string commands = gap.substr(path, gap.find('"', path + 9) - path);
  EXPECT_EQ(std::count(commands.begin(), commands.end(), 'M'), 2);
  EXPECT_EQ(std::count(commands.begin(), commands.end(), 'L'), 0);
}

}  // namespace
}  // namespace adamant::programs::cli
