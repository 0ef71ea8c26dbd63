// Backends that do what a test tells them to, and otherwise the arithmetic.
#ifndef ADAMANT_TESTS_CORE_FAKE_BACKENDS_H_
#define ADAMANT_TESTS_CORE_FAKE_BACKENDS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "adamant/v1/parameter_set.pb.h"
#include "kernels/dispatch.h"
#include "server/core/backend/cpu_backend.h"
#include "server/core/base/mutex.h"
#include "tests/core/gate.h"

namespace adamant::core {

// Marks a set so that the backends below know its blocks.
inline v1::ParameterSetSpec Marked(v1::ParameterSetSpec spec) {
  for (v1::ParameterGroup& group : *spec.mutable_groups()) group.mutable_adam()->set_eps(0.5);
  return spec;
}

// Thread-safe, as all backends are.
class FakeBackend : public CpuBackend {
 public:
  FakeBackend() : CpuBackend(kernels::BestKernels()) {}

  absl::Status Update(const BlockUpdate& update) final {
    if (absl::Status status = Before(update, update.recipes[0].scalars.eps == 0.5f); !status.ok()) return status;
    return CpuBackend::Update(update);
  }

 private:
  virtual absl::Status Before(const BlockUpdate& update, bool marked) = 0;
};

// Fails at one block of one step of a marked set.
class FaultyBackend final : public FakeBackend {
 public:
  // From now on, until the next call. -1: nowhere.
  void FailAt(int64_t block) {
    MutexLock lock(&mutex_);
    block_ = block;
  }

 private:
  absl::Status Before(const BlockUpdate& update, bool marked) override {
    MutexLock lock(&mutex_);
    if (!marked || update.index != block_) return absl::OkStatus();
    // Half written, as a device that fails leaves it.
    update.gradient.mutable_data()[0] = -1;
    for (const SlotBlock& slot : update.slots) slot.out.mutable_data()[0] = -1;
    return absl::InternalError("the device fell off the bus");
  }

  Mutex mutex_;
  int64_t block_ ABSL_GUARDED_BY(mutex_) = -1;
};

// Holds the first block of a step of a marked set until its last is about to be computed.
class FirstBlockLastBackend final : public FakeBackend {
 public:
  explicit FirstBlockLastBackend(int64_t blocks) : last_block_(blocks - 1) {}

 private:
  absl::Status Before(const BlockUpdate& update, bool marked) override {
    if (marked && update.index == last_block_) last_begins_.Open();
    if (marked && update.index == 0) last_begins_.Pass();
    return absl::OkStatus();
  }

  const int64_t last_block_;
  Gate last_begins_;
};

// Holds the steps of marked sets inside of the kernel until it is told to let them go; notes which blocks were
// computed.
class GatedBackend final : public FakeBackend {
 public:
  // Returns once a step is held.
  void AwaitHeld() { held_.Pass(); }
  void LetGo() { let_go_.Open(); }

  struct Call {
    bool marked;
    int64_t block;
  };
  std::vector<Call> calls() const {
    MutexLock lock(&mutex_);
    return calls_;
  }

 private:
  absl::Status Before(const BlockUpdate& update, bool marked) override {
    if (marked) {
      held_.Open();
      let_go_.Pass();
    }
    MutexLock lock(&mutex_);
    calls_.push_back({marked, update.index});
    return absl::OkStatus();
  }

  Gate held_;
  Gate let_go_;
  mutable Mutex mutex_;
  std::vector<Call> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_FAKE_BACKENDS_H_
