// A build without CUDA.
#include "server/core/backend/cuda_backend.h"

namespace adamant::core {

std::vector<std::unique_ptr<Backend>> OpenCudaDevices(const CudaOptions& /*options*/) { return {}; }

std::unique_ptr<MemoryRegistrar> NewCudaRegistrar(std::function<void(absl::string_view line)> /*warn*/) {
  return nullptr;
}

}  // namespace adamant::core
