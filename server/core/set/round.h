// Contributions of a set's workers that become one step.
#ifndef ADAMANT_SERVER_CORE_SET_ROUND_H_
#define ADAMANT_SERVER_CORE_SET_ROUND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/step.pb.h"
#include "server/core/base/clock.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/budget.h"
#include "server/core/set/staging.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

class StepAttempt;

// What a round has reserved, in arrays of one size. Thread-safe; held by std::shared_ptr.
class RoundMemory : public std::enable_shared_from_this<RoundMemory> {
 public:
  // The payment for one array, until it is destroyed.
  class Share {
   public:
    explicit Share(std::shared_ptr<RoundMemory> memory) : memory_(std::move(memory)) {}
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    ~Share();

   private:
    const std::shared_ptr<RoundMemory> memory_;
  };

  RoundMemory(Grant grant, int64_t array_bytes) : array_bytes_(array_bytes), grant_(std::move(grant)) {}

  // Null where as many arrays are in use as the grant pays for.
  std::shared_ptr<const Share> Lend();
  // The round is over: gives back all but what pays for arrays in use, and that as they go.
  void Close();

 private:
  void Return();

  const int64_t array_bytes_;

  Mutex mutex_;
  Grant grant_ ABSL_GUARDED_BY(mutex_);
  int64_t lent_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// A gradient of one worker, or the sum of several, and what pays for it.
struct PaidGradient {
  std::shared_ptr<const RoundMemory::Share> share;  // before what it pays for, which goes first
  std::optional<Staging> gradient;
};

// One round, from its first contribution to its end. Guarded by the set's mutex. What counts and what is folded changes
// for whoever has the set's turn alone: in Count, Replace, NextWork, and in what is for the end; and so does `sum`,
// which needs no mutex.
//
// A rank is empty; or somebody delivers its contribution, who waits at first and then arrives; or that has arrived
// whole and counts, is folded, and stays until the end; or it is left out. Folding is in the order of the ranks, and
// only the lowest ranks that are neither folded nor left out arrive: so what the round becomes does not depend on who
// is first, nor its memory on how many there are.
class Round {
 public:
  // What a round keeps for each of its ranks, beside arrays that are paid for otherwise.
  static constexpr int64_t kRankBytes = 256;

  // Where a contribution has a bad element.
  struct NonFinite {
    int rank;
    Staging::Place place;
    double grad_norm;
  };
  // What there is to do now.
  struct Work {
    enum class Kind {
      kNothing,  // others are awaited
      kFold,     // `parts` are to be folded
      kSkip,     // `non_finite`: the round comes to nothing
      kFail,     // fewer than the quorum are left
      kDiscard,  // nobody has contributed, and nobody is about to: it has not begun
    };
    struct Part {
      float k;
      PaidGradient gradient;
    };
    Kind kind = Kind::kNothing;
    std::vector<Part> parts;  // by rank
    bool is_first = false;    // the first of them is the round's first
    bool is_last = false;     // nothing is to be folded after them; there may be none
    std::optional<NonFinite> non_finite;
  };

  // A round of `workers`, whose defaults are resolved, that begins with a contribution of this header, which brings
  // `selection`.
  Round(int64_t number, const v1::Workers& workers, const v1::StepHeader& header,
        std::shared_ptr<const TensorSelection> selection);

  int64_t number() const { return number_; }
  const v1::Workers& workers() const { return workers_; }
  const std::shared_ptr<const TensorSelection>& selection() const { return selection_; }

  // Whether a contribution of this header, which brings `selection`, fits those before it: INVALID_ARGUMENT naming the
  // field.
  absl::Status CheckAlike(const v1::StepHeader& header, const TensorSelection& selection) const;
  // The one that counts of this rank; null if none does.
  const StepAttempt* FindCounted(int rank) const { return ranks_[rank].counted.get(); }
  // Whether the request of this id counts.
  bool Counts(absl::string_view request_id) const;

  // `attempt` delivers its rank's contribution from now on. Returns whoever did before, who is to be ended.
  std::shared_ptr<StepAttempt> Enter(StepAttempt* attempt);
  // `attempt`, which has let go of its array, is being destroyed. The round has to be looked at for that: somebody may
  // arrive now, or be left out.
  void Leave(const StepAttempt* attempt);

  // The memory that was asked for when the round began; null until then.
  void SetMemory(std::shared_ptr<RoundMemory> memory) { memory_ = std::move(memory); }
  // Those who wait and may arrive now, each with what pays for its array; null where that is still in use elsewhere,
  // and who gets it waits on.
  std::vector<std::pair<std::shared_ptr<StepAttempt>, std::shared_ptr<const RoundMemory::Share>>> Admit();

  // Takes a contribution that has arrived whole. Requires: FindCounted of its rank is null.
  void Count(std::shared_ptr<StepAttempt> attempt, PaidGradient gradient);
  // The one that counts of its rank is answered through `attempt` instead, which is another attempt of that request.
  // Returns the other. `is_folded` says whether it is folded already.
  std::shared_ptr<StepAttempt> Replace(std::shared_ptr<StepAttempt> attempt, bool* is_folded);
  // From now on whoever is not there is left out; from the second call on whoever has not arrived whole. Returns
  // whether it was the first.
  bool Expire() { return ++expirations_ == 1; }

  // What there is to do; takes the gradients that are to be folded, which count as folded from here on.
  Work NextWork();
  // Where the sum of what is folded is: the first contribution's array.
  PaidGradient& sum() { return sum_; }
  // Those that have been folded since the last call, and ask to be told so.
  std::vector<std::shared_ptr<StepAttempt>> TakeAcknowledged();

  // ---- At the end.
  // What pays for one array, of one that nobody needs any more; null where nobody has contributed.
  std::shared_ptr<const RoundMemory::Share> TakeShare();
  // By rank.
  std::vector<std::shared_ptr<StepAttempt>> TakeContributors();
  // Those who wait for their turn to arrive.
  std::vector<std::shared_ptr<StepAttempt>> Waiting() const;
  // How many contributions the sum is made of, and what it is divided by.
  int contributions() const { return contributions_; }
  double divisor() const;
  void CloseMemory();

  // The timer that expires it. Guarded as the rest.
  Clock::TimerId timer = Clock::kNoTimer;

 private:
  struct Rank {
    StepAttempt* delivering = nullptr;  // until it is destroyed
    bool admitted = false;              // `delivering` arrives
    std::shared_ptr<StepAttempt> counted;
    PaidGradient gradient;  // that counts and is not folded
    bool folded = false;
    bool acknowledged = false;
    bool left_out = false;

    bool settled() const { return folded || left_out; }
  };

  // What its contribution is multiplied with.
  float FactorOf(const Rank& rank) const;
  std::optional<NonFinite> FindNonFinite(int rank) const;
  static bool IsLive(const Rank& rank);
  // How many ranks are not left out.
  int LeftIn() const;

  const int64_t number_;
  const v1::Workers workers_;
  const std::shared_ptr<const TensorSelection> selection_;
  const std::vector<std::string> overrides_;  // serialized

  std::shared_ptr<RoundMemory> memory_;
  std::vector<Rank> ranks_;
  int expirations_ = 0;
  int contributions_ = 0;  // that are folded
  double weights_ = 0;     // theirs, added by rank
  PaidGradient sum_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_ROUND_H_
