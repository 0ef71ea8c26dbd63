// How a test holds a thread, or waits for one.
#ifndef ADAMANT_TESTS_CORE_GATE_H_
#define ADAMANT_TESTS_CORE_GATE_H_

#include "server/core/base/mutex.h"

namespace adamant::core {

// Closed until it is opened, then open for good. Thread-safe. What happened before Open has happened for those who
// pass.
class Gate {
 public:
  void Open() {
    MutexLock lock(&mutex_);
    open_ = true;
    opened_.NotifyAll();
  }

  // Returns once the gate is open.
  void Pass() {
    MutexLock lock(&mutex_);
    while (!open_) opened_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar opened_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_GATE_H_
