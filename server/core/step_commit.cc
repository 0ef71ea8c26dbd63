// A step's turn: what must hold, the arithmetic, and the publish.
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "server/core/attempt_life.h"
#include "server/core/parameter_set.h"

namespace adamant::core {
namespace {

// Gradients must stay below this after scaling, so that their squares are finite.
constexpr float kMaxMagnitude = 0x1p63f;

// The listener hears of so many blocks at a time: those of one message.
constexpr int64_t kToldBlocks = 4;

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

}  // namespace

// What a turn knows of its gradient before it takes the mutex.
struct ParameterSet::Finding {
  double grad_norm = 0;
  absl::optional<Staging::Place> non_finite;
};

// A step between its turn and its publish.
struct ParameterSet::Commit {
  std::shared_ptr<StepAttempt> attempt;
  v1::StepResult result;
  std::vector<kernels::AdamScalars> scalars;  // by group
  std::shared_ptr<const Snapshot> before;
  std::shared_ptr<const StepParameters> parameters;  // the gradient, and block by block the new parameters
  BlockList exp_avg_in;
  BlockList exp_avg_out;
  BlockList exp_avg_sq_in;
  BlockList exp_avg_sq_out;

  std::atomic<bool> failed = false;

  Mutex progress_mutex;
  std::vector<bool> computed ABSL_GUARDED_BY(progress_mutex);  // by block
  int64_t first_missing ABSL_GUARDED_BY(progress_mutex) = 0;   // the blocks before it are computed
  int64_t last_told ABSL_GUARDED_BY(progress_mutex) = 0;       // as many blocks the listener knows of
};

void ParameterSet::StepTurn(const std::shared_ptr<StepAttempt>& attempt, TurnQueue::Turn turn) {
  Finding finding;
  if (attempt->staging_.has_value()) {
    const kernels::GradientStats stats = attempt->staging_->Stats();
    finding.grad_norm = std::sqrt(stats.sum_of_squares);
    if (stats.max_magnitude_bits >= Bits(kMaxMagnitude)) {
      finding.non_finite = attempt->staging_->FindNotBelow(kMaxMagnitude);
    }
  }

  std::shared_ptr<Commit> commit;
  absl::StatusOr<absl::optional<StepReply>> decision;
  {
    MutexLock lock(&mutex_);
    decision = Decide(attempt.get(), finding);
    if (decision.ok() && !decision->has_value()) commit = BeginCommit(attempt, finding);
  }
  if (!decision.ok()) {
    End(attempt.get(), std::move(decision).status());
    return;
  }
  if (commit == nullptr) {
    attempt->staging_.reset();  // what paid for it pays for the reply now
    End(attempt.get(), **std::move(decision));
    return;
  }

  // From here to the publish nobody can take a reference to the moments; those taken before are never written to.
  absl::StatusOr<BlockList> exp_avg = ReplaceHeld(commit->exp_avg_in);
  absl::StatusOr<BlockList> exp_avg_sq = ReplaceHeld(commit->exp_avg_sq_in);
  if (!exp_avg.ok() || !exp_avg_sq.ok()) {
    GiveUp(commit.get(), exp_avg.ok() ? exp_avg_sq.status() : exp_avg.status());
    return;
  }
  commit->exp_avg_out = *std::move(exp_avg);
  commit->exp_avg_sq_out = *std::move(exp_avg_sq);

  const auto blocks = static_cast<int64_t>(commit->parameters->snapshot->blocks().size());
  if (IsSmall()) {
    for (int64_t block = 0; block < blocks; ++block) ComputeBlock(commit.get(), block);
    Publish(commit.get());
    return;
  }
  resources_.compute->Run(
      blocks,
      [this, commit](int64_t block) {
        ComputeBlock(commit.get(), block);
        TellComputed(commit.get(), block);
      },
      [this, commit, turn = std::move(turn)] { Publish(commit.get()); });
}

// The reply, where nothing is to be applied; nothing, where the step is; or the error.
absl::StatusOr<absl::optional<StepReply>> ParameterSet::Decide(StepAttempt* attempt, const Finding& finding) {
  const v1::StepHeader& header = attempt->header_;
  if (absl::Status status = CheckReady(); !status.ok()) return status;
  absl::StatusOr<const ReplayMemory::Entry*> replay = FindReplay(*attempt);
  if (!replay.ok()) return replay.status();
  if (*replay != nullptr) {
    v1::StepResult result = (*replay)->result;
    result.set_replayed(true);
    return MakeReply(result, ReplyParameters(snapshot_, attempt));
  }
  if (attempt->incarnation_ != incarnation_) return Rewritten();
  // Before expected_step, which would say of a request that was applied that it came too late.
  if (!attempt->staging_.has_value()) {
    return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_OUTCOME_UNKNOWN,
                     "the request was remembered when the step began, and is forgotten now");
  }
  if (header.has_expected_step() && header.expected_step() != step_) return StepMismatch(header);
  if (finding.non_finite.has_value()) {
    v1::StepResult result;
    result.set_outcome(v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
    result.set_step(step_);
    result.set_incarnation(incarnation_);
    result.set_grad_norm(finding.grad_norm);
    result.set_config_revision(configuration_->revision());
    result.set_non_finite_tensor(finding.non_finite->tensor);
    result.set_non_finite_offset(finding.non_finite->offset);
    return MakeReply(result, ReplyParameters(snapshot_, attempt));
  }
  return absl::nullopt;
}

std::shared_ptr<ParameterSet::Commit> ParameterSet::BeginCommit(const std::shared_ptr<StepAttempt>& attempt,
                                                                const Finding& finding) {
  auto commit = std::make_shared<Commit>();
  commit->attempt = attempt;
  commit->result.set_outcome(v1::STEP_OUTCOME_APPLIED);
  commit->result.set_step(step_ + 1);
  commit->result.set_incarnation(incarnation_);
  commit->result.set_grad_norm(finding.grad_norm);
  commit->result.set_config_revision(configuration_->revision());
  const int groups = static_cast<int>(configuration_->groups().size());
  commit->scalars.reserve(groups);
  commit->result.mutable_learning_rates()->Reserve(groups);
  for (int group = 0; group < groups; ++group) {
    commit->scalars.push_back(configuration_->Scalars(group, step_ + 1, /*scale=*/1.0f));
    commit->result.add_learning_rates(configuration_->LearningRate(group, step_ + 1));
  }
  commit->before = snapshot_;
  commit->parameters = ReplyParameters(
      std::make_shared<const Snapshot>(incarnation_, step_ + 1, attempt->staging_->TakeBlocks()), attempt.get());
  {
    MutexLock lock(&commit->progress_mutex);
    commit->computed.resize(commit->parameters->snapshot->blocks().size());
  }
  commit->exp_avg_in = std::move(exp_avg_);
  commit->exp_avg_sq_in = std::move(exp_avg_sq_);
  committing_ = true;
  return commit;
}

void ParameterSet::ComputeBlock(Commit* commit, int64_t block) const {
  if (commit->failed.load(std::memory_order_relaxed)) return;
  BlockUpdate update;
  update.index = block;
  update.ranges = ranges_[block];
  update.scalars = commit->scalars;
  update.gradient = commit->parameters->snapshot->blocks()[block];
  update.parameters = commit->before->blocks()[block];
  update.exp_avg_in = commit->exp_avg_in[block];
  update.exp_avg_out = commit->exp_avg_out[block];
  update.exp_avg_sq_in = commit->exp_avg_sq_in[block];
  update.exp_avg_sq_out = commit->exp_avg_sq_out[block];
  if (!resources_.backend->Update(update).ok()) commit->failed.store(true, std::memory_order_relaxed);
}

void ParameterSet::TellComputed(Commit* commit, int64_t block) {
  int64_t computed;
  {
    MutexLock lock(&commit->progress_mutex);
    commit->computed[block] = true;
    const auto blocks = static_cast<int64_t>(commit->computed.size());
    while (commit->first_missing < blocks && commit->computed[commit->first_missing]) ++commit->first_missing;
    computed = commit->first_missing;
    // The last ones come with the outcome.
    if (computed < commit->last_told + kToldBlocks || computed == blocks) return;
    commit->last_told = computed;
  }
  if (commit->failed.load(std::memory_order_relaxed)) return;
  std::shared_ptr<StepListener> listener;
  {
    MutexLock lock(&mutex_);
    listener = commit->attempt->listener_;
  }
  if (listener != nullptr) listener->OnComputed(commit->attempt.get(), commit->parameters, computed);
}

void ParameterSet::Publish(Commit* commit) {
  absl::StatusOr<StepReply> reply;
  std::vector<absl::AnyInvocable<void()>> reads;
  // Or else the next turn would take the moments for held.
  commit->exp_avg_in.clear();
  commit->exp_avg_sq_in.clear();
  {
    MutexLock lock(&mutex_);
    committing_ = false;
    exp_avg_ = std::move(commit->exp_avg_out);
    exp_avg_sq_ = std::move(commit->exp_avg_sq_out);
    reads.swap(waiting_reads_);
    if (commit->failed.load(std::memory_order_relaxed)) {
      // The published parameters are whole still: the new ones were written elsewhere.
      state_ = v1::PARAMETER_SET_STATE_POISONED;
      moments_valid_ = false;
      reply = CheckReady();
    } else {
      step_ = commit->result.step();
      snapshot_ = commit->parameters->snapshot;
      replay_.Remember({commit->attempt->header_.request_id(), commit->attempt->header_hash_, commit->result});
      reply = MakeReply(commit->result, std::move(commit->parameters));
    }
  }
  // Back to the pool before the client can ask for the next step's memory.
  commit->before.reset();
  End(commit->attempt.get(), std::move(reply));
  for (absl::AnyInvocable<void()>& read : reads) read();
}

void ParameterSet::GiveUp(Commit* commit, absl::Status status) {
  std::vector<absl::AnyInvocable<void()>> reads;
  {
    MutexLock lock(&mutex_);
    committing_ = false;
    exp_avg_ = std::move(commit->exp_avg_in);
    exp_avg_sq_ = std::move(commit->exp_avg_sq_in);
    reads.swap(waiting_reads_);
  }
  End(commit->attempt.get(), std::move(status));
  for (absl::AnyInvocable<void()>& read : reads) read();
}

std::shared_ptr<const StepParameters> ParameterSet::ReplyParameters(std::shared_ptr<const Snapshot> snapshot,
                                                                    StepAttempt* attempt) const {
  auto parameters = std::make_shared<StepParameters>();
  parameters->schema = schema_;
  parameters->set = shared_from_this();
  parameters->grant = std::move(attempt->grant_);
  parameters->snapshot = std::move(snapshot);
  return parameters;
}

StepReply ParameterSet::MakeReply(const v1::StepResult& result,
                                  std::shared_ptr<const StepParameters> parameters) const {
  StepReply reply = {result, std::move(parameters)};
  reply.result.set_parameters_step(step_);
  return reply;
}

}  // namespace adamant::core
