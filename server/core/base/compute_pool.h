// The threads that kernels run on, shared by all sets; and the server's executor: turns that had to wait, and whoever
// was lent memory, go on here.
#ifndef ADAMANT_SERVER_CORE_BASE_COMPUTE_POOL_H_
#define ADAMANT_SERVER_CORE_BASE_COMPUTE_POOL_H_

#include <cstdint>
#include <list>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "server/core/base/mutex.h"

namespace adamant::core {

// Thread-safe. Jobs take turns: each time that a thread is free it takes one item of the job that has waited longest,
// so that a large step yields to others between any two blocks.
class ComputePool {
 public:
  // `threads` is at least 1.
  explicit ComputePool(int threads);
  // Finishes the jobs that it has, then joins the threads.
  ~ComputePool();
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  // Calls `work(i)` for every i in [0, count), on any of the threads, several at a time, roughly in order; then `done`,
  // on the thread that finished last. `count` is at least 1. Returns at once. `work` is destroyed before `done` is
  // called, and `done` once it has returned: nothing of a job outlives it.
  void Run(int64_t count, absl::AnyInvocable<void(int64_t) const> work, absl::AnyInvocable<void()> done);

  // Calls `work` once, on one of the threads. Returns at once.
  void Post(absl::AnyInvocable<void()> work) {
    Run(
        1, [](int64_t /*item*/) {}, std::move(work));
  }

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  struct Job;

  void Loop();
  // Waits for the next item. Null when the pool stops and no item is left.
  std::shared_ptr<Job> TakeItem(int64_t* item);

  Mutex mutex_;
  CondVar ready_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Those with items that nobody has taken. A list, so that taking one allocates nothing: steps are in the middle of
  // it.
  std::list<std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BASE_COMPUTE_POOL_H_
