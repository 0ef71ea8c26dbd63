// A named parameter set, as the server knows it: where steps, writes and reads begin.
//
// Whatever changes the state (a step, a write, a delete) takes a turn: turns run one at a time, in the order in which
// they were asked for, which a step and a write do when they are complete. Within its turn an operation checks what
// must hold, changes everything or nothing, and publishes. A direct write takes one more turn at its beginning, in
// which it takes the set's own memory: the set is UNINITIALIZED from there to its commit, and stays so if it breaks
// off. A read refers, under the mutex or in a turn, to blocks that are never written while they are held.
#ifndef ADAMANT_SERVER_CORE_SET_PARAMETER_SET_H_
#define ADAMANT_SERVER_CORE_SET_PARAMETER_SET_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "server/core/base/then.h"
#include "server/core/set/reading.h"
#include "server/core/set/resources.h"
#include "server/core/set/step_attempt.h"
#include "server/core/set/watch.h"
#include "server/core/set/write_attempt.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

struct SetRep;

// Thread-safe. What is under way outlives it; the set's memory stays charged until the last of that has let go.
class ParameterSet {
 public:
  // Makes a set as `spec` says, at step 0. May take long: memory is mapped here. Errors: INVALID_ARGUMENT naming the
  // field; FAILED_PRECONDITION (TOO_LARGE) for a set that `resources` could never hold or step; RESOURCE_EXHAUSTED
  // (BUDGET_EXHAUSTED) when there is no room for it now.
  static absl::StatusOr<std::shared_ptr<ParameterSet>> Create(const Resources& resources,
                                                              const v1::ParameterSetSpec& spec);
  // What a set is promised that asks for `durability`, or, where that is null, for nothing in particular. Errors:
  // INVALID_ARGUMENT, FAILED_PRECONDITION (NO_DATA_DIRECTORY); both name `field`.
  static absl::StatusOr<v1::Durability> ResolveDurability(const Resources& resources, const v1::Durability* durability,
                                                          absl::string_view field);
  // For those who make sets in other ways: the same, of which nothing is put down in a journal whatever `spec` says.
  static absl::StatusOr<std::shared_ptr<SetRep>> Make(const Resources& resources, const v1::ParameterSetSpec& spec);
  explicit ParameterSet(std::shared_ptr<SetRep> rep) : rep_(std::move(rep)) {}

  // A round that is open ends with it.
  ~ParameterSet();
  ParameterSet(const ParameterSet&) = delete;
  ParameterSet& operator=(const ParameterSet&) = delete;

  const std::string& name() const;
  // As it is now; stays valid as long as the set lives.
  const Schema& schema() const;
  v1::ParameterSet Describe() const;
  // Its groups are in the order that Schema::Tensor::group counts.
  std::shared_ptr<const Configuration> configuration() const;
  // OK if `spec` asks for what this set is, all defaults resolved. Errors: INVALID_ARGUMENT naming the field, if no set
  // could be as it says; ALREADY_EXISTS (SPEC_MISMATCH) with the first field that differs.
  absl::Status CheckSpec(const v1::ParameterSetSpec& spec, const std::string& device) const;
  bool deleted() const;

  // Make a step, and a write, that are yet to be started. What becomes of them goes to `listener`.
  std::shared_ptr<StepAttempt> NewStep(const v1::StepHeader& header, std::shared_ptr<StepListener> listener);
  std::shared_ptr<WriteAttempt> NewWrite(const v1::WriteHeader& header, std::shared_ptr<WriteListener> listener);

  // Begins a read. Where it wants the optimizer's slots it takes a turn, and so waits for the steps that are complete;
  // nothing waits for what `done` does. Errors: INVALID_ARGUMENT naming the field; what in the set's state stands
  // against it; RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED) where there is no room to keep the snapshot.
  void BeginRead(const v1::ReadTensorsRequest& request, Reading::Done done);

  // Takes a turn, and deletes the set: from then on everything is NOT_FOUND. `done` is called after `forget`, which is
  // called only on success and frees the name. Errors: NOT_FOUND if the set was deleted before; ABORTED
  // (INCARNATION_MISMATCH) unless the set is of `incarnation`, if one is given.
  void Delete(std::optional<uint64_t> incarnation, absl::AnyInvocable<void()> forget, Then<absl::Status> done);

  // Take a turn, and change the configuration: a group, or what holds for all of them. `done` gets the set as it is
  // then. Errors: INVALID_ARGUMENT naming the field; NOT_FOUND; ABORTED (INCARNATION_MISMATCH, CONFIG_CHANGED);
  // RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED) where there is no room for the new labels. After an error nothing has
  // changed.
  void Update(const v1::UpdateParameterGroupRequest& request, Then<absl::StatusOr<v1::ParameterSet>> done);
  void Update(const v1::UpdateParameterSetRequest& request, Then<absl::StatusOr<v1::ParameterSet>> done);

  // Adds tensors, as AddTensors says. May take long: memory is mapped here. `done` gets the set as it is then. Errors:
  // what AddTensors says.
  void AddTensors(const v1::AddTensorsRequest& request, Then<absl::StatusOr<v1::ParameterSet>> done);

  // Makes a checkpoint of the set, if it is of `incarnation`, where one is given, and tells `done` when it is on disk.
  // Errors: FAILED_PRECONDITION (NO_DATA_DIRECTORY) where nothing of the set is kept; what stands against a read of all
  // of it; what the journal says.
  void Checkpoint(std::optional<uint64_t> incarnation, Then<absl::Status> done);
  // What there is to take the set back to, the newest first. Error: as of Checkpoint.
  absl::StatusOr<std::vector<v1::Checkpoint>> ListCheckpoints() const;
  // Takes the set back, as RestoreCheckpoint says. May take long. Errors: what that says.
  absl::StatusOr<v1::ParameterSet> RestoreCheckpoint(const v1::RestoreCheckpointRequest& request);
  // A specification that would create a set with the same tensors and configuration, which awaits its first write.
  v1::ParameterSetSpec Spec() const;
  // Writes what `other`, a set of the same tensors and optimizers, is now, if it is of `incarnation`. May take long.
  // Errors: as of a read of the whole set, and of a write.
  absl::Status CopyFrom(ParameterSet* other, std::optional<uint64_t> incarnation);

  // Begins a checkpoint if the set's journal wants one.
  void CheckpointInTime();
  // For a set that does not change any more: makes a checkpoint, and says on disk that it is what the set was. Errors:
  // the same.
  void FinishJournal(Then<absl::Status> done);
  // Whether anything of the set outlives the process, and whether each step does.
  bool is_kept() const;
  bool keeps_steps() const;

  // Watches the set from now on, for as long as the watch lives: its first event is the set as it is. `notify` is as
  // Watch has it. Error: NOT_FOUND.
  absl::StatusOr<std::shared_ptr<Watch>> BeginWatch(absl::AnyInvocable<void()> notify);

  // How many updates each tensor has had, by index, from tensor `first` on: at most `most` of them.
  std::vector<int64_t> UpdateCountsFrom(int first, int most) const;

  // What became of a request, as GetStepResult says. Errors: INVALID_ARGUMENT naming the field; NOT_FOUND; DATA_LOSS
  // (POISONED); ABORTED (INCARNATION_MISMATCH).
  absl::StatusOr<v1::GetStepResultResponse> FindStepResult(const v1::GetStepResultRequest& request) const;

  // Ends the round that is open, if there is one: who waits for others that will not come hears `status`.
  void EndRound(const absl::Status& status);

 private:
  const std::shared_ptr<SetRep> rep_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_PARAMETER_SET_H_
