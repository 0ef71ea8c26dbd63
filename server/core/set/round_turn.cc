#include "server/core/set/round_turn.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/rounds.h"
#include "proto/error/error.h"
#include "server/core/backend/slot_arrays.h"
#include "server/core/set/step_commit.h"
#include "server/core/spec/workers.h"

namespace adamant::core {
namespace {

// What a contributor is told who does not wait for the step.
StepReply Accumulated(const SetRep& set) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  StepReply reply;
  reply.result.set_outcome(v1::STEP_OUTCOME_ACCUMULATED);
  reply.result.set_step(set.lifecycle.step());
  reply.result.set_incarnation(set.lifecycle.incarnation());
  reply.result.set_config_revision(set.configuration->revision());
  reply.result.set_parameters_step(set.lifecycle.step());
  reply.result.set_round(set.round_number);
  auto parameters = std::make_shared<StepParameters>();
  parameters->selection = set.round->selection();
  parameters->host_kernels = &set.resources.backend->host_kernels();
  reply.parameters = std::move(parameters);
  return reply;
}

// The end of a round whose contributors are answered otherwise: those who wait to arrive are let go on, to no effect.
void Close(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round,
           const std::vector<std::shared_ptr<StepAttempt>>& waiting) {
  set->resources.clock->Cancel(round->timer);
  round->CloseMemory();
  for (const std::shared_ptr<StepAttempt>& attempt : waiting) attempt->ArriveToNoEffect();
}

// One turn of an open round. One phase is under way at a time.
class RoundTurn : public std::enable_shared_from_this<RoundTurn> {
 public:
  RoundTurn(std::shared_ptr<SetRep> set, TurnQueue::Turn turn) : set_(std::move(set)), turn_(std::move(turn)) {}

  // Does what there is to do in the set's open round.
  void Run() {
    std::vector<std::shared_ptr<StepAttempt>> waiting;
    {
      MutexLock lock(&set_->mutex);
      round_ = set_->round;
      if (round_ != nullptr) {
        work_ = round_->NextWork();
        switch (work_.kind) {
          case Round::Work::Kind::kNothing:
          case Round::Work::Kind::kFold:
            break;
          case Round::Work::Kind::kDiscard:
            set_->round = nullptr;
            break;
          case Round::Work::Kind::kSkip:
          case Round::Work::Kind::kFail:
            waiting = round_->Waiting();
            TakeRound(set_.get());
            break;
        }
      }
    }
    if (round_ == nullptr) return;
    switch (work_.kind) {
      case Round::Work::Kind::kNothing:
        AdmitContributions(set_);
        return;
      case Round::Work::Kind::kFold:
        Fold();
        return;
      case Round::Work::Kind::kDiscard:
        Close(set_, round_, {});
        return;
      case Round::Work::Kind::kSkip:
      case Round::Work::Kind::kFail:
        Close(set_, round_, waiting);
        Commit({round_->TakeShare(), std::nullopt});
        return;
    }
  }

 private:
  void Fold() {
    if (work_.is_first && !work_.parts.empty()) round_->sum() = std::move(work_.parts.front().gradient);
    const absl::Span<const int64_t> blocks = round_->selection()->blocks();
    const auto count = static_cast<int64_t>(blocks.size());
    // Not more than a small step's work on the thread that has the turn, which may be gRPC's; to sort is more.
    const int64_t elements = round_->selection()->block_elements() * static_cast<int64_t>(work_.parts.size() + 1);
    if (count == 0 || (AreAveraged(round_->workers()) && IsSmall(elements))) {
      for (int64_t i = 0; i < count; ++i) FoldBlock(blocks[i]);
      Folded();
      return;
    }
    set_->resources.compute->Run(
        count, [self = shared_from_this(), blocks](int64_t i) { self->FoldBlock(blocks[i]); },
        [self = shared_from_this()] { self->Folded(); });
  }

  // All parts of one block, while its sum is in cache.
  void FoldBlock(int64_t block) {
    const kernels::KernelTable& kernels = set_->resources.backend->host_kernels();
    Staging& sum = *round_->sum().gradient;
    const BlockRef& target = sum.blocks()[block];
    const auto gradient = [&](size_t part) {
      // The first one's is where the sum is.
      return part == 0 && work_.is_first ? target.data() : work_.parts[part].gradient.gradient->blocks()[block].data();
    };
    if (AreAveraged(round_->workers())) {
      for (size_t part = 0; part < work_.parts.size(); ++part) {
        kernels.fold(work_.parts[part].k, gradient(part), target.mutable_data(), target.size(),
                     part == 0 && work_.is_first);
      }
    } else {
      kernels::ScaledGradient contributions[kernels::kMaxContributions];
      const auto n = static_cast<int>(work_.parts.size());
      for (int part = 0; part < n; ++part) contributions[part] = {work_.parts[part].k, gradient(part)};
      const int trim = round_->workers().has_median() ? (n - 1) / 2 : round_->workers().trimmed_mean().trim();
      kernels::TrimmedMean(contributions, n, trim, target.mutable_data(), target.size());
    }
    if (work_.is_last) sum.Remeasure(block);
  }

  void Folded() {
    const bool is_last = work_.is_last;
    work_ = {};  // gives arrays back
    std::vector<std::shared_ptr<StepAttempt>> acknowledged;
    std::vector<std::shared_ptr<StepAttempt>> waiting;  // of ranks that are left out
    StepReply accumulated;
    {
      MutexLock lock(&set_->mutex);
      acknowledged = round_->TakeAcknowledged();
      accumulated = Accumulated(*set_);
      if (is_last) {
        waiting = round_->Waiting();
        TakeRound(set_.get());
      }
    }
    // The next contributions may come while those before them are answered.
    if (is_last) {
      Close(set_, round_, waiting);
    } else {
      AdmitContributions(set_);
    }
    for (const std::shared_ptr<StepAttempt>& attempt : acknowledged) attempt->End(accumulated);
    if (is_last) Commit(std::move(round_->sum()));
  }

  void Commit(PaidGradient sum) {
    StepCommit::Input input;
    input.round = round_->number();
    input.gradient = std::move(sum);
    input.divisor = round_->divisor();
    input.contributions = round_->contributions();
    input.non_finite = std::move(work_.non_finite);
    // The round is closed, and this turn's alone.
    input.contributors = round_->TakeContributors();
    StepCommit::Run(set_, std::move(input), std::move(turn_));
  }

  const std::shared_ptr<SetRep> set_;
  TurnQueue::Turn turn_;
  std::shared_ptr<Round> round_;
  Round::Work work_;
};

void RunRound(std::shared_ptr<SetRep> set, TurnQueue::Turn turn) {
  std::make_shared<RoundTurn>(std::move(set), std::move(turn))->Run();
}

}  // namespace

void BeginRound(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round) {
  const Resources& resources = set->resources;
  const int64_t array_bytes = StagingBytes(*round->selection());
  resources.lender->Borrow(resources.inflight, ArraysOfRound(round->workers()) * array_bytes, /*elements=*/0,
                           resources.admission_wait, [set, round, array_bytes](absl::StatusOr<Lender::Loan> loan) {
                             std::vector<std::shared_ptr<StepAttempt>> attempts;
                             {
                               MutexLock lock(&set->mutex);
                               if (set->round != round) return;
                               if (loan.ok()) {
                                 round->SetMemory(std::make_shared<RoundMemory>(std::move(loan->grant), array_bytes));
                               } else {
                                 attempts = round->Waiting();
                                 set->round = nullptr;
                               }
                             }
                             if (loan.ok()) {
                               AdmitContributions(set);
                               return;
                             }
                             set->resources.clock->Cancel(round->timer);
                             for (const std::shared_ptr<StepAttempt>& attempt : attempts)
                               attempt->EndUnlessComplete(loan.status());
                           });
}

absl::Status Superseded(const SetRep& set, const v1::StepHeader& header) {
  return set.lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                                 header.request_id().empty()
                                     ? "another contribution of its rank took over"
                                     : absl::StrCat("a newer attempt, ", Quoted(header.request_id()), ", took over"));
}

Clock::TimerId ExpireInTime(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round) {
  const absl::Duration timeout = absl::Seconds(round->workers().round_timeout_seconds());
  // A deleted set, and its memory, do not stay for it.
  return set->resources.clock->Schedule(
      timeout, [set = std::weak_ptr<SetRep>(set), round = std::weak_ptr<Round>(round)] {
        std::shared_ptr<SetRep> held = set.lock();
        const std::shared_ptr<Round> mine = round.lock();
        if (held == nullptr || mine == nullptr) return;
        {
          MutexLock lock(&held->mutex);
          if (held->round != mine) return;
          // Those who are arriving have as much time again.
          if (mine->Expire()) mine->timer = ExpireInTime(held, mine);
        }
        // The clock's thread is for nobody's work.
        ComputePool* const compute = held->resources.compute;
        compute->Post([held = std::move(held)]() mutable { LookAtRound(std::move(held)); });
      });
}

absl::Status RankTaken(const SetRep& set, const v1::StepHeader& header) {
  return set.lifecycle.MakeError(
      absl::StatusCode::kAborted, v1::ERROR_REASON_RANK_TAKEN,
      absl::StrCat("the contribution of rank ", header.rank(), " to round ", header.round(), " came before"),
      "header.rank");
}

void AdmitContributions(const std::shared_ptr<SetRep>& set) {
  std::vector<std::pair<std::shared_ptr<StepAttempt>, std::shared_ptr<const RoundMemory::Share>>> admitted;
  {
    MutexLock lock(&set->mutex);
    if (set->round != nullptr) admitted = set->round->Admit();
  }
  for (auto& [attempt, share] : admitted) {
    if (share != nullptr) attempt->Arrive(std::move(share));
  }
}

void DeliverContribution(std::shared_ptr<SetRep> set, std::shared_ptr<StepAttempt> attempt, TurnQueue::Turn turn) {
  std::shared_ptr<StepAttempt> replaced;
  std::optional<StepReply> acknowledged;
  Grant unneeded;
  absl::Status taken;
  absl::Status superseded;
  bool counts = false;
  {
    MutexLock lock(&set->mutex);
    Round* const round = set->round.get();
    const v1::StepHeader& header = attempt->header();
    if (round != nullptr && round->number() == header.round() && set->lifecycle.CheckReady().ok() &&
        attempt->incarnation() == set->lifecycle.incarnation()) {
      const StepAttempt* const counted = round->FindCounted(header.rank());
      if (counted == nullptr) {
        counts = attempt->has_gradient();
        if (counts) round->Count(attempt, attempt->TakeGradient());
      } else if (!header.request_id().empty() && counted->header().request_id() == header.request_id()) {
        counts = true;
        bool is_folded;
        replaced = round->Replace(attempt, &is_folded);
        // What it is answered with is the round's to pay for.
        unneeded = attempt->TakeGrant();
        superseded = Superseded(*set, header);
        if (is_folded && header.ack_when_folded()) acknowledged = Accumulated(*set);
      } else {
        taken = RankTaken(*set, header);
      }
    }
  }
  if (replaced != nullptr) replaced->End(std::move(superseded));
  if (!taken.ok()) {
    attempt->End(taken);
  } else if (acknowledged.has_value()) {
    attempt->End(*std::move(acknowledged));
  } else if (counts) {
    RunRound(std::move(set), std::move(turn));
  } else {
    StepCommit::Input input;
    if (attempt->has_gradient()) input.gradient = attempt->TakeGradient();
    input.contributors.push_back(std::move(attempt));
    StepCommit::Run(std::move(set), std::move(input), std::move(turn));
  }
}

void LookAtRound(std::shared_ptr<SetRep> set) {
  TurnQueue* const turns = set->turns.get();
  turns->Enqueue([set = std::move(set)](TurnQueue::Turn turn) mutable { RunRound(std::move(set), std::move(turn)); });
}

std::shared_ptr<Round> TakeRound(SetRep* set) {
  if (set->round != nullptr) ++set->round_number;
  return std::move(set->round);
}

void AbandonRound(const std::shared_ptr<SetRep>& set, const std::shared_ptr<Round>& round, const absl::Status& status) {
  if (round == nullptr) return;
  std::vector<std::shared_ptr<StepAttempt>> contributors, waiting;
  {
    MutexLock lock(&set->mutex);
    contributors = round->TakeContributors();
    waiting = round->Waiting();
  }
  set->resources.clock->Cancel(round->timer);
  round->CloseMemory();
  for (const std::shared_ptr<StepAttempt>& attempt : contributors) attempt->End(Unshared(status));
  for (const std::shared_ptr<StepAttempt>& attempt : waiting) attempt->EndUnlessComplete(status);
}

}  // namespace adamant::core
