// The attempts of one call: whether a failed one is followed by another, when, and how long that one may take.
//
// Thread-compatible.
#ifndef ADAMANT_CLIENT_SRC_ATTEMPTS_H_
#define ADAMANT_CLIENT_SRC_ATTEMPTS_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "adamant/options.h"

namespace adamant {

// How often a call that waits asks whether it is to end.
inline constexpr absl::Duration kInterruptInterval = absl::Milliseconds(100);

class Attempts {
 public:
  // The call begins now. `options` has its clock and sleeper set, and outlives this.
  explicit Attempts(const ClientOptions* options);

  // The attempt that is being made, from 1.
  int number() const { return number_; }

  // How long a part of it may take from now: `timeout`, or what is left of the whole call.
  absl::Duration Timeout(absl::Duration timeout) const;

  // To be called when the attempt has failed with `failure`. Waits and returns OK if another is to be made; otherwise
  // returns the error that the call ends with.
  absl::Status Next(const absl::Status& failure);

 private:
  absl::Duration Elapsed() const;

  const ClientOptions& options_;
  const absl::Duration begin_;
  absl::Duration backoff_;
  int number_ = 1;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_ATTEMPTS_H_
