// A backend that answers later, from a thread of its own, as a device does.
#ifndef ADAMANT_TESTS_CORE_LATE_BACKEND_H_
#define ADAMANT_TESTS_CORE_LATE_BACKEND_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "kernels/dispatch.h"
#include "proto/error/error.h"
#include "server/core/backend/cpu_backend.h"
#include "server/core/base/mutex.h"
#include "tests/core/gate.h"

namespace adamant::core {

// Thread-safe. Does on its thread, in the order in which it is asked, what the processor's backend does at once. Its
// slots are on the host, or apart: then nobody else's blocks are theirs, as in a device's own memory.
class LateBackend final : public Backend {
 public:
  enum class Slots { kOnHost, kApart };
  explicit LateBackend(Slots slots = Slots::kOnHost) : slots_(slots), cpu_(kernels::BestKernels()), thread_(1) {}

  absl::StatusOr<std::unique_ptr<SlotArrays>> NewArrays(ArraysLayout layout, Lender* lender,
                                                        ComputePool* compute) override {
    absl::StatusOr<std::unique_ptr<SlotArrays>> arrays = cpu_.NewArrays(layout, lender, compute);
    if (!arrays.ok()) return arrays.status();
    return std::make_unique<LateArrays>(this, std::move(layout), lender, *std::move(arrays));
  }
  bool on_host() const override { return slots_ == Slots::kOnHost; }
  const kernels::KernelTable& host_kernels() const override { return cpu_.host_kernels(); }
  std::string name() const override { return "late"; }
  v1::Device Describe() const override { return {}; }
  absl::Status CheckWorking() const override {
    MutexLock lock(&mutex_);
    return lost_ ? Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DEVICE_LOST, "lost") : absl::OkStatus();
  }
  const Budget* budget() const override { return nullptr; }

  // From now on what is asked for waits until LetGo.
  void Hold() {
    thread_.Post([this] { let_go_.Pass(); });
  }
  void LetGo() { let_go_.Open(); }
  void Lose() {
    MutexLock lock(&mutex_);
    lost_ = true;
  }
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
    LateArrays(LateBackend* backend, ArraysLayout layout, Lender* lender, std::unique_ptr<SlotArrays> arrays)
        : backend_(backend), layout_(std::move(layout)), lender_(lender), arrays_(std::move(arrays)) {}

    void Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
               Then<absl::Status> done) override {
      backend_->thread_.Post([this, &plan, computed = std::move(computed), done = std::move(done)]() mutable {
        if (absl::Status working = backend_->CheckWorking(); !working.ok()) {
          computed = nullptr;
          done(std::move(working));
          return;
        }
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
        const absl::Span<const int64_t> blocks = plan.work->selection().blocks();
        for (auto block = blocks.rbegin(); block != blocks.rend() && status.ok(); ++block) computed(*block);
        computed = nullptr;
        done(std::move(status));
      });
    }

    void View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
              Then<absl::StatusOr<std::unique_ptr<SlotView>>> done) override {
      backend_->thread_.Post([this, slots = std::vector<v1::Slot>(slots.begin(), slots.end()),
                              spares = std::move(spares), done = std::move(done)]() mutable {
        if (absl::Status working = backend_->CheckWorking(); !working.ok()) {
          done(std::move(working));
        } else if (backend_->on_host()) {
          arrays_->View(slots, std::move(spares), std::move(done));
        } else {
          done(CopyDown(slots, std::move(spares)));
        }
      });
    }

    void Load(const Snapshot& parameters, std::vector<BlockList> slots, Then<absl::Status> done) override {
      backend_->thread_.Post([this, &parameters, slots = std::move(slots), done = std::move(done)]() mutable {
        bool fails;
        {
          MutexLock lock(&backend_->mutex_);
          fails = backend_->fail_loads_;
        }
        if (fails) {
          if (!slots.empty() && backend_->on_host()) arrays_->AbandonLoad(std::move(slots));
          done(absl::InternalError("the device fell off the bus"));
        } else {
          if (!slots.empty() && !backend_->on_host()) slots = CopyUp(slots);
          arrays_->Load(parameters, std::move(slots), std::move(done));
        }
      });
    }

    void Copy(v1::Slot slot, int64_t begin, int64_t end, float* to) override { arrays_->Copy(slot, begin, end, to); }
    std::vector<BlockList> BeginLoad() override { return arrays_->BeginLoad(); }
    void AbandonLoad(std::vector<BlockList> slots) override { arrays_->AbandonLoad(std::move(slots)); }
    void Grow(std::shared_ptr<const Schema> schema, std::vector<BlockList> tails, Then<absl::Status> done) override {
      backend_->thread_.Post(
          [this, schema = std::move(schema), tails = std::move(tails), done = std::move(done)]() mutable {
            if (absl::Status working = backend_->CheckWorking(); !working.ok()) {
              done(std::move(working));
              return;
            }
            const int64_t whole = layout_.schema->flat_size() / kBlockElements * kBlockElements;
            while (!backend_->on_host() && tails.size() < layout_.slots.size()) {
              tails.push_back(*lender_->TakeZeroed(schema->flat_size() - whole));
            }
            layout_.schema = schema;
            arrays_->Grow(std::move(schema), std::move(tails), std::move(done));
          });
    }

   private:
    std::unique_ptr<SlotView> CopyDown(const std::vector<v1::Slot>& slots, std::vector<BlockList> to) {
      std::vector<BlockList> view(layout_.slots.size());
      for (size_t i = 0; i < slots.size(); ++i) {
        for (size_t block = 0; block < to[i].size(); ++block) {
          const int64_t begin = static_cast<int64_t>(block) * kBlockElements;
          arrays_->Copy(slots[i], begin, begin + to[i][block].size(), to[i][block].mutable_data());
        }
        view[absl::c_find(layout_.slots, slots[i]) - layout_.slots.begin()] = std::move(to[i]);
      }
      return std::make_unique<CopiedSlotView>(std::move(view));
    }
    std::vector<BlockList> CopyUp(const std::vector<BlockList>& from) {
      std::vector<BlockList> slots = arrays_->BeginLoad();
      for (size_t i = 0; i < slots.size(); ++i) {
        for (size_t block = 0; block < slots[i].size(); ++block) {
          std::copy_n(from[i][block].data(), slots[i][block].size(), slots[i][block].mutable_data());
        }
      }
      return slots;
    }

    LateBackend* const backend_;
    ArraysLayout layout_;
    Lender* const lender_;
    const std::unique_ptr<SlotArrays> arrays_;
  };

  const Slots slots_;
  CpuBackend cpu_;
  Gate let_go_;
  mutable Mutex mutex_;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  bool fail_loads_ ABSL_GUARDED_BY(mutex_) = false;
  ComputePool thread_;  // last, so that it is gone before what it uses
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_LATE_BACKEND_H_
