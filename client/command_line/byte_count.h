// A number of bytes as a flag of a program: `ABSL_FLAG(adamant::ByteCount, ...)`.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_COMMAND_LINE_BYTE_COUNT_H_
#define ADAMANT_CLIENT_COMMAND_LINE_BYTE_COUNT_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace adamant {

struct ByteCount {
  int64_t bytes = 0;
};

// Understands whole numbers of bytes, such as `1048576`, and of KiB, MiB, GiB and TiB, such as `64MiB`. Otherwise
// returns false, and says in `error` what is accepted. A number may be negative: its range is each flag's own.
bool AbslParseFlag(absl::string_view text, ByteCount* count, std::string* error);
// The shortest of what AbslParseFlag understands as `count`.
std::string AbslUnparseFlag(ByteCount count);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_COMMAND_LINE_BYTE_COUNT_H_
