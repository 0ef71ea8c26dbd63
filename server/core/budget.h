// A part of the server's memory, counted in bytes: whatever a client can make the server hold is reserved here first.
#ifndef ADAMANT_SERVER_CORE_BUDGET_H_
#define ADAMANT_SERVER_CORE_BUDGET_H_

#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"

namespace adamant::core {

class Budget;

// Bytes of a budget, given back when it is destroyed. Movable; an empty one holds nothing. Thread-compatible.
class Grant {
 public:
  Grant() = default;
  Grant(Grant&& other) noexcept;
  Grant& operator=(Grant&& other) noexcept;
  ~Grant();

  int64_t bytes() const { return bytes_; }
  // Gives back all but `bytes`, if it holds more.
  void ShrinkTo(int64_t bytes);

 private:
  friend class Budget;
  Grant(Budget* budget, int64_t bytes) : budget_(budget), bytes_(bytes) {}

  Budget* budget_ = nullptr;
  int64_t bytes_ = 0;
};

// Thread-safe. Outlives its grants.
class Budget {
 public:
  using WaitId = uint64_t;
  // What Reserve returns when `done` has been called already.
  static constexpr WaitId kNoWait = 0;
  using Done = absl::AnyInvocable<void(absl::StatusOr<Grant>)>;

  // `name` stands in error messages and in GetServerInfo. `clock` outlives the budget.
  Budget(absl::string_view name, int64_t capacity, Clock* clock);
  // Requires: no grant and no waiting reservation is left.
  ~Budget();
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  // Reserves `bytes` now. Errors: FAILED_PRECONDITION (TOO_LARGE) if they could never fit; RESOURCE_EXHAUSTED
  // (BUDGET_EXHAUSTED, with RetryInfo) if they do not fit now, or others wait already.
  absl::StatusOr<Grant> TryReserve(int64_t bytes);

  // Reserves `bytes`, first come first served, waiting for at most `wait`. Calls `done` once: before it returns, with a
  // grant or with TOO_LARGE; or later, from the clock's thread and with no lock held, with a grant, or with
  // BUDGET_EXHAUSTED when the wait is over.
  WaitId Reserve(int64_t bytes, absl::Duration wait, Done done);

  // Gives up waiting. `done` is destroyed without having been called, unless it is being called already.
  void Cancel(WaitId wait);

  absl::string_view name() const { return name_; }
  int64_t capacity() const { return capacity_; }
  int64_t used() const;
  // How many reservations wait.
  int64_t waiting() const;

  // Blocks until nothing is used. What a server waits for at its end: gRPC lets go of memory in its own time.
  void AwaitUnused();

 private:
  friend class Grant;

  struct Waiter {
    WaitId id;
    int64_t bytes;
    Clock::TimerId timer;
    Done done;
  };

  void Release(int64_t bytes);
  // Whether `bytes` may be had now, which they may not while others wait.
  bool Fits(int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::deque<Waiter>::iterator FindWaiter(WaitId wait) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Grants what fits to those who wait, in order, and hands their callbacks to the clock's thread.
  void Serve() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TimeOut(WaitId wait);
  absl::Status TooLarge(int64_t bytes) const;
  absl::Status Exhausted(int64_t bytes, int64_t used) const;

  const std::string name_;
  const int64_t capacity_;
  Clock* const clock_;

  mutable Mutex mutex_;
  CondVar unused_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  WaitId last_wait_ ABSL_GUARDED_BY(mutex_) = kNoWait;
  std::deque<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  // Callbacks with their grants, on their way to be called.
  std::map<WaitId, Clock::TimerId> deliveries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BUDGET_H_
