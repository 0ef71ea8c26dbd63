#include "server/store/rate_limit.h"

#include <algorithm>
#include <utility>

#include "proto/error/error.h"
#include "server/core/base/mutex.h"

namespace adamant::store {

struct RateLimit::Rep {
  core::Mutex mutex;
  core::CondVar changed;
  // When all that was asked for has had its time.
  absl::Duration booked ABSL_GUARDED_BY(mutex) = -absl::InfiniteDuration();
  absl::Status stopped ABSL_GUARDED_BY(mutex);
};

RateLimit::RateLimit(core::Clock* clock, double bytes_per_second)
    : clock_(clock), bytes_per_second_(bytes_per_second), rep_(std::make_shared<Rep>()) {}

RateLimit::~RateLimit() = default;

absl::Status RateLimit::Wait(int64_t bytes) {
  core::MutexLock lock(&rep_->mutex);
  const absl::Duration now = clock_->Now();
  const absl::Duration turn = std::max(rep_->booked, now - kKeptTime);
  rep_->booked = turn + absl::Seconds(static_cast<double>(bytes) / bytes_per_second_);
  if (rep_->stopped.ok() && turn > now) {
    const core::Clock::TimerId timer = clock_->Schedule(turn - now, [rep = rep_] {
      core::MutexLock lock(&rep->mutex);
      rep->changed.NotifyAll();
    });
    while (rep_->stopped.ok() && clock_->Now() < turn) rep_->changed.Wait(&rep_->mutex);
    clock_->Cancel(timer);
  }
  return Unshared(rep_->stopped);
}

void RateLimit::Stop(absl::Status why) {
  core::MutexLock lock(&rep_->mutex);
  rep_->stopped = std::move(why);
  rep_->changed.NotifyAll();
}

}  // namespace adamant::store
