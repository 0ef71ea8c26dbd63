// What a line of the log looks like, and which are left out.
#include "server/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace adamant {
namespace {

using ::testing::MatchesRegex;

// Long, so that only what hangs meets it.
constexpr absl::Duration kHang = absl::Seconds(30);

class LogTest : public testing::Test {
 protected:
  ~LogTest() override { SetLogLevel(LogLevel::kInfo); }

  // What `text` becomes.
  static std::string Logged(LogLevel level, const std::string& text) {
    testing::internal::CaptureStderr();
    Log(level, text);
    FlushLog(kHang);
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

TEST_F(LogTest, LongTextIsCut) {
  const std::string line = Logged(LogLevel::kInfo, std::string(100000, 'x'));
  EXPECT_EQ(line.size(), 4096);
  EXPECT_EQ(line.back(), '\n');
}

// Puts a pipe that is full in the place of stderr.
class FullPipe {
 public:
  FullPipe() : stderr_(dup(STDERR_FILENO)) {
    if (pipe(ends_) != 0) std::abort();
    fcntl(ends_[1], F_SETFL, O_NONBLOCK);
    while (write(ends_[1], "x", 1) == 1) continue;
    fcntl(ends_[1], F_SETFL, 0);
    dup2(ends_[1], STDERR_FILENO);
  }
  ~FullPipe() {
    for (const int fd : {stderr_, ends_[0]}) close(fd);
  }

  // Puts stderr back, and reads everything that was written to the pipe before, beside what filled it.
  std::string Drain() {
    std::string text;
    std::string piece(1 << 16, '\0');
    // The thread that waits for room in the pipe is woken up by this.
    ssize_t n = read(ends_[0], piece.data(), piece.size());
    text.append(piece, 0, n);
    FlushLog(kHang);
    dup2(stderr_, STDERR_FILENO);
    close(ends_[1]);
    while ((n = read(ends_[0], piece.data(), piece.size())) > 0) text.append(piece, 0, n);
    text.erase(0, text.find_first_not_of('x'));
    return text;
  }

 private:
  const int stderr_;
  int ends_[2];
};

TEST_F(LogTest, NobodyWaitsForAFullPipeAndTheNextLineSaysHowManyWereLost) {
  constexpr int kMost = 1000;  // lines that wait; one more is being written
  FullPipe pipe;
  for (int i = 0; i < kMost + 4; ++i) Log(LogLevel::kInfo, "line");
  FlushLog(absl::ZeroDuration());
  const std::string first = pipe.Drain();
  const auto lines = std::count(first.begin(), first.end(), '\n');
  EXPECT_GE(lines, kMost);
  EXPECT_LT(lines, kMost + 4);
  EXPECT_THAT(Logged(LogLevel::kInfo, "kept"),
              MatchesRegex(".* WARNING [1-4] lines were lost: nobody took them\n.* INFO kept\n"));
}

TEST_F(LogTest, LinesOfOneKindAreLimitedAndTheNextOneSaysHowManyWereLeftOut) {
  RateLimitedLog log(LogLevel::kInfo);
  testing::internal::CaptureStderr();
  for (int i = 0; i < RateLimitedLog::kBurst + 5; ++i) log.WriteAt("refused", absl::Seconds(1));
  FlushLog(kHang);
  const std::string burst = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(burst.begin(), burst.end(), '\n'), RateLimitedLog::kBurst);
  testing::internal::CaptureStderr();
  log.WriteAt("refused", absl::Seconds(1) + RateLimitedLog::kInterval);
  FlushLog(kHang);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              MatchesRegex(".* INFO refused \\(5 lines like this left out\\)\n"));
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
