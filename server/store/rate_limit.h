// How fast the disk may be written beside what clients wait for.
#ifndef ADAMANT_SERVER_STORE_RATE_LIMIT_H_
#define ADAMANT_SERVER_STORE_RATE_LIMIT_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/base/clock.h"

namespace adamant::store {

// So many bytes a second, together for all who ask, in the order in which they do. Time that nobody has asked for is
// lost, but for the last kKeptTime, which makes up for what waits take too long. Thread-safe.
class RateLimit {
 public:
  static constexpr absl::Duration kKeptTime = absl::Milliseconds(20);

  // `clock` outlives this. Requires: bytes_per_second > 0.
  RateLimit(core::Clock* clock, double bytes_per_second);
  // Requires: nobody is in Wait.
  ~RateLimit();
  RateLimit(const RateLimit&) = delete;
  RateLimit& operator=(const RateLimit&) = delete;

  // Returns once what was asked for before has had its time; with the time that `bytes` take those wait that come
  // after. Must not be called on the clock's thread. After Stop, what Stop was given.
  absl::Status Wait(int64_t bytes);

  // Ends every wait, now and later. Requires: `why` is not OK.
  void Stop(absl::Status why);

 private:
  struct Rep;

  core::Clock* const clock_;
  const double bytes_per_second_;
  // Shared with the clock's callbacks, which may come late.
  const std::shared_ptr<Rep> rep_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_RATE_LIMIT_H_
