// One delivery of one write, from its header to its reply.
#ifndef ADAMANT_SERVER_CORE_WRITE_ATTEMPT_H_
#define ADAMANT_SERVER_CORE_WRITE_ATTEMPT_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/types/optional.h"
#include "adamant/v1/service.pb.h"
#include "server/core/budget.h"
#include "server/core/listener.h"
#include "server/core/staging.h"

namespace adamant::core {

class ParameterSet;

using WriteListener = Listener<v1::WriteTensorsResponse>;

// Made by ParameterSet::NewWrite. There are two kinds. A staged write (parameters of a set that has some) collects
// beside the state, like a step, and changes nothing before its turn. A direct write (the first, and every full one)
// has taken the set's own blocks: the set is UNINITIALIZED until it commits, and stays so if it breaks.
//
// There is one write at a time. The next may begin when it has failed or committed, or when the last reference to it is
// gone. Others are refused meanwhile, but the same request again is not: it ends the one under way (SUPERSEDED) unless
// that is complete, waits until it is gone, and then begins, or finds that it was applied.
//
// Calls as for StepAttempt.
class WriteAttempt : public std::enable_shared_from_this<WriteAttempt> {
 public:
  using Header = v1::WriteHeader;
  using Listener = WriteListener;

  ~WriteAttempt();
  WriteAttempt(const WriteAttempt&) = delete;
  WriteAttempt& operator=(const WriteAttempt&) = delete;

  // Delivers the header; answers through the listener.
  void Start();

  // Takes one chunk. Errors as Staging::Add, and VALUE_OUT_OF_RANGE with tensor and offset for a value that may not be
  // written, INVALID_FIELD for a slot that this write does not bring; fields are relative to the chunk. After an error
  // the attempt is over.
  absl::Status Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy);

  // OK if everything has come that Complete asks for; else INCOMPLETE, and the attempt goes on. For the thread that
  // delivers.
  absl::Status CheckComplete() const;

  // The last message has come. On OK the write takes its turn and OnOutcome follows, perhaps before this returns.
  // Error: INCOMPLETE; the attempt is over.
  absl::Status Complete();

  // Withdraws a write that is not complete. The listener hears nothing after this but what another thread was about to
  // tell it.
  void Cancel();

 private:
  friend class ParameterSet;
  enum class State { kWaiting, kArriving, kComplete, kOver };
  enum class Kind { kUndecided, kStaged, kDirect, kReplay };
  // Arrays by slot: PARAMETER, EXP_AVG, EXP_AVG_SQ.
  static constexpr int kSlots = 3;

  WriteAttempt(std::shared_ptr<ParameterSet> set, const v1::WriteHeader& header,
               std::shared_ptr<WriteListener> listener);

  // Ends the write because of what it brought, and returns `status`.
  absl::Status Fail(absl::Status status);
  // If this is the write under way, it is so no more: gives a direct one's blocks back to the set, and has the one that
  // waits begin. Requires: nothing is being added.
  void LetNextBegin();

  const std::shared_ptr<ParameterSet> set_;
  const v1::WriteHeader header_;

  // Of the thread that delivers, and after Complete of the turn.
  Grant grant_;                                        // before what it pays for, which comes back first
  std::array<absl::optional<Staging>, kSlots> slots_;  // those that the write brings

  // Decided, under the set's mutex_, when the write begins; constant from OnAdmitted on.
  Kind kind_ = Kind::kUndecided;

  // Guarded by the set's mutex_.
  State state_ = State::kWaiting;
  Budget::WaitId wait_ = Budget::kNoWait;
  std::shared_ptr<WriteListener> listener_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_WRITE_ATTEMPT_H_
