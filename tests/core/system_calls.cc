#include "tests/core/system_calls.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>
#include <vector>

#include "server/core/base/mutex.h"

// Linux 5.14; the C library's headers may be older.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace adamant::core {
namespace {

thread_local CallCounts counts;
thread_local LockRecorder* recorder = nullptr;
std::function<Populating()> populate_answer;

// What is mapped: where it begins, and its bytes.
Mutex mapped_mutex;
std::map<uintptr_t, size_t> mapped ABSL_GUARDED_BY(mapped_mutex);

void AddMapped(void* address, size_t bytes) {
  MutexLock lock(&mapped_mutex);
  mapped[reinterpret_cast<uintptr_t>(address)] = bytes;
}

// Requires: it lies in one mapping.
void RemoveMapped(void* address, size_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  MutexLock lock(&mapped_mutex);
  const auto found = std::prev(mapped.upper_bound(begin));
  const uintptr_t end = found->first + found->second;
  if (begin + bytes < end) mapped[begin + bytes] = end - begin - bytes;
  found->second = begin - found->first;
  if (found->second == 0) mapped.erase(found);
}

}  // namespace

CallCounts CallsOfThisThread() { return counts; }

LockRecorder::LockRecorder() : outer_(std::exchange(recorder, this)) {}
LockRecorder::~LockRecorder() { recorder = outer_; }

PopulateHook::PopulateHook(std::function<Populating()> answer) { populate_answer = std::move(answer); }
PopulateHook::~PopulateHook() { populate_answer = nullptr; }

int64_t ResidentBytes() {
  const int64_t page = sysconf(_SC_PAGESIZE);
  int64_t pages = 0;
  MutexLock lock(&mapped_mutex);
  for (const auto& [begin, bytes] : mapped) {
    std::vector<unsigned char> resident((bytes + page - 1) / page);
    mincore(reinterpret_cast<void*>(begin), bytes, resident.data());
    pages += std::count_if(resident.begin(), resident.end(), [](unsigned char one) { return (one & 1) != 0; });
  }
  return pages * page;
}

}  // namespace adamant::core

using adamant::core::Populating;

void* RealMap(void*, size_t, int, int, int, off_t) asm("__real_mmap");
void* Map(void*, size_t, int, int, int, off_t) asm("__wrap_mmap");
void* Map(void* address, size_t length, int protection, int flags, int file, off_t offset) {
  ++adamant::core::counts.mappings;
  void* const mapped = RealMap(address, length, protection, flags, file, offset);
  if (mapped != MAP_FAILED) adamant::core::AddMapped(mapped, length);
  return mapped;
}

int RealUnmap(void*, size_t) asm("__real_munmap");
int Unmap(void*, size_t) asm("__wrap_munmap");
int Unmap(void* address, size_t length) {
  ++adamant::core::counts.mappings;
  // First, since another thread may map the same addresses as soon as they are free.
  adamant::core::RemoveMapped(address, length);
  return RealUnmap(address, length);
}

int RealAdvise(void*, size_t, int) asm("__real_madvise");
int Advise(void*, size_t, int) asm("__wrap_madvise");
int Advise(void* address, size_t length, int advice) {
  ++adamant::core::counts.advices;
  if (advice == MADV_POPULATE_WRITE && adamant::core::populate_answer) {
    const Populating answer = adamant::core::populate_answer();
    if (answer == Populating::kPretended) return 0;
    if (answer == Populating::kRefused) {
      errno = ENOMEM;
      return -1;
    }
  }
  return RealAdvise(address, length, advice);
}

int RealLock(pthread_mutex_t*) asm("__real_pthread_mutex_lock");
int Lock(pthread_mutex_t*) asm("__wrap_pthread_mutex_lock");
int Lock(pthread_mutex_t* mutex) {
  ++adamant::core::counts.locks;
  if (adamant::core::recorder != nullptr) adamant::core::recorder->Add(mutex);
  return RealLock(mutex);
}
