// The calls of one kind that are open now: how many there may be, which wait for a place, how long each may keep the
// server waiting, and how they end when the server drains.
#ifndef ADAMANT_SERVER_RPC_OPEN_CALLS_H_
#define ADAMANT_SERVER_RPC_OPEN_CALLS_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/core/budget.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"

namespace adamant::rpc {

class Call;

// The charge of a place: the most that an open call can make the server hold beside its grants, which is one message of
// 4 MiB on its way in, one small step of 1 MiB, and what is known of its tensors. While a call writes, no read is
// posted, and its messages are 1 MiB or refer to memory that is paid for.
inline constexpr int64_t kStreamBytes = int64_t{11} << 19;

// The charge of a call that waits for a place: what HTTP/2 lets a client send before anybody reads, its state, and
// kUsualMetadataBytes of metadata; more of that is charged for beside. Measured, 4,096 calls with 64 KiB sent: 86 KiB
// each.
inline constexpr int64_t kWaitingCallBytes = int64_t{96} << 10;
inline constexpr int64_t kUsualMetadataBytes = int64_t{8} << 10;

// How long a client may keep the server waiting.
struct PatienceTerms {
  // How long a message or a reply may be under way, beside the time that its bytes take at `min_rate` bytes a second. A
  // silence may last as long while somebody waits for what the call holds, and that of an idle call `patience` alone.
  absl::Duration patience;
  double min_rate;
  // How long a silence between the messages of a step or a write may last while nobody does; at least as long as a
  // message may be under way.
  absl::Duration think_time;

  absl::Duration For(int64_t bytes) const { return patience + absl::Seconds(static_cast<double>(bytes) / min_rate); }
};

// UNAVAILABLE (DRAINING).
absl::Status DrainingError();

// Thread-safe. It must outlive its calls.
class OpenCalls {
 public:
  // Each of these must outlive the OpenCalls.
  struct Parts {
    core::Budget* places;   // kStreamBytes for each call that is open
    core::Budget* waiting;  // kWaitingCallBytes for each that waits
    // That steps and writes reserve from. Whoever waits for it shortens the silence of those that hold some.
    const core::Budget* inflight;
    core::Clock* clock;
  };
  OpenCalls(const Parts& parts, PatienceTerms terms);
  ~OpenCalls();
  OpenCalls(const OpenCalls&) = delete;
  OpenCalls& operator=(const OpenCalls&) = delete;

  // Has the call let in (Call::LetIn) as soon as there is a place for it: before this returns, or later, in the order
  // of arrival. Errors: RESOURCE_EXHAUSTED (TOO_MANY_STREAMS, with RetryInfo) if as many calls wait as may; UNAVAILABLE
  // (DRAINING).
  absl::Status Enter(const std::shared_ptr<Call>& call);
  void Leave(Call* call);

  // From now on nobody enters; calls that wait or are idle are told so, the others when they become idle.
  void Drain();
  bool draining() const { return draining_; }
  // Waits until no call is open, at most until `deadline`. Returns how many are.
  int AwaitNone(std::chrono::steady_clock::time_point deadline);

  core::Budget* places() const { return parts_.places; }
  const PatienceTerms& terms() const { return terms_; }

  // What a sweep tells the calls.
  struct Sweep {
    // Time that the server has attended to its clients: the clock's, less what went by while the process was stopped
    // (SIGSTOP, a paused container), which is nobody's silence.
    absl::Duration now;
    // Since the sweep before.
    absl::Duration elapsed;
    // Whether somebody waits for a place, or for memory.
    bool place_wanted;
    bool memory_wanted;
  };

 private:
  // Looks at every call now and then, rather than set a timer for every message: patience is long.
  void RunSweep();
  // Tells the log that calls wait, now and then.
  void LogWaiting(int64_t waiting);
  template <typename Visit>
  void ForEach(Visit visit);

  const Parts parts_;
  const PatienceTerms terms_;
  const absl::Duration sweep_interval_;

  // Set under mutex_, so that nobody enters after; read without it, because every step of every set asks.
  std::atomic<bool> draining_ = false;

  // Used on the clock's thread only.
  absl::Duration last_sweep_;
  absl::Duration attended_ = absl::ZeroDuration();
  absl::optional<absl::Duration> wait_begin_;  // since when somebody has always waited for a place
  absl::Duration next_log_;

  core::Mutex mutex_;
  core::CondVar left_;
  absl::flat_hash_set<Call*> calls_ ABSL_GUARDED_BY(mutex_);
  core::Clock::TimerId sweep_timer_ ABSL_GUARDED_BY(mutex_) = core::Clock::kNoTimer;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_OPEN_CALLS_H_
