// How a set answers whoever began a step or a write.
#ifndef ADAMANT_SERVER_CORE_SET_LISTENER_H_
#define ADAMANT_SERVER_CORE_SET_LISTENER_H_

#include "absl/status/statusor.h"

namespace adamant::core {

// Called by the set from any thread, with no lock of the set's held. Must not block.
template <typename ReplyType>
class Listener {
 public:
  using Reply = ReplyType;

  virtual ~Listener() = default;

  // Says that chunks may come. Called at most once; and by chance just after OnOutcome, when it is to be ignored.
  virtual void OnAdmitted() = 0;

  // Says that the attempt is over, and what became of it. Called at most once, and not after the attempt was cancelled,
  // unless another thread was about to. An error may come at any time: before Complete, for instance because the set
  // was deleted, or from the turn.
  virtual void OnOutcome(absl::StatusOr<Reply> reply) = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_LISTENER_H_
