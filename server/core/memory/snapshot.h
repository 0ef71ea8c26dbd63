// The parameters of one step.
#ifndef ADAMANT_SERVER_CORE_MEMORY_SNAPSHOT_H_
#define ADAMANT_SERVER_CORE_MEMORY_SNAPSHOT_H_

#include <cstdint>
#include <utility>

#include "server/core/memory/block.h"

namespace adamant::core {

// The blocks that hold a set's parameters after one step. Immutable and thread-safe: any number of threads may read one
// while later steps commit. Held by std::shared_ptr<const Snapshot>: a reference to it counts as one to each of its
// blocks.
class Snapshot {
 public:
  Snapshot(uint64_t incarnation, int64_t step, BlockList blocks)
      : incarnation_(incarnation), step_(step), blocks_(std::move(blocks)) {}

  uint64_t incarnation() const { return incarnation_; }
  int64_t step() const { return step_; }
  const BlockList& blocks() const { return blocks_; }

 private:
  const uint64_t incarnation_;
  const int64_t step_;
  const BlockList blocks_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_MEMORY_SNAPSHOT_H_
