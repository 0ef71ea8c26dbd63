#include "server/processors.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/cgroup.h"
#include "server/core/base/mutex.h"

namespace adamant {
namespace {

// Processors that `quota` microseconds in each `period` are worth; no limit if either is no positive number.
int Processors(const std::string& quota, const std::string& period) {
  int64_t quota_us;
  int64_t period_us;
  if (!absl::SimpleAtoi(quota, &quota_us) || !absl::SimpleAtoi(period, &period_us) || quota_us <= 0 || period_us <= 0) {
    return std::numeric_limits<int>::max();
  }
  return static_cast<int>(std::min<int64_t>((quota_us + period_us - 1) / period_us, std::numeric_limits<int>::max()));
}

std::string Word(std::ifstream* file) {
  std::string word;
  *file >> word;
  return word;
}

}  // namespace

int UsableProcessors(absl::string_view root) {
  int usable = 1;
  // Of as many processors as there may be: the set of the fixed size holds 1,024.
  for (int processors = 1024; processors <= 1 << 20; processors *= 4) {
    cpu_set_t* const set = CPU_ALLOC(processors);
    const size_t bytes = CPU_ALLOC_SIZE(processors);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    if (known) usable = std::max(1, CPU_COUNT_S(bytes, set));
    CPU_FREE(set);
    if (known) break;
  }
  const CgroupFolders folders = FindCgroupFolders("cpu", root);
  for (const std::string& folder : folders.v2) {
    std::ifstream file(absl::StrCat(folder, "/cpu.max"));
    const std::string quota = Word(&file);
    usable = std::min(usable, Processors(quota, Word(&file)));
  }
  for (const std::string& folder : folders.v1) {
    std::ifstream quota(absl::StrCat(folder, "/cpu.cfs_quota_us"));
    std::ifstream period(absl::StrCat(folder, "/cpu.cfs_period_us"));
    usable = std::min(usable, Processors(Word(&quota), Word(&period)));
  }
  return usable;
}

absl::Status CheckThreads(int count) {
  core::Mutex mutex;
  core::CondVar changed;
  bool may_end = false;
  std::vector<std::thread> threads;
  absl::Status status;
  threads.reserve(count);
  try {
    while (static_cast<int>(threads.size()) < count) {
      threads.emplace_back([&] {
        core::MutexLock lock(&mutex);
        while (!may_end) changed.Wait(&mutex);
      });
    }
  } catch (const std::system_error& error) {
    status = absl::ResourceExhaustedError(
        absl::StrCat("cannot start ", count, " threads: there can be only ", threads.size(), ": ", error.what()));
  }
  {
    core::MutexLock lock(&mutex);
    may_end = true;
    changed.NotifyAll();
  }
  for (std::thread& thread : threads) thread.join();
  return status;
}

}  // namespace adamant
