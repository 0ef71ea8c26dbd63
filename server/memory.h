// How much memory this process may use, how the server divides it, and how the allocator gives some back.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_MEMORY_H_
#define ADAMANT_SERVER_MEMORY_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace adamant {

// The most calls that move tensors at the same time.
inline constexpr int kMostStreams = 256;
// So many of them fit at least, unless they would take more than a quarter of what is divided.
inline constexpr int kStreamsOfASmallServer = 16;

// No server starts with less.
inline constexpr int64_t kLeastUsableBytes = int64_t{256} << 20;

// The bytes of `usable` that are not divided: for the program, its connections, and requests that move no tensors. At
// most kMostReservedBytes.
inline constexpr int64_t kMostReservedBytes = int64_t{192} << 20;
int64_t ReservedBytes(int64_t usable);

// How many calls may wait for a place where a server may use `usable` bytes. They take some 2 % of that, which comes
// out of what no budget is given.
int MaxWaitingCalls(int64_t usable);

// The smaller of the machine's memory and the control group's limit (v2 `memory.max`, v1 `memory.limit_in_bytes`), in
// bytes. `root` is a prefix of /proc and /sys that only tests set. Error: FAILED_PRECONDITION where /proc does not say.
absl::StatusOr<int64_t> UsableMemory(absl::string_view root = "");

// The budgets, in bytes, and how many calls may move tensors at the same time.
struct MemoryShares {
  int64_t state;
  int64_t inflight;
  int64_t read;
  int max_streams;
};

// What the user asked for. An empty wish takes the default share.
struct MemoryWishes {
  std::optional<int64_t> state = std::nullopt;
  std::optional<int64_t> inflight = std::nullopt;
  std::optional<int64_t> read = std::nullopt;
  std::optional<int> max_streams = std::nullopt;
};

// Divides `usable` less ReservedBytes(usable): 1/16 for calls, of `stream_bytes` each and at most kMostStreams, but
// enough for kStreamsOfASmallServer where that is no more than 1/4. What they leave of 15/16 is divided 8 : 3 : 3 among
// state, steps and writes under way, and readers. Error: INVALID_ARGUMENT if there is too little, or if a wish is not
// positive or brings the sum above 95 % of what is divided.
absl::StatusOr<MemoryShares> DivideMemory(int64_t usable, int64_t stream_bytes, const MemoryWishes& wishes);

// Has the allocator, tcmalloc or the C library's, give the memory that it keeps for later back to the system.
void ReleaseFreeMemory();

}  // namespace adamant

#endif  // ADAMANT_SERVER_MEMORY_H_
