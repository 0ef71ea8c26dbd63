#include "server/core/set/state_writing.h"

#include <algorithm>
#include <utility>

#include "server/core/base/notification.h"
#include "server/core/set/outcome_waiter.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/turn_queue.h"
#include "server/core/set/write_attempt.h"

namespace adamant::core {

void AwaitTurn(const SetRep& set) {
  Notification ended;
  set.turns->Enqueue([&ended](TurnQueue::Turn turn) {
    turn.EndAtOnce();
    ended.Notify();
  });
  ended.WaitForNotification();
}

absl::Status WriteState(const std::shared_ptr<SetRep>& set, const WrittenState& state, LoadElements load) {
  v1::WriteHeader header;
  header.set_set(set->name);
  header.set_mode(v1::WRITE_MODE_FULL);
  header.set_step(state.step);
  header.mutable_update_counts()->Add(state.update_counts.begin(), state.update_counts.end());
  if (state.former_incarnation.has_value()) header.set_incarnation(*state.former_incarnation);
  if (state.schema_fingerprint.has_value()) header.set_schema_fingerprint(*state.schema_fingerprint);
  auto waiter = std::make_shared<OutcomeWaiter<WriteListener>>();
  auto attempt = std::make_shared<WriteAttempt>(set, header, waiter);
  attempt->TakeAnyValues();
  if (state.incarnation != 0) attempt->MakeAgain(state.incarnation);
  attempt->Start();
  waiter->AwaitAdmission();
  if (attempt->over()) return waiter->Await().status();
  std::shared_ptr<const Schema> schema;
  {
    MutexLock lock(&set->mutex);
    schema = set->schema;
  }
  std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER};
  slots.insert(slots.end(), set->slots.begin(), set->slots.end());
  absl::Status status = load(
      *schema, slots, [&](v1::Slot slot, int tensor, int64_t offset, absl::Span<const float> elements) -> absl::Status {
        const float* next = elements.data();
        return attempt->Add(slot, tensor, offset, static_cast<int64_t>(elements.size()), [&](float* to, int64_t n) {
          std::copy_n(next, n, to);
          next += n;
        });
      });
  if (status.ok()) status = attempt->Complete();
  if (status.ok()) status = waiter->Await().status();
  attempt.reset();
  AwaitTurn(*set);
  return status;
}

}  // namespace adamant::core
