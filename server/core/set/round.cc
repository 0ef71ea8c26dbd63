#include "server/core/set/round.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/set/step_attempt.h"
#include "server/core/spec/workers.h"

namespace adamant::core {
namespace {

// What torch's clip_grad_norm_ adds to a norm before it divides by it.
constexpr double kNormEps = 1e-6;

std::vector<std::string> SerializeOverrides(const v1::StepHeader& header) {
  std::vector<std::string> overrides;
  overrides.reserve(header.overrides_size());
  for (const v1::GroupOverride& one : header.overrides()) overrides.push_back(one.SerializeAsString());
  return overrides;
}

double GradScaleOf(const v1::StepHeader& header) { return header.has_grad_scale() ? header.grad_scale() : 1; }
double WeightOf(const v1::StepHeader& header) { return header.has_weight() ? header.weight() : 1; }
double GradNormOf(const Staging& gradient, const v1::StepHeader& header) {
  return std::sqrt(gradient.Stats().sum_of_squares) / GradScaleOf(header);
}

}  // namespace

RoundMemory::Share::~Share() { memory_->Return(); }

std::shared_ptr<const RoundMemory::Share> RoundMemory::Lend() {
  {
    MutexLock lock(&mutex_);
    if (closed_ || (lent_ + 1) * array_bytes_ > grant_.bytes()) return nullptr;
    ++lent_;
  }
  return std::make_shared<const Share>(shared_from_this());
}

void RoundMemory::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
  grant_.ShrinkTo(lent_ * array_bytes_);
}

void RoundMemory::Return() {
  MutexLock lock(&mutex_);
  --lent_;
  if (closed_) grant_.ShrinkTo(lent_ * array_bytes_);
}

Round::Round(int64_t number, const v1::Workers& workers, const v1::StepHeader& header,
             std::shared_ptr<const TensorSelection> selection)
    : number_(number),
      workers_(workers),
      selection_(std::move(selection)),
      overrides_(SerializeOverrides(header)),
      ranks_(workers.count()) {}

absl::Status Round::CheckAlike(const v1::StepHeader& header, const TensorSelection& selection) const {
  if (selection != *selection_) {
    return InvalidField("header.tensors", "the tensors that the round's first contribution brings", "others");
  }
  if (SerializeOverrides(header) != overrides_) {
    return InvalidField("header.overrides", "those of the round's first contribution", "others");
  }
  return absl::OkStatus();
}

bool Round::Counts(absl::string_view request_id) const {
  return absl::c_any_of(ranks_, [request_id](const Rank& rank) {
    return rank.counted != nullptr && rank.counted->header().request_id() == request_id;
  });
}

std::shared_ptr<StepAttempt> Round::Enter(StepAttempt* attempt) {
  Rank& rank = ranks_[attempt->header().rank()];
  std::shared_ptr<StepAttempt> before;
  if (rank.delivering != nullptr) before = rank.delivering->weak_from_this().lock();
  rank.delivering = attempt;
  rank.admitted = false;
  return before;
}

void Round::Leave(const StepAttempt* attempt) {
  Rank& rank = ranks_[attempt->header().rank()];
  if (rank.delivering == attempt) rank.delivering = nullptr;
}

std::vector<std::pair<std::shared_ptr<StepAttempt>, std::shared_ptr<const RoundMemory::Share>>> Round::Admit() {
  std::vector<std::pair<std::shared_ptr<StepAttempt>, std::shared_ptr<const RoundMemory::Share>>> admitted;
  if (memory_ == nullptr) return admitted;
  int unsettled = 0;
  for (Rank& rank : ranks_) {
    if (rank.settled()) continue;
    if (++unsettled > WindowOf(workers_)) break;
    if (rank.counted != nullptr || rank.admitted || !IsLive(rank)) continue;
    std::shared_ptr<StepAttempt> attempt = rank.delivering->weak_from_this().lock();
    if (attempt == nullptr) continue;
    std::shared_ptr<const RoundMemory::Share> share = memory_->Lend();
    // Somebody who has given way has not let go yet, and has this looked at when he does. The lower rank goes first.
    if (share == nullptr) {
      // Not dropped here, under the set's mutex.
      admitted.emplace_back(std::move(attempt), nullptr);
      break;
    }
    rank.admitted = true;
    admitted.emplace_back(std::move(attempt), std::move(share));
  }
  return admitted;
}

void Round::Count(std::shared_ptr<StepAttempt> attempt, PaidGradient gradient) {
  Rank& rank = ranks_[attempt->header().rank()];
  if (rank.delivering == attempt.get()) rank.delivering = nullptr;
  rank.counted = std::move(attempt);
  rank.gradient = std::move(gradient);
}

std::shared_ptr<StepAttempt> Round::Replace(std::shared_ptr<StepAttempt> attempt, bool* is_folded) {
  Rank& rank = ranks_[attempt->header().rank()];
  *is_folded = rank.folded;
  return std::exchange(rank.counted, std::move(attempt));
}

Round::Work Round::NextWork() {
  Work work;
  if (expirations_ > 0) {
    const bool for_good = expirations_ > 1;
    for (Rank& rank : ranks_) {
      rank.left_out = rank.left_out || (rank.counted == nullptr && (for_good || !IsLive(rank)));
    }
    if (LeftIn() < workers_.quorum()) {
      work.kind = Work::Kind::kFail;
      return work;
    }
  }
  if (absl::c_none_of(ranks_, [](const Rank& rank) { return rank.counted != nullptr || IsLive(rank); })) {
    work.kind = Work::Kind::kDiscard;
    return work;
  }
  const auto is_awaited = [](const Rank& rank) { return !rank.settled() && rank.counted == nullptr; };
  if (!AreAveraged(workers_) && absl::c_any_of(ranks_, is_awaited)) return work;
  work.is_first = !sum_.gradient.has_value();
  for (Rank& rank : ranks_) {
    if (rank.settled()) continue;
    if (rank.counted == nullptr) break;
    work.non_finite = FindNonFinite(static_cast<int>(&rank - ranks_.data()));
    if (work.non_finite.has_value()) {
      // What is to stand workers that send anything goes on without it.
      if (!AreAveraged(workers_) && LeftIn() > workers_.quorum()) {
        rank.left_out = true;
        rank.gradient = {};
        work.non_finite.reset();
        continue;
      }
      work.kind = Work::Kind::kSkip;
      return work;
    }
    work.parts.push_back({FactorOf(rank), std::move(rank.gradient)});
    rank.folded = true;
    ++contributions_;
    weights_ += WeightOf(rank.counted->header());
  }
  work.is_last = absl::c_all_of(ranks_, [](const Rank& rank) { return rank.settled(); });
  if (!work.parts.empty() || work.is_last) work.kind = Work::Kind::kFold;
  return work;
}

std::vector<std::shared_ptr<StepAttempt>> Round::TakeAcknowledged() {
  std::vector<std::shared_ptr<StepAttempt>> acknowledged;
  for (Rank& rank : ranks_) {
    if (!rank.folded || rank.acknowledged || !rank.counted->header().ack_when_folded()) continue;
    rank.acknowledged = true;
    acknowledged.push_back(rank.counted);
  }
  return acknowledged;
}

std::shared_ptr<const RoundMemory::Share> Round::TakeShare() {
  std::shared_ptr<const RoundMemory::Share> share = std::move(sum_.share);
  sum_.gradient.reset();
  for (Rank& rank : ranks_) {
    PaidGradient gradient = std::move(rank.gradient);
    gradient.gradient.reset();
    if (share == nullptr) share = std::move(gradient.share);
  }
  return share;
}

std::vector<std::shared_ptr<StepAttempt>> Round::TakeContributors() {
  std::vector<std::shared_ptr<StepAttempt>> contributors;
  for (Rank& rank : ranks_) {
    if (rank.counted != nullptr) contributors.push_back(std::move(rank.counted));
  }
  return contributors;
}

std::vector<std::shared_ptr<StepAttempt>> Round::Waiting() const {
  std::vector<std::shared_ptr<StepAttempt>> waiting;
  for (const Rank& rank : ranks_) {
    if (rank.delivering == nullptr || rank.admitted) continue;
    if (std::shared_ptr<StepAttempt> attempt = rank.delivering->weak_from_this().lock()) {
      waiting.push_back(std::move(attempt));
    }
  }
  return waiting;
}

int Round::LeftIn() const {
  return static_cast<int>(absl::c_count_if(ranks_, [](const Rank& rank) { return !rank.left_out; }));
}

double Round::divisor() const { return AreAveraged(workers_) ? weights_ : 1; }

void Round::CloseMemory() {
  if (memory_ != nullptr) memory_->Close();
}

bool Round::IsLive(const Rank& rank) { return rank.delivering != nullptr && !rank.delivering->over(); }

float Round::FactorOf(const Rank& rank) const {
  const v1::StepHeader& header = rank.counted->header();
  double factor = WeightOf(header) / GradScaleOf(header);
  if (workers_.has_max_contribution_norm()) {
    const double norm = GradNormOf(*rank.gradient.gradient, header);
    factor *= std::min(1.0, workers_.max_contribution_norm() / (norm + kNormEps));
  }
  return static_cast<float>(factor);
}

std::optional<Round::NonFinite> Round::FindNonFinite(int rank) const {
  const Staging& gradient = *ranks_[rank].gradient.gradient;
  const std::optional<Staging::Place> place = gradient.FindNotBelow(std::numeric_limits<double>::infinity());
  if (!place.has_value()) return std::nullopt;
  return NonFinite{rank, *place, GradNormOf(gradient, ranks_[rank].counted->header())};
}

}  // namespace adamant::core
