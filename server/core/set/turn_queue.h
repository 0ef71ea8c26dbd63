// Whose turn it is to change a set: one at a time, in order.
#ifndef ADAMANT_SERVER_CORE_SET_TURN_QUEUE_H_
#define ADAMANT_SERVER_CORE_SET_TURN_QUEUE_H_

#include <cstdint>
#include <deque>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"

namespace adamant::core {

// Thread-safe. Held by std::shared_ptr: by its owner, and by the turn that is taken.
class TurnQueue : public std::enable_shared_from_this<TurnQueue> {
 public:
  // The right to change what the queue guards. Move-only. Whoever holds it may hand it on to another thread, a device's
  // completion or a disk's; destroying it ends the turn, on any thread. The next one begins then, or once the call of
  // the work that the turn was given to has returned.
  class Turn {
   public:
    Turn(Turn&& other) noexcept = default;
    Turn& operator=(Turn&& other) noexcept;
    ~Turn();

    // Ends the turn, for a holder who goes on with something that nobody is to wait for: the next one begins at once,
    // on another thread, even while the call of the work goes on. Requires: it has not ended, nor been moved from.
    void EndAtOnce();

   private:
    friend class TurnQueue;
    explicit Turn(std::shared_ptr<TurnQueue> queue) : queue_(std::move(queue)) {}

    std::shared_ptr<TurnQueue> queue_;
  };
  using Work = absl::AnyInvocable<void(Turn)>;

  // Turns that had to wait run on `executor`, which outlives the queue, or on the thread of the one before.
  explicit TurnQueue(ComputePool* executor) : executor_(executor) {}
  TurnQueue(const TurnQueue&) = delete;
  TurnQueue& operator=(const TurnQueue&) = delete;

  // Calls `work` with a turn, after all that was enqueued before has ended: before this returns, on the caller's
  // thread, if nobody has the turn; else later, from another thread and with no lock held.
  //
  // The caller's thread goes on with the turns of others where its own has ended within the call of its work, since a
  // hand-over costs more than a small step does; but it never runs more than kTurnsInARow, its own among them, so that
  // nobody is kept for the others' sake.
  void Enqueue(Work work);

  static constexpr int kTurnsInARow = 8;

 private:
  // What has become of the turn that was given out last.
  enum class State {
    kFree,     // it is over, and none waits
    kInWork,   // it goes on, and the call of its work has not returned
    kEnded,    // it is over, but the call of its work has not returned: that thread goes on with the next
    kHandedOn  // it goes on, after the call of its work has returned
  };

  // Runs `work`, whose turn is number `turn`, and some that come after it.
  void RunSome(int64_t turn, Work work);
  // Has the next turn, if there is one, run on the executor.
  void PostNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Work TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndTurn(bool at_once);

  ComputePool* const executor_;

  Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kFree;
  int64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;  // turns: the number of the one that was given out last
  std::deque<Work> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_TURN_QUEUE_H_
