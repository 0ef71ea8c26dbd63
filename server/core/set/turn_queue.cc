#include "server/core/set/turn_queue.h"

#include <utility>

namespace adamant::core {

TurnQueue::Turn& TurnQueue::Turn::operator=(Turn&& other) noexcept {
  Turn taken(std::move(other));
  std::swap(queue_, taken.queue_);
  return *this;
}

TurnQueue::Turn::~Turn() {
  if (queue_ != nullptr) queue_->EndTurn(/*at_once=*/false);
}

void TurnQueue::Turn::EndAtOnce() { std::exchange(queue_, nullptr)->EndTurn(/*at_once=*/true); }

void TurnQueue::Enqueue(Work work) {
  int64_t turn;
  {
    MutexLock lock(&mutex_);
    if (state_ != State::kFree) {
      waiting_.push_back(std::move(work));
      return;
    }
    state_ = State::kInWork;
    turn = ++begun_;
  }
  RunSome(turn, std::move(work));
}

void TurnQueue::RunSome(int64_t turn, Work work) {
  // The last turn may hold the last reference to the queue's owner.
  const std::shared_ptr<TurnQueue> self = shared_from_this();
  for (int turns = 1;; ++turns) {
    work(Turn(self));
    work = nullptr;  // what it held goes before the next turn begins
    MutexLock lock(&mutex_);
    // It was ended at once, and others have had their turns since, or nobody waits.
    if (begun_ != turn || state_ == State::kFree) return;
    if (state_ == State::kInWork) {
      state_ = State::kHandedOn;
      return;
    }
    if (waiting_.empty() || turns == kTurnsInARow) {
      PostNext();
      return;
    }
    state_ = State::kInWork;
    turn = ++begun_;
    work = TakeNext();
  }
}

void TurnQueue::EndTurn(bool at_once) {
  MutexLock lock(&mutex_);
  if (state_ == State::kInWork && !at_once) {
    state_ = State::kEnded;
  } else {
    PostNext();
  }
}

void TurnQueue::PostNext() {
  if (waiting_.empty()) {
    state_ = State::kFree;
    return;
  }
  state_ = State::kInWork;
  executor_->Post([self = shared_from_this(), turn = ++begun_, work = TakeNext()]() mutable {
    self->RunSome(turn, std::move(work));
  });
}

TurnQueue::Work TurnQueue::TakeNext() {
  Work work = std::move(waiting_.front());
  waiting_.pop_front();
  return work;
}

}  // namespace adamant::core
