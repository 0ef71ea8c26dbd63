// How a client connects, how long it waits, and how often it tries again.
//
// Plain data: copy it, change it, pass it to Client::Connect. The defaults suit a trainer next to its server.
//
// Not an option, because it is the program's to choose: the allocator. gRPC's buffers come and go by the megabyte, and
// an allocator that hands them back to the kernel each time costs a large step half of its throughput. A program that
// steps megabytes should link tcmalloc, or raise glibc's thresholds once, before it connects:
//
//   mallopt(M_MMAP_THRESHOLD, 1 << 30);
//   mallopt(M_TRIM_THRESHOLD, 1 << 30);
//   mallopt(M_TOP_PAD, 64 << 20);
#ifndef ADAMANT_OPTIONS_H_
#define ADAMANT_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class ChannelArguments;
}

namespace adamant {

// When a failed attempt is followed by another. Retried are UNAVAILABLE, RESOURCE_EXHAUSTED if the server says how long
// to wait, and attempts that ran into their own timeout; nothing else. Attempts of a call are safe to repeat: steps and
// writes carry a request_id.
//
// An attempt is made over a connection. While there is none, the call waits for one (ClientOptions::connect_timeout),
// and uses up no attempts.
struct RetryPolicy {
  // Attempts of one call, the first included; at least 1. In a step, asking for its outcome is part of the attempt.
  int max_attempts = 10;
  // The whole call, waits included: its last attempt is cut short at this. Positive.
  absl::Duration total_timeout = absl::Minutes(10);

  // The wait before the second attempt; each later one is `multiplier` times the one before, up to `max_backoff`. A
  // wait that the server asks for is kept to where it is longer. Any wait ends when the connection is lost: a server
  // that comes back has not asked for it.
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(10);
  // At least 1.
  double multiplier = 2;
  // In [0, 1]. A wait is drawn evenly from [1 - jitter, 1] times its nominal length, so that clients that failed
  // together do not come back together.
  double jitter = 0.5;
};

struct ClientOptions {
  RetryPolicy retry = {};

  // How long a call waits for a connection to the server, each time that there is none: for a server that is not up
  // yet or is being restarted, for a network that is down, for a name that does not resolve yet. The target is tried
  // three times a second, so that the call goes on within a second of the server's being there. When the time is over
  // the call fails, UNAVAILABLE, with the target and the reason, such as "Connection refused". Positive; within
  // `retry.total_timeout`.
  absl::Duration connect_timeout = absl::Seconds(30);
  // One attempt of a call that moves no tensors. Positive, like the other two.
  absl::Duration unary_timeout = absl::Seconds(10);
  // One attempt of a step: gradient up, parameters back. Model size over bandwidth, twice, with room to spare. A peer
  // whose socket takes nothing at all may hold on to the gradient, and so to the call, until TCP gives it up: 30 s
  // more.
  absl::Duration step_timeout = absl::Minutes(1);
  // One attempt of a read or write of parameters or of the whole state, and of what the server does with all of a set:
  // a checkpoint, a restore, a fork.
  absl::Duration transfer_timeout = absl::Minutes(5);

  // How large messages with tensors are made, in bytes, in [1 KiB, 4 MiB]: 1 MiB of elements with room for what goes
  // with them. 2 MiB are alike, less costs throughput, and 4 MiB is what the server takes at most. A step that fits
  // into one is sent whole; a larger one sends its header ahead, so that the server admits it before the gradient
  // moves.
  int64_t message_bytes = (int64_t{1} << 20) + (int64_t{1} << 10);

  // Called once for each connection; may set any argument of its channel. What it sets holds over what the library
  // would.
  std::function<void(grpc::ChannelArguments*)> channel_arguments = nullptr;

  // Called when a call begins to wait, with the reason: once for each time that there is no connection, and before each
  // attempt after the first. For a line in a log. Called from the thread of the call.
  std::function<void(const absl::Status& reason)> on_wait = nullptr;

  // Asked by a call that waits, ten times a second and on its thread, whether it is to end, CANCELLED: for Ctrl-C. A
  // call that moves no tensors asks between its attempts. Whether a step that ends so was applied is not known, as
  // after DEADLINE_EXCEEDED. Empty: none is to.
  std::function<bool()> interrupted = nullptr;

  // For tests: what waits between attempts, what tells the time (since some fixed moment, never going back), and what
  // names a step or write (1 to 64 printable ASCII characters, never the same twice). Empty: the real ones, and 128
  // random bits. All are called from any thread.
  std::function<void(absl::Duration)> sleep = nullptr;
  std::function<absl::Duration()> now = nullptr;
  std::function<std::string()> request_id = nullptr;
};

}  // namespace adamant

#endif  // ADAMANT_OPTIONS_H_
