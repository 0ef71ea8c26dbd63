// What the parts of a parameter set share.
#ifndef ADAMANT_SERVER_CORE_SET_SET_REP_H_
#define ADAMANT_SERVER_CORE_SET_SET_REP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/time/time.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/backend/slot_arrays.h"
#include "server/core/base/mutex.h"
#include "server/core/journal.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/snapshot.h"
#include "server/core/set/lifecycle.h"
#include "server/core/set/requests.h"
#include "server/core/set/resources.h"
#include "server/core/set/round.h"
#include "server/core/set/staging.h"
#include "server/core/set/state_digest.h"
#include "server/core/set/turn_queue.h"
#include "server/core/set/update_counts.h"
#include "server/core/set/watch.h"
#include "server/core/set/write_lane.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/schema.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

// One set's state, without logic: the door (ParameterSet), steps, writes and reads each know what they do with it. Held
// by std::shared_ptr by all of them; the set's memory stays charged until the last one lets go.
//
// The schema, the configuration, the lifecycle and what is published change only for whoever has the set's turn. Under
// the mutex nobody calls a listener, waits or drops an attempt, and other mutexes are taken only where those who hold
// them take none of a set's: those of attempts, arrays, budgets and of one commit's progress.
struct SetRep {
  SetRep(const Resources& resources, std::shared_ptr<const Schema> schema,
         std::shared_ptr<const Configuration> configuration, v1::Initialization initialization, Grant state_grant,
         ArraysLayout layout, std::unique_ptr<SlotArrays> arrays, const Lifecycle& lifecycle)
      : resources(resources),
        name(lifecycle.name()),
        initialization(initialization),
        slots(std::move(layout.slots)),
        create_time(absl::Now()),
        turns(std::make_shared<TurnQueue>(resources.compute)),
        arrays(std::move(arrays)),
        schema(std::move(schema)),
        configuration(std::move(configuration)),
        trainable(SelectTrainable(this->schema, *this->configuration)),
        lifecycle(lifecycle),
        requests(&this->lifecycle),
        writes(&this->lifecycle) {
    this->grants.push_back(std::move(state_grant));
  }

  const Resources resources;
  const std::string name;
  const v1::Initialization initialization;
  const std::vector<v1::Slot> slots;  // of the optimizers, in the order of kSlots

  // Constant once anybody but its maker knows of the set.
  absl::Time create_time;
  // Null where nothing of the set is kept.
  std::unique_ptr<SetJournal> journal;

  const std::shared_ptr<TurnQueue> turns;
  const std::unique_ptr<SlotArrays> arrays;

  mutable Mutex mutex;
  std::shared_ptr<const Schema> schema ABSL_GUARDED_BY(mutex);
  std::vector<std::shared_ptr<const Schema>> former_schemas ABSL_GUARDED_BY(mutex);  // somebody may refer to them
  // What the set was made with, and what each addition of tensors has cost.
  std::vector<Grant> grants ABSL_GUARDED_BY(mutex);
  std::shared_ptr<const Configuration> configuration ABSL_GUARDED_BY(mutex);
  // What `configuration` takes beyond what `grants` pay for.
  Grant configuration_grant ABSL_GUARDED_BY(mutex);
  // The tensors whose groups `configuration` has not frozen.
  std::shared_ptr<const TensorSelection> trainable ABSL_GUARDED_BY(mutex);
  Lifecycle lifecycle ABSL_GUARDED_BY(mutex);
  // The parameters; null in a set that is UNINITIALIZED, or that a direct write whose load failed, or a step with rows,
  // has left POISONED. Their blocks are then in `unpublished`, or belong to the direct write that has the lane, with or
  // without the turn. Null, too, while a step with rows is applied: it has them.
  std::shared_ptr<const Snapshot> snapshot ABSL_GUARDED_BY(mutex);
  BlockList unpublished ABSL_GUARDED_BY(mutex);
  UpdateCounts update_counts ABSL_GUARDED_BY(mutex);
  LastDigest last_digest ABSL_GUARDED_BY(mutex);
  // That of the last step, for the next one; null where it would not fit any more.
  std::shared_ptr<const StepWork> work ABSL_GUARDED_BY(mutex);
  // Whether a step is being applied: the optimizer's slots are not those of `lifecycle`'s step then.
  bool applying ABSL_GUARDED_BY(mutex) = false;
  // Whether the state is being read for a checkpoint that the journal wants.
  bool checkpoint_begun ABSL_GUARDED_BY(mutex) = false;
  Requests requests ABSL_GUARDED_BY(mutex);
  // Of a set with workers: the round that is open, and its number, or that of the next one.
  std::shared_ptr<Round> round ABSL_GUARDED_BY(mutex);
  int64_t round_number ABSL_GUARDED_BY(mutex) = 1;
  WriteLane writes ABSL_GUARDED_BY(mutex);
  v1::SetStatistics statistics ABSL_GUARDED_BY(mutex);
  // Never null. Whoever changes the set tells those that there were when it did, before its turn ends: so each hears of
  // everything in order.
  std::shared_ptr<const Watches> watches ABSL_GUARDED_BY(mutex) = std::make_shared<const Watches>();
  absl::BitGen random ABSL_GUARDED_BY(mutex);
};

// A new incarnation, in [1, 2^53), so that a client whose numbers are doubles keeps it exactly.
inline uint64_t DrawIncarnation(absl::BitGen* random) { return absl::Uniform(*random, uint64_t{1}, uint64_t{1} << 53); }

// The digest that the next one is chained to; empty if there is none.
std::string PreviousDigest(const SetRep& set) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);

// What a set takes beside its arrays, in bytes.
int64_t OverheadBytes(const Schema& schema, const Configuration& configuration);

// What a configuration takes, with what the set keeps for its workers, in bytes.
int64_t ConfigurationBytes(const Configuration& configuration);

// Whether what a step brings, or on a device with memory of its own a full write, could ever be held until it commits,
// in a set of these tensors with so many slots: FAILED_PRECONDITION (TOO_LARGE), naming `field`.
absl::Status CheckCanBeWritten(const TensorSelection& all, size_t slots, const Resources& resources,
                               absl::string_view field);
// The same for a round of `workers`, if they are not null.
absl::Status CheckCanContribute(const TensorSelection& all, const v1::Workers* workers, const Resources& resources,
                                absl::string_view field);

// OK, or FAILED_PRECONDITION (TOO_LARGE), naming `field`, where the budget for reads is too small for a checkpoint of a
// set of these tensors with so many slots.
absl::Status CheckHasRoomForCheckpoints(const Schema& schema, size_t slots, const Resources& resources,
                                        absl::string_view field);

// Adds a configuration to what GetParameterSet shows.
void DescribeConfiguration(const Configuration& configuration, v1::ParameterSet* description);
// The set as GetParameterSet shows it, and an event of it as it is.
v1::ParameterSet DescribeSet(const SetRep& set) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);
v1::WatchParameterSetResponse EventNow(const SetRep& set) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);

// What one array of such a set takes, in bytes.
inline int64_t ArrayBytes(const Schema& schema) { return BlockPool::ChargedBytes(schema.flat_size()); }

// What a step, or a staged write, that brings these tensors holds until it commits, in bytes.
inline int64_t StagingBytes(const TensorSelection& selection) {
  const auto tensors = static_cast<int64_t>(selection.sizes().size());
  const int64_t selected = selection.all() ? 0 : Coverage::MemoryBytes(tensors);
  return BlockPool::ChargedBytes(selection.block_elements()) + Coverage::MemoryBytes(tensors) + selected;
}

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_SET_REP_H_
