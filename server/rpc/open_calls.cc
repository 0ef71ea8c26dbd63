#include "server/rpc/open_calls.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/random/random.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/log.h"
#include "server/rpc/call.h"

namespace adamant::rpc {
namespace {

// A sweep that comes later than it was due by more than this finds a process that was stopped.
constexpr absl::Duration kLatestSweep = absl::Seconds(1);

// When the log tells that calls wait, and how often it does again.
constexpr absl::Duration kFirstWaitLogged = absl::Seconds(2);
constexpr absl::Duration kWaitLogInterval = absl::Seconds(30);

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
  const int64_t metadata = std::max<int64_t>(0, call->MetadataCost() - kUsualMetadataBytes);
  absl::StatusOr<core::Grant> waiting = parts_.waiting->TryReserve(kWaitingCallBytes + metadata);
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
  const int64_t waiting = parts_.places->waiting();
  sweep.place_wanted = waiting > 0;
  sweep.memory_wanted = parts_.inflight->waiting() > 0;
  std::vector<std::pair<absl::Duration, std::shared_ptr<Call>>> silent;
  ForEach([&](Call* call) {
    const absl::optional<absl::Duration> silence = call->CheckPatience(sweep);
    if (silence.has_value()) silent.emplace_back(*silence, call->shared_from_this());
  });
  // As many give way as there are who wait, the longest silence first.
  absl::c_sort(silent, [](const auto& a, const auto& b) { return a.first > b.first; });
  silent.resize(std::min<size_t>(silent.size(), waiting + (sweep.memory_wanted ? 1 : 0)));
  for (const auto& [silence, call] : silent) call->GiveWay(sweep);
  LogWaiting(waiting);
  core::MutexLock lock(&mutex_);
  sweep_timer_ = parts_.clock->Schedule(sweep_interval_, [this] { RunSweep(); });
}

void OpenCalls::LogWaiting(int64_t waiting) {
  if (waiting == 0) {
    wait_begin_.reset();
    return;
  }
  if (!wait_begin_.has_value()) {
    wait_begin_ = attended_;
    next_log_ = attended_ + kFirstWaitLogged;
  }
  if (attended_ < next_log_) return;
  next_log_ = attended_ + kWaitLogInterval;
  const absl::Duration since = absl::Trunc(attended_ - *wait_begin_, absl::Seconds(1));
  Log(LogLevel::kWarning, absl::StrCat("places are short (", parts_.places->name(), "): ", waiting,
                                       " calls wait, and there has always been one for ", absl::FormatDuration(since)));
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
