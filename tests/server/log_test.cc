// What a line of the log looks like, and which are left out.
#include "server/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace adamant {
namespace {

using ::testing::MatchesRegex;

class LogTest : public testing::Test {
 protected:
  ~LogTest() override { SetLogLevel(LogLevel::kInfo); }

  // What `text` becomes.
  static std::string Logged(LogLevel level, const std::string& text) {
    testing::internal::CaptureStderr();
    Log(level, text);
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, LineHasTimeLevelAndText) {
  EXPECT_THAT(Logged(LogLevel::kWarning, "all is well"),
              MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z WARNING all is well\n"));
}

TEST_F(LogTest, TextStaysOnOneLine) {
  EXPECT_THAT(Logged(LogLevel::kInfo, "one\ntwo\r\nthree"), MatchesRegex(".* INFO one two  three\n"));
}

TEST_F(LogTest, LinesBelowTheLevelAreDropped) {
  EXPECT_EQ(Logged(LogLevel::kDebug, "dropped"), "");
  SetLogLevel(LogLevel::kError);
  EXPECT_EQ(Logged(LogLevel::kWarning, "dropped"), "");
  EXPECT_THAT(Logged(LogLevel::kError, "kept"), MatchesRegex(".* ERROR kept\n"));
  SetLogLevel(LogLevel::kDebug);
  EXPECT_THAT(Logged(LogLevel::kDebug, "kept"), MatchesRegex(".* DEBUG kept\n"));
}

TEST_F(LogTest, FlagsSpellEveryLevel) {
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    LogLevel parsed;
    std::string error;
    ASSERT_TRUE(AbslParseFlag(AbslUnparseFlag(level), &parsed, &error)) << error;
    EXPECT_EQ(parsed, level);
  }
}

TEST_F(LogTest, FlagOfAnotherLevelIsAnErrorThatNamesThem) {
  LogLevel parsed;
  std::string error;
  EXPECT_FALSE(AbslParseFlag("INFO", &parsed, &error));
  EXPECT_EQ(error, "expected debug, info, warning or error");
}

}  // namespace
}  // namespace adamant
