#include "server/store/commit_thread.h"

#include <utility>

#include "proto/error/error.h"
#include "server/store/errors.h"

namespace adamant::store {

CommitThread::CommitThread(std::unique_ptr<Catalog> catalog, core::ComputePool* executor,
                           std::function<bool()> make_room)
    : catalog_(std::move(catalog)),
      executor_(executor),
      make_room_(std::move(make_room)),
      thread_([this] { Loop(); }) {}

CommitThread::~CommitThread() {
  {
    core::MutexLock lock(&mutex_);
    stopping_ = true;
    ready_.NotifyOne();
  }
  thread_.join();
}

void CommitThread::Commit(Change change, core::Then<absl::Status> done) {
  core::MutexLock lock(&mutex_);
  requests_.push_back({std::move(change), std::move(done)});
  ready_.NotifyOne();
}

absl::Status CommitThread::CheckWorking() const {
  core::MutexLock lock(&mutex_);
  return Unshared(failed_);
}

void CommitThread::Loop() {
  while (true) {
    std::vector<Request> requests;
    {
      core::MutexLock lock(&mutex_);
      while (requests_.empty() && !stopping_) ready_.Wait(&mutex_);
      if (requests_.empty()) return;
      requests.swap(requests_);
    }
    CommitAll(std::move(requests));
  }
}

void CommitThread::CommitAll(std::vector<Request> requests) {
  const absl::Span<Request> all = absl::MakeSpan(requests);
  absl::Status status = CommitTogether(all);
  if (requests.size() == 1 || status.ok() || !CheckWorking().ok()) {
    for (Request& request : requests) Tell(std::move(request.done), status);
    return;
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    status = CommitTogether(all.subspan(i, 1));
    Tell(std::move(requests[i].done), status);
  }
}

absl::Status CommitThread::CommitTogether(absl::Span<Request> requests) {
  absl::Status status = TryCommit(requests);
  return absl::IsResourceExhausted(status) && make_room_() ? TryCommit(requests) : status;
}

absl::Status CommitThread::TryCommit(absl::Span<Request> requests) {
  if (absl::Status status = CheckWorking(); !status.ok()) return status;
  if (absl::Status status = catalog_->Begin(); !status.ok()) {
    return IsUndone(status) ? status : Fail(status);
  }
  for (Request& request : requests) {
    if (absl::Status status = request.change(catalog_.get()); !status.ok()) {
      catalog_->Rollback();
      // Where the catalog cannot be read or written, what comes next cannot be, either.
      return IsUndone(status) ? status : Fail(status);
    }
  }
  absl::Status status = catalog_->Commit();
  return status.ok() || IsUndone(status) ? status : Fail(status);
}

absl::Status CommitThread::Fail(const absl::Status& status) {
  core::MutexLock lock(&mutex_);
  failed_ = StoreFailed(status.message());
  return Unshared(failed_);
}

void CommitThread::Tell(core::Then<absl::Status> done, const absl::Status& status) {
  executor_->Post(
      [done = std::move(done), status = Unshared(status)]() mutable { std::move(done)(std::move(status)); });
}

}  // namespace adamant::store
