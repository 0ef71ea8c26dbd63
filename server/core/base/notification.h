// One event, and those who wait for it.
#ifndef ADAMANT_SERVER_CORE_BASE_NOTIFICATION_H_
#define ADAMANT_SERVER_CORE_BASE_NOTIFICATION_H_

#include "server/core/base/mutex.h"

namespace adamant::core {

// Thread-safe. Not absl::Notification: ThreadSanitizer does not see what Debian's Abseil synchronizes.
class Notification {
 public:
  Notification() = default;
  Notification(const Notification&) = delete;
  Notification& operator=(const Notification&) = delete;

  // Says that it has happened, at most once. What was done before has happened for those who wait, who may destroy this
  // as soon as they know.
  void Notify() {
    MutexLock lock(&mutex_);
    notified_ = true;
    changed_.NotifyAll();
  }
  bool HasBeenNotified() const {
    MutexLock lock(&mutex_);
    return notified_;
  }
  void WaitForNotification() {
    MutexLock lock(&mutex_);
    while (!notified_) changed_.Wait(&mutex_);
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  bool notified_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BASE_NOTIFICATION_H_
