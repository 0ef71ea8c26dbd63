// For threads that nobody waits for: what becomes of a step or a write.
#ifndef ADAMANT_SERVER_CORE_SET_OUTCOME_WAITER_H_
#define ADAMANT_SERVER_CORE_SET_OUTCOME_WAITER_H_

#include <utility>

#include "absl/status/statusor.h"
#include "server/core/base/notification.h"

namespace adamant::core {

// Thread-safe.
template <typename ListenerType>
class OutcomeWaiter final : public ListenerType {
 public:
  using Reply = typename ListenerType::Reply;

  void OnAdmitted() override { admitted_.Notify(); }
  void OnOutcome(absl::StatusOr<Reply> reply) override {
    outcome_ = std::move(reply);
    over_.Notify();
    if (!admitted_.HasBeenNotified()) admitted_.Notify();
  }

  // Returns once chunks may come, or it is over.
  void AwaitAdmission() { admitted_.WaitForNotification(); }
  absl::StatusOr<Reply> Await() {
    over_.WaitForNotification();
    return std::move(outcome_);
  }

 private:
  Notification admitted_;
  Notification over_;
  absl::StatusOr<Reply> outcome_ = absl::UnknownError("nothing has come of it");
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_OUTCOME_WAITER_H_
