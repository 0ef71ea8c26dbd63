// The calls of one kind that are open now: how many there may be, who is served first, who gives way to others, how
// long each may keep the server waiting, and how they end when the server drains.
#ifndef ADAMANT_SERVER_RPC_OPEN_CALLS_H_
#define ADAMANT_SERVER_RPC_OPEN_CALLS_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/base/clock.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/budget.h"
#include "server/rpc/waiting_room.h"

namespace adamant::rpc {

class Call;

// The charge of a place: the most that an open call can make the server hold beside its grants, which is one message of
// 4 MiB on its way in, one small step of 1 MiB, and what is known of its tensors. While a call writes, no read is
// posted, and its messages are 1 MiB or refer to memory that is paid for. A method whose requests are small takes the
// same: gRPC takes in a message of 4 MiB before anybody can refuse it.
inline constexpr int64_t kStreamBytes = int64_t{11} << 19;

// The charge of a call that waits for its client and holds no message: an idle watch, or one whose reply is not taken,
// beside the reply. Measured: 19 KiB.
inline constexpr int64_t kIdleCallBytes = int64_t{24} << 10;

// How long a client may be silent while somebody waits for what its call holds, where its request is small, so that it
// normally comes with the headers, or where its connection holds more than its share.
inline constexpr absl::Duration kGrace = absl::Milliseconds(30);
// The same for a reply that is to be taken: a busy server may take as long to send it.
inline constexpr absl::Duration kReplyGrace = absl::Seconds(1);
// The same for a request that may be large, where the connection holds more than its share.
inline constexpr absl::Duration kLargeRequestGrace = absl::Seconds(1);

// How long a client may keep the server waiting.
struct PatienceTerms {
  // How long a message or a reply may be under way, beside the time that its bytes take at `min_rate` bytes a second. A
  // silence may last as long while somebody waits for what the call holds, and that of an idle call `patience` alone.
  absl::Duration patience;
  double min_rate;
  // How long a silence between the messages of a step or a write may last while nobody does; at least as long as a
  // message may be under way.
  absl::Duration think_time;

  absl::Duration AtMinRate(int64_t bytes) const { return absl::Seconds(static_cast<double>(bytes) / min_rate); }
  absl::Duration For(int64_t bytes) const { return patience + AtMinRate(bytes); }
};

// UNAVAILABLE (DRAINING).
absl::Status DrainingError();

// Who is let in. A call that finds no place waits for one. The next to be let in is a call of the connection that has
// the fewest calls open here; among equal ones, of the one of which the fewest have given way since somebody waits, and
// then of the one that has the fewest waiting, so that a client that comes and asks for little passes strangers who do
// nothing with the places that they get, or ask for many, on however many connections; among equal ones, the call that
// came first. The calls of one connection are let in in the order in which they came.
//
// Who gives way. A call that waits for its client holds its place only as long as nobody else needs it. While calls
// wait, as many give way as make room for them, the longest silence first, of those
// - whose first message has not come within `request_time`;
// - of whose reply a message has not been taken within the time of its bytes at PatienceTerms::min_rate, and
// kReplyGrace;
// - that have been idle for longer than `patience`, or than `request_time` where they may not be idle for good;
// - that are in the middle of a step or a write, and have been silent for longer than a message may be under way;
// - whose connection holds more than its share, if that makes room for one that holds less, and which have been idle
//   for kGrace, or whose first message has not come within `request_time` or kLargeRequestGrace, or whose reply has
//   not been taken within `request_time`;
// - the same, but for idle ones, if a call of the connection gave way before, since somebody waits, and that makes room
//   for a connection of which none did.
// The share of a connection is what the places are divided by the connections that hold or want some, but one call at
// least. While only such connections wait of whose calls some gave way, those of which none did are spared for
// kLargeRequestGrace: a client whose request is on its way through a busy server does not make room for strangers who
// do nothing with it.
//
// Thread-safe. It must outlive its calls.
class OpenCalls {
 public:
  // Each of these must outlive the OpenCalls.
  struct Parts {
    core::Budget* places;  // kStreamBytes for each call that is open, less when it is known to need less
    WaitingRoom* waiting;
    // That steps and writes reserve from. Whoever waits for it shortens the silence of those that hold some.
    const core::Budget* inflight;
    core::Clock* clock;
    // How long a client may take over its first message while others wait for its place.
    absl::Duration request_time = absl::InfiniteDuration();
  };
  OpenCalls(const Parts& parts, PatienceTerms terms);
  ~OpenCalls();
  OpenCalls(const OpenCalls&) = delete;
  OpenCalls& operator=(const OpenCalls&) = delete;

  // Has the call let in (Call::LetIn) as soon as there is a place for it and it is its turn: before this returns, or
  // later. Errors: RESOURCE_EXHAUSTED (TOO_MANY_STREAMS, with RetryInfo) if as many calls wait as may; UNAVAILABLE
  // (DRAINING).
  absl::Status Enter(const std::shared_ptr<Call>& call);
  // The call is over, whether or not it is waiting: it is not to be let in any more.
  void StopWaiting(Call* call);
  // gRPC is done with the call.
  void Leave(Call* call);

  // Has all calls hear that what the server says of itself may have changed (Call::OnNews).
  void TellNews();

  // From now on nobody enters; calls that wait or are idle are told so, the others when they become idle.
  void Drain();
  bool draining() const { return draining_; }
  // Waits until no call is open, at most until `deadline`. Returns how many are.
  int AwaitNone(std::chrono::steady_clock::time_point deadline);

  const PatienceTerms& terms() const { return terms_; }
  absl::Duration request_time() const { return parts_.request_time; }

  // What a sweep tells the calls.
  struct Sweep {
    // Time that the server has attended to its clients: the clock's, less what went by while the process was stopped
    // (SIGSTOP, a paused container) or had no processor, which is nobody's silence.
    absl::Duration now;
    // Since the sweep before.
    absl::Duration elapsed;
    // Whether somebody waits for a place, or for memory.
    bool place_wanted;
    bool memory_wanted;
  };

 private:
  // What there is to know of a client's connection.
  struct Connection {
    int calls = 0;  // that have entered and not left
    int let_in = 0;
    int gave_way = 0;                   // since somebody waits
    std::map<uint64_t, Call*> waiting;  // by their arrival
  };
  using Connections = std::map<std::string, Connection>;
  struct Entry {
    Connections::iterator connection;
    uint64_t arrival;
    bool let_in = false;
    bool waits = false;
  };

  // Lets calls in while there are places and calls that wait, and is called again when there is the next place. One at
  // a time: while `serving_`.
  void Serve();
  // Lets the next call in that waits. Returns whether there are more.
  bool LetNextIn(core::Grant place);
  // Null if nobody waits.
  std::shared_ptr<Call> TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Looks at every call now and then, rather than set a timer for every message: patience is long. Much more often
  // while somebody waits.
  void RunSweep();
  // Has those give way who make room for calls that wait, as above.
  void MakeRoom(const Sweep& sweep);
  absl::Duration SweepInterval() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the log that calls wait, now and then.
  void LogWaiting(int64_t waiting);
  template <typename Visit>
  void ForEach(Visit visit);

  const Parts parts_;
  const PatienceTerms terms_;

  // Set under mutex_, so that nobody enters after; read without it, because every step of every set asks.
  std::atomic<bool> draining_ = false;

  // Used on the clock's thread only.
  absl::Duration attended_ = absl::ZeroDuration();
  std::optional<absl::Duration> wait_begin_;  // since when somebody has always waited for a place
  absl::Duration next_log_;

  core::Mutex mutex_;
  core::CondVar left_;
  absl::flat_hash_map<Call*, Entry> calls_ ABSL_GUARDED_BY(mutex_);
  Connections connections_ ABSL_GUARDED_BY(mutex_);
  uint64_t arrivals_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  // Serve's, for the next place.
  core::Budget::WaitId next_place_ ABSL_GUARDED_BY(mutex_) = core::Budget::kNoWait;
  absl::Duration last_sweep_ ABSL_GUARDED_BY(mutex_);
  // How long the sweep under way or to come was to be after the one before.
  absl::Duration planned_ ABSL_GUARDED_BY(mutex_);
  core::Clock::TimerId sweep_timer_ ABSL_GUARDED_BY(mutex_) = core::Clock::kNoTimer;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_OPEN_CALLS_H_
