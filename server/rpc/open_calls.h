// The calls of one kind that are open now: how many there may be, how long each may stall, and how they end when the
// server drains.
#ifndef ADAMANT_SERVER_RPC_OPEN_CALLS_H_
#define ADAMANT_SERVER_RPC_OPEN_CALLS_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/budget.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"

namespace adamant::rpc {

class Call;

// What an open call may make the server hold beside its grants, and what it is charged: one message in, one message
// out, and one small step.
inline constexpr int64_t kStreamBytes = int64_t{9} << 20;

// How long a step, write, reply or read may take, counted while the server waits for the client: `patience`, and the
// time that its bytes take at `min_rate` bytes a second. And how long one message of it may.
struct PatienceTerms {
  absl::Duration patience;
  double min_rate;

  absl::Duration For(int64_t bytes) const { return patience + absl::Seconds(static_cast<double>(bytes) / min_rate); }
};

// UNAVAILABLE (DRAINING).
absl::Status DrainingError();

// Thread-safe. Outlives its calls.
class OpenCalls {
 public:
  // Everything outlives this.
  OpenCalls(core::Budget* streams, core::Clock* clock, PatienceTerms terms);
  ~OpenCalls();
  OpenCalls(const OpenCalls&) = delete;
  OpenCalls& operator=(const OpenCalls&) = delete;

  // Lets a call in: its charge, held until it leaves. Errors: RESOURCE_EXHAUSTED (TOO_MANY_STREAMS, with RetryInfo);
  // UNAVAILABLE (DRAINING).
  absl::StatusOr<core::Grant> Enter(Call* call);
  void Leave(Call* call);

  // From now on nobody enters; calls that are idle are told so, the others when they become idle.
  void Drain();
  bool draining() const { return draining_; }
  // Waits until no call is open, at most until `deadline`.
  void AwaitNone(std::chrono::steady_clock::time_point deadline);

  core::Clock* clock() const { return clock_; }
  const PatienceTerms& terms() const { return terms_; }

 private:
  // Looks at every call now and then, rather than set a timer for every message: patience is long.
  void Sweep();
  template <typename Visit>
  void ForEach(Visit visit);

  core::Budget* const streams_;
  core::Clock* const clock_;
  const PatienceTerms terms_;

  // Set under mutex_, so that nobody enters after; read without it, because every step of every set asks.
  std::atomic<bool> draining_ = false;

  core::Mutex mutex_;
  core::CondVar left_;
  absl::flat_hash_set<Call*> calls_ ABSL_GUARDED_BY(mutex_);
  core::Clock::TimerId sweep_ ABSL_GUARDED_BY(mutex_) = core::Clock::kNoTimer;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_OPEN_CALLS_H_
