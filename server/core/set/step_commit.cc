#include "server/core/set/step_commit.h"

#include <bit>
#include <cmath>
#include <utility>

#include "proto/error/error.h"

namespace adamant::core {
namespace {

// Gradients must stay below this after scaling, so that their squares are finite.
constexpr float kMaxMagnitude = 0x1p63f;

// The listeners hear of so many blocks at a time: those of one message.
constexpr int64_t kToldBlocks = 4;

}  // namespace

void StepCommit::Run(std::shared_ptr<SetRep> set, std::vector<std::shared_ptr<StepAttempt>> contributors,
                     std::optional<Staging> gradient, TurnQueue::Turn turn) {
  // Not std::make_shared: the constructor is private.
  const std::shared_ptr<StepCommit> commit(new StepCommit(std::move(set), std::move(gradient), std::move(turn)));
  commit->Measure();
  commit->Decide(std::move(contributors));
  if (!commit->contributors_.empty()) commit->Apply();
}

StepCommit::StepCommit(std::shared_ptr<SetRep> set, std::optional<Staging> gradient, TurnQueue::Turn turn)
    : set_(std::move(set)), turn_(std::move(turn)), gradient_(std::move(gradient)) {}

void StepCommit::Measure() {
  if (!gradient_.has_value()) return;
  const kernels::GradientStats stats = gradient_->Stats();
  finding_.grad_norm = std::sqrt(stats.sum_of_squares);
  if (stats.max_magnitude_bits >= std::bit_cast<uint32_t>(kMaxMagnitude)) {
    finding_.non_finite = gradient_->FindNotBelow(kMaxMagnitude);
  }
}

void StepCommit::Decide(std::vector<std::shared_ptr<StepAttempt>> contributors) {
  struct Answer {
    std::shared_ptr<StepAttempt> attempt;
    Decision decision;
  };
  std::vector<Answer> answers;
  std::shared_ptr<const Snapshot> snapshot;
  {
    MutexLock lock(&set_->mutex);
    snapshot = set_->snapshot;
    for (std::shared_ptr<StepAttempt>& attempt : contributors) {
      Decision decision = DecideOn(*attempt);
      if (std::holds_alternative<Part>(decision)) {
        contributors_.push_back({std::move(attempt), {}});
      } else {
        answers.push_back({std::move(attempt), std::move(decision)});
      }
    }
    if (!contributors_.empty()) Plan();
  }
  // What paid for the gradient pays for the reply from here on.
  if (contributors_.empty()) gradient_.reset();
  for (Answer& answer : answers) {
    if (auto* const error = std::get_if<absl::Status>(&answer.decision); error != nullptr) {
      answer.attempt->End(std::move(*error));
    } else {
      answer.attempt->End(
          MakeReply(answer.attempt.get(), std::get<v1::StepResult>(std::move(answer.decision)), snapshot));
    }
  }
}

StepCommit::Decision StepCommit::DecideOn(const StepAttempt& attempt) const {
  const v1::StepHeader& header = attempt.header();
  if (absl::Status status = set_->lifecycle.CheckReady(); !status.ok()) return status;
  absl::StatusOr<const v1::StepResult*> remembered = set_->requests.FindResult(header, attempt.header_hash());
  if (!remembered.ok()) return remembered.status();
  v1::StepResult answer;
  if (*remembered != nullptr) {
    answer = **remembered;
    answer.set_replayed(true);
    answer.set_parameters_step(set_->lifecycle.step());
    return answer;
  }
  if (attempt.incarnation() != set_->lifecycle.incarnation()) return set_->lifecycle.Rewritten();
  // Before expected_step, which would say of a request that was applied that it came too late.
  if (!gradient_.has_value()) {
    return set_->lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_OUTCOME_UNKNOWN,
                                     "the request was remembered when the step began, and is forgotten now");
  }
  if (absl::Status status = set_->requests.CheckExpectedStep(header, /*may_be_early=*/false); !status.ok()) {
    return status;
  }
  if (!finding_.non_finite.has_value()) return Part();
  answer.set_outcome(v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  answer.set_step(set_->lifecycle.step());
  answer.set_incarnation(set_->lifecycle.incarnation());
  answer.set_grad_norm(finding_.grad_norm);
  answer.set_config_revision(set_->configuration->revision());
  answer.set_non_finite_tensor(finding_.non_finite->tensor);
  answer.set_non_finite_offset(finding_.non_finite->offset);
  answer.set_parameters_step(set_->lifecycle.step());
  return answer;
}

void StepCommit::Plan() {
  const Configuration& configuration = *set_->configuration;
  const int64_t step = set_->lifecycle.step() + 1;
  v1::StepResult result;
  result.set_outcome(v1::STEP_OUTCOME_APPLIED);
  result.set_step(step);
  result.set_incarnation(set_->lifecycle.incarnation());
  result.set_grad_norm(finding_.grad_norm);
  result.set_config_revision(configuration.revision());
  const int groups = static_cast<int>(configuration.groups().size());
  plan_.scalars.reserve(groups);
  result.mutable_learning_rates()->Reserve(groups);
  for (int group = 0; group < groups; ++group) {
    plan_.scalars.push_back(configuration.Scalars(group, step, /*scale=*/1.0f));
    result.add_learning_rates(configuration.LearningRate(group, step));
  }
  set_->applying = true;
  plan_.before = set_->snapshot;
  plan_.after = std::make_shared<const Snapshot>(set_->lifecycle.incarnation(), step, gradient_->TakeBlocks());
  gradient_.reset();

  std::vector<Requests::Key> keys;
  for (const Contributor& contributor : contributors_) {
    keys.push_back({contributor.attempt->header().request_id(), contributor.attempt->header_hash()});
  }
  remembrance_ = Requests::Prepare(std::move(keys), result);
  result.set_parameters_step(step);
  for (Contributor& contributor : contributors_) {
    contributor.reply = MakeReply(contributor.attempt.get(), result, plan_.after);
  }
  MutexLock lock(&progress_mutex_);
  computed_.resize(plan_.after->blocks().size());
}

StepReply StepCommit::MakeReply(StepAttempt* attempt, v1::StepResult result,
                                std::shared_ptr<const Snapshot> snapshot) const {
  auto parameters = std::make_shared<StepParameters>();
  parameters->schema = set_->schema;
  parameters->set = set_;
  parameters->grant = attempt->TakeGrant();
  parameters->snapshot = std::move(snapshot);
  return {std::move(result), std::move(parameters)};
}

void StepCommit::Apply() {
  set_->arrays->Apply(
      plan_, [commit = shared_from_this()](int64_t block) { commit->Computed(block); },
      [commit = shared_from_this()](const absl::Status& applied) { commit->Publish(applied); });
}

void StepCommit::Computed(int64_t block) {
  int64_t computed;
  {
    MutexLock lock(&progress_mutex_);
    computed_[block] = true;
    const auto blocks = static_cast<int64_t>(computed_.size());
    while (first_missing_ < blocks && computed_[first_missing_]) ++first_missing_;
    computed = first_missing_;
    // The last ones come with the outcome.
    if (computed < last_told_ + kToldBlocks || computed == blocks) return;
    last_told_ = computed;
  }
  for (const Contributor& contributor : contributors_) {
    const std::shared_ptr<StepListener> listener = contributor.attempt->listener();
    if (listener == nullptr) continue;
    listener->OnComputed(contributor.attempt.get(), contributor.reply.parameters, computed);
  }
}

void StepCommit::Publish(const absl::Status& applied) {
  absl::Status poisoned;
  std::shared_ptr<const Snapshot> before = std::move(plan_.before);
  {
    MutexLock lock(&set_->mutex);
    set_->applying = false;
    if (applied.ok()) {
      set_->lifecycle.Commit(plan_.after->step());
      set_->snapshot = std::move(plan_.after);
      set_->requests.Remember(std::move(remembrance_));
    } else {
      set_->lifecycle.Poison();
      poisoned = set_->lifecycle.CheckReady();
    }
  }
  // Back to the pool before the client can ask for the next step's memory.
  before.reset();
  for (Contributor& contributor : contributors_) {
    if (applied.ok()) {
      contributor.attempt->End(std::move(contributor.reply));
    } else {
      contributor.attempt->End(Unshared(poisoned));
    }
  }
  const TurnQueue::Turn ending = std::move(turn_);
}

}  // namespace adamant::core
