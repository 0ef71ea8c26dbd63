// How attempts end: the body of ParameterSet::End, for the files that share it.
#ifndef ADAMANT_SERVER_CORE_ATTEMPT_END_H_
#define ADAMANT_SERVER_CORE_ATTEMPT_END_H_

#include <utility>

#include "server/core/parameter_set.h"

namespace adamant::core {

template <typename Attempt, typename Result>
void ParameterSet::End(Attempt* attempt, Result result) {
  decltype(attempt->listener_) listener;
  Budget::WaitId wait;
  {
    MutexLock lock(&mutex_);
    if (attempt->state_ == Attempt::State::kOver) return;
    attempt->state_ = Attempt::State::kOver;
    listener = std::move(attempt->listener_);
    wait = std::exchange(attempt->wait_, Budget::kNoWait);
  }
  // Outside of the mutex: both may destroy attempts, which take it.
  if (wait != Budget::kNoWait) resources_.inflight->Cancel(wait);
  if (listener != nullptr) listener->OnDone(std::move(result));
}

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_ATTEMPT_END_H_
