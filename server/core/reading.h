// One read: the arrays of one single step, for as long as the reader takes.
#ifndef ADAMANT_SERVER_CORE_READING_H_
#define ADAMANT_SERVER_CORE_READING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "adamant/v1/service.pb.h"
#include "server/core/block.h"
#include "server/core/budget.h"
#include "server/core/schema.h"
#include "server/core/snapshot.h"

namespace adamant::core {

class ParameterSet;

// Made by ParameterSet::BeginRead. Thread-compatible. Holds its snapshot, and what it was charged, until it is
// destroyed; unless the server had no room and the client said `may_abort`: then it holds nothing between calls of
// Acquire.
class Reading {
 public:
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  const v1::ReadHeader& header() const { return header_; }
  // In the order asked for. None if the set was not modified.
  const std::vector<v1::Slot>& slots() const { return slots_; }
  const Schema& schema() const { return *schema_; }

  // The blocks that cover the flat range [begin, end) of one of the slots; the caller keeps them, and this Reading,
  // while it uses them. Error: ABORTED (SNAPSHOT_GONE) where nothing is held and the set has moved on.
  absl::StatusOr<BlockList> Acquire(v1::Slot slot, int64_t begin, int64_t end) const;

 private:
  friend class ParameterSet;
  explicit Reading(std::shared_ptr<ParameterSet> set);

  const std::shared_ptr<ParameterSet> set_;
  const std::shared_ptr<const Schema> schema_;

  // Constant from OnOutcome on.
  v1::ReadHeader header_;
  std::vector<v1::Slot> slots_;
  bool holds_ = false;
  Grant grant_;  // before what it pays for, which comes back first
  std::shared_ptr<const Snapshot> snapshot_;
  BlockList exp_avg_;
  BlockList exp_avg_sq_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_READING_H_
