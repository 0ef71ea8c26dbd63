#include "server/core/set/step_attempt.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/set/requests.h"
#include "server/core/set/round.h"
#include "server/core/set/round_turn.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/step_commit.h"
#include "server/core/set/step_header.h"

namespace adamant::core {
namespace {

// What becomes of an attempt's gradient.
enum class Destiny {
  kStep,          // a step of its own
  kContribution,  // a part of a round
  kNothing,       // the request is remembered, or its round is over or has it: it is answered at its turn
};

// Whether a contribution may begin, and what becomes of it.
absl::StatusOr<Destiny> CheckContribution(const SetRep& set, const v1::StepHeader& header)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  absl::Status status = CheckWorker(set, header);
  if (!status.ok()) return status;
  // Where it was sent before it may have been applied.
  if (header.round() < set.round_number) {
    status = set.requests.CheckRemembered(header);
    if (!status.ok()) return status;
    return Destiny::kNothing;
  }
  status = set.requests.CheckStep(header, /*may_be_early=*/false);
  if (status.ok()) status = set.requests.CheckAttempt(header);
  if (!status.ok()) return status;
  const StepAttempt* const counted = set.round != nullptr ? set.round->FindCounted(header.rank()) : nullptr;
  if (counted == nullptr) return Destiny::kContribution;
  if (!header.request_id().empty() && counted->header().request_id() == header.request_id()) {
    return counted->header_hash() == HashHeader(header) ? absl::StatusOr<Destiny>(Destiny::kNothing)
                                                        : set.requests.Reused(header.request_id());
  }
  return RankTaken(set, header);
}

// Whether a step that fits the configuration may begin: what is remembered may, to be answered at its turn.
absl::StatusOr<Destiny> CheckHeader(const SetRep& set, const StepAttempt& attempt)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  const v1::StepHeader& header = attempt.header();
  if (absl::Status status = set.lifecycle.CheckReady(); !status.ok()) return status;
  absl::StatusOr<const v1::StepResult*> remembered = set.requests.FindResult(header, attempt.header_hash());
  if (!remembered.ok()) return remembered.status();
  if (*remembered != nullptr) return Destiny::kNothing;
  absl::Status status = set.lifecycle.CheckDemands(header);
  if (!status.ok()) return status;
  if (set.configuration->workers() != nullptr || header.has_rank()) return CheckContribution(set, header);
  // A step that is ahead of the set may be just in time at its turn.
  status = set.requests.CheckStep(header, /*may_be_early=*/true);
  if (status.ok()) status = set.requests.CheckAttempt(header);
  if (!status.ok()) return status;
  return Destiny::kStep;
}

// The set's round, which begins with the contribution of this header if none is open. Requires: it may contribute.
absl::StatusOr<std::shared_ptr<Round>> JoinRound(const std::shared_ptr<SetRep>& set, const StepAttempt& attempt)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set->mutex) {
  if (set->round != nullptr) {
    if (absl::Status status = set->round->CheckAlike(attempt.header(), *attempt.selection()); !status.ok()) {
      return status;
    }
    return set->round;
  }
  const v1::Workers& workers = *set->configuration->workers();
  set->round = std::make_shared<Round>(set->round_number, workers, attempt.header(), attempt.selection());
  set->round->timer = ExpireInTime(set, set->round);
  return set->round;
}

}  // namespace

StepAttempt::StepAttempt(std::shared_ptr<SetRep> set, const v1::StepHeader& header,
                         std::shared_ptr<StepListener> listener)
    : Attempt(set->resources.lender, std::move(listener)),
      set_(std::move(set)),
      header_(header),
      header_hash_(HashHeader(header)) {}

StepAttempt::~StepAttempt() {
  // Before the round is looked at, which may lend what paid for it.
  gradient_.reset();
  share_.reset();
  bool was_in_round;
  {
    MutexLock lock(&set_->mutex);
    set_->requests.Leave(this);
    was_in_round = in_round_ && set_->round != nullptr && set_->round->number() == header_.round();
    if (was_in_round) set_->round->Leave(this);
  }
  if (was_in_round) LookAtRound(set_);
}

const kernels::KernelTable& StepAttempt::host_kernels() const { return set_->resources.backend->host_kernels(); }

void StepAttempt::Start() {
  std::vector<std::shared_ptr<StepAttempt>> superseded;
  absl::Status superseded_status;
  Destiny destiny = Destiny::kNothing;
  std::shared_ptr<Round> begun;
  absl::Status status = ValidateStepHeader(header_);
  if (status.ok()) {
    MutexLock lock(&set_->mutex);
    const absl::StatusOr<Destiny> checked = CheckHeader(*set_, *this);
    status = checked.status();
    if (status.ok()) {
      destiny = *checked;
      if (destiny != Destiny::kNothing && set_->journal != nullptr) status = set_->journal->CheckRoom();
    }
    if (status.ok()) {
      // What is remembered is answered as it was, however the set is configured now.
      std::shared_ptr<const TensorSelection> remembered = set_->requests.SelectionOf(header_.request_id());
      absl::StatusOr<std::shared_ptr<const TensorSelection>> selection =
          remembered != nullptr ? std::move(remembered) : SelectTensors(*set_, header_);
      status = selection.status();
      if (status.ok()) selection_ = *std::move(selection);
    }
    if (status.ok() && destiny == Destiny::kContribution) {
      const bool begins = set_->round == nullptr;
      absl::StatusOr<std::shared_ptr<Round>> round = JoinRound(set_, *this);
      status = round.status();
      if (status.ok() && begins) begun = *round;
    }
    if (status.ok()) {
      config_revision_ = set_->configuration->revision();
      incarnation_ = set_->lifecycle.incarnation();
      superseded = set_->requests.Enter(this);
      if (destiny == Destiny::kContribution) {
        in_round_ = true;
        std::shared_ptr<StepAttempt> older = set_->round->Enter(this);
        if (older != nullptr) superseded.push_back(std::move(older));
      }
    }
    if (!superseded.empty()) {
      superseded_status = Superseded(*set_, header_);
    }
  }
  if (!status.ok()) {
    End(std::move(status));
    return;
  }
  // One that is complete commits first, and the newer one finds its result.
  for (const std::shared_ptr<StepAttempt>& older : superseded) older->EndUnlessComplete(superseded_status);

  if (begun != nullptr) {
    BeginRound(set_, begun);
  } else if (destiny == Destiny::kContribution) {
    AdmitContributions(set_);
  } else {
    Borrow(destiny == Destiny::kNothing);
  }
}

void StepAttempt::Borrow(bool to_no_effect) {
  const Resources& resources = set_->resources;
  const int64_t elements = selection_->block_elements();
  RowStaging::Size rows = {.elements = 0, .bytes = 0};
  // What comes to nothing is answered without them.
  if (!to_no_effect) rows = RowStaging::SizeOf(selection_->schema(), header_.sparse());
  const int64_t row_bytes = BlockPool::ChargedBytes(rows.elements) + rows.bytes;
  const bool is_small = elements * static_cast<int64_t>(sizeof(float)) + row_bytes <= kSmallStepBytes;
  Budget* const budget = is_small ? nullptr : resources.inflight;
  SetWait(resources.lender->Borrow(budget, StagingBytes(*selection_) + row_bytes, to_no_effect ? 0 : elements,
                                   resources.admission_wait,
                                   [self = shared_from_this(), to_no_effect](absl::StatusOr<Lender::Loan> loan) {
                                     self->Lent(std::move(loan), to_no_effect);
                                   }));
}

void StepAttempt::Arrive(std::shared_ptr<const RoundMemory::Share> share) {
  share_ = std::move(share);
  // It is paid for.
  SetWait(set_->resources.lender->Borrow(/*budget=*/nullptr, 0, selection_->block_elements(),
                                         set_->resources.admission_wait,
                                         [self = shared_from_this()](absl::StatusOr<Lender::Loan> loan) {
                                           self->Lent(std::move(loan), /*to_no_effect=*/false);
                                         }));
}

void StepAttempt::ArriveToNoEffect() { Borrow(/*to_no_effect=*/true); }

void StepAttempt::Lent(absl::StatusOr<Lender::Loan> loan, bool to_no_effect) {
  if (!loan.ok()) {
    End(std::move(loan).status());
    return;
  }
  const int64_t rows = to_no_effect ? 0 : RowStaging::SizeOf(selection_->schema(), header_.sparse()).elements;
  if (rows == 0) {
    LentAll(*std::move(loan), {}, to_no_effect);
    return;
  }
  // A list of its own, since the last block of the set's may be short. It is paid for.
  SetWait(set_->resources.lender->Borrow(
      /*budget=*/nullptr, 0, rows, absl::InfiniteDuration(),
      [self = shared_from_this(), first = *std::move(loan), to_no_effect](absl::StatusOr<Lender::Loan> loan) mutable {
        if (loan.ok()) {
          self->LentAll(std::move(first), std::move(loan->blocks), to_no_effect);
        } else {
          self->End(std::move(loan).status());
        }
      }));
}

void StepAttempt::LentAll(Lender::Loan loan, BlockList rows, bool to_no_effect) {
  if (!to_no_effect) {
    // An attempt before it may have been applied while it waited.
    MutexLock lock(&set_->mutex);
    to_no_effect = set_->requests.FindResult(header_.request_id()) != nullptr;
  }
  if (!to_no_effect) {
    std::unique_ptr<RowStaging> staged;
    if (!header_.sparse().empty()) {
      staged = std::make_unique<RowStaging>(selection_->schema(), header_.sparse(), std::move(rows), host_kernels());
    }
    gradient_.emplace(selection_, selection_->Spread(std::move(loan.blocks)), host_kernels().measure,
                      std::move(staged));
    // One that takes more than a moment: its blocks are on disk before the last has come.
    if (set_->journal != nullptr && set_->journal->keeps_steps() && !in_round_ &&
        !IsSmall(selection_->block_elements())) {
      room_ = set_->journal->TakeRoomAhead();
    }
    if (room_ != nullptr) {
      gradient_->Watch(
          [room = room_.get()](size_t position, const BlockRef& block) { room->WriteAhead(position, block); });
    }
  }
  // Before what pays for them may go.
  rows.clear();
  loan.blocks.clear();
  grant_ = std::move(loan.grant);
  Admit();
}

absl::Status StepAttempt::Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy) {
  if (!gradient_.has_value()) return absl::OkStatus();
  if (slot != v1::SLOT_UNSPECIFIED) return Added(InvalidField("slot", "none in a gradient", EnumName(slot)));
  return Added(gradient_->Add(tensor, offset, count, copy));
}

absl::Status StepAttempt::AddRows(v1::Slot slot, int32_t tensor, int64_t offset, int64_t row_count, RowSource rows,
                                  int64_t count, ChunkSource copy) {
  if (!gradient_.has_value()) return absl::OkStatus();
  if (slot != v1::SLOT_UNSPECIFIED) return Added(InvalidField("slot", "none in a gradient", EnumName(slot)));
  return Added(gradient_->AddRows(tensor, offset, row_count, rows, count, copy));
}

absl::Status StepAttempt::Added(absl::Status status) {
  if (!status.ok()) Cancel();
  return status;
}

absl::Status StepAttempt::CheckComplete() const {
  return gradient_.has_value() ? gradient_->CheckComplete() : absl::OkStatus();
}

absl::Status StepAttempt::Complete() {
  if (absl::Status status = CheckComplete(); !status.ok()) {
    Cancel();
    return status;
  }
  if (!MarkComplete()) return absl::OkStatus();
  if (gradient_.has_value()) gradient_->SumRows();
  set_->turns->Enqueue([set = set_, self = shared_from_this()](TurnQueue::Turn turn) mutable {
    if (self->header().has_rank()) {
      DeliverContribution(std::move(set), std::move(self), std::move(turn));
      return;
    }
    StepCommit::Input input;
    input.gradient = self->TakeGradient();
    input.contributors.push_back(std::move(self));
    StepCommit::Run(std::move(set), std::move(input), std::move(turn));
  });
  return absl::OkStatus();
}

}  // namespace adamant::core
