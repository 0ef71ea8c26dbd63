#include "server/rpc/open_calls.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/status/statusor.h"
#include "proto/error/error.h"
#include "server/rpc/call.h"

namespace adamant::rpc {
namespace {

// A sweep that comes later than it was due by more than this finds a process that was stopped.
constexpr absl::Duration kLatestSweep = absl::Seconds(1);

absl::Status TooManyCalls() {
  absl::BitGen random;
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS,
                              "as many calls as this server carries are open, and as many as may wait do"),
                        absl::Milliseconds(absl::Uniform(random, 100, 300)));
}

}  // namespace

OpenCalls::OpenCalls(const Parts& parts, PatienceTerms terms)
    : parts_(parts),
      terms_(terms),
      // Not longer than a step waits for memory, so that who holds it in silence gives way in time.
      sweep_interval_(std::min(terms_.patience / 4, absl::Milliseconds(250))),
      last_sweep_(parts_.clock->Now()) {
  core::MutexLock lock(&mutex_);
  sweep_timer_ = parts_.clock->Schedule(sweep_interval_, [this] { RunSweep(); });
}

OpenCalls::~OpenCalls() {
  // A sweep that is running schedules the next one before it ends, and so is cancelled here at the latest.
  core::Clock::TimerId timer;
  do {
    core::MutexLock lock(&mutex_);
    timer = sweep_timer_;
  } while (!parts_.clock->Cancel(timer));
}

absl::Status OpenCalls::Enter(const std::shared_ptr<Call>& call) {
  {
    core::MutexLock lock(&mutex_);
    if (draining_) return DrainingError();
    calls_.insert(call.get());
  }
  if (absl::StatusOr<core::Grant> place = parts_.places->TryReserve(kStreamBytes); place.ok()) {
    call->LetIn(*std::move(place));
    return absl::OkStatus();
  }
  absl::StatusOr<core::Grant> waiting = parts_.waiting->TryReserve(kWaitingCallBytes);
  if (!waiting.ok()) return TooManyCalls();
  call->AwaitPlace(*std::move(waiting));
  return absl::OkStatus();
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

int OpenCalls::AwaitNone(std::chrono::steady_clock::time_point deadline) {
  core::MutexLock lock(&mutex_);
  while (!calls_.empty() && !left_.WaitUntil(&mutex_, deadline)) continue;
  return static_cast<int>(calls_.size());
}

void OpenCalls::RunSweep() {
  const absl::Duration now = parts_.clock->Now();
  Sweep sweep;
  sweep.elapsed = std::min(now - std::exchange(last_sweep_, now), sweep_interval_ + kLatestSweep);
  attended_ += sweep.elapsed;
  sweep.now = attended_;
  sweep.place_wanted = parts_.places->waiting() > 0;
  sweep.memory_wanted = parts_.inflight->waiting() > 0;
  ForEach([&sweep](Call* call) { call->CheckPatience(sweep); });
  core::MutexLock lock(&mutex_);
  sweep_timer_ = parts_.clock->Schedule(sweep_interval_, [this] { RunSweep(); });
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
