#include "server/core/set/checkpointing.h"

#include <utility>

#include "absl/time/time.h"
#include "proto/error/error.h"
#include "server/core/set/reading.h"
#include "server/core/set/set_rep.h"

namespace adamant::core {
namespace {

// It is read in a turn: between a write's becoming the base and its being published only those who have the turn know
// that the state is an old one.
v1::ReadTensorsRequest WholeState(const SetRep& set) {
  v1::ReadTensorsRequest request;
  request.set_set(set.name);
  request.add_slots(v1::SLOT_PARAMETER);
  for (const v1::Slot slot : set.slots) request.add_slots(slot);
  return request;
}

void HandOver(const std::shared_ptr<SetRep>& set, absl::StatusOr<std::unique_ptr<Reading>> state, uint64_t generation,
              Then<absl::Status> done) {
  if (!state.ok()) {
    done(std::move(state).status());
    return;
  }
  v1::ParameterSet description;
  {
    MutexLock lock(&set->mutex);
    description = DescribeSet(*set);
  }
  set->journal->Checkpoint(*std::move(state), description, generation, std::move(done));
}

}  // namespace

void CheckpointInTime(const std::shared_ptr<SetRep>& set) {
  if (set->journal == nullptr) return;
  {
    MutexLock lock(&set->mutex);
    if (set->checkpoint_begun || !set->journal->WantsCheckpoint(set->lifecycle.incarnation(), set->lifecycle.step()))
      return;
    set->checkpoint_begun = true;
  }
  const uint64_t generation = set->journal->generation();
  Reading::BeginAtTurn(set, WholeState(*set), [set, generation](absl::StatusOr<std::unique_ptr<Reading>> state) {
    bool wanted;
    {
      MutexLock lock(&set->mutex);
      // A step that found no room may have had one made meanwhile.
      wanted = set->journal->WantsCheckpoint(set->lifecycle.incarnation(), set->lifecycle.step());
      set->checkpoint_begun = false;
    }
    // After an error the next step begins another one.
    if (wanted) HandOver(set, std::move(state), generation, [](const absl::Status& /*made*/) {});
  });
}

void BeginCheckpoint(std::shared_ptr<SetRep> set, Then<absl::Status> done) {
  v1::ReadTensorsRequest request = WholeState(*set);
  const uint64_t generation = set->journal->generation();
  Reading::BeginAtTurn(
      set, request, [set, generation, done = std::move(done)](absl::StatusOr<std::unique_ptr<Reading>> state) mutable {
        HandOver(set, std::move(state), generation, [set, done = std::move(done)](absl::Status made) mutable {
          if (absl::IsAborted(made)) {
            // A write or another checkpoint came between, which may be of a state before the call.
            BeginCheckpoint(std::move(set), std::move(done));
          } else {
            done(std::move(made));
          }
        });
      });
}

void MakeRoom(std::shared_ptr<SetRep> set, Then<absl::StatusOr<std::unique_ptr<SetJournal::Room>>> done) {
  SetJournal* const journal = set->journal.get();
  // Whatever becomes of that one: if it has made no room, another one is to.
  journal->AwaitCheckpoint([set, done = std::move(done)](const absl::Status& /*made*/) mutable {
    if (std::unique_ptr<SetJournal::Room> room = set->journal->TakeRoom(); room != nullptr) {
      done(std::move(room));
      return;
    }
    const uint64_t generation = set->journal->generation();
    Reading::BeginInTurn(
        set, WholeState(*set),
        [set, generation, done = std::move(done)](absl::StatusOr<std::unique_ptr<Reading>> state) mutable {
          HandOver(set, std::move(state), generation, [set, done = std::move(done)](const absl::Status& made) mutable {
            if (absl::IsAborted(made)) {
              // A checkpoint that began before this turn has come between, and has made room, perhaps.
              MakeRoom(std::move(set), std::move(done));
              return;
            }
            if (!made.ok()) {
              done(Unshared(made));
              return;
            }
            std::unique_ptr<SetJournal::Room> room = set->journal->TakeRoom();
            if (room == nullptr) {
              done(Error(absl::StatusCode::kInternal, v1::ERROR_REASON_STORE_FAILED,
                         "a checkpoint has made no room in the journal"));
              return;
            }
            done(std::move(room));
          });
        });
  });
}

}  // namespace adamant::core
