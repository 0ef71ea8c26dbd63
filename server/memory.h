// How much memory this process may use, how the server divides it, and how the allocator gives some back.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_MEMORY_H_
#define ADAMANT_SERVER_MEMORY_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace adamant {

// What the program itself takes, and is not divided, in bytes.
inline constexpr int64_t kReservedBytes = int64_t{192} << 20;
inline constexpr int kMostStreams = 256;

// The smaller of the machine's memory and the control group's limit (v2 `memory.max`, v1 `memory.limit_in_bytes`), in
// bytes. `root` stands before /proc and /sys: empty, but in tests.
int64_t UsableMemory(absl::string_view root = "");

// The budgets, in bytes, and how many calls may move tensors at the same time.
struct MemoryShares {
  int64_t state;
  int64_t inflight;
  int64_t read;
  int max_streams;
};

// What the user asked for; nothing: the default share.
struct MemoryWishes {
  absl::optional<int64_t> state = absl::nullopt;
  absl::optional<int64_t> inflight = absl::nullopt;
  absl::optional<int64_t> read = absl::nullopt;
  absl::optional<int> max_streams = absl::nullopt;
};

// Divides `usable` less kReservedBytes: 1/2 for state, 3/16 for steps and writes under way, 3/16 for readers, and 1/16
// for calls, of `stream_bytes` each and at most kMostStreams. Error: INVALID_ARGUMENT if a wish is not positive, or
// brings the sum above 95 % of what is divided.
absl::StatusOr<MemoryShares> DivideMemory(int64_t usable, int64_t stream_bytes, const MemoryWishes& wishes);

// Has the allocator, tcmalloc or the C library's, give the memory that it keeps for later back to the system.
void ReleaseFreeMemory();

}  // namespace adamant

#endif  // ADAMANT_SERVER_MEMORY_H_
