#include "server/core/set/step_attempt.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/set/requests.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/step_commit.h"
#include "server/core/set/step_header.h"

namespace adamant::core {
namespace {

// Whether a step that fits the configuration may begin: what is remembered may, to be answered at its turn. Returns
// whether it is.
absl::StatusOr<bool> CheckHeader(const SetRep& set, const StepAttempt& attempt)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  const v1::StepHeader& header = attempt.header();
  if (absl::Status status = set.lifecycle.CheckReady(); !status.ok()) return status;
  absl::StatusOr<const v1::StepResult*> remembered = set.requests.FindResult(header, attempt.header_hash());
  if (!remembered.ok()) return remembered.status();
  if (*remembered != nullptr) return true;
  absl::Status status = set.lifecycle.CheckDemands(header);
  // A step that is ahead of the set may be just in time at its turn.
  if (status.ok()) status = set.requests.CheckStep(header, /*may_be_early=*/true);
  if (status.ok()) status = set.requests.CheckAttempt(header);
  if (!status.ok()) return status;
  return false;
}

}  // namespace

StepAttempt::StepAttempt(std::shared_ptr<SetRep> set, const v1::StepHeader& header,
                         std::shared_ptr<StepListener> listener)
    : Attempt(set->resources.lender, std::move(listener)),
      set_(std::move(set)),
      header_(header),
      header_hash_(HashHeader(header)) {}

StepAttempt::~StepAttempt() {
  MutexLock lock(&set_->mutex);
  set_->requests.Leave(this);
}

const kernels::KernelTable& StepAttempt::host_kernels() const { return set_->resources.backend->host_kernels(); }

void StepAttempt::Start() {
  std::vector<std::shared_ptr<StepAttempt>> superseded;
  absl::Status superseded_status;
  bool remembered = false;
  absl::Status status = ValidateStepHeader(header_);
  if (status.ok()) {
    MutexLock lock(&set_->mutex);
    const absl::StatusOr<bool> checked = CheckHeader(*set_, *this);
    status = checked.status();
    if (status.ok()) {
      // What is remembered is answered as it was, however the set is configured now.
      absl::StatusOr<std::shared_ptr<const TensorSelection>> selection =
          *checked ? set_->requests.SelectionOf(header_.request_id()) : SelectTensors(*set_, header_);
      status = selection.status();
      if (status.ok()) selection_ = *std::move(selection);
    }
    if (status.ok()) {
      remembered = *checked;
      config_revision_ = set_->configuration->revision();
      incarnation_ = set_->lifecycle.incarnation();
      superseded = set_->requests.Enter(this);
    }
    if (!superseded.empty()) {
      superseded_status =
          set_->lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                                    absl::StrCat("a newer attempt of ", Quoted(header_.request_id()), " took over"));
    }
  }
  if (!status.ok()) {
    End(std::move(status));
    return;
  }
  // One that is complete commits first, and the newer one finds its result.
  for (const std::shared_ptr<StepAttempt>& older : superseded) older->EndUnlessComplete(superseded_status);

  const Resources& resources = set_->resources;
  const int64_t elements = selection_->block_elements();
  RowStaging::Size rows = {.elements = 0, .bytes = 0};
  // What is remembered is answered without them.
  if (!remembered) rows = RowStaging::SizeOf(selection_->schema(), header_.sparse());
  const int64_t row_bytes = BlockPool::ChargedBytes(rows.elements) + rows.bytes;
  const bool is_small = elements * static_cast<int64_t>(sizeof(float)) + row_bytes <= kSmallStepBytes;
  Budget* const budget = is_small ? nullptr : resources.inflight;
  SetWait(resources.lender->Borrow(budget, StagingBytes(*selection_) + row_bytes, remembered ? 0 : elements,
                                   resources.admission_wait,
                                   [self = shared_from_this(), remembered](absl::StatusOr<Lender::Loan> loan) {
                                     self->Lent(std::move(loan), remembered);
                                   }));
}

void StepAttempt::Lent(absl::StatusOr<Lender::Loan> loan, bool remembered) {
  if (!loan.ok()) {
    End(std::move(loan).status());
    return;
  }
  const int64_t rows = remembered ? 0 : RowStaging::SizeOf(selection_->schema(), header_.sparse()).elements;
  if (rows == 0) {
    LentAll(*std::move(loan), {}, remembered);
    return;
  }
  // A list of its own, since the last block of the set's may be short. It is paid for.
  SetWait(set_->resources.lender->Borrow(
      /*budget=*/nullptr, 0, rows, absl::InfiniteDuration(),
      [self = shared_from_this(), first = *std::move(loan), remembered](absl::StatusOr<Lender::Loan> loan) mutable {
        if (loan.ok()) {
          self->LentAll(std::move(first), std::move(loan->blocks), remembered);
        } else {
          self->End(std::move(loan).status());
        }
      }));
}

void StepAttempt::LentAll(Lender::Loan loan, BlockList rows, bool remembered) {
  if (!remembered) {
    // An attempt before it may have been applied while it waited.
    MutexLock lock(&set_->mutex);
    remembered = set_->requests.FindResult(header_.request_id()) != nullptr;
  }
  if (!remembered) {
    std::unique_ptr<RowStaging> staged;
    if (!header_.sparse().empty()) {
      staged = std::make_unique<RowStaging>(selection_->schema(), header_.sparse(), std::move(rows), host_kernels());
    }
    gradient_.emplace(selection_, selection_->Spread(std::move(loan.blocks)), host_kernels().measure,
                      std::move(staged));
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
    std::optional<Staging> gradient = self->TakeGradient();
    StepCommit::Run(std::move(set), {std::move(self)}, std::move(gradient), std::move(turn));
  });
  return absl::OkStatus();
}

}  // namespace adamant::core
