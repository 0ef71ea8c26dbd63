// What a set remembers of the requests that it applied: the half of exactly-once that answers retries.
#ifndef ADAMANT_SERVER_CORE_REPLAY_H_
#define ADAMANT_SERVER_CORE_REPLAY_H_

#include <cstdint>
#include <deque>
#include <string>

#include "absl/strings/string_view.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"

namespace adamant::core {

// Steps that are remembered, and how far behind a request may be before its outcome is unknown.
inline constexpr int64_t kRememberedSteps = 64;
inline constexpr int kMaxRequestIdBytes = 64;

// Thread-compatible: guarded by the set's mutex.
class ReplayMemory {
 public:
  struct Entry {
    std::string request_id;
    uint64_t header_hash;
    v1::StepResult result;  // with `replayed` unset
  };

  // Remembers a committed step. Beyond kRememberedSteps the oldest is forgotten. A step without a request_id takes its
  // place like any other, but is never found.
  void Remember(Entry entry);

  // The entry of this request_id, or null. Valid until the next call that is not const.
  const Entry* Find(absl::string_view request_id) const;

  // Forgets everything: a new incarnation.
  void Clear() { entries_.clear(); }

 private:
  std::deque<Entry> entries_;
};

// Hash of what makes two attempts the same request: every field of the header but `attempt`.
uint64_t HashHeader(const v1::StepHeader& header);
uint64_t HashHeader(const v1::WriteHeader& header);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_REPLAY_H_
