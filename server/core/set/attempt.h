// What attempts to step and attempts to write have in common: how they are admitted, complete, and over.
#ifndef ADAMANT_SERVER_CORE_SET_ATTEMPT_H_
#define ADAMANT_SERVER_CORE_SET_ATTEMPT_H_

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/error/error.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/lender.h"

namespace adamant::core {

// An attempt waits, arrives, is complete, and is over; or is over before. Thread-safe. Its mutex may be taken while the
// set's is held, not the other way round; its listener is called with neither.
template <typename ListenerType>
class Attempt {
 public:
  using Listener = ListenerType;
  using Reply = typename Listener::Reply;

  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  // Withdraws the attempt: it is over unless it is complete. Its listener hears nothing after this but what another
  // thread was about to tell it.
  void Cancel();

  // Ends the attempt, which is over after this, and reports `result` to its listener. Does nothing if it is over
  // already. This is for the attempt's own steps on its way.
  void End(absl::StatusOr<Reply> result) { End(std::move(result), /*complete_too=*/true); }
  // The same for whoever ends the attempts of others: one that is complete is left to its turn.
  // It may end many with one `status`, of which each gets a copy that shares nothing.
  void EndUnlessComplete(const absl::Status& status) { End(Unshared(status), /*complete_too=*/false); }

  bool over() const { return state() == State::kOver; }
  // Whom to tell; null once it is over or cancelled.
  std::shared_ptr<Listener> listener() const {
    MutexLock lock(&mutex_);
    return listener_;
  }

 protected:
  enum class State { kWaiting, kArriving, kComplete, kOver };

  // What it waits for is a loan of `lender`, which outlives it.
  Attempt(Lender* lender, std::shared_ptr<Listener> listener) : lender_(lender), listener_(std::move(listener)) {}
  ~Attempt() = default;

  State state() const {
    MutexLock lock(&mutex_);
    return state_;
  }
  // Notes what it waits for, so that its end ends the wait. If it is over already, so is the wait.
  void SetWait(Lender::WaitId wait);
  // Lets the attempt arrive, and tells its listener so, unless it is over.
  void Admit();
  // Marks it complete: it has arrived whole. Returns false if it is over, and its listener has heard why.
  bool MarkComplete();

 private:
  void End(absl::StatusOr<Reply> result, bool complete_too);

  Lender* const lender_;

  mutable Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kWaiting;
  Lender::WaitId wait_ ABSL_GUARDED_BY(mutex_) = Lender::kNoWait;
  std::shared_ptr<Listener> listener_ ABSL_GUARDED_BY(mutex_);
};

template <typename ListenerType>
void Attempt<ListenerType>::Cancel() {
  std::shared_ptr<Listener> listener;  // destroyed outside of the mutex
  Lender::WaitId wait;
  {
    MutexLock lock(&mutex_);
    listener = std::move(listener_);
    wait = std::exchange(wait_, Lender::kNoWait);
    if (state_ != State::kComplete) state_ = State::kOver;
  }
  if (wait != Lender::kNoWait) lender_->Cancel(wait);
}

template <typename ListenerType>
void Attempt<ListenerType>::End(absl::StatusOr<Reply> result, bool complete_too) {
  std::shared_ptr<Listener> listener;
  Lender::WaitId wait;
  {
    MutexLock lock(&mutex_);
    if (state_ == State::kOver || (state_ == State::kComplete && !complete_too)) return;
    state_ = State::kOver;
    listener = std::move(listener_);
    wait = std::exchange(wait_, Lender::kNoWait);
  }
  // Outside of the mutex: both may destroy attempts.
  if (wait != Lender::kNoWait) lender_->Cancel(wait);
  if (listener != nullptr) listener->OnOutcome(std::move(result));
}

template <typename ListenerType>
void Attempt<ListenerType>::SetWait(Lender::WaitId wait) {
  if (wait == Lender::kNoWait) return;
  {
    MutexLock lock(&mutex_);
    if (state_ != State::kOver) {
      // One that was asked for when this one ended may have been noted before: its number is higher.
      wait_ = std::max(wait_, wait);
      return;
    }
  }
  lender_->Cancel(wait);
}

template <typename ListenerType>
void Attempt<ListenerType>::Admit() {
  std::shared_ptr<Listener> listener;
  {
    MutexLock lock(&mutex_);
    if (state_ != State::kWaiting) return;
    state_ = State::kArriving;
    listener = listener_;
  }
  listener->OnAdmitted();
}

template <typename ListenerType>
bool Attempt<ListenerType>::MarkComplete() {
  MutexLock lock(&mutex_);
  if (state_ != State::kArriving) return false;
  state_ = State::kComplete;
  return true;
}

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_ATTEMPT_H_
