// A part of the server's memory, counted in bytes: whatever a client can make the server hold is reserved here first.
#ifndef ADAMANT_SERVER_CORE_MEMORY_BUDGET_H_
#define ADAMANT_SERVER_CORE_MEMORY_BUDGET_H_

#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/base/clock.h"
#include "server/core/base/mutex.h"

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
  Grant(Budget* budget, int64_t bytes, uint64_t arrival) : budget_(budget), bytes_(bytes), arrival_(arrival) {}

  Budget* budget_ = nullptr;
  int64_t bytes_ = 0;
  uint64_t arrival_ = 0;  // of the reservation, in the order in which its budget was asked
};

// Thread-safe. Outlives its grants.
//
// The rule of admission: who came first is served first, but whoever fits may pass one that waits for its elders. A
// reservation that waits has elders (the grants of reservations that came before it) and may have juniors (those of
// reservations that came later and passed it). While its elders alone leave no room for it, it can be passed, since it
// would wait in any case. As soon as they leave room, nobody passes it any more, and only the juniors that it has by
// then are waited for. So a reservation that fits in what is free waits for no larger one that cannot be served, and
// the largest waits, after its elders have ended, only until the juniors of that moment have, however many more come:
// where no grant is held for longer than h, each is served at most 2 * h after all that waited ahead of it, and not h
// as if nobody passed. Reservations of one size are served in the order in which they came, since where one fits, those
// before it do.
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
  // (BUDGET_EXHAUSTED, with RetryInfo) if they do not fit now, or would pass one that is not to be passed.
  absl::StatusOr<Grant> TryReserve(int64_t bytes);

  // Reserves `bytes`, by the rule above, waiting for at most `wait`. Calls `done` once: before it returns, with a
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
    WaitId id;  // its arrival: waiters stand in ascending order
    int64_t bytes;
    int64_t elders;  // bytes of the grants that came before it and are held
    Clock::TimerId timer;
    Done done;
  };

  void Release(int64_t bytes, uint64_t arrival);
  // Whether `waiter` can be passed: its elders alone leave no room for it.
  bool MayBePassed(const Waiter& waiter) const { return waiter.bytes > capacity_ - waiter.elders; }
  // Whether one that comes now may have `bytes`.
  bool MayHave(int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A grant for one that comes now. Requires: MayHave(bytes).
  Grant Take(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::deque<Waiter>::iterator FindWaiter(WaitId wait) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Grants what those who wait may have, in order, and hands their callbacks to the clock's thread.
  void Serve() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Hands `waiter`'s callback with its grant to the clock's thread.
  void Deliver(Waiter waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TimeOut(WaitId wait);
  absl::Status TooLarge(int64_t bytes) const;
  absl::Status Exhausted(int64_t bytes, int64_t used) const;

  const std::string name_;
  const int64_t capacity_;
  Clock* const clock_;

  mutable Mutex mutex_;
  CondVar unused_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t arrivals_ ABSL_GUARDED_BY(mutex_) = kNoWait;
  std::deque<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  // Callbacks with their grants, on their way to be called.
  std::map<WaitId, Clock::TimerId> deliveries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_MEMORY_BUDGET_H_
