#include "server/log.h"

#include <unistd.h>

#include <array>
#include <atomic>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace adamant {
namespace {

constexpr std::array<absl::string_view, 4> kNames = {"debug", "info", "warning", "error"};

std::atomic<LogLevel> lowest_level = LogLevel::kInfo;

}  // namespace

void SetLogLevel(LogLevel lowest) { lowest_level.store(lowest, std::memory_order_relaxed); }

void Log(LogLevel level, absl::string_view text) {
  if (level < lowest_level.load(std::memory_order_relaxed)) return;
  const std::string line = absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()), " ",
                                        absl::AsciiStrToUpper(kNames[static_cast<size_t>(level)]), " ",
                                        absl::StrReplaceAll(text, {{"\n", " "}, {"\r", " "}}), "\n");
  // One write, so that lines of several threads do not mix. There is nobody to tell if it fails.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

bool AbslParseFlag(absl::string_view text, LogLevel* level, std::string* error) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (text != kNames[i]) continue;
    *level = static_cast<LogLevel>(i);
    return true;
  }
  *error = "expected debug, info, warning or error";
  return false;
}

std::string AbslUnparseFlag(LogLevel level) { return std::string(kNames[static_cast<size_t>(level)]); }

}  // namespace adamant
