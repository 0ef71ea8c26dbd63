// The steady clock: one thread that sleeps until the earliest callback is due.
#include "server/core/base/clock.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "server/core/base/mutex.h"

namespace adamant::core {
namespace {

using Callback = absl::AnyInvocable<void()>;

// Callbacks are called and destroyed without the lock: both may come back to the clock.
class SteadyClock final : public Clock {
 public:
  SteadyClock() : thread_([this] { Loop(); }) {}

  ~SteadyClock() override {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.NotifyOne();
    }
    thread_.join();
    // One by one: dropping a callback may schedule another, as a grant does that returns its bytes to those who wait.
    while (DropOne()) {
    }
  }

  absl::Duration Now() override { return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()); }

  TimerId Schedule(absl::Duration delay, Callback callback) override {
    const absl::Duration time = Now() + std::max(delay, absl::ZeroDuration());
    MutexLock lock(&mutex_);
    const TimerId timer = ++last_timer_;
    timers_.emplace(timer, Timer{time, std::move(callback)});
    const auto place = order_.emplace(time, timer).first;
    if (place == order_.begin()) changed_.NotifyOne();
    return timer;
  }

  bool Cancel(TimerId timer) override {
    Callback dropped;
    MutexLock lock(&mutex_);
    const auto found = timers_.find(timer);
    if (found == timers_.end()) return false;
    dropped = Take(found);
    return true;
  }

 private:
  struct Timer {
    absl::Duration time;
    Callback callback;
  };
  using Timers = std::map<TimerId, Timer>;

  Callback Take(Timers::iterator timer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Callback callback = std::move(timer->second.callback);
    order_.erase({timer->second.time, timer->first});
    timers_.erase(timer);
    return callback;
  }

  bool DropOne() {
    Callback dropped;
    MutexLock lock(&mutex_);
    if (timers_.empty()) return false;
    dropped = Take(timers_.begin());
    return true;
  }

  // Waits for the next callback that is due. Null when the clock stops.
  Callback AwaitNext() {
    // So that no deadline overflows, however far away a timer is.
    constexpr absl::Duration kLongestWait = absl::Hours(1);
    MutexLock lock(&mutex_);
    while (!stopping_) {
      if (order_.empty()) {
        changed_.Wait(&mutex_);
        continue;
      }
      const auto [time, timer] = *order_.begin();
      const absl::Duration now = Now();
      if (time <= now) return Take(timers_.find(timer));
      const absl::Duration deadline = std::min(time, now + kLongestWait);
      changed_.WaitUntil(&mutex_, std::chrono::steady_clock::time_point(absl::ToChronoNanoseconds(deadline)));
    }
    return nullptr;
  }

  void Loop() {
    while (Callback callback = AwaitNext()) callback();
  }

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  TimerId last_timer_ ABSL_GUARDED_BY(mutex_) = kNoTimer;
  Timers timers_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<absl::Duration, TimerId>> order_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: it uses all the others
};

}  // namespace

std::unique_ptr<Clock> NewSteadyClock() { return std::make_unique<SteadyClock>(); }

}  // namespace adamant::core
