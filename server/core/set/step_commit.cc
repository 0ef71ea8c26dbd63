#include "server/core/set/step_commit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/set/checkpointing.h"
#include "server/core/set/step_header.h"

namespace adamant::core {
namespace {

// Gradients must stay below this once they are scaled, so that their squares are finite.
constexpr double kMaxMagnitude = 0x1p63;

// What torch's clip_grad_norm_ adds to a norm before it divides by it.
constexpr double kNormEps = 1e-6;

// The listeners hear of so many blocks at a time: those of one message.
constexpr int64_t kToldBlocks = 4;

}  // namespace

void StepCommit::Run(std::shared_ptr<SetRep> set, Input input, TurnQueue::Turn turn) {
  // Not std::make_shared: the constructor is private.
  const std::shared_ptr<StepCommit> commit(new StepCommit(std::move(set), std::move(input), std::move(turn)));
  commit->TakeRoom();
}

StepCommit::StepCommit(std::shared_ptr<SetRep> set, Input input, TurnQueue::Turn turn)
    : set_(std::move(set)),
      turn_(std::move(turn)),
      input_(std::move(input)),
      failed_(input_.round.has_value() && !gradient().has_value() && !input_.non_finite.has_value()) {}

void StepCommit::TakeRoom() {
  SetJournal* const journal = set_->journal.get();
  if (journal == nullptr || !journal->keeps_steps() || !gradient().has_value()) {
    TakeDigestRoom();
    return;
  }
  if (!input_.round.has_value()) room_ = input_.contributors.front()->TakeRoom();
  if (room_ == nullptr) room_ = journal->TakeRoom();
  if (room_ != nullptr) {
    TakeDigestRoom();
    return;
  }
  MakeRoom(set_, [commit = shared_from_this()](absl::StatusOr<std::unique_ptr<SetJournal::Room>> room) {
    if (room.ok()) {
      commit->room_ = *std::move(room);
    } else {
      commit->no_room_ = std::move(room).status();
    }
    commit->TakeDigestRoom();
  });
}

void StepCommit::TakeDigestRoom() {
  digests_ = gradient().has_value() &&
             absl::c_any_of(input_.contributors, [](const auto& attempt) { return attempt->header().digest_state(); });
  if (!digests_ || !no_room_.ok()) {
    Go();
    return;
  }
  const Resources& resources = set_->resources;
  BorrowDigestRoom(gradient()->selection()->schema(), static_cast<int>(set_->slots.size()),
                   resources.backend->on_host(), resources.read, resources.lender,
                   [commit = shared_from_this()](absl::StatusOr<DigestRoom> room) {
                     if (room.ok()) {
                       commit->digest_room_ = *std::move(room);
                     } else {
                       commit->no_room_ = std::move(room).status();
                     }
                     commit->Go();
                   });
}

void StepCommit::Go() {
  Measure();
  Decide();
  if (!contributors_.empty()) BorrowCopies();
}

void StepCommit::Measure() {
  if (input_.non_finite.has_value()) {
    finding_.non_finite = input_.non_finite->place;
    finding_.non_finite_rank = input_.non_finite->rank;
    finding_.grad_norm = input_.non_finite->grad_norm;
  }
  if (!gradient().has_value()) return;
  // It changes only in a turn, and this is one.
  std::shared_ptr<const Configuration> configuration;
  {
    MutexLock lock(&set_->mutex);
    configuration = set_->configuration;
  }
  const kernels::GradientStats stats = gradient()->Stats();
  double divisor = input_.divisor;
  if (!input_.round.has_value()) {
    const v1::StepHeader& header = input_.contributors.front()->header();
    if (header.has_grad_scale()) divisor = header.grad_scale();
  }
  finding_.grad_norm = std::sqrt(stats.sum_of_squares) / divisor;
  const v1::Clipping& clipping = configuration->clipping();
  double scale = 1 / divisor;
  if (clipping.has_max_norm() && std::isfinite(finding_.grad_norm)) {
    scale *= std::min(1.0, clipping.max_norm() / (finding_.grad_norm + kNormEps));
  }
  finding_.transform.scale = static_cast<float>(scale);
  if (clipping.has_max_value()) finding_.transform.clip = static_cast<float>(clipping.max_value());
  const double limit = kMaxMagnitude / scale;
  const auto largest = static_cast<double>(std::bit_cast<float>(stats.max_magnitude_bits));
  if (!(largest < limit)) finding_.non_finite = gradient()->FindNotBelow(limit);
}

void StepCommit::Decide() {
  struct Answer {
    std::shared_ptr<StepAttempt> attempt;
    Decision decision;
  };
  std::vector<Answer> answers;
  std::shared_ptr<const Snapshot> snapshot;
  std::shared_ptr<const Watches> watches;
  std::optional<v1::WatchParameterSetResponse> event;
  {
    MutexLock lock(&set_->mutex);
    watches = set_->watches;
    skipped_ = false;
    for (std::shared_ptr<StepAttempt>& attempt : input_.contributors) {
      Decision decision = DecideOn(*attempt);
      if (std::holds_alternative<Part>(decision)) {
        contributors_.push_back({std::move(attempt), {}});
      } else {
        answers.push_back({std::move(attempt), std::move(decision)});
      }
    }
    // Not otherwise: whoever refers to it holds its blocks.
    if (!answers.empty()) snapshot = set_->snapshot;
    if (!contributors_.empty()) Plan(contributors_.front().attempt->header());
    if (skipped_) set_->statistics.set_non_finite(set_->statistics.non_finite() + 1);
    event = UnappliedEvent();
  }
  if (event.has_value() && !watches->empty()) Tell(*watches, *std::move(event));
  // What paid for the gradient pays for the reply from here on.
  std::shared_ptr<RowWork> rows;
  if (contributors_.empty()) {
    if (gradient().has_value() && gradient()->rows() != nullptr) rows = gradient()->rows()->TakeWork();
    gradient().reset();
  }
  for (Answer& answer : answers) {
    if (auto* const error = std::get_if<absl::Status>(&answer.decision); error != nullptr) {
      answer.attempt->End(std::move(*error));
    } else {
      auto& result = std::get<v1::StepResult>(answer.decision);
      if (result.replayed()) rows = nullptr;
      if (rows != nullptr) FillIn(*snapshot, rows.get());
      answer.attempt->End(MakeReply(answer.attempt.get(), std::move(result), snapshot, std::move(rows)));
    }
  }
}

std::optional<v1::WatchParameterSetResponse> StepCommit::UnappliedEvent() const {
  if (!skipped_ && !failed()) return std::nullopt;
  v1::WatchParameterSetResponse event = EventNow(*set_);
  if (failed()) {
    event.mutable_round_failed()->set_round(*input_.round);
    event.mutable_round_failed()->set_contributions(static_cast<int>(input_.contributors.size()));
    return event;
  }
  v1::SkippedEvent* const skipped = event.mutable_skipped();
  skipped->set_non_finite_tensor(finding_.non_finite->tensor);
  skipped->set_non_finite_offset(finding_.non_finite->offset);
  if (finding_.non_finite_rank.has_value()) skipped->set_non_finite_rank(*finding_.non_finite_rank);
  return event;
}

StepCommit::Decision StepCommit::DecideOn(const StepAttempt& attempt) {
  const v1::StepHeader& header = attempt.header();
  if (absl::Status status = set_->lifecycle.CheckReady(); !status.ok()) return status;
  absl::StatusOr<const v1::StepResult*> remembered = set_->requests.FindResult(header, attempt.header_hash());
  if (!remembered.ok()) return remembered.status();
  if (*remembered != nullptr) {
    v1::StepResult answer = **remembered;
    answer.set_replayed(true);
    answer.set_parameters_step(set_->lifecycle.step());
    if (set_->configuration->workers() != nullptr) answer.set_round(set_->round_number);
    SetDurableStep(set_->lifecycle.step(), &answer);
    set_->statistics.set_replayed(set_->statistics.replayed() + 1);
    return answer;
  }
  if (attempt.incarnation() != set_->lifecycle.incarnation()) return set_->lifecycle.Rewritten();
  // A contribution that comes alone has missed its round.
  if (failed() || (header.has_rank() && !input_.round.has_value())) {
    set_->statistics.set_refused(set_->statistics.refused() + 1);
    return Unapplied(attempt, v1::STEP_OUTCOME_REFUSED_LATE);
  }
  // Before expected_step, which would say of a request that was applied that it came too late.
  if (!gradient().has_value() && !input_.non_finite.has_value()) {
    return set_->lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_OUTCOME_UNKNOWN,
                                     "the request was remembered when the step began, and is forgotten now");
  }
  if (absl::Status status = set_->requests.CheckStep(header, /*may_be_early=*/false); !status.ok()) return status;
  if (absl::Status status = CheckStillConfigured(attempt); !status.ok()) return status;
  if (header.has_base_step() && set_->lifecycle.step() - header.base_step() > set_->configuration->max_staleness()) {
    set_->statistics.set_refused(set_->statistics.refused() + 1);
    return Unapplied(attempt, v1::STEP_OUTCOME_REFUSED_STALE);
  }
  if (!finding_.non_finite.has_value()) {
    if (!no_room_.ok()) return Unshared(no_room_);
    return Part();
  }
  skipped_ = true;
  const auto& [tensor, offset] = *finding_.non_finite;
  if (set_->configuration->non_finite_policy() == v1::NON_FINITE_POLICY_REJECT) {
    return NonFinite(*finding_.non_finite);
  }
  v1::StepResult answer = Unapplied(attempt, v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  answer.set_non_finite_tensor(tensor);
  answer.set_non_finite_offset(offset);
  if (finding_.non_finite_rank.has_value()) answer.set_non_finite_rank(*finding_.non_finite_rank);
  return answer;
}

absl::Status StepCommit::NonFinite(const Staging::Place& place) const {
  const absl::Status status = set_->lifecycle.MakeError(
      absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_NON_FINITE_GRADIENT,
      ExpectedGot(
          "a gradient that is finite, and below 2^63 once it is scaled",
          absl::StrCat(
              "one that is not at offset ", place.offset, " of tensor ", place.tensor, " (",
              Quoted(set_->schema->tensors()[place.tensor].name), ")",
              finding_.non_finite_rank.has_value() ? absl::StrCat(", from rank ", *finding_.non_finite_rank) : "")));
  v1::ErrorDetail detail = GetErrorDetail(status);
  detail.set_tensor(place.tensor);
  detail.set_offset(place.offset);
  return Error(status.code(), status.message(), detail);
}

absl::Status StepCommit::CheckStillConfigured(const StepAttempt& attempt) const {
  if (attempt.config_revision() == set_->configuration->revision()) return absl::OkStatus();
  const absl::StatusOr<std::shared_ptr<const TensorSelection>> selection = SelectTensors(*set_, attempt.header());
  const bool is_contribution = attempt.header().has_rank();
  const bool fits = is_contribution == (set_->configuration->workers() != nullptr);
  if (fits && selection.ok() && **selection == *attempt.selection()) return absl::OkStatus();
  return set_->lifecycle.MakeError(
      absl::StatusCode::kAborted, v1::ERROR_REASON_CONFIG_CHANGED,
      absl::StrCat("the configuration was changed, from revision ", attempt.config_revision(), " to ",
                   set_->configuration->revision(), ", since the step began: ",
                   !fits            ? "the set has got workers, or has none any more"
                   : selection.ok() ? "it is to bring other tensors now"
                                    : selection.status().message()));
}

v1::StepResult StepCommit::Unapplied(const StepAttempt& attempt, v1::StepOutcome outcome) const {
  v1::StepResult answer;
  answer.set_outcome(outcome);
  answer.set_step(set_->lifecycle.step());
  answer.set_incarnation(set_->lifecycle.incarnation());
  answer.set_grad_norm(finding_.grad_norm);
  answer.set_config_revision(set_->configuration->revision());
  answer.set_parameters_step(set_->lifecycle.step());
  if (attempt.header().has_base_step()) {
    answer.set_staleness(set_->lifecycle.step() - attempt.header().base_step());
  }
  if (set_->configuration->workers() != nullptr) answer.set_round(set_->round_number);
  SetDurableStep(set_->lifecycle.step(), &answer);
  return answer;
}

void StepCommit::SetDurableStep(int64_t step, v1::StepResult* result) const {
  if (set_->journal == nullptr) return;
  const std::optional<int64_t> durable = set_->journal->DurableStep(set_->lifecycle.incarnation(), step);
  if (durable.has_value()) result->set_durable_step(*durable);
}

void StepCommit::Plan(const v1::StepHeader& header) {
  const Configuration& configuration = *set_->configuration;
  const int64_t before = set_->lifecycle.step();
  v1::StepResult result;
  result.set_outcome(v1::STEP_OUTCOME_APPLIED);
  result.set_step(before + 1);
  result.set_incarnation(set_->lifecycle.incarnation());
  result.set_grad_norm(finding_.grad_norm);
  result.set_config_revision(configuration.revision());
  if (header.has_base_step()) result.set_staleness(before - header.base_step());
  if (input_.round.has_value()) {
    result.set_round(set_->round_number);
    result.set_contributions(input_.contributions);
  }

  // They were valid when the header was checked against this configuration.
  std::vector<v1::ParameterGroup> overridden;
  if (!header.overrides().empty()) {
    overridden = *OverrideGroups(configuration.groups(), header.overrides(), "header.overrides");
  }
  const std::vector<v1::ParameterGroup>& groups = overridden.empty() ? configuration.groups() : overridden;
  result.mutable_learning_rates()->Reserve(static_cast<int>(groups.size()));
  for (const v1::ParameterGroup& group : groups) result.add_learning_rates(LearningRateAt(group, before));

  const std::shared_ptr<const TensorSelection> selection = gradient()->selection();
  if (set_->work == nullptr || set_->work->shared_selection() != selection) {
    const UpdateCounts* const counts = &set_->update_counts;
    set_->work = std::make_shared<const StepWork>(selection, [counts](int tensor) { return counts->of(tensor); });
  }
  plan_.work = set_->work;
  plan_.recipes.reserve(plan_.work->cohorts().size());
  for (const Cohort& cohort : plan_.work->cohorts()) {
    plan_.recipes.push_back(MakeRecipe(groups[cohort.group], result.learning_rates(cohort.group),
                                       set_->update_counts.of(cohort.tensor), finding_.transform));
  }
  update_counts_ = set_->update_counts;
  update_counts_.Add(*selection, gradient()->rows() != nullptr ? gradient()->rows()->Tensors() : std::vector<int>());
  *metrics_.mutable_last_metrics() = header.metrics();

  set_->applying = true;
  BlockList blocks = gradient()->TakeBlocks();
  if (gradient()->rows() != nullptr) {
    blocks = PlanRows(groups, result, std::move(blocks));
  } else {
    plan_.before = set_->snapshot;
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (!blocks[i]) blocks[i] = plan_.before->blocks()[i];
    }
  }
  if (plan_.copies.empty()) {
    plan_.after = std::make_shared<const Snapshot>(set_->lifecycle.incarnation(), before + 1, std::move(blocks));
  } else {
    after_ = std::move(blocks);
  }
  gradient().reset();

  std::vector<Requests::Key> keys;
  for (const Contributor& contributor : contributors_) {
    keys.push_back({contributor.attempt->header().request_id(), contributor.attempt->header_hash()});
  }
  digest_ = {result.incarnation(), PreviousDigest(*set_)};
  remembrance_ = Requests::Prepare(std::move(keys), result, selection);
  result.set_parameters_step(before + 1);
  SetDurableStep(before + 1, &result);
  // Those of `selection` are in place, whether others are to be copied or not.
  const std::shared_ptr<const Snapshot> after =
      plan_.after != nullptr
          ? plan_.after
          : std::make_shared<const Snapshot>(result.incarnation(), before + 1, selection->Only(after_));
  for (Contributor& contributor : contributors_) {
    contributor.reply = MakeReply(contributor.attempt.get(), result, after, plan_.rows);
  }
  MutexLock lock(&progress_mutex_);
  computed_.resize(after->blocks().size(), true);
  for (const int64_t block : selection->blocks()) computed_[block] = false;
}

BlockList StepCommit::PlanRows(const std::vector<v1::ParameterGroup>& groups, const v1::StepResult& result,
                               BlockList brought) {
  std::unique_ptr<RowWork> rows = gradient()->rows()->TakeWork();
  for (RowWork::Tensor& tensor : rows->tensors) {
    const int group = set_->schema->tensors()[tensor.tensor].group;
    tensor.recipe = static_cast<int>(plan_.recipes.size());
    plan_.recipes.push_back(MakeRecipe(groups[group], result.learning_rates(group),
                                       set_->update_counts.of(tensor.tensor), finding_.transform));
  }
  const absl::Span<const int64_t> selected = gradient()->selection()->blocks();
  if (!selected.empty()) plan_.before = gradient()->selection()->Restrict(set_->snapshot);
  BlockList blocks = Snapshot::Release(std::move(set_->snapshot));
  for (const int64_t block : selected) blocks[block] = std::move(brought[block]);
  rows->ForEachBlock([&](int64_t block) {
    if (absl::c_binary_search(selected, block) || blocks[block].unique()) return;
    plan_.copies.push_back({block, blocks[block]});
  });
  plan_.rows = std::move(rows);
  return blocks;
}

void StepCommit::BorrowCopies() {
  if (plan_.copies.empty()) {
    Record();
    return;
  }
  int64_t elements = 0;
  for (const StepPlan::Copy& copy : plan_.copies) elements += copy.from.size();
  // Those who hold the blocks have paid. All in one loan, since only the last block may be short, in the set's list as
  // in a loan.
  set_->resources.lender->Borrow(
      /*budget=*/nullptr, 0, elements, absl::InfiniteDuration(),
      [commit = shared_from_this()](absl::StatusOr<Lender::Loan> loan) {
        if (!loan.ok()) {
          commit->Withdraw(loan.status());
          return;
        }
        for (size_t i = 0; i < loan->blocks.size(); ++i) {
          commit->after_[commit->plan_.copies[i].block] = std::move(loan->blocks[i]);
        }
        const v1::StepResult& result = commit->contributors_.front().reply.result;
        commit->plan_.after =
            std::make_shared<const Snapshot>(result.incarnation(), result.step(), std::move(commit->after_));
        commit->Record();
      });
}

void StepCommit::Record() {
  if (room_ == nullptr) {
    Apply();
    return;
  }
  for (const Contributor& contributor : contributors_) record_.headers.push_back(contributor.attempt->header());
  if (input_.round.has_value()) record_.divisor = input_.divisor;
  record_.result = remembrance_.front().result;
  record_.previous_digest = digest_.digest;
  const BroughtElements brought = {&plan_.after->blocks(), plan_.work->selection().blocks(), plan_.rows.get()};
  set_->journal->CommitStep(std::move(room_), record_, brought,
                            [commit = shared_from_this()](const absl::Status& recorded) {
                              if (recorded.ok()) {
                                commit->Apply();
                              } else {
                                commit->Withdraw(recorded);
                              }
                            });
}

void StepCommit::Withdraw(const absl::Status& status) {
  if (plan_.rows != nullptr) {
    // It has taken the set's own blocks. What was to take the place of some of them is the step's, and pays for itself
    // no longer than the step does.
    BlockList blocks = plan_.after != nullptr ? plan_.after->blocks() : std::move(after_);
    for (const int64_t block : plan_.work->selection().blocks()) blocks[block] = plan_.before->blocks()[block];
    for (const StepPlan::Copy& copy : plan_.copies) blocks[copy.block] = copy.from;
    MutexLock lock(&set_->mutex);
    set_->applying = false;
    set_->snapshot =
        std::make_shared<const Snapshot>(set_->lifecycle.incarnation(), set_->lifecycle.step(), std::move(blocks));
  } else {
    MutexLock lock(&set_->mutex);
    set_->applying = false;
  }
  plan_ = StepPlan();
  after_.clear();
  for (Contributor& contributor : contributors_) {
    contributor.reply.parameters.reset();
    contributor.attempt->End(Unshared(status));
  }
  const TurnQueue::Turn ending = std::move(turn_);
}

StepReply StepCommit::MakeReply(StepAttempt* attempt, v1::StepResult result,
                                const std::shared_ptr<const Snapshot>& snapshot,
                                std::shared_ptr<const RowWork> rows) const {
  auto parameters = std::make_shared<StepParameters>();
  parameters->selection = attempt->selection();
  parameters->set = set_;
  parameters->host_kernels = &set_->resources.backend->host_kernels();
  // It pays for the gradient until that has become the parameters, also where the reply has none.
  parameters->grant = attempt->TakeGrant();
  parameters->share = input_.gradient.share;
  if (!attempt->header().omit_parameters() && !attempt->header().ack_when_folded()) {
    // Without the blocks that nobody has paid for here.
    parameters->snapshot = parameters->selection->Restrict(snapshot);
    parameters->rows = std::move(rows);
  } else {
    rows.reset();  // before what pays for it may go
  }
  return {std::move(result), std::move(parameters)};
}

void StepCommit::Apply() {
  set_->arrays->Apply(
      plan_, [commit = shared_from_this()](int64_t block) { commit->Computed(block); },
      [commit = shared_from_this()](const absl::Status& applied) {
        if (applied.ok() && commit->digests_) {
          commit->Digest();
        } else {
          commit->Publish(applied);
        }
      });
}

void StepCommit::Digest() {
  SlotArrays* const arrays = set_->arrays.get();
  if (set_->resources.backend->on_host()) {
    DigestSlots([arrays](v1::Slot slot, int64_t begin, int64_t end, float* to) { arrays->Copy(slot, begin, end, to); });
    return;
  }
  arrays->View(set_->slots, std::move(digest_room_.spares),
               [commit = shared_from_this()](absl::StatusOr<std::unique_ptr<SlotView>> view) {
                 if (!view.ok()) {
                   // The device is lost, which the next step will say.
                   commit->Publish(absl::OkStatus());
                   return;
                 }
                 commit->DigestSlots([view = *std::move(view), &slots = commit->set_->slots](
                                         v1::Slot slot, int64_t begin, int64_t end, float* to) {
                   CopyRuns(view->slots()[absl::c_find(slots, slot) - slots.begin()], begin, end, to);
                 });
               });
}

void StepCommit::DigestSlots(CopyState copy) {
  DigestedState state = {.schema = nullptr,
                         .slots = {v1::SLOT_PARAMETER},
                         .step = plan_.after->step(),
                         .update_counts = {},
                         .previous = digest_.digest};
  {
    MutexLock lock(&set_->mutex);
    state.schema = set_->schema;
  }
  state.slots.insert(state.slots.end(), set_->slots.begin(), set_->slots.end());
  const auto tensors = static_cast<int>(state.schema->tensors().size());
  for (int tensor = 0; tensor < tensors; ++tensor) state.update_counts.push_back(update_counts_.of(tensor));
  DigestState(
      std::move(state),
      [after = plan_.after, copy = std::move(copy)](v1::Slot slot, int64_t begin, int64_t end, float* to) {
        if (slot == v1::SLOT_PARAMETER) {
          CopyRuns(after->blocks(), begin, end, to);
        } else {
          copy(slot, begin, end, to);
        }
      },
      set_->resources.compute,
      [commit = shared_from_this()](std::string digest) {
        commit->digest_room_ = DigestRoom();
        for (Contributor& contributor : commit->contributors_) contributor.reply.result.set_state_digest(digest);
        commit->remembrance_.front().result.set_state_digest(digest);
        commit->digest_.digest = std::move(digest);
        commit->Publish(absl::OkStatus());
      });
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

v1::WatchParameterSetResponse StepCommit::CommittedEvent() const {
  const Contributor& first = contributors_.front();
  const v1::StepResult& result = first.reply.result;
  v1::WatchParameterSetResponse event;
  event.set_incarnation(result.incarnation());
  event.set_step(result.step());
  v1::CommittedEvent* const committed = event.mutable_committed();
  committed->set_grad_norm(result.grad_norm());
  *committed->mutable_learning_rates() = result.learning_rates();
  committed->set_staleness(result.staleness());
  *committed->mutable_metrics() = first.attempt->header().metrics();
  return event;
}

void StepCommit::Publish(const absl::Status& applied) {
  absl::Status poisoned;
  std::shared_ptr<const Watches> watches;
  std::shared_ptr<const Snapshot> before = std::move(plan_.before);
  BlockList lost;
  if (!applied.ok() && plan_.rows != nullptr) {
    // The set's own, whatever is in them: rows were changed in place.
    lost = plan_.after->blocks();
    for (const int64_t block : plan_.work->selection().blocks()) lost[block] = before->blocks()[block];
  }
  {
    MutexLock lock(&set_->mutex);
    set_->applying = false;
    if (applied.ok()) {
      set_->lifecycle.Commit(plan_.after->step());
      set_->snapshot = std::move(plan_.after);
      set_->requests.Remember(std::move(remembrance_));
      set_->update_counts = std::move(update_counts_);
      std::swap(set_->last_digest, digest_);
      set_->statistics.set_applied(set_->statistics.applied() + 1);
      set_->statistics.set_last_grad_norm(finding_.grad_norm);
      if (!metrics_.last_metrics().empty()) {
        set_->statistics.mutable_last_metrics()->swap(*metrics_.mutable_last_metrics());
      }
      watches = set_->watches;
    } else {
      set_->lifecycle.Poison();
      poisoned = set_->lifecycle.CheckReady();
      if (plan_.rows != nullptr) set_->unpublished = std::move(lost);
    }
  }
  const bool is_watched = watches != nullptr && !watches->empty();
  v1::WatchParameterSetResponse event;
  if (is_watched) event = CommittedEvent();
  // Back to the pool before the client can ask for the next step's memory.
  before.reset();
  // The replies' from here on.
  input_.gradient.share.reset();
  plan_.rows.reset();
  plan_.copies.clear();
  for (Contributor& contributor : contributors_) {
    if (applied.ok()) {
      contributor.attempt->End(std::move(contributor.reply));
    } else {
      contributor.attempt->End(Unshared(poisoned));
    }
  }
  if (is_watched) Tell(*watches, std::move(event));
  if (applied.ok()) CheckpointInTime(set_);
  const TurnQueue::Turn ending = std::move(turn_);
}

}  // namespace adamant::core
