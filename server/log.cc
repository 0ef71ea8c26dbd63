#include "server/log.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"

namespace adamant {
namespace {

constexpr std::array<absl::string_view, 4> kNames = {"debug", "info", "warning", "error"};

// What a pipe takes in one piece, if it takes anything.
constexpr size_t kMaxLineBytes = 4096;

std::atomic<LogLevel> lowest_level = LogLevel::kInfo;

// One line at a time: between the look at the pipe and the write nobody else of this process may fill it.
core::Mutex& WriteMutex() {
  static core::Mutex* const mutex = new core::Mutex;
  return *mutex;
}
int lost_lines = 0;  // guarded by WriteMutex()

// Writes `line` to stderr if that takes it without delay. The descriptor's own flags are left alone: whoever started
// the server may share it.
bool WriteWithoutWaiting(absl::string_view line) {
  if (send(STDERR_FILENO, line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
  if (errno != ENOTSOCK) return false;
  pollfd stderr_poll = {STDERR_FILENO, POLLOUT, 0};
  if (poll(&stderr_poll, 1, /*timeout=*/0) != 1 || (stderr_poll.revents & POLLOUT) == 0) return false;
  return write(STDERR_FILENO, line.data(), line.size()) >= 0;
}

std::string Line(LogLevel level, absl::string_view text) {
  std::string line = absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()), " ",
                                  absl::AsciiStrToUpper(kNames[static_cast<size_t>(level)]), " ",
                                  absl::StrReplaceAll(text, {{"\n", " "}, {"\r", " "}}));
  if (line.size() >= kMaxLineBytes) line.resize(kMaxLineBytes - 1);
  line += '\n';
  return line;
}

}  // namespace

void SetLogLevel(LogLevel lowest) { lowest_level.store(lowest, std::memory_order_relaxed); }

void Log(LogLevel level, absl::string_view text) {
  if (level < lowest_level.load(std::memory_order_relaxed)) return;
  core::MutexLock lock(&WriteMutex());
  if (lost_lines > 0 && WriteWithoutWaiting(Line(LogLevel::kWarning, absl::StrCat(lost_lines,
                                                                                  " lines were lost: nobody "
                                                                                  "took them")))) {
    lost_lines = 0;
  }
  if (!WriteWithoutWaiting(Line(level, text))) ++lost_lines;
}

void RateLimitedLog::WriteAt(absl::string_view text, absl::Duration now) {
  int left_out;
  {
    core::MutexLock lock(&mutex_);
    if (now - interval_begin_ >= kInterval) {
      interval_begin_ = now;
      written_ = 0;
    }
    if (written_ == kBurst) {
      ++left_out_;
      return;
    }
    ++written_;
    left_out = left_out_;
    left_out_ = 0;
  }
  Log(level_, left_out == 0 ? std::string(text) : absl::StrCat(text, " (", left_out, " lines like this left out)"));
}

absl::Duration RateLimitedLog::Now() { return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()); }

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
