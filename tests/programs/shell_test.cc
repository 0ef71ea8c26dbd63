#include "client/programs/cli/shell.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

namespace adamant::programs::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ExitCodeTest, KindsOfErrorsHaveCodesOfTheirOwnThatTheHelpNames) {
  std::set<int> codes;
  for (const absl::StatusCode code :
       {absl::StatusCode::kOk, absl::StatusCode::kInternal, absl::StatusCode::kInvalidArgument,
        absl::StatusCode::kNotFound, absl::StatusCode::kAlreadyExists, absl::StatusCode::kFailedPrecondition,
        absl::StatusCode::kAborted, absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted,
        absl::StatusCode::kDataLoss}) {
    const int exit_code = ExitCodeOf(absl::Status(code, "why"));
    EXPECT_TRUE(codes.insert(exit_code).second) << absl::StatusCodeToString(code);
    EXPECT_THAT(kExitCodesHelp, HasSubstr("\n  " + std::to_string(exit_code) + " "));
  }
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), ExitCodeOf(absl::UnavailableError("")));
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
}

TEST(TableTest, NumbersStandToTheRightAndNamesToTheLeftWhateverTheirLetters) {
  EXPECT_EQ(RenderTable({"NAME", "STEP", "NOTE"}, {{"größe", "7", "x"}, {"w", "1000", ""}}),
            "NAME   STEP  NOTE\n"
            "größe     7  x\n"
            "w      1000");
  EXPECT_EQ(RenderTable({"NAME", "STEP"}, {}), "NAME  STEP");
}

TEST(RenderTest, ShapesAreParsedAsTheyAreShown) {
  for (const char* text : {"scalar", "3", "2x3x4", "0x4"}) EXPECT_EQ(RenderShape(*ParseShape(text)), text);
  EXPECT_THAT(*ParseShape("scalar"), IsEmpty());
  EXPECT_THAT(*ParseShape("2x3"), ElementsAre(2, 3));
  for (const char* text : {"", "x", "2x", "-1", "2X3", "99999999999999999999"})
    EXPECT_FALSE(ParseShape(text).ok()) << text;
}

TEST(RenderTest, BytesHaveUnits) {
  EXPECT_EQ(RenderBytes(0), "0 B");
  EXPECT_EQ(RenderBytes(1023), "1023 B");
  EXPECT_EQ(RenderBytes(1536), "1.5 KiB");
  EXPECT_EQ(RenderBytes(int64_t{5} << 40), "5.0 TiB");
}

TEST(RenderTest, JsonHasTheProtocolsNamesAndDefaults) {
  v1::WriteTensorsResponse response;
  response.set_step(7);
  EXPECT_EQ(RenderJson(response, /*one_line=*/true), R"({"incarnation":"0","step":"7","replayed":false})");
  EXPECT_EQ(QuoteJson("a\"\n\xff"), "\"a\\\"\\n\xef\xbf\xbd\"");
}

}  // namespace
}  // namespace adamant::programs::cli
