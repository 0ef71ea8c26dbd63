// The CUDA device that tests use.
#ifndef ADAMANT_TESTS_CORE_CUDA_DEVICE_H_
#define ADAMANT_TESTS_CORE_CUDA_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "server/core/backend/cuda_backend.h"
#include "server/core/spec/configuration.h"
#include "tests/core/gate.h"
#include "tests/core/manual_clock.h"
#include "tests/core/set_fixture.h"

namespace adamant::core {

// Devices of this machine. Each test program opens them once: what CUDA has seen of a process it keeps.
class CudaDevices {
 public:
  explicit CudaDevices(int threads, int64_t device_bytes = 0) {
    const auto warn = [this](absl::string_view line) {
      std::cerr << line << "\n";
      warned_ = true;
    };
    registrar_ = NewCudaRegistrar(warn);
    devices_ = OpenCudaDevices({.clock = &clock_,
                                .host_kernels = &kernels::BestKernels(),
                                .device_bytes = device_bytes,
                                .threads = threads,
                                .warn = warn});
    if (devices_.empty()) std::cout << "skipped: no CUDA device" << std::endl;
  }

  // Whether something was not as it should be.
  bool warned() const { return warned_; }
  bool empty() const { return devices_.empty(); }
  int count() const { return static_cast<int>(devices_.size()); }
  Backend* device(int ordinal = 0) const { return devices_[ordinal].get(); }
  // Waits until the first device, if it has one thread, has let go of all that it was asked for.
  void AwaitIdle() {
    if (nothing_ == nullptr) {
      // A set without elements takes no memory.
      const v1::ParameterSetSpec spec = EmptySpec();
      nothing_ =
          *device()->NewArrays({*Schema::Create(spec, (*Configuration::Create(spec))->groups()), {}}, nullptr, nullptr);
    }
    // The second one is asked for when the first one's thread has let go of it.
    for (int i = 0; i < 2; ++i) {
      Gate idle;
      nothing_->View({}, {}, [&](const absl::StatusOr<std::unique_ptr<SlotView>>&) { idle.Open(); });
      idle.Pass();
    }
  }
  MemoryRegistrar* registrar() const { return registrar_.get(); }

 private:
  ManualClock clock_;
  std::atomic<bool> warned_ = false;
  std::unique_ptr<MemoryRegistrar> registrar_;
  std::vector<std::unique_ptr<Backend>> devices_;
  std::unique_ptr<SlotArrays> nothing_;
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_CUDA_DEVICE_H_
