// One line to stderr for each event in the server's life.
//
// Thread-safe. A line has the time in UTC, the level, and the text: `2026-01-31T12:00:00.000Z INFO listening on ...`.
#ifndef ADAMANT_SERVER_LOG_H_
#define ADAMANT_SERVER_LOG_H_

#include <string>

#include "absl/strings/string_view.h"

namespace adamant {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Lines below this are dropped. INFO at first.
void SetLogLevel(LogLevel lowest);

// What follows the time, on one line: line breaks in `text` become spaces.
void Log(LogLevel level, absl::string_view text);

// For command-line flags: `debug`, `info`, `warning`, `error`.
bool AbslParseFlag(absl::string_view text, LogLevel* level, std::string* error);
std::string AbslUnparseFlag(LogLevel level);

}  // namespace adamant

#endif  // ADAMANT_SERVER_LOG_H_
