#include "server/rpc/open_calls.h"

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/log.h"
#include "server/rpc/call.h"

namespace adamant::rpc {
namespace {

// How often calls are looked at: as a rule not more seldom than a step waits for memory, so that who holds it in
// silence gives way in time; and while somebody waits for a place.
constexpr absl::Duration kSweepInterval = absl::Milliseconds(250);
constexpr absl::Duration kUrgentSweepInterval = absl::Milliseconds(5);

// A sweep that comes later than it was due finds a process that was stopped, or that had no processor and so may not
// have read what its clients had sent. So much of the delay counts.
constexpr absl::Duration kSweepTolerance = absl::Milliseconds(1);

// Connections without calls of which it is kept in mind that their calls gave way.
constexpr size_t kMostRemembered = 4096;

// When the log tells that calls wait, and how often it does again.
constexpr absl::Duration kFirstWaitLogged = absl::Seconds(2);
constexpr absl::Duration kWaitLogInterval = absl::Seconds(30);

}  // namespace

OpenCalls::OpenCalls(const Parts& parts, PatienceTerms terms)
    : parts_(parts), terms_(terms), last_sweep_(parts_.clock->Now()) {
  core::MutexLock lock(&mutex_);
  planned_ = SweepInterval();
  sweep_timer_ = parts_.clock->Schedule(planned_, [this] { RunSweep(); });
}

OpenCalls::~OpenCalls() {
  // A sweep that is running schedules the next one before it ends, and so is cancelled here at the latest.
  core::Clock::TimerId timer;
  core::Budget::WaitId next_place;
  do {
    core::MutexLock lock(&mutex_);
    timer = sweep_timer_;
    next_place = next_place_;
  } while (!parts_.clock->Cancel(timer));
  parts_.places->Cancel(next_place);
}

absl::Duration OpenCalls::SweepInterval() const {
  return std::min(terms_.patience / 4, waiting_ > 0 ? kUrgentSweepInterval : kSweepInterval);
}

absl::Status OpenCalls::Enter(const std::shared_ptr<Call>& call) {
  const std::string name = call->Connection();
  absl::StatusOr<core::Grant> place;
  {
    core::MutexLock lock(&mutex_);
    if (draining_) return DrainingError();
    const auto connection = connections_.try_emplace(name).first;
    ++connection->second.calls;
    Entry& entry = calls_[call.get()] = {connection, ++arrivals_};
    place = waiting_ == 0 ? parts_.places->TryReserve(kStreamBytes) : absl::CancelledError();
    if (place.ok()) {
      entry.let_in = true;
      ++connection->second.let_in;
    }
  }
  if (place.ok()) {
    call->LetIn(*std::move(place));
    return absl::OkStatus();
  }
  absl::StatusOr<core::Grant> charge = parts_.waiting->Enter(call, name);
  if (!charge.ok()) return charge.status();
  call->AwaitPlace(*std::move(charge));
  bool serve;
  {
    core::MutexLock lock(&mutex_);
    Entry& entry = calls_[call.get()];
    entry.waits = true;
    entry.connection->second.waiting.emplace(entry.arrival, call.get());
    ++waiting_;
    // The next sweep is urgent from here on. One that is running schedules the next by itself.
    const absl::Duration since = parts_.clock->Now() - last_sweep_;
    if (SweepInterval() < planned_ && parts_.clock->Cancel(sweep_timer_)) {
      planned_ = std::max(SweepInterval(), std::min(since, planned_));
      sweep_timer_ = parts_.clock->Schedule(planned_ - since, [this] { RunSweep(); });
    }
    serve = !std::exchange(serving_, true);
  }
  // A call that was refused, or cancelled, before it could be found here.
  if (call->ended()) StopWaiting(call.get());
  if (serve) Serve();
  return absl::OkStatus();
}

void OpenCalls::Serve() {
  for (;;) {
    absl::StatusOr<core::Grant> place = parts_.places->TryReserve(kStreamBytes);
    if (!place.ok()) break;
    if (!LetNextIn(*std::move(place))) return;
  }
  const core::Budget::WaitId next_place =
      parts_.places->Reserve(kStreamBytes, absl::InfiniteDuration(), [this](absl::StatusOr<core::Grant> place) {
        if (place.ok() && LetNextIn(*std::move(place))) Serve();
      });
  core::MutexLock lock(&mutex_);
  next_place_ = std::max(next_place_, next_place);
}

bool OpenCalls::LetNextIn(core::Grant place) {
  std::shared_ptr<Call> call;
  bool more;
  {
    core::MutexLock lock(&mutex_);
    call = TakeNext();
    more = waiting_ > 0;
    serving_ = more;
  }
  if (call != nullptr) {
    parts_.waiting->Leave(call.get());
    call->LetIn(std::move(place));
  }
  return more;
}

std::shared_ptr<Call> OpenCalls::TakeNext() {
  while (waiting_ > 0) {
    Connection* next = nullptr;
    const auto order = [](const Connection& connection) {
      return std::make_tuple(connection.let_in, connection.gave_way, connection.waiting.size(),
                             connection.waiting.begin()->first);
    };
    for (auto& [name, connection] : connections_) {
      if (connection.waiting.empty()) continue;
      if (next == nullptr || order(connection) < order(*next)) next = &connection;
    }
    Call* const call = next->waiting.begin()->second;
    next->waiting.erase(next->waiting.begin());
    --waiting_;
    Entry& entry = calls_[call];
    entry.waits = false;
    if (std::shared_ptr<Call> alive = call->weak_from_this().lock()) {
      entry.let_in = true;
      ++next->let_in;
      return alive;
    }
  }
  return nullptr;
}

void OpenCalls::StopWaiting(Call* call) {
  parts_.waiting->Leave(call);
  core::MutexLock lock(&mutex_);
  const auto found = calls_.find(call);
  if (found == calls_.end() || !std::exchange(found->second.waits, false)) return;
  found->second.connection->second.waiting.erase(found->second.arrival);
  --waiting_;
}

void OpenCalls::Leave(Call* call) {
  StopWaiting(call);
  core::MutexLock lock(&mutex_);
  const auto found = calls_.find(call);
  if (found != calls_.end()) {
    const Connections::iterator connection = found->second.connection;
    connection->second.let_in -= found->second.let_in;
    const bool remembered = connection->second.gave_way > 0 && connections_.size() <= kMostRemembered;
    if (--connection->second.calls == 0 && !remembered) connections_.erase(connection);
    calls_.erase(found);
  }
  left_.NotifyAll();
}

void OpenCalls::Drain() {
  {
    core::MutexLock lock(&mutex_);
    draining_ = true;
  }
  ForEach([](Call* call) { call->DrainIfIdle(); });
}

void OpenCalls::TellNews() {
  ForEach([](Call* call) { call->OnNews(); });
}

int OpenCalls::AwaitNone(std::chrono::steady_clock::time_point deadline) {
  core::MutexLock lock(&mutex_);
  while (!calls_.empty() && !left_.WaitUntil(&mutex_, deadline)) continue;
  return static_cast<int>(calls_.size());
}

void OpenCalls::RunSweep() {
  Sweep sweep;
  int64_t waiting;
  {
    core::MutexLock lock(&mutex_);
    const absl::Duration now = parts_.clock->Now();
    sweep.elapsed = std::min(now - std::exchange(last_sweep_, now), planned_ + kSweepTolerance);
    waiting = waiting_;
    if (waiting == 0) {
      for (auto& [name, connection] : connections_) connection.gave_way = 0;
      std::erase_if(connections_, [](const auto& named) { return named.second.calls == 0; });
    }
  }
  attended_ += sweep.elapsed;
  sweep.now = attended_;
  sweep.place_wanted = waiting > 0;
  sweep.memory_wanted = parts_.inflight->waiting() > 0;
  MakeRoom(sweep);
  LogWaiting(waiting);
  core::MutexLock lock(&mutex_);
  planned_ = SweepInterval();
  sweep_timer_ = parts_.clock->Schedule(planned_, [this] { RunSweep(); });
}

void OpenCalls::MakeRoom(const Sweep& sweep) {
  // What the calls of a connection hold, and how many of them wait.
  struct Holder {
    int64_t bytes = 0;
    int64_t calls = 0;
    int64_t waiting = 0;
    bool gave_way = false;
  };
  struct Candidate {
    std::shared_ptr<Call> call;
    Holder* holder;
    Call::Standing standing;
  };
  std::map<std::string, Holder> holders;  // by connection
  std::vector<Candidate> candidates;
  {
    core::MutexLock lock(&mutex_);
    for (const auto& [call, entry] : calls_) {
      if (entry.waits) continue;
      if (std::shared_ptr<Call> alive = call->weak_from_this().lock()) {
        candidates.push_back({std::move(alive), &holders[entry.connection->first], {}});
      }
    }
  }
  int64_t leaving = 0;  // bytes
  for (Candidate& candidate : candidates) {
    candidate.standing = candidate.call->CheckPatience(sweep);
    if (candidate.standing.leaving) {
      leaving += candidate.standing.charge;
    } else if (candidate.standing.charge > 0) {
      candidate.holder->bytes += candidate.standing.charge;
      ++candidate.holder->calls;
    }
  }
  // What is missing, in bytes, beside what those need who wait. Who waits is found out after who leaves: where a place
  // goes from one to the other meanwhile, too few give way and not too many, and the next sweep mends that.
  const int64_t missing = parts_.places->used() - parts_.places->capacity() - leaving;
  {
    core::MutexLock lock(&mutex_);
    for (const auto& [name, connection] : connections_) {
      if (connection.calls == 0) continue;
      Holder& holder = holders[name];
      holder.waiting = static_cast<int64_t>(connection.waiting.size());
      holder.gave_way = connection.gave_way > 0;
    }
  }
  if (!sweep.place_wanted && !sweep.memory_wanted) return;

  const auto connections =
      absl::c_count_if(holders, [](const auto& named) { return named.second.calls > 0 || named.second.waiting > 0; });
  const int64_t share = parts_.places->capacity() / std::max<int64_t>(connections, 1);
  int64_t needed = missing;        // by all who wait
  int64_t needed_below = missing;  // by those of them whose connections have less than their share
  int64_t needed_new = missing;    // by those of them of whose connections none has given way
  for (const auto& [connection, holder] : holders) {
    const int64_t due = std::max<int64_t>((share - holder.bytes) / kStreamBytes, holder.calls == 0 ? 1 : 0);
    needed += holder.waiting * kStreamBytes;
    needed_below += std::min(holder.waiting, due) * kStreamBytes;
    if (!holder.gave_way) needed_new += holder.waiting * kStreamBytes;
  }
  bool memory_needed = sweep.memory_wanted;
  absl::c_sort(candidates, [](const auto& a, const auto& b) { return a.standing.silence > b.standing.silence; });
  for (const Candidate& candidate : candidates) {
    const Call::Standing& standing = candidate.standing;
    Holder& holder = *candidate.holder;
    bool gives_way = false;
    switch (standing.gives_way) {
      case Call::GivesWay::kNever:
        break;
      case Call::GivesWay::kWhereUndeserved:
        gives_way = (needed_below > 0 && holder.calls > 1 && holder.bytes > share) ||
                    (needed_new > 0 && holder.gave_way && !standing.idle);
        break;
      case Call::GivesWay::kWhenWanted:
        gives_way = needed_new > 0 || (needed > 0 && (holder.gave_way || standing.silence > kLargeRequestGrace)) ||
                    (memory_needed && standing.holds_memory);
        break;
    }
    if (!gives_way) continue;
    needed -= standing.charge;
    needed_below -= standing.charge;
    needed_new -= standing.charge;
    memory_needed = memory_needed && !standing.holds_memory;
    holder.bytes -= standing.charge;
    --holder.calls;
    candidate.call->GiveWay(sweep);
    core::MutexLock lock(&mutex_);
    if (const auto found = calls_.find(candidate.call.get()); found != calls_.end()) {
      ++found->second.connection->second.gave_way;
    }
  }
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
    for (const auto& [call, entry] : calls_) {
      if (std::shared_ptr<Call> alive = call->weak_from_this().lock()) calls.push_back(std::move(alive));
    }
  }
  for (const std::shared_ptr<Call>& call : calls) visit(call.get());
}

absl::Status DrainingError() {
  return Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING, "the server is shutting down");
}

}  // namespace adamant::rpc
