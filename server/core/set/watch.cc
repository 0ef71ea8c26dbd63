#include "server/core/set/watch.h"

#include <utility>

namespace adamant::core {

std::optional<v1::WatchParameterSetResponse> Watch::Next() {
  SetEvent event;
  int64_t missed;
  {
    MutexLock lock(&mutex_);
    is_awaited_ = count_ == 0;
    if (is_awaited_) return std::nullopt;
    event = std::move(events_[first_]);
    first_ = (first_ + 1) % kMostEvents;
    --count_;
    missed = std::exchange(missed_, 0);
  }
  v1::WatchParameterSetResponse next = *event;
  next.set_missed(missed);
  return next;
}

void Watch::Add(SetEvent event) {
  bool was_awaited;
  {
    MutexLock lock(&mutex_);
    if (count_ == kMostEvents) {
      first_ = (first_ + 1) % kMostEvents;
      --count_;
      ++missed_;
    }
    events_[(first_ + count_) % kMostEvents].swap(event);
    ++count_;
    was_awaited = std::exchange(is_awaited_, false);
  }
  if (was_awaited) notify_();
}

void Tell(const Watches& watches, v1::WatchParameterSetResponse event) {
  const SetEvent shared = std::make_shared<const v1::WatchParameterSetResponse>(std::move(event));
  for (const std::weak_ptr<Watch>& watch : watches) {
    if (const std::shared_ptr<Watch> alive = watch.lock(); alive != nullptr) alive->Add(shared);
  }
}

}  // namespace adamant::core
