// How attempts, steps and writes alike, are admitted, complete, and over: bodies of templates of ParameterSet, for the
// files that share them.
#ifndef ADAMANT_SERVER_CORE_ATTEMPT_LIFE_H_
#define ADAMANT_SERVER_CORE_ATTEMPT_LIFE_H_

#include <utility>

#include "server/core/parameter_set.h"

namespace adamant::core {

template <typename Attempt>
void ParameterSet::SetWait(Attempt* attempt, Budget::WaitId wait) {
  {
    MutexLock lock(&mutex_);
    if (attempt->state_ != Attempt::State::kOver) {
      attempt->wait_ = wait;
      return;
    }
  }
  resources_.inflight->Cancel(wait);
}

template <typename Attempt>
void ParameterSet::SetAdmitted(Attempt* attempt) {
  decltype(attempt->listener_) listener;
  {
    MutexLock lock(&mutex_);
    if (attempt->state_ != Attempt::State::kWaiting) return;
    attempt->state_ = Attempt::State::kArriving;
    listener = attempt->listener_;
  }
  listener->OnAdmitted();
}

template <typename Attempt>
bool ParameterSet::SetComplete(Attempt* attempt) {
  MutexLock lock(&mutex_);
  if (attempt->state_ != Attempt::State::kArriving) return false;
  attempt->state_ = Attempt::State::kComplete;
  return true;
}

template <typename Attempt>
void ParameterSet::Withdraw(Attempt* attempt) {
  decltype(attempt->listener_) listener;  // destroyed outside of the mutex
  Budget::WaitId wait;
  {
    MutexLock lock(&mutex_);
    listener = std::move(attempt->listener_);
    wait = std::exchange(attempt->wait_, Budget::kNoWait);
    if (attempt->state_ != Attempt::State::kComplete) attempt->state_ = Attempt::State::kOver;
  }
  if (wait != Budget::kNoWait) resources_.inflight->Cancel(wait);
}

template <typename Attempt, typename Result>
void ParameterSet::End(Attempt* attempt, Result result, Ending ending) {
  using State = typename Attempt::State;
  decltype(attempt->listener_) listener;
  Budget::WaitId wait;
  {
    MutexLock lock(&mutex_);
    if (attempt->state_ == State::kOver) return;
    if (attempt->state_ == State::kComplete && ending == Ending::kUnlessComplete) return;
    attempt->state_ = State::kOver;
    listener = std::move(attempt->listener_);
    wait = std::exchange(attempt->wait_, Budget::kNoWait);
  }
  // Outside of the mutex: both may destroy attempts, which take it.
  if (wait != Budget::kNoWait) resources_.inflight->Cancel(wait);
  if (listener != nullptr) listener->OnOutcome(std::move(result));
}

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_ATTEMPT_LIFE_H_
