// Counting bytes, and the queue of those who wait for some.
#include "server/core/memory/budget.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::core {

Grant::Grant(Grant&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      arrival_(std::exchange(other.arrival_, 0)) {}

Grant& Grant::operator=(Grant&& other) noexcept {
  Grant taken(std::move(other));
  std::swap(budget_, taken.budget_);
  std::swap(bytes_, taken.bytes_);
  std::swap(arrival_, taken.arrival_);
  return *this;
}

Grant::~Grant() {
  if (budget_ != nullptr) budget_->Release(bytes_, arrival_);
}

void Grant::ShrinkTo(int64_t bytes) {
  if (bytes >= bytes_) return;
  budget_->Release(std::exchange(bytes_, bytes) - bytes, arrival_);
}

Budget::Budget(absl::string_view name, int64_t capacity, Clock* clock)
    : name_(name), capacity_(capacity), clock_(clock) {}

Budget::~Budget() = default;

absl::StatusOr<Grant> Budget::TryReserve(int64_t bytes) {
  if (bytes > capacity_) return TooLarge(bytes);
  MutexLock lock(&mutex_);
  if (!MayHave(bytes)) return Exhausted(bytes, used_);
  return Take(bytes);
}

Budget::WaitId Budget::Reserve(int64_t bytes, absl::Duration wait, Done done) {
  if (bytes > capacity_) {
    done(TooLarge(bytes));
    return kNoWait;
  }
  Grant grant;
  {
    MutexLock lock(&mutex_);
    if (!MayHave(bytes)) {
      const WaitId id = ++arrivals_;
      const Clock::TimerId timer = clock_->Schedule(wait, [this, id] { TimeOut(id); });
      waiters_.push_back({id, bytes, used_, timer, std::move(done)});
      return id;
    }
    grant = Take(bytes);
  }
  done(std::move(grant));
  return kNoWait;
}

void Budget::Cancel(WaitId wait) {
  Done dropped;  // outlives the lock: it may own what comes back to this budget
  Clock::TimerId delivery = Clock::kNoTimer;
  {
    MutexLock lock(&mutex_);
    const auto waiter = FindWaiter(wait);
    if (waiter != waiters_.end()) {
      clock_->Cancel(waiter->timer);
      dropped = std::move(waiter->done);
      waiters_.erase(waiter);
      Serve();
      return;
    }
    const auto found = deliveries_.find(wait);
    if (found == deliveries_.end()) return;
    delivery = found->second;
    deliveries_.erase(found);
  }
  // Without the lock: the callback owns its grant.
  clock_->Cancel(delivery);
}

int64_t Budget::used() const {
  MutexLock lock(&mutex_);
  return used_;
}

int64_t Budget::waiting() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(waiters_.size());
}

void Budget::Release(int64_t bytes, uint64_t arrival) {
  MutexLock lock(&mutex_);
  used_ -= bytes;
  for (Waiter& waiter : waiters_) {
    if (waiter.id > arrival) waiter.elders -= bytes;
  }
  Serve();
  if (used_ == 0) unused_.NotifyAll();
}

void Budget::AwaitUnused() {
  MutexLock lock(&mutex_);
  while (used_ != 0) unused_.Wait(&mutex_);
}

bool Budget::MayHave(int64_t bytes) const {
  return bytes <= capacity_ - used_ &&
         std::all_of(waiters_.begin(), waiters_.end(), [this](const Waiter& waiter) { return MayBePassed(waiter); });
}

Grant Budget::Take(int64_t bytes) {
  used_ += bytes;
  return Grant(this, bytes, ++arrivals_);
}

std::deque<Budget::Waiter>::iterator Budget::FindWaiter(WaitId wait) {
  return std::find_if(waiters_.begin(), waiters_.end(), [wait](const Waiter& waiter) { return waiter.id == wait; });
}

void Budget::Serve() {
  int64_t granted = 0;  // to those ahead: more elders
  bool may_pass = true;
  for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
    waiter->elders += granted;
    if (may_pass && waiter->bytes <= capacity_ - used_) {
      used_ += waiter->bytes;
      granted += waiter->bytes;
      Deliver(std::move(*waiter));
      waiter = waiters_.erase(waiter);
    } else {
      may_pass = may_pass && MayBePassed(*waiter);
      ++waiter;
    }
  }
}

void Budget::Deliver(Waiter waiter) {
  clock_->Cancel(waiter.timer);
  auto deliver = [this, id = waiter.id, grant = Grant(this, waiter.bytes, waiter.id),
                  done = std::move(waiter.done)]() mutable {
    {
      MutexLock lock(&mutex_);
      deliveries_.erase(id);
    }
    done(std::move(grant));
  };
  deliveries_[waiter.id] = clock_->Schedule(absl::ZeroDuration(), std::move(deliver));
}

void Budget::TimeOut(WaitId wait) {
  Done done;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    const auto waiter = FindWaiter(wait);
    if (waiter == waiters_.end()) return;
    done = std::move(waiter->done);
    status = Exhausted(waiter->bytes, used_);
    waiters_.erase(waiter);
    Serve();
  }
  done(std::move(status));
}

absl::Status Budget::TooLarge(int64_t bytes) const {
  return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
               absl::StrCat(bytes, " bytes can never fit in the budget `", name_, "` of ", capacity_, " bytes"));
}

absl::Status Budget::Exhausted(int64_t bytes, int64_t used) const {
  // Spread out, so that clients who were refused together do not come back together.
  absl::InsecureBitGen random;
  const absl::Duration delay = absl::Milliseconds(200) * absl::Uniform(random, 0.5, 1.5);
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED,
                              absl::StrCat("no room for ", bytes, " bytes in the budget `", name_, "`: ", used, " of ",
                                           capacity_, " bytes are used")),
                        delay);
}

}  // namespace adamant::core
