// What drives a set's rounds: its turns, its memory, and time.
#ifndef ADAMANT_SERVER_CORE_SET_ROUND_TURN_H_
#define ADAMANT_SERVER_CORE_SET_ROUND_TURN_H_

#include <memory>

#include "absl/status/status.h"
#include "server/core/set/round.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/step_attempt.h"
#include "server/core/set/turn_queue.h"

namespace adamant::core {

// The set's round has begun with a contribution: reserves its memory, and lets contributions arrive. Where there is no
// room in time all who are there end RESOURCE_EXHAUSTED, and the round has not begun.
void BeginRound(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round);

// The timer at which `round` expires, for the first time and then for good, unless it has ended.
Clock::TimerId ExpireInTime(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round);

// Lets contributions arrive that may.
void AdmitContributions(const std::shared_ptr<SetRep>& set);

// Takes a contribution that has arrived whole to its round, and goes on with that as far as it comes: folds, and where
// nobody is awaited any more has the round become a step. What belongs to no open round is answered as StepCommit does.
void DeliverContribution(std::shared_ptr<SetRep> set, std::shared_ptr<StepAttempt> attempt, TurnQueue::Turn turn);

// Has a turn look at the open round: somebody has gone, or its time is over.
void LookAtRound(std::shared_ptr<SetRep> set);

// What becomes of an attempt whose place another one, of this header, has taken: ABORTED (SUPERSEDED).
absl::Status Superseded(const SetRep& set, const v1::StepHeader& header) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);
// What becomes of a contribution whose rank has one already: ABORTED (RANK_TAKEN).
absl::Status RankTaken(const SetRep& set, const v1::StepHeader& header) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);

// Takes the open round, if there is one, from a set that it does not fit any more; the caller drops it with
// AbandonRound, without the mutex.
std::shared_ptr<Round> TakeRound(SetRep* set) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set->mutex);
// Ends a round that was taken, if it is not null: all who wait for it, or for their turn in it, hear `status`.
void AbandonRound(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round, const absl::Status& status);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_ROUND_TURN_H_
