// The step's arithmetic on this machine's processor.
#ifndef ADAMANT_SERVER_CORE_CPU_BACKEND_H_
#define ADAMANT_SERVER_CORE_CPU_BACKEND_H_

#include <string>

#include "kernels/dispatch.h"
#include "server/core/backend.h"

namespace adamant::core {

// Never fails. Thread-safe.
class CpuBackend final : public Backend {
 public:
  // With these kernels, which this machine supports.
  explicit CpuBackend(const kernels::KernelTable& kernels) : kernels_(kernels) {}

  absl::Status Update(const BlockUpdate& update) override;
  kernels::MeasureFunction measure() const override { return kernels_.measure; }
  std::string Description() const override { return kernels_.name; }

 private:
  const kernels::KernelTable& kernels_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_CPU_BACKEND_H_
