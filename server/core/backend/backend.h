// A device that sets can live on.
#ifndef ADAMANT_SERVER_CORE_BACKEND_BACKEND_H_
#define ADAMANT_SERVER_CORE_BACKEND_BACKEND_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adamant/v1/service.pb.h"
#include "kernels/update.h"
#include "server/core/backend/slot_arrays.h"
#include "server/core/base/compute_pool.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/lender.h"

namespace adamant::core {

// Thread-safe.
class Backend {
 public:
  virtual ~Backend() = default;

  // The slots of a new set, all zero. May take long: memory is mapped here. `lender` and `compute` are the host's, and
  // outlive what is made. Error: RESOURCE_EXHAUSTED; then nothing is held.
  virtual absl::StatusOr<std::unique_ptr<SlotArrays>> NewArrays(ArraysLayout layout, Lender* lender,
                                                                ComputePool* compute) = 0;

  // Whether slots lie in the host's memory, in blocks of the lender's: they are paid for as the parameters are, and a
  // direct write fills them in place. Other backends have memory, and a budget, of their own, and every write is
  // staged.
  virtual bool on_host() const = 0;

  // What the host does to gradients as they arrive and to parameters as they leave: measures, widens, narrows, folds.
  virtual const kernels::KernelTable& host_kernels() const = 0;

  // What a specification calls it: `cpu` or `cuda:N`.
  virtual std::string name() const = 0;

  // What it is and how it is, but for `threads` where it has none of its own.
  virtual v1::Device Describe() const = 0;

  // OK, or UNAVAILABLE (DEVICE_LOST), and stays so, if it has failed for as long as the process lives.
  virtual absl::Status CheckWorking() const = 0;

  // What the memory of its slots is reserved from; null where that is the host's.
  virtual const Budget* budget() const = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_BACKEND_H_
