#include "server/rpc/open_calls.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/random/random.h"
#include "proto/error/error.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

OpenCalls::OpenCalls(core::Budget* streams, core::Clock* clock, PatienceTerms terms)
    : streams_(streams), clock_(clock), terms_(terms) {
  core::MutexLock lock(&mutex_);
  sweep_ = clock_->Schedule(terms_.patience / 4, [this] { Sweep(); });
}

OpenCalls::~OpenCalls() {
  // A sweep that is running schedules the next one before it ends, and so is cancelled here at the latest.
  core::Clock::TimerId sweep;
  do {
    core::MutexLock lock(&mutex_);
    sweep = sweep_;
  } while (!clock_->Cancel(sweep));
}

absl::StatusOr<core::Grant> OpenCalls::Enter(Call* call) {
  core::MutexLock lock(&mutex_);
  if (draining_) return DrainingError();
  absl::StatusOr<core::Grant> grant = streams_->TryReserve(kStreamBytes);
  if (!grant.ok()) {
    absl::BitGen random;
    return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS,
                                "as many calls as this server carries are open"),
                          absl::Milliseconds(absl::Uniform(random, 100, 300)));
  }
  calls_.insert(call);
  return grant;
}

void OpenCalls::Leave(Call* call) {
  core::MutexLock lock(&mutex_);
  calls_.erase(call);
  left_.NotifyAll();
}

void OpenCalls::Drain() {
  {
    core::MutexLock lock(&mutex_);
    draining_ = true;
  }
  ForEach([](Call* call) { call->DrainIfIdle(); });
}

void OpenCalls::AwaitNone(std::chrono::steady_clock::time_point deadline) {
  core::MutexLock lock(&mutex_);
  while (!calls_.empty() && !left_.WaitUntil(&mutex_, deadline)) continue;
}

void OpenCalls::Sweep() {
  ForEach([](Call* call) { call->CheckPatience(); });
  core::MutexLock lock(&mutex_);
  sweep_ = clock_->Schedule(std::min(terms_.patience / 4, absl::Seconds(1)), [this] { Sweep(); });
}

template <typename Visit>
void OpenCalls::ForEach(Visit visit) {
  std::vector<std::shared_ptr<Call>> calls;
  {
    core::MutexLock lock(&mutex_);
    for (Call* call : calls_) {
      if (std::shared_ptr<Call> alive = call->weak_from_this().lock()) calls.push_back(std::move(alive));
    }
  }
  for (const std::shared_ptr<Call>& call : calls) visit(call.get());
}

absl::Status DrainingError() {
  return Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING, "the server is shutting down");
}

}  // namespace adamant::rpc
