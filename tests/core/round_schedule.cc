#include "tests/core/round_schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"

namespace adamant::core {
namespace {

constexpr int kClients = 6;
constexpr v1::ErrorReason kNone = v1::ERROR_REASON_UNSPECIFIED;

struct Request {
  v1::StepHeader header;
  Values gradient;
};

int32_t AttemptOf(const v1::StepHeader& header) { return header.has_attempt() ? header.attempt() : 1; }

bool IsSameRequest(v1::StepHeader a, v1::StepHeader b) {
  a.clear_attempt();
  b.clear_attempt();
  return a.SerializeAsString() == b.SerializeAsString();
}

// A contribution that somebody delivers.
struct Call {
  StepDelivery delivery;
  Request request;
  bool counts;             // it is to count in the open round; otherwise it comes to nothing
  bool admitted = false;   // as it should be
  bool completed = false;  // it has arrived whole
  std::vector<Piece> rest;
};

// What a call is to be answered with.
struct Expected {
  v1::ErrorReason reason = kNone;
  v1::StepOutcome outcome = v1::STEP_OUTCOME_APPLIED;
  bool replayed = false;
  bool brings_parameters = true;
  int contributions = 0;
  std::optional<int> non_finite_rank = {};
};

class RoundSchedule {
 public:
  RoundSchedule(SetSize size, Choices* choices)
      : choices_(*choices),
        workers_(1 + static_cast<int>(choices->Choose(5))),
        window_(1 + static_cast<int>(choices->Choose(workers_))),
        quorum_(1 + static_cast<int>(choices->Choose(workers_))),
        small_(size == SetSize::kSmall),
        server_({.idle_arrays = 12}),
        spec_(size == SetSize::kSmall ? SmallSpec() : LargeSpec()) {
    v1::Workers* const workers = spec_.mutable_workers();
    workers->set_count(workers_);
    workers->set_window(window_);
    workers->set_quorum(quorum_);
    set_ = server_.MakeSet(spec_);
    optimizer_ = std::make_unique<SequentialModel>(spec_);
    incarnation_ = set_->Describe().incarnation();
  }

  std::string Run() {
    while (difference_.empty() && choices_.more()) {
      Act();
      Settle();
      ++actions_;
    }
    if (difference_.empty()) CheckEnd();
    return difference_;
  }

 private:
  struct Rank {
    Call* delivering = nullptr;
    std::optional<Request> counted;
    Call* answered = nullptr;  // who hears of it; null: nobody any more
    int32_t attempt = 0;       // that counts, of those that are under way
    bool folded = false;
    bool left_out = false;

    bool settled() const { return folded || left_out; }
  };
  struct Round {
    explicit Round(int workers) : ranks(workers) {}
    std::vector<Rank> ranks;
    std::string overrides;
    int expirations = 0;
  };
  struct Remembered {
    v1::StepHeader header;
    int64_t step;
  };

  void Act() {
    switch (choices_.Choose(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return Begin(choices_.Choose(kClients));
      case 5:
      case 6:
      case 7:
      case 8:
      case 9:
        return SendAll(choices_.Choose(kClients));
      case 10:
        return SendSome(choices_.Choose(kClients));
      case 11:
        return Die(choices_.Choose(kClients));
      case 12:
        if (choices_.Choose(3) == 0) LetTimePass();
        return;
      case 13:
        if (choices_.Choose(4) == 0) Write();
        return;
      case 14:
        return ChangeConfiguration();
      case 15:
        return AskForAResult();
    }
  }

  template <typename A, typename B>
  bool Expect(const A& actual, const B& expected, absl::string_view what) {
    if (actual == expected) return true;
    if (difference_.empty()) {
      difference_ = absl::StrCat("action ", actions_, ": ", what, " is ", actual, ", and should be ", expected);
    }
    return false;
  }

  // ---- contributions

  Request ARequest() {
    if (!requests_.empty() && choices_.Choose(3) == 0) {
      Request request = requests_[requests_.size() - 1 - choices_.Choose(std::min<size_t>(requests_.size(), 5))];
      request.header.set_attempt(AttemptOf(request.header) + static_cast<int32_t>(choices_.Choose(3)));
      if (choices_.Choose(8) == 0) request.header.set_weight(0.125);
      return request;
    }
    Request request;
    v1::StepHeader& header = request.header;
    header.set_rank(static_cast<int32_t>(choices_.Choose(workers_)));
    header.set_round(round_number_);
    if (choices_.Choose(8) == 0) header.set_round(std::max<int64_t>(0, round_number_ + choices_.Choose(3) - 1));
    if (choices_.Choose(3) > 0) {
      header.set_request_id(absl::StrCat("r", requests_.size()));
      header.set_expected_step(step());
      if (choices_.Choose(16) == 0) header.set_expected_step(step() + 1);
    }
    if (choices_.Choose(3) == 0) header.set_weight(0.5 + choices_.Choose(4));
    if (choices_.Choose(4) == 0) header.set_grad_scale(1024);
    if (choices_.Choose(4) == 0) header.set_ack_when_folded(true);
    if (choices_.Choose(16) == 0) header.add_overrides()->set_learning_rate(0.25);
    request.gradient = Gradient(optimizer_->parameter_count(), choices_.Choose(1000));
    if (choices_.Choose(24) == 0) {
      request.gradient[choices_.Choose(request.gradient.size())] = std::numeric_limits<float>::infinity();
    }
    if (!header.request_id().empty()) requests_.push_back(request);
    return request;
  }

  static std::string OverridesOf(const v1::StepHeader& header) {
    return header.overrides().empty() ? "" : header.overrides(0).SerializeAsString();
  }

  const Remembered* Find(const std::string& request_id) const {
    const auto found =
        absl::c_find_if(remembered_, [&](const Remembered& one) { return one.header.request_id() == request_id; });
    return request_id.empty() || found == remembered_.end() ? nullptr : &*found;
  }

  // Why a header is refused, and if it is not, whether it is to count.
  v1::ErrorReason Refusal(const v1::StepHeader& header, bool* counts) const {
    *counts = false;
    if (const Remembered* const one = Find(header.request_id()); one != nullptr) {
      return IsSameRequest(one->header, header) ? kNone : v1::ERROR_REASON_REQUEST_ID_REUSED;
    }
    if (header.round() > round_number_) return v1::ERROR_REASON_ROUND_MISMATCH;
    if (header.round() < round_number_) return kNone;
    if (header.has_expected_step() && header.expected_step() != step()) return v1::ERROR_REASON_STEP_MISMATCH;
    for (const std::optional<Call>& other : calls_) {
      if (!header.request_id().empty() && other.has_value() &&
          other->request.header.request_id() == header.request_id() &&
          AttemptOf(other->request.header) > AttemptOf(header)) {
        return v1::ERROR_REASON_SUPERSEDED;
      }
    }
    if (round_.has_value()) {
      for (const Rank& rank : round_->ranks) {
        if (rank.counted.has_value() && !header.request_id().empty() &&
            rank.counted->header.request_id() == header.request_id() && rank.attempt > AttemptOf(header)) {
          return v1::ERROR_REASON_SUPERSEDED;
        }
      }
      const Rank& rank = round_->ranks[header.rank()];
      if (rank.counted.has_value()) {
        if (header.request_id().empty() || rank.counted->header.request_id() != header.request_id()) {
          return v1::ERROR_REASON_RANK_TAKEN;
        }
        return IsSameRequest(rank.counted->header, header) ? kNone : v1::ERROR_REASON_REQUEST_ID_REUSED;
      }
      if (OverridesOf(header) != round_->overrides) return v1::ERROR_REASON_INVALID_FIELD;
    }
    *counts = true;
    return kNone;
  }

  void Begin(size_t client) {
    Die(client);
    Settle();
    const Request request = ARequest();
    bool counts;
    const v1::ErrorReason refusal = Refusal(request.header, &counts);
    StepDelivery delivery = BeginStep(set_.get(), request.header);
    if (refusal != kNone) {
      if (Expect(delivery.done(), true, "refused")) {
        Expect(v1::ErrorReason_Name(ReasonOf(delivery.Take().status())), v1::ErrorReason_Name(refusal), "the refusal");
      }
      return;
    }
    calls_[client].emplace(Call{.delivery = std::move(delivery),
                                .request = request,
                                .counts = counts,
                                .admitted = !counts,
                                .rest = Cut(set_->schema(), kBlockElements)});
    Call* const call = &*calls_[client];
    if (counts && !round_.has_value()) {
      round_.emplace(workers_);
      round_->overrides = OverridesOf(request.header);
    }
    // Whoever gives way.
    for (std::optional<Call>& other : calls_) {
      if (!other.has_value() || &*other == call || other->completed) continue;
      const v1::StepHeader& header = other->request.header;
      const bool same_id = !header.request_id().empty() && header.request_id() == request.header.request_id() &&
                           AttemptOf(header) <= AttemptOf(request.header);
      const bool same_rank = counts && other->counts && round_->ranks[request.header.rank()].delivering == &*other;
      if (same_id || same_rank) ExpectEnd(&other, {.reason = v1::ERROR_REASON_SUPERSEDED});
    }
    if (counts) round_->ranks[request.header.rank()].delivering = call;
  }

  void SendSome(size_t client) {
    std::optional<Call>& call = calls_[client];
    if (!call.has_value() || !call->admitted || call->completed || call->rest.empty()) return;
    Expect(call->delivery.Send(call->rest.front(), call->request.gradient).ok(), true, "sent");
    call->rest.erase(call->rest.begin());
  }

  void SendAll(size_t client) {
    std::optional<Call>& call = calls_[client];
    if (!call.has_value() || !call->admitted || call->completed) return;
    Expect(call->delivery.Send(call->rest, call->request.gradient).ok(), true, "sent");
    Expect(call->delivery.Complete().ok(), true, "complete");
    call->completed = true;
    AwaitIdle();
    const v1::StepHeader& header = call->request.header;
    if (const Remembered* const one = Find(header.request_id()); one != nullptr) {
      ExpectEnd(&call, {.replayed = true, .brings_parameters = !header.ack_when_folded()});
      return;
    }
    if (header.round() != round_number_) {
      ++refused_;
      ExpectEnd(&call, {.outcome = v1::STEP_OUTCOME_REFUSED_LATE, .brings_parameters = !header.ack_when_folded()});
      return;
    }
    Rank& rank = round_->ranks[header.rank()];
    if (!rank.counted.has_value()) {
      rank.counted = call->request;
      rank.delivering = nullptr;
    } else if (rank.folded && header.ack_when_folded()) {
      ExpectEnd(&call, {.outcome = v1::STEP_OUTCOME_ACCUMULATED, .brings_parameters = false});
      return;
    }
    // Another attempt of it gives way.
    if (rank.answered != nullptr) ExpectEndOf(rank.answered, {.reason = v1::ERROR_REASON_SUPERSEDED});
    rank.answered = &*call;
    rank.attempt = AttemptOf(header);
  }

  void Die(size_t client) {
    std::optional<Call>& call = calls_[client];
    if (!call.has_value()) return;
    Forget(&*call);
  }

  // The call is gone.
  void Forget(Call* call) {
    if (round_.has_value()) {
      for (Rank& rank : round_->ranks) {
        if (rank.delivering == call) rank.delivering = nullptr;
        if (rank.answered == call) rank.answered = nullptr;
      }
    }
    for (std::optional<Call>& one : calls_) {
      if (one.has_value() && &*one == call) one.reset();
    }
  }

  // The call has been answered so.
  void ExpectEnd(std::optional<Call>* call, const Expected& expected) {
    if (!Expect((*call)->delivery.done(), true, absl::StrCat("an end, ", v1::StepOutcome_Name(expected.outcome)))) {
      return;
    }
    const absl::StatusOr<StepReply> reply = (*call)->delivery.Take();
    Forget(&**call);
    Expect(v1::ErrorReason_Name(ReasonOf(reply.status())), v1::ErrorReason_Name(expected.reason), "how it ended");
    if (!reply.ok() || expected.reason != kNone) return;
    const v1::StepResult& result = reply->result;
    Expect(v1::StepOutcome_Name(result.outcome()), v1::StepOutcome_Name(expected.outcome), "the outcome");
    Expect(result.replayed(), expected.replayed, "replayed");
    Expect(result.round(), round_number_, "the next round");
    Expect(result.parameters_step(), step(), "the step of the parameters");
    Expect(result.incarnation(), incarnation_, "the incarnation");
    if (!expected.replayed) Expect(result.contributions(), expected.contributions, "the contributions");
    Expect(result.has_non_finite_rank(), expected.non_finite_rank.has_value(), "a rank that is not finite");
    if (expected.non_finite_rank.has_value()) Expect(result.non_finite_rank(), *expected.non_finite_rank, "that rank");
    if (!Expect(reply->parameters->snapshot != nullptr, expected.brings_parameters, "bringing parameters")) return;
    if (expected.brings_parameters) {
      Expect(SameBits(Parameters(*reply), optimizer_->arrays().parameters), true, "the parameters' being the model's");
    }
  }

  // ---- the round

  static bool IsLive(const Rank& rank) { return rank.delivering != nullptr; }

  // Lets the round go on as far as it comes, and checks who is admitted.
  void Settle() {
    AwaitIdle();
    if (!difference_.empty()) return;
    Advance();
    AwaitIdle();
    if (round_.has_value()) {
      int unsettled = 0;
      for (Rank& rank : round_->ranks) {
        if (rank.settled() || ++unsettled > window_) continue;
        if (rank.delivering != nullptr) rank.delivering->admitted = true;
      }
    }
    for (const std::optional<Call>& call : calls_) {
      if (!call.has_value()) continue;
      Expect(call->delivery.admitted(), call->admitted, "who is admitted");
      Expect(call->delivery.done(), false, "an end that should not be");
    }
    Expect(set_->Describe().round(), round_number_, "the round");
    const int64_t calls = absl::c_count_if(calls_, [](const auto& call) { return call.has_value(); });
    const int64_t most = (round_.has_value() ? window_ + 1 : 0) + calls;
    Expect(server_.used().inflight <= most * StagingBytesOfAll(), true, "memory within its bound");
  }

  void Advance() {
    if (!round_.has_value()) return;
    std::vector<Rank>& ranks = round_->ranks;
    if (round_->expirations > 0) {
      for (Rank& rank : ranks) {
        rank.left_out = rank.left_out || (!rank.counted.has_value() && (round_->expirations > 1 || !IsLive(rank)));
      }
      if (absl::c_count_if(ranks, [](const Rank& rank) { return !rank.left_out; }) < quorum_) {
        refused_ += absl::c_count_if(ranks, [](const Rank& rank) { return rank.counted.has_value(); });
        EndRound({.outcome = v1::STEP_OUTCOME_REFUSED_LATE}, /*keep_arriving=*/true);
        return;
      }
    }
    if (absl::c_none_of(ranks, [](const Rank& rank) { return rank.counted.has_value() || IsLive(rank); })) {
      round_.reset();
      return;
    }
    for (Rank& rank : ranks) {
      if (rank.settled()) continue;
      if (!rank.counted.has_value()) break;
      if (!absl::c_all_of(rank.counted->gradient, [](float g) { return std::isfinite(g); })) {
        ++skipped_;
        EndRound(
            {.outcome = v1::STEP_OUTCOME_SKIPPED_NON_FINITE, .non_finite_rank = static_cast<int>(&rank - ranks.data())},
            /*keep_arriving=*/true);
        return;
      }
      rank.folded = true;
    }
    if (absl::c_all_of(ranks, [](const Rank& rank) { return rank.settled(); })) {
      Commit();
      return;
    }
    for (Rank& rank : ranks) {
      if (!rank.folded || !rank.counted->header.ack_when_folded()) continue;
      rank.attempt = 0;
      if (rank.answered == nullptr) continue;
      ExpectEndOf(rank.answered, {.outcome = v1::STEP_OUTCOME_ACCUMULATED, .brings_parameters = false});
    }
  }

  void ExpectEndOf(Call* answered, Expected expected) {
    for (std::optional<Call>& call : calls_) {
      if (call.has_value() && &*call == answered) {
        if (call->request.header.ack_when_folded()) expected.brings_parameters = false;
        ExpectEnd(&call, expected);
        return;
      }
    }
  }

  void Commit() {
    Values sum(optimizer_->parameter_count());
    double weights = 0;
    int folded = 0;
    v1::StepHeader header;
    for (const Rank& rank : round_->ranks) {
      if (!rank.folded) continue;
      const v1::StepHeader& of = rank.counted->header;
      const double weight = of.has_weight() ? of.weight() : 1;
      const auto k = static_cast<float>(weight / (of.has_grad_scale() ? of.grad_scale() : 1));
      const Values& g = rank.counted->gradient;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = folded == 0 ? k * g[i] : std::fma(k, g[i], sum[i]);
      weights += weight;
      ++folded;
      *header.mutable_overrides() = of.overrides();
    }
    header.set_grad_scale(weights);
    optimizer_->Apply(sum, header);
    for (const Rank& rank : round_->ranks) {
      if (rank.folded && !rank.counted->header.request_id().empty()) {
        remembered_.push_back({rank.counted->header, step()});
      }
    }
    // Those who asked to be told earlier are told that they count, if they have not been.
    for (Rank& rank : round_->ranks) {
      if (!rank.folded || rank.answered == nullptr || !rank.counted->header.ack_when_folded()) continue;
      Call* const answered = std::exchange(rank.answered, nullptr);
      ExpectAcknowledged(answered);
    }
    EndRound({.contributions = folded}, /*keep_arriving=*/true);
  }

  // Told before the commit: of the step and the round before.
  void ExpectAcknowledged(Call* answered) {
    if (!Expect(answered->delivery.done(), true, "acknowledged")) return;
    const absl::StatusOr<StepReply> reply = answered->delivery.Take();
    if (Expect(reply.ok(), true, "acknowledged")) {
      Expect(v1::StepOutcome_Name(reply->result.outcome()), v1::StepOutcome_Name(v1::STEP_OUTCOME_ACCUMULATED),
             "the acknowledgement");
      Expect(reply->result.round(), round_number_, "the round that goes on");
    }
    Forget(answered);
  }

  // The round is over, and those who count are answered so; who is arriving goes on, to no effect.
  void EndRound(const Expected& expected, bool keep_arriving) {
    AwaitIdle();
    if (expected.reason == kNone) ++round_number_;
    const Round ended = *std::exchange(round_, std::nullopt);
    for (const Rank& rank : ended.ranks) {
      if (rank.answered != nullptr) ExpectEndOf(rank.answered, expected);
      if (rank.delivering != nullptr && keep_arriving) {
        rank.delivering->counts = false;
        rank.delivering->admitted = true;
      }
    }
  }

  // ---- others

  void LetTimePass() {
    if (round_.has_value()) ++round_->expirations;
    server_.clock().Advance(absl::Seconds(60));
    time_passed_ = 2;
  }

  void Write() {
    Arrays arrays;
    arrays.parameters = Gradient(optimizer_->parameter_count(), choices_.Choose(100));
    Expect(adamant::core::Write(set_.get(), ParametersHeader(), arrays).ok(), true, "written");
    AwaitIdle();
    optimizer_->mutable_arrays()->parameters = arrays.parameters;
    incarnation_ = set_->Describe().incarnation();
    remembered_.clear();
    if (round_.has_value()) {
      ++round_number_;
      // What counted, and what had not come.
      const Round ended = *std::exchange(round_, std::nullopt);
      for (const Rank& rank : ended.ranks) {
        if (rank.answered != nullptr) ExpectEndOf(rank.answered, {.reason = v1::ERROR_REASON_INCARNATION_MISMATCH});
      }
    }
    for (std::optional<Call>& call : calls_) {
      if (call.has_value()) ExpectEnd(&call, {.reason = v1::ERROR_REASON_INCARNATION_MISMATCH});
    }
  }

  void ChangeConfiguration() {
    if (choices_.Choose(2) == 0) {
      v1::UpdateParameterSetRequest request;
      *request.mutable_spec()->mutable_workers() = spec_.workers();
      request.mutable_update_mask()->add_paths("workers");
      Expect(v1::ErrorReason_Name(ReasonOf(Update(set_.get(), request).status())),
             v1::ErrorReason_Name(round_.has_value() ? v1::ERROR_REASON_ROUND_OPEN : kNone), "a change of the workers");
      return;
    }
    v1::UpdateParameterGroupRequest request;
    request.mutable_group()->set_name("fast");
    request.mutable_group()->set_learning_rate(0.001 * (1 + choices_.Choose(50)));
    request.mutable_update_mask()->add_paths("learning_rate");
    if (!Expect(Update(set_.get(), request).ok(), true, "a change of the learning rate")) return;
    optimizer_->mutable_spec()->mutable_groups(1)->set_learning_rate(request.group().learning_rate());
  }

  void AskForAResult() {
    if (requests_.empty()) return;
    const std::string& id = requests_[choices_.Choose(requests_.size())].header.request_id();
    v1::GetStepResultRequest request;
    request.set_request_id(id);
    const absl::StatusOr<v1::GetStepResultResponse> response = set_->FindStepResult(request);
    if (!Expect(response.ok(), true, "asked")) return;
    v1::StepState expected = v1::STEP_STATE_UNKNOWN;
    for (const std::optional<Call>& call : calls_) {
      if (call.has_value() && call->request.header.request_id() == id) expected = v1::STEP_STATE_IN_FLIGHT;
    }
    if (round_.has_value()) {
      for (const Rank& rank : round_->ranks) {
        if (rank.counted.has_value() && rank.counted->header.request_id() == id) expected = v1::STEP_STATE_ACCUMULATED;
      }
    }
    if (Find(id) != nullptr) expected = v1::STEP_STATE_COMMITTED;
    Expect(v1::StepState_Name(response->state()), v1::StepState_Name(expected), "the state of a request");
  }

  void CheckEnd() {
    const absl::StatusOr<Arrays> arrays = FetchState(set_.get());
    if (Expect(arrays.ok(), true, "read")) {
      Expect(*arrays == optimizer_->arrays(), true, "the state's being the model's");
    }
    const v1::SetStatistics statistics = set_->Describe().statistics();
    Expect(statistics.refused(), refused_, "the refused");
    Expect(statistics.non_finite(), skipped_, "the skipped");
    for (std::optional<Call>& call : calls_) call.reset();
    AwaitIdle();
    LetTimePass();
    AwaitIdle();
    Expect(server_.used().inflight, 0, "inflight bytes used");
    Expect(server_.clock().pending(), 0, "timers left");
  }

  // Returns once nothing is under way. Jobs take turns, block by block: folding, and computing, six each. What a small
  // set does it does at once, but when its time is over.
  void AwaitIdle() {
    const int jobs = small_ ? std::exchange(time_passed_, 0) : 24;
    for (int i = 0; i < jobs; ++i) server_.AwaitIdle();
  }

  int64_t step() const { return optimizer_->arrays().step; }
  int64_t StagingBytesOfAll() const { return core::ArrayBytes(*set_) + 1024; }

  Choices& choices_;
  const int workers_;
  const int window_;
  const int quorum_;
  const bool small_;
  int time_passed_ = 0;
  TestServer server_;
  v1::ParameterSetSpec spec_;
  std::shared_ptr<ParameterSet> set_;
  std::unique_ptr<SequentialModel> optimizer_;
  uint64_t incarnation_ = 0;
  int64_t round_number_ = 1;
  std::optional<Round> round_;
  std::vector<Remembered> remembered_;
  std::vector<Request> requests_;
  std::optional<Call> calls_[kClients];
  int64_t refused_ = 0;
  int64_t skipped_ = 0;
  int actions_ = 0;
  std::string difference_;
};

}  // namespace

std::string RunRoundSchedule(SetSize size, Choices* choices) { return RoundSchedule(size, choices).Run(); }

}  // namespace adamant::core
