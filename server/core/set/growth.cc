#include "server/core/set/growth.h"

#include <algorithm>
#include <optional>

#include "proto/error/error.h"
#include "server/core/set/round_turn.h"
#include "server/core/set/step_attempt.h"

namespace adamant::core {

void Growth::Begin(std::shared_ptr<SetRep> set, const v1::AddTensorsRequest& request, Done done) {
  BeginAgain(std::move(set), request, /*incarnation=*/0, std::move(done));
}

void Growth::BeginAgain(std::shared_ptr<SetRep> set, const v1::AddTensorsRequest& request, uint64_t incarnation,
                        Done done) {
  TurnQueue* const turns = set->turns.get();
  // Not std::make_shared: the constructor is private.
  const std::shared_ptr<Growth> growth(new Growth(std::move(set), request));
  growth->incarnation_ = incarnation;
  if (absl::Status status = growth->Prepare(); !status.ok()) {
    done(std::move(status));
    return;
  }
  turns->Enqueue([growth, done = std::move(done)](TurnQueue::Turn turn) mutable {
    growth->Grow(std::move(turn), std::move(done));
  });
}

absl::Status Growth::CheckDemands() const {
  absl::Status status = set_->lifecycle.CheckReady();
  if (status.ok() && request_.has_incarnation()) {
    status = set_->lifecycle.CheckIncarnation(request_.incarnation(), "incarnation");
  }
  if (status.ok() && request_.has_schema_fingerprint()) {
    status = set_->lifecycle.CheckFingerprint(request_.schema_fingerprint(), "schema_fingerprint");
  }
  return status;
}

absl::Status Growth::Prepare() {
  std::shared_ptr<const Configuration> configuration;
  {
    MutexLock lock(&set_->mutex);
    if (absl::Status status = CheckDemands(); !status.ok()) return status;
    before_ = set_->schema;
    configuration = set_->configuration;
  }
  absl::StatusOr<std::shared_ptr<const Configuration>> changed = configuration->Add(request_.groups());
  if (!changed.ok()) return changed.status();
  absl::StatusOr<std::shared_ptr<const Schema>> schema = before_->Add(request_.tensors(), (*changed)->groups());
  if (!schema.ok()) return schema.status();
  schema_ = *std::move(schema);
  const Resources& resources = set_->resources;
  absl::Status status = CheckCanBeWritten(TensorSelection(schema_), set_->slots.size(), resources, "tensors");
  if (status.ok()) status = CheckCanContribute(TensorSelection(schema_), (*changed)->workers(), resources, "tensors");
  if (status.ok() && set_->journal != nullptr) {
    status = CheckHasRoomForCheckpoints(*schema_, set_->slots.size(), resources, "tensors");
  }
  if (!status.ok()) return status;

  // The schema before stays, too, for those who refer to it.
  const size_t slots_on_host = resources.backend->on_host() ? set_->slots.size() : 0;
  const int64_t arrays_bytes =
      (ArrayBytes(*schema_) - ArrayBytes(*before_)) * (1 + static_cast<int64_t>(slots_on_host));
  absl::StatusOr<Grant> grant = resources.state->TryReserve(arrays_bytes + OverheadBytes(*schema_, **changed));
  if (!grant.ok()) return grant.status();
  grant_ = *std::move(grant);

  // From the end of the last whole block on.
  const int64_t whole = before_->flat_size() / kBlockElements * kBlockElements;
  const int64_t elements = schema_->flat_size() > before_->flat_size() ? schema_->flat_size() - whole : 0;
  slots_.resize(slots_on_host);
  std::vector<BlockList*> lists = {&parameters_};
  for (BlockList& slot : slots_) lists.push_back(&slot);
  for (BlockList* const list : lists) {
    absl::StatusOr<BlockList> zeroed = resources.lender->TakeZeroed(elements);
    if (!zeroed.ok()) return zeroed.status();
    *list = *std::move(zeroed);
  }
  return absl::OkStatus();
}

void Growth::Grow(TurnQueue::Turn turn, Done done) {
  absl::Status status;
  {
    MutexLock lock(&set_->mutex);
    status = CheckDemands();
    // So neither the schema nor the groups have come to be others, but for what each of these says.
    if (status.ok() && set_->schema != before_) status = set_->lifecycle.Rewritten();
    if (incarnation_ == 0) incarnation_ = DrawIncarnation(&set_->random);
  }
  if (!status.ok()) {
    turn.EndAtOnce();
    done(std::move(status));
    return;
  }
  if (set_->journal == nullptr) {
    GrowArrays(std::move(turn), std::move(done));
    return;
  }
  set_->journal->CommitGrowth({request_, incarnation_}, schema_,
                              [growth = shared_from_this(), turn = std::move(turn),
                               done = std::move(done)](const absl::Status& recorded) mutable {
                                if (recorded.ok()) {
                                  growth->GrowArrays(std::move(turn), std::move(done));
                                } else {
                                  turn.EndAtOnce();
                                  done(Unshared(recorded));
                                }
                              });
}

void Growth::GrowArrays(TurnQueue::Turn turn, Done done) {
  set_->arrays->Grow(
      schema_, std::move(slots_),
      [growth = shared_from_this(), turn = std::move(turn), done = std::move(done)](const absl::Status& grown) mutable {
        v1::ParameterSet set;
        if (grown.ok()) {
          set = growth->Publish();
        } else if (growth->set_->journal != nullptr) {
          // What was put down cannot be taken back: the set is not what the journal says any more.
          MutexLock lock(&growth->set_->mutex);
          growth->set_->lifecycle.Poison();
        }
        turn.EndAtOnce();
        if (grown.ok()) {
          done(std::move(set));
        } else {
          done(Unshared(grown));
        }
      });
}

v1::ParameterSet Growth::Publish() {
  std::shared_ptr<const Snapshot> before;  // destroyed outside of the mutex
  std::vector<std::shared_ptr<StepAttempt>> outdated;
  std::shared_ptr<Round> round;
  std::shared_ptr<const Watches> watches;
  absl::Status rewritten;
  v1::ParameterSet description;
  v1::WatchParameterSetResponse event;
  {
    MutexLock lock(&set_->mutex);
    const auto tensors = static_cast<int>(schema_->tensors().size());
    set_->update_counts.Grow(tensors, static_cast<int>(before_->tensors().size()));
    set_->configuration = *set_->configuration->Add(request_.groups());
    set_->former_schemas.push_back(std::move(set_->schema));
    set_->schema = schema_;
    set_->trainable = SelectTrainable(schema_, *set_->configuration);
    set_->work.reset();
    set_->grants.push_back(std::move(grant_));
    BlockList parameters = set_->snapshot->blocks();
    AppendTail(std::move(parameters_), &parameters);
    set_->lifecycle.Grow(incarnation_, schema_->fingerprint());
    before = std::exchange(
        set_->snapshot, std::make_shared<const Snapshot>(incarnation_, set_->lifecycle.step(), std::move(parameters)));
    set_->requests.Forget();
    rewritten = set_->lifecycle.Rewritten();
    outdated = set_->requests.FindOutdated();
    round = TakeRound(set_.get());
    watches = set_->watches;
    description = DescribeSet(*set_);
    event = EventNow(*set_);
  }
  AbandonRound(set_, round, rewritten);
  for (const std::shared_ptr<StepAttempt>& attempt : outdated) attempt->EndUnlessComplete(rewritten);
  *event.mutable_config_changed() = description;
  if (!watches->empty()) Tell(*watches, std::move(event));
  return description;
}

}  // namespace adamant::core
