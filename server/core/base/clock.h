// Time, so that tests can hold it in their hands.
//
// Thread-safe.
#ifndef ADAMANT_SERVER_CORE_BASE_CLOCK_H_
#define ADAMANT_SERVER_CORE_BASE_CLOCK_H_

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"

namespace adamant::core {

class Clock {
 public:
  using TimerId = uint64_t;
  // What Schedule never returns.
  static constexpr TimerId kNoTimer = 0;

  virtual ~Clock() = default;

  // Time since some fixed moment; never goes back.
  virtual absl::Duration Now() = 0;

  // Calls `callback` once, `delay` from now or as soon after as it can, on the clock's own thread and never from within
  // this call. Callbacks run one at a time, in order of their time and then of scheduling; they must not block.
  // A delay of zero is how to get out of the locks that one holds.
  virtual TimerId Schedule(absl::Duration delay, absl::AnyInvocable<void()> callback) = 0;

  // Drops a callback that has not begun. Returns whether it did: if not, the callback has run or is running.
  virtual bool Cancel(TimerId timer) = 0;
};

// The real, steady one, with a thread of its own. Its destructor drops what has not begun.
std::unique_ptr<Clock> NewSteadyClock();

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BASE_CLOCK_H_
