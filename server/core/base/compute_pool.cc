// Threads that take items from a queue of jobs, one job after the other.
#include "server/core/base/compute_pool.h"

#include <atomic>
#include <utility>

namespace adamant::core {

struct ComputePool::Job {
  Job(int64_t count, absl::AnyInvocable<void(int64_t) const> work, absl::AnyInvocable<void()> done)
      : count(count), work(std::move(work)), done(std::move(done)), unfinished(count) {}

  const int64_t count;
  absl::AnyInvocable<void(int64_t) const> work;
  absl::AnyInvocable<void()> done;
  int64_t next = 0;  // the first item that nobody has taken; guarded by the pool's mutex
  std::atomic<int64_t> unfinished;
};

ComputePool::ComputePool(int threads) {
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

ComputePool::~ComputePool() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    ready_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ComputePool::Run(int64_t count, absl::AnyInvocable<void(int64_t) const> work, absl::AnyInvocable<void()> done) {
  auto job = std::make_shared<Job>(count, std::move(work), std::move(done));
  MutexLock lock(&mutex_);
  jobs_.push_back(std::move(job));
  if (count == 1) {
    ready_.NotifyOne();
  } else {
    ready_.NotifyAll();
  }
}

void ComputePool::Loop() {
  int64_t item;
  while (const std::shared_ptr<Job> job = TakeItem(&item)) {
    job->work(item);
    if (job->unfinished.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
    // Others may still hold the job, but not what it refers to.
    job->work = nullptr;
    job->done();
    job->done = nullptr;
  }
}

std::shared_ptr<ComputePool::Job> ComputePool::TakeItem(int64_t* item) {
  MutexLock lock(&mutex_);
  while (jobs_.empty() && !stopping_) ready_.Wait(&mutex_);
  if (jobs_.empty()) return nullptr;
  std::shared_ptr<Job> job = jobs_.front();
  *item = job->next++;
  if (job->next < job->count) {
    jobs_.splice(jobs_.end(), jobs_, jobs_.begin());
  } else {
    jobs_.pop_front();
  }
  return job;
}

}  // namespace adamant::core
