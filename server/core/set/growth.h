// A set's growth: tensors that come behind those that it has.
#ifndef ADAMANT_SERVER_CORE_SET_GROWTH_H_
#define ADAMANT_SERVER_CORE_SET_GROWTH_H_

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adamant/v1/service.pb.h"
#include "server/core/base/then.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/turn_queue.h"

namespace adamant::core {

// One addition, from its request to its answer: what the tensors need is had before the turn, and nothing has changed
// before all of it is there. Of two that are under way at the same time the second finds another schema at its turn
// than it was made for, and comes to nothing.
class Growth : public std::enable_shared_from_this<Growth> {
 public:
  using Done = Then<absl::StatusOr<v1::ParameterSet>>;

  // See ParameterSet::AddTensors.
  static void Begin(std::shared_ptr<SetRep> set, const v1::AddTensorsRequest& request, Done done);
  // The same for an addition that is made again, and makes `incarnation` again.
  static void BeginAgain(std::shared_ptr<SetRep> set, const v1::AddTensorsRequest& request, uint64_t incarnation,
                         Done done);

 private:
  Growth(std::shared_ptr<SetRep> set, const v1::AddTensorsRequest& request) : set_(std::move(set)), request_(request) {}

  // Checks the request, and has what the tensors need.
  absl::Status Prepare();
  // Whether the set is what the request is for, and what it would be with the new groups and tensors.
  absl::Status CheckDemands() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(set_->mutex);
  // Has the addition put down, if the set has a journal.
  void Grow(TurnQueue::Turn turn, Done done);
  void GrowArrays(TurnQueue::Turn turn, Done done);
  // Makes the tensors the set's.
  v1::ParameterSet Publish();

  const std::shared_ptr<SetRep> set_;
  const v1::AddTensorsRequest request_;

  uint64_t incarnation_ = 0;  // that it makes; drawn in the turn, if it was not given
  std::shared_ptr<const Schema> before_;
  std::shared_ptr<const Schema> schema_;
  Grant grant_;  // before what it pays for, which comes back first
  BlockList parameters_;
  std::vector<BlockList> slots_;  // none where they are not on the host
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_GROWTH_H_
