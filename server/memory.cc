#include "server/memory.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <fstream>
#include <limits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

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
  std::ifstream file(absl::StrCat(root, "/proc/self/cgroup"));
  std::string line;
  while (std::getline(file, line)) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const bool v2 = fields[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (!v2 && std::find(controllers.begin(), controllers.end(), "memory") == controllers.end()) continue;
    const std::string mount = absl::StrCat(root, v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
    const absl::string_view name = v2 ? "memory.max" : "memory.limit_in_bytes";
    // In a container the path may be the host's, of which only the end, or nothing, is mounted here: try each ancestor.
    std::string group = fields[2];
    for (;;) {
      limit = std::min(limit, ReadLimit(absl::StrCat(mount, group, "/", name)));
      const size_t slash = group.rfind('/');
      if (slash == std::string::npos) break;
      group.resize(slash);
    }
  }
  return limit;
}

}  // namespace

int64_t UsableMemory(absl::string_view root) { return std::min(TotalMemory(root), CgroupLimit(root)); }

absl::StatusOr<MemoryShares> DivideMemory(int64_t usable, int64_t stream_bytes, const MemoryWishes& wishes) {
  const int64_t divided = usable - kReservedBytes;
  if (divided < 16 * stream_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "this process may use ", usable, " bytes of memory, and needs at least ", kReservedBytes + 16 * stream_bytes));
  }
  MemoryShares shares;
  shares.state = wishes.state.value_or(divided / 2);
  shares.inflight = wishes.inflight.value_or(divided / 16 * 3);
  shares.read = wishes.read.value_or(divided / 16 * 3);
  shares.max_streams =
      wishes.max_streams.value_or(static_cast<int>(std::min<int64_t>(kMostStreams, divided / 16 / stream_bytes)));
  for (const int64_t share : {shares.state, shares.inflight, shares.read, int64_t{shares.max_streams}}) {
    if (share <= 0) return absl::InvalidArgumentError(absl::StrCat("a memory budget must be above 0, got ", share));
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
