// Threads between two barriers.
#include "tests/bench/kernel_alone.h"

#include "kernels/dispatch.h"
#include "kernels/scalars.h"

namespace adamant::bench {

KernelAlone::KernelAlone(int64_t params, int threads)
    : threads_(threads),
      parameters_(params, 0.5f),
      gradient_(params, 0.01f),
      exp_avg_(params, 0),
      exp_avg_sq_(params, 0),
      begin_(threads),
      end_(threads) {
  for (int share = 1; share < threads; ++share) {
    others_.emplace_back([this, share] {
      for (;;) {
        begin_.arrive_and_wait();
        if (stopping_) return;
        Step(share);
        end_.arrive_and_wait();
      }
    });
  }
}

KernelAlone::~KernelAlone() {
  stopping_ = true;
  begin_.arrive_and_wait();
  for (std::thread& other : others_) other.join();
}

void KernelAlone::Round() {
  begin_.arrive_and_wait();
  Step(0);
  end_.arrive_and_wait();
}

void KernelAlone::Step(int share) {
  constexpr kernels::AdamHyperparameters kDefaults = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
  const kernels::UpdateScalars scalars = kernels::MakeAdamScalars(kDefaults, 1000, {});
  const int64_t begin = parameters_.size() * share / threads_;
  const int64_t end = parameters_.size() * (share + 1) / threads_;
  // As a step does it: the new parameters take the gradient's place.
  float* const gradient = gradient_.data() + begin;
  float* const m = exp_avg_.data() + begin;
  float* const v = exp_avg_sq_.data() + begin;
  const kernels::UpdateSpan span = {.size = end - begin,
                                    .g = gradient,
                                    .p_in = parameters_.data() + begin,
                                    .p_out = gradient,
                                    .slots = {{m, m}, {v, v}}};
  kernels::BestKernels().update[kernels::kAdam](scalars, span);
}

}  // namespace adamant::bench
