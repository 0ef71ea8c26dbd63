// One call of the kernel for each range of a block.
#include "server/core/cpu_backend.h"

namespace adamant::core {

absl::Status CpuBackend::Update(const BlockUpdate& update) {
  for (const BlockUpdate::Range& range : update.ranges) {
    kernels_.adam(update.scalars[range.group], {.size = range.end - range.begin,
                                                .p_in = update.parameters.data() + range.begin,
                                                .g = update.gradient.data() + range.begin,
                                                .m_in = update.exp_avg_in.data() + range.begin,
                                                .v_in = update.exp_avg_sq_in.data() + range.begin,
                                                .p_out = update.gradient.mutable_data() + range.begin,
                                                .m_out = update.exp_avg_out.mutable_data() + range.begin,
                                                .v_out = update.exp_avg_sq_out.mutable_data() + range.begin});
  }
  return absl::OkStatus();
}

}  // namespace adamant::core
