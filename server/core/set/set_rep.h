// What the parts of a parameter set share.
#ifndef ADAMANT_SERVER_CORE_SET_SET_REP_H_
#define ADAMANT_SERVER_CORE_SET_SET_REP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/random/random.h"
#include "absl/time/time.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/backend/slot_arrays.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/snapshot.h"
#include "server/core/set/lifecycle.h"
#include "server/core/set/requests.h"
#include "server/core/set/resources.h"
#include "server/core/set/staging.h"
#include "server/core/set/turn_queue.h"
#include "server/core/set/write_lane.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

// One set's state, without logic: the door (ParameterSet), steps, writes and reads each know what they do with it. Held
// by std::shared_ptr by all of them; the set's memory stays charged until the last one lets go.
//
// The configuration, the lifecycle and what is published change only for whoever has the set's turn. Under the mutex
// nobody calls a listener, waits or drops an attempt, and other mutexes are taken only where those who hold them take
// none of a set's: those of attempts, arrays, budgets and of one commit's progress.
struct SetRep {
  SetRep(const Resources& resources, std::shared_ptr<const Schema> schema,
         std::shared_ptr<const Configuration> configuration, v1::Initialization initialization, Grant state_grant,
         ArraysLayout layout, std::unique_ptr<SlotArrays> arrays, const Lifecycle& lifecycle)
      : resources(resources),
        name(lifecycle.name()),
        schema(std::move(schema)),
        initialization(initialization),
        create_time(absl::Now()),
        state_grant(std::move(state_grant)),
        layout(std::move(layout)),
        turns(std::make_shared<TurnQueue>(resources.compute)),
        arrays(std::move(arrays)),
        configuration(std::move(configuration)),
        lifecycle(lifecycle),
        requests(&this->lifecycle),
        writes(&this->lifecycle) {}

  const Resources resources;
  const std::string name;
  const std::shared_ptr<const Schema> schema;
  const v1::Initialization initialization;
  const absl::Time create_time;
  const Grant state_grant;
  const ArraysLayout layout;

  const std::shared_ptr<TurnQueue> turns;
  const std::unique_ptr<SlotArrays> arrays;

  mutable Mutex mutex;
  std::shared_ptr<const Configuration> configuration ABSL_GUARDED_BY(mutex);
  Lifecycle lifecycle ABSL_GUARDED_BY(mutex);
  // The parameters; null in a set that is UNINITIALIZED, or that a direct write whose load failed has left POISONED.
  // Their blocks are then in `unpublished`, or belong to the direct write that has the lane, with or without the turn.
  std::shared_ptr<const Snapshot> snapshot ABSL_GUARDED_BY(mutex);
  BlockList unpublished ABSL_GUARDED_BY(mutex);
  // Whether a step is being applied: the optimizer's slots are not those of `lifecycle`'s step then.
  bool applying ABSL_GUARDED_BY(mutex) = false;
  Requests requests ABSL_GUARDED_BY(mutex);
  WriteLane writes ABSL_GUARDED_BY(mutex);
  absl::BitGen random ABSL_GUARDED_BY(mutex);
};

// A new incarnation, in [1, 2^53), so that a client whose numbers are doubles keeps it exactly.
inline uint64_t DrawIncarnation(absl::BitGen* random) { return absl::Uniform(*random, uint64_t{1}, uint64_t{1} << 53); }

// What one array of such a set takes, in bytes.
inline int64_t ArrayBytes(const Schema& schema) { return BlockPool::ChargedBytes(schema.flat_size()); }

// What a step, or a staged write, of such a set holds until it commits, in bytes.
inline int64_t StagingBytes(const Schema& schema) {
  return ArrayBytes(schema) + Coverage::MemoryBytes(static_cast<int64_t>(schema.tensors().size()));
}

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_SET_REP_H_
