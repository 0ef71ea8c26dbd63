// A clock that stands still until a test moves it.
#ifndef ADAMANT_TESTS_CORE_MANUAL_CLOCK_H_
#define ADAMANT_TESTS_CORE_MANUAL_CLOCK_H_

#include <algorithm>
#include <map>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "server/core/base/clock.h"
#include "server/core/base/mutex.h"

namespace adamant::core {

// Thread-safe. Callbacks run within Advance, which callbacks must not call themselves.
class ManualClock final : public Clock {
 public:
  ~ManualClock() override {
    while (DropFirst()) {
    }
  }

  absl::Duration Now() override {
    MutexLock lock(&mutex_);
    return now_;
  }

  TimerId Schedule(absl::Duration delay, absl::AnyInvocable<void()> callback) override {
    MutexLock lock(&mutex_);
    const TimerId timer = ++last_timer_;
    timers_.emplace(Key(now_ + std::max(delay, absl::ZeroDuration()), timer), std::move(callback));
    return timer;
  }

  bool Cancel(TimerId timer) override {
    absl::AnyInvocable<void()> dropped;
    MutexLock lock(&mutex_);
    const auto found = std::find_if(timers_.begin(), timers_.end(),
                                    [timer](const auto& entry) { return entry.first.second == timer; });
    if (found == timers_.end()) return false;
    dropped = std::move(found->second);
    timers_.erase(found);
    return true;
  }

  // Moves the time on by `delay`, and on the way runs everything that is due, in order of its time, including what that
  // schedules.
  void Advance(absl::Duration delay) {
    MutexLock advancing(&advancing_);
    const absl::Duration end = Now() + delay;
    while (absl::AnyInvocable<void()> callback = TakeNext(end)) callback();
  }

  // Lets `delay` go by as it does while the process is stopped: nothing runs on the way, and what was due is late.
  void Stop(absl::Duration delay) {
    MutexLock lock(&mutex_);
    now_ += delay;
  }

  // Runs what is due now.
  void RunDue() { Advance(absl::ZeroDuration()); }

  // Callbacks that have not begun.
  int pending() {
    MutexLock lock(&mutex_);
    return static_cast<int>(timers_.size());
  }

 private:
  using Key = std::pair<absl::Duration, TimerId>;

  // The next callback due by `end`, at whose time the clock then stands. Null if there is none: it stands at `end`.
  absl::AnyInvocable<void()> TakeNext(absl::Duration end) {
    MutexLock lock(&mutex_);
    if (timers_.empty() || timers_.begin()->first.first > end) {
      now_ = end;
      return nullptr;
    }
    now_ = std::max(now_, timers_.begin()->first.first);
    absl::AnyInvocable<void()> callback = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    return callback;
  }

  bool DropFirst() {
    absl::AnyInvocable<void()> dropped;
    MutexLock lock(&mutex_);
    if (timers_.empty()) return false;
    dropped = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    return true;
  }

  Mutex advancing_;  // held while callbacks run, so that they run one at a time
  Mutex mutex_;
  absl::Duration now_ ABSL_GUARDED_BY(mutex_) = absl::Hours(1);
  TimerId last_timer_ ABSL_GUARDED_BY(mutex_) = kNoTimer;
  std::map<Key, absl::AnyInvocable<void()>> timers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_MANUAL_CLOCK_H_
