// The parameters of one step.
#ifndef ADAMANT_SERVER_CORE_MEMORY_SNAPSHOT_H_
#define ADAMANT_SERVER_CORE_MEMORY_SNAPSHOT_H_

#include <cstdint>
#include <memory>
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

  // Lets go of `snapshot`, and returns its blocks: if nobody else holds it, without counting each of them up and down.
  // Requires: nobody begins to hold it meanwhile.
  static BlockList Release(std::shared_ptr<const Snapshot> snapshot) {
    if (snapshot.use_count() > 1) return snapshot->blocks();
    // What former holders did has happened before: this counts down behind them.
    std::shared_ptr<const Snapshot>(snapshot).reset();
    return std::move(snapshot->blocks_);
  }

 private:
  const uint64_t incarnation_;
  const int64_t step_;
  mutable BlockList blocks_;  // changed by Release alone
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_MEMORY_SNAPSHOT_H_
