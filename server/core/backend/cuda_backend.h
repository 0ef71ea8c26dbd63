// Sets on CUDA devices.
#ifndef ADAMANT_SERVER_CORE_BACKEND_CUDA_BACKEND_H_
#define ADAMANT_SERVER_CORE_BACKEND_CUDA_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "kernels/update.h"
#include "server/core/backend/backend.h"
#include "server/core/base/clock.h"
#include "server/core/memory/block.h"

namespace adamant::core {

struct CudaOptions {
  Clock* clock;
  const kernels::KernelTable* host_kernels;  // what the host does to gradients before they go to the device
  // What sets may take of each device's memory; 0: 15/16 of what is free when the device is opened.
  int64_t device_bytes = 0;
  // Threads that drive each device: one copies up while another one computes and a third copies down.
  int threads = 3;
  // Takes a line about what works less well than it could. Thread-safe.
  std::function<void(absl::string_view line)> warn = [](absl::string_view) {};
};

// The CUDA devices of this machine, `cuda:0` and so on as CUDA counts them. None where the machine, its driver or this
// build has none. Each has threads of its own, and for each of them 4 MiB of the device's memory beside what sets take.
// The devices outlive their sets.
//
// A set's parameters and slots lie in the device's memory, and the parameters of its last step, which clients read, in
// the host's as well. A step's gradient goes up in items of 4 MiB, and the new parameters come down over it.
//
// One that is there and cannot be used is left out, and `warn` is told why.
std::vector<std::unique_ptr<Backend>> OpenCudaDevices(const CudaOptions& options);

// Makes a block pool's memory known to all CUDA devices, which copy it twice as fast then. Where that fails, the first
// failure is told to `warn`, and the memory serves all the same. Null in a build without CUDA. Thread-safe.
std::unique_ptr<MemoryRegistrar> NewCudaRegistrar(std::function<void(absl::string_view line)> warn);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_CUDA_BACKEND_H_
