// A backend that answers later, from a thread of its own, as a device does.
#ifndef ADAMANT_TESTS_CORE_LATE_BACKEND_H_
#define ADAMANT_TESTS_CORE_LATE_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "server/core/backend/cpu_backend.h"
#include "server/core/base/mutex.h"
#include "tests/core/gate.h"

namespace adamant::core {

// Thread-safe. Does on its thread, in the order in which it is asked, what the processor's backend does at once.
class LateBackend final : public Backend {
 public:
  LateBackend() : cpu_(kernels::BestKernels()), thread_(1) {}

  absl::StatusOr<std::unique_ptr<SlotArrays>> NewArrays(ArraysLayout layout, Lender* lender,
                                                        ComputePool* compute) override {
    absl::StatusOr<std::unique_ptr<SlotArrays>> arrays = cpu_.NewArrays(std::move(layout), lender, compute);
    if (!arrays.ok()) return arrays.status();
    return std::make_unique<LateArrays>(this, *std::move(arrays));
  }
  kernels::MeasureFunction measure() const override { return cpu_.measure(); }
  std::string Description() const override { return "late"; }

  // From now on what is asked for waits until LetGo.
  void Hold() {
    thread_.Post([this] { let_go_.Pass(); });
  }
  void LetGo() { let_go_.Open(); }
  // Whether loads fail from now on.
  void FailLoads(bool fail) {
    MutexLock lock(&mutex_);
    fail_loads_ = fail;
  }
  // Waits until all that was asked for so far is done, and let go of.
  void AwaitIdle() {
    Gate idle;
    thread_.Post([&idle] { idle.Open(); });
    idle.Pass();
  }

 private:
  class LateArrays final : public SlotArrays {
   public:
    LateArrays(LateBackend* backend, std::unique_ptr<SlotArrays> arrays)
        : backend_(backend), arrays_(std::move(arrays)) {}

    void Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
               Then<absl::Status> done) override {
      const auto blocks = static_cast<int64_t>(plan.after->blocks().size());
      backend_->thread_.Post([this, &plan, blocks, computed = std::move(computed), done = std::move(done)]() mutable {
        Gate applied;
        absl::Status status;
        arrays_->Apply(
            plan, [](int64_t) {},
            [&](absl::Status outcome) {
              status = std::move(outcome);
              applied.Open();
            });
        applied.Pass();
        // Nobody may count on an order.
        for (int64_t block = blocks - 1; block >= 0 && status.ok(); --block) computed(block);
        computed = nullptr;
        done(std::move(status));
      });
    }

    void View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
              Then<absl::StatusOr<SlotView>> done) override {
      backend_->thread_.Post(
          [this, slots = std::vector<v1::Slot>(slots.begin(), slots.end()), spares = std::move(spares),
           done = std::move(done)]() mutable { arrays_->View(slots, std::move(spares), std::move(done)); });
    }

    void Load(const Snapshot& parameters, std::vector<BlockList> slots, Then<absl::Status> done) override {
      backend_->thread_.Post([this, &parameters, slots = std::move(slots), done = std::move(done)]() mutable {
        bool fails;
        {
          MutexLock lock(&backend_->mutex_);
          fails = backend_->fail_loads_;
        }
        if (fails) {
          if (!slots.empty()) arrays_->AbandonLoad(std::move(slots));
          done(absl::InternalError("the device fell off the bus"));
        } else {
          arrays_->Load(parameters, std::move(slots), std::move(done));
        }
      });
    }

    void Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) override { arrays_->Copy(slot, begin, end, to); }
    std::vector<BlockList> BeginLoad() override { return arrays_->BeginLoad(); }
    void AbandonLoad(std::vector<BlockList> slots) override { arrays_->AbandonLoad(std::move(slots)); }

   private:
    LateBackend* const backend_;
    const std::unique_ptr<SlotArrays> arrays_;
  };

  CpuBackend cpu_;
  Gate let_go_;
  Mutex mutex_;
  bool fail_loads_ ABSL_GUARDED_BY(mutex_) = false;
  ComputePool thread_;  // last, so that it is gone before what it uses
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_LATE_BACKEND_H_
