// Where a step's arithmetic happens.
#ifndef ADAMANT_SERVER_CORE_BACKEND_H_
#define ADAMANT_SERVER_CORE_BACKEND_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/adam.h"
#include "kernels/norm.h"
#include "server/core/block.h"

namespace adamant::core {

// One block's share of a step. Where `*_in` and `*_out` are the same block, the update is in place; outputs that are
// not are held by nobody else. Elements of the block that `ranges` leaves out are unspecified in the outputs.
struct BlockUpdate {
  // Elements [begin, end) of the block, which are of one group.
  struct Range {
    int64_t begin;
    int64_t end;
    int group;
  };

  int64_t index;  // the block's, within the set
  absl::Span<const Range> ranges;
  absl::Span<const kernels::AdamScalars> scalars;  // by group
  BlockRef gradient;                               // becomes the new parameters
  BlockRef parameters;
  BlockRef exp_avg_in;
  BlockRef exp_avg_out;
  BlockRef exp_avg_sq_in;
  BlockRef exp_avg_sq_out;
};

// Thread-safe.
class Backend {
 public:
  virtual ~Backend() = default;

  // Applies `update`: the new parameters are written over the gradient. After an error the outputs are indeterminate,
  // and the set is poisoned.
  virtual absl::Status Update(const BlockUpdate& update) = 0;

  // Of the gradient that arrives: see kernels/norm.h.
  virtual kernels::MeasureFunction measure() const = 0;

  // What computes, for people.
  virtual std::string Description() const = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_H_
