// What all sets of a server share.
#ifndef ADAMANT_SERVER_CORE_SET_RESOURCES_H_
#define ADAMANT_SERVER_CORE_SET_RESOURCES_H_

#include "absl/time/time.h"
#include "server/core/backend/backend.h"
#include "server/core/base/clock.h"
#include "server/core/base/compute_pool.h"
#include "server/core/journal.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/lender.h"

namespace adamant::core {

// Everything outlives the sets.
struct Resources {
  Clock* clock;
  Budget* state;         // what sets hold for good
  Budget* inflight;      // what steps and writes under way hold
  Budget* read;          // what readers hold
  Lender* lender;        // has the blocks that steps, writes and reads borrow and arrays are made of
  ComputePool* compute;  // kernels, and whatever goes on after it had to wait
  Backend* backend;
  absl::Duration admission_wait;  // how long a step or write may wait for room in `inflight`
  Journal* journal = nullptr;     // null: nothing of a set can be kept
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_RESOURCES_H_
