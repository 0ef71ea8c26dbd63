// One line to stderr for each event in the server's life.
//
// Thread-safe. A line has the time in UTC, the level, and the text: `2026-01-31T12:00:00.000Z INFO stopped`.
// Nobody ever waits for the reader of the log: a thread of its own writes the lines. Where stderr takes nothing,
// because it is a full pipe, a terminal that nobody reads, or its reader is gone, lines are lost, and the next one that
// is written says how many.
#ifndef ADAMANT_SERVER_LOG_H_
#define ADAMANT_SERVER_LOG_H_

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/base/mutex.h"

namespace adamant {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Drops lines below `lowest` from now on. INFO at first.
void SetLogLevel(LogLevel lowest);

// Has one line written: line breaks in `text` become spaces, and what is longer than 4 KiB is cut.
void Log(LogLevel level, absl::string_view text);

// Waits until all lines so far are written, at most for `timeout`. What a program calls before its end.
void FlushLog(absl::Duration timeout);

// The lines of one kind of event that clients can cause at any rate. Thread-safe.
class RateLimitedLog {
 public:
  // At most kBurst lines of one kind are written in each kInterval; the next one says how many were left out.
  static constexpr int kBurst = 10;
  static constexpr absl::Duration kInterval = absl::Seconds(10);

  explicit RateLimitedLog(LogLevel level) : level_(level) {}

  // Writes `text` as Log does, or counts it.
  void Write(absl::string_view text) { WriteAt(text, Now()); }
  // The same for tests: `now` is the time since any fixed moment.
  void WriteAt(absl::string_view text, absl::Duration now);

 private:
  static absl::Duration Now();

  const LogLevel level_;

  core::Mutex mutex_;
  absl::Duration interval_begin_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  int written_ ABSL_GUARDED_BY(mutex_) = 0;   // in this interval
  int left_out_ ABSL_GUARDED_BY(mutex_) = 0;  // since the last line
};

// For command-line flags: `debug`, `info`, `warning`, `error`.
bool AbslParseFlag(absl::string_view text, LogLevel* level, std::string* error);
std::string AbslUnparseFlag(LogLevel level);

}  // namespace adamant

#endif  // ADAMANT_SERVER_LOG_H_
