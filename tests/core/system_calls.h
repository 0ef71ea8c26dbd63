// What a test can see and change of the calls by which the block pool gets memory.
//
// For programs that are linked with `--wrap` for these functions (CMakeLists.txt): the linker leads the calls of the
// house's own code, not the C library's, to system_calls.cc. Thread-safe where nothing else is said.
#ifndef ADAMANT_TESTS_CORE_SYSTEM_CALLS_H_
#define ADAMANT_TESTS_CORE_SYSTEM_CALLS_H_

#include <cstdint>
#include <functional>
#include <vector>

namespace adamant::core {

struct CallCounts {
  int mappings = 0;  // mmap, munmap
  int advices = 0;   // madvise
  int locks = 0;     // mutexes that were locked
};

// What the calling thread has called so far.
CallCounts CallsOfThisThread();

// Notes which mutexes the calling thread locks, as long as this lives, but for the time in which another one does.
// Thread-hostile.
class LockRecorder {
 public:
  LockRecorder();
  ~LockRecorder();
  LockRecorder(const LockRecorder&) = delete;
  LockRecorder& operator=(const LockRecorder&) = delete;

  // May name a mutex more than once.
  const std::vector<const void*>& locked() const { return locked_; }
  void Add(const void* mutex) { locked_.push_back(mutex); }

 private:
  LockRecorder* const outer_;
  std::vector<const void*> locked_;
};

// What becomes of a call that populates memory.
enum class Populating {
  kDone,
  kPretended,  // succeeds, and populates nothing
  kRefused,    // for want of memory
};

// Has `answer` say, on the thread that populates, what becomes of it, as long as this lives. Thread-hostile: made and
// destroyed while no other thread populates memory. One at a time.
class PopulateHook {
 public:
  explicit PopulateHook(std::function<Populating()> answer);
  ~PopulateHook();
  PopulateHook(const PopulateHook&) = delete;
  PopulateHook& operator=(const PopulateHook&) = delete;
};

// Bytes of all that was mapped and not unmapped by calls seen here that have a page of memory behind them now.
int64_t ResidentBytes();

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SYSTEM_CALLS_H_
