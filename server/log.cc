#include "server/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"

namespace adamant {
namespace {

constexpr std::array<absl::string_view, 4> kNames = {"debug", "info", "warning", "error"};

constexpr size_t kMaxLineBytes = 4096;
// Lines that wait for the reader.
constexpr size_t kMaxLines = 1000;

std::atomic<LogLevel> lowest_level = LogLevel::kInfo;

// The lines that are still to be written, and the thread that writes them. Thread-safe.
class Writer {
 public:
  // Never destroyed: threads may log until the process is gone.
  static Writer& Get() {
    static Writer* const writer = new Writer;
    return *writer;
  }

  void Add(std::string line) {
    core::MutexLock lock(&mutex_);
    if (lines_.size() == kMaxLines) {
      ++lost_;
      return;
    }
    if (lost_ > 0) line = absl::StrCat(Line(LogLevel::kWarning, absl::StrCat(std::exchange(lost_, 0), kLost)), line);
    lines_.push_back(std::move(line));
    added_.NotifyOne();
  }

  void AwaitWritten(std::chrono::steady_clock::time_point deadline) {
    core::MutexLock lock(&mutex_);
    while ((!lines_.empty() || writing_) && !written_.WaitUntil(&mutex_, deadline)) continue;
  }

  static std::string Line(LogLevel level, absl::string_view text);

 private:
  static constexpr absl::string_view kLost = " lines were lost: nobody took them";

  Writer() {
    std::thread([this] { Loop(); }).detach();
  }

  void Loop() {
    for (;;) {
      std::string line;
      {
        core::MutexLock lock(&mutex_);
        writing_ = false;
        written_.NotifyAll();
        while (lines_.empty()) added_.Wait(&mutex_);
        line = std::move(lines_.front());
        lines_.pop_front();
        writing_ = true;
      }
      // There is nobody to tell if it fails.
      [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, line.data(), line.size());
    }
  }

  core::Mutex mutex_;
  core::CondVar added_;
  core::CondVar written_;
  std::deque<std::string> lines_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  int lost_ ABSL_GUARDED_BY(mutex_) = 0;  // since the last line
};

std::string Writer::Line(LogLevel level, absl::string_view text) {
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
  Writer::Get().Add(Writer::Line(level, text));
}

void FlushLog(absl::Duration timeout) {
  Writer::Get().AwaitWritten(std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout));
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
