#include "server/memory.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/cgroup.h"

// tcmalloc's, in programs that have it; there is a header for it only where its development files are.
extern "C" void MallocExtension_ReleaseFreeMemory() __attribute__((weak));

namespace adamant {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// The number that a file holds; kNoLimit where there is no such file, or no number in it ("max").
int64_t ReadLimit(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  int64_t value;
  if (!(file >> text) || !absl::SimpleAtoi(text, &value)) return kNoLimit;
  return value;
}

int64_t TotalMemory(absl::string_view root) {
  std::ifstream file(absl::StrCat(root, "/proc/meminfo"));
  std::string line;
  while (std::getline(file, line)) {
    absl::string_view rest = line;
    if (!absl::ConsumePrefix(&rest, "MemTotal:")) continue;
    absl::ConsumeSuffix(&rest, "kB");
    int64_t kib;
    if (absl::SimpleAtoi(rest, &kib)) return kib * 1024;
  }
  return kNoLimit;
}

// The lowest limit of the control group and of those around it.
int64_t CgroupLimit(absl::string_view root) {
  int64_t limit = kNoLimit;
  const CgroupFolders folders = FindCgroupFolders("memory", root);
  for (const std::string& folder : folders.v2) limit = std::min(limit, ReadLimit(absl::StrCat(folder, "/memory.max")));
  for (const std::string& folder : folders.v1) {
    limit = std::min(limit, ReadLimit(absl::StrCat(folder, "/memory.limit_in_bytes")));
  }
  return limit;
}

}  // namespace

absl::StatusOr<int64_t> UsableMemory(absl::string_view root) {
  const int64_t total = TotalMemory(root);
  if (total == kNoLimit) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot tell how much memory there is: no MemTotal in ", root, "/proc/meminfo"));
  }
  return std::min(total, CgroupLimit(root));
}

int MaxWaitingCalls(int64_t usable) { return static_cast<int>(std::clamp<int64_t>(usable >> 23, 64, 4096)); }

int64_t ReservedBytes(int64_t usable) { return std::min(kMostReservedBytes, usable / 16 * 5); }

absl::StatusOr<MemoryShares> DivideMemory(int64_t usable, int64_t stream_bytes, const MemoryWishes& wishes) {
  if (usable < kLeastUsableBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("this process may use ", usable, " bytes of memory, and needs at least ", kLeastUsableBytes));
  }
  const int64_t divided = usable - ReservedBytes(usable);
  const int64_t fair_share = divided / 16;
  // Where there is little memory, calls have more than their share: a budget that nobody can reach is of no use.
  const int64_t streams_share = std::min(
      kMostStreams * stream_bytes, std::max(fair_share, std::min(kStreamsOfASmallServer * stream_bytes, divided / 4)));
  // 14/16 where calls have their share.
  const int64_t others = divided / 16 * 15 - std::max(fair_share, streams_share);
  MemoryShares shares;
  shares.state = wishes.state.value_or(others / 14 * 8);
  shares.inflight = wishes.inflight.value_or(others / 14 * 3);
  shares.read = wishes.read.value_or(others / 14 * 3);
  shares.max_streams = wishes.max_streams.value_or(static_cast<int>(streams_share / stream_bytes));
  const std::pair<const char*, int64_t> flags[] = {{"state_bytes", shares.state},
                                                   {"inflight_bytes", shares.inflight},
                                                   {"read_bytes", shares.read},
                                                   {"max_streams", shares.max_streams}};
  for (const auto& [flag, share] : flags) {
    if (share <= 0) return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected 1 or more, got ", share));
  }
  const double sum = static_cast<double>(shares.state) + static_cast<double>(shares.inflight) +
                     static_cast<double>(shares.read) + static_cast<double>(shares.max_streams * stream_bytes);
  const double most = 0.95 * static_cast<double>(divided);
  if (sum > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("the memory budgets add up to ", static_cast<int64_t>(sum), " bytes (state ", shares.state,
                     ", inflight ", shares.inflight, ", read ", shares.read, ", ", shares.max_streams, " streams of ",
                     stream_bytes, "), and there is room for ", static_cast<int64_t>(most)));
  }
  return shares;
}

void ReleaseFreeMemory() {
  if (MallocExtension_ReleaseFreeMemory != nullptr) {
    MallocExtension_ReleaseFreeMemory();
    return;
  }
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace adamant
