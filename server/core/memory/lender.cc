// Who waits for memory: waiting for room, to be mapped, and to be handed over.
#include "server/core/memory/lender.h"

#include <array>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "server/core/base/mutex.h"

namespace adamant::core {
namespace {

// What a small loan has at most: 1 MiB, which is mapped in less time than a step takes.
constexpr int64_t kSmallLoanElements = (int64_t{1} << 20) / static_cast<int64_t>(sizeof(float));

}  // namespace

struct Lender::Borrower {
  int64_t elements;
  Done done;
  // While it waits for room.
  Budget* budget;
  Budget::WaitId reservation = Budget::kNoWait;
  // What it has, from then on. The mapper has it while it maps.
  Grant grant = {};
  // When it is on its way to be handed over.
  std::optional<absl::StatusOr<Loan>> outcome = std::nullopt;
};

// Thread-safe. Those who have not been told yet. One that gave up is found no more; whoever works for it drops what it
// has got.
class Lender::Borrowers : public std::enable_shared_from_this<Borrowers> {
 public:
  // A small loan is mapped beside large ones, which take long.
  enum Size { kSmall, kLarge, kSizes };

  Borrowers(BlockPool* pool, ComputePool* compute) : pool_(pool), compute_(compute) {}

  WaitId Add(Borrower borrower) {
    MutexLock lock(&mutex_);
    borrowers_.emplace(++last_wait_, std::move(borrower));
    return last_wait_;
  }

  // It waits in its budget, if it has not got its room meanwhile.
  void SetReservation(WaitId wait, Budget::WaitId reservation) {
    MutexLock lock(&mutex_);
    const auto found = borrowers_.find(wait);
    if (found != borrowers_.end()) found->second.reservation = reservation;
  }

  // There is room, or an error. Maps nothing: it is the clock's thread that comes here.
  void Reserved(WaitId wait, int64_t elements, absl::StatusOr<Grant> grant) {
    if (!grant.ok()) return Finish(wait, std::move(grant).status());
    // A late callback of the clock's must not come to the pool.
    if (!IsUnderWay(wait)) return;
    if (std::optional<BlockList> blocks = pool_->TakeIdle(elements); blocks.has_value()) {
      return Finish(wait, Loan{*std::move(grant), *std::move(blocks)});
    }
    MutexLock lock(&mutex_);
    const auto found = borrowers_.find(wait);
    if (found == borrowers_.end()) return;
    found->second.grant = *std::move(grant);
    unmapped_[SizeOf(elements)].push_back(wait);
    changed_.NotifyAll();
  }

  void Cancel(WaitId wait) {
    std::map<WaitId, Borrower>::node_type borrower;  // destroyed without the lock
    {
      MutexLock lock(&mutex_);
      borrower = borrowers_.extract(wait);
    }
    if (borrower.empty() || borrower.mapped().reservation == Budget::kNoWait) return;
    borrower.mapped().budget->Cancel(borrower.mapped().reservation);
  }

  // Maps what is to be mapped of this size, until Stop.
  void Map(Size size) {
    for (;;) {
      Grant grant;
      int64_t elements = 0;
      const WaitId wait = AwaitUnmapped(size, &grant, &elements);
      if (wait == kNoWait) return;
      Finish(wait, Lend(std::move(grant), elements));
    }
  }

  void Stop() {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }

  void CancelAll() {
    for (;;) {
      WaitId wait;
      {
        MutexLock lock(&mutex_);
        if (borrowers_.empty()) return;
        wait = borrowers_.begin()->first;
      }
      Cancel(wait);
    }
  }

 private:
  static Size SizeOf(int64_t elements) { return elements <= kSmallLoanElements ? kSmall : kLarge; }

  bool IsUnderWay(WaitId wait) {
    MutexLock lock(&mutex_);
    return borrowers_.contains(wait);
  }

  // The first that is to be mapped, and what it has. kNoWait when the lender stops.
  WaitId AwaitUnmapped(Size size, Grant* grant, int64_t* elements) {
    MutexLock lock(&mutex_);
    while (!stopping_) {
      if (unmapped_[size].empty()) {
        changed_.Wait(&mutex_);
        continue;
      }
      const WaitId wait = unmapped_[size].front();
      unmapped_[size].pop_front();
      const auto found = borrowers_.find(wait);
      if (found == borrowers_.end()) continue;
      *grant = std::move(found->second.grant);
      *elements = found->second.elements;
      return wait;
    }
    return kNoWait;
  }

  absl::StatusOr<Loan> Lend(Grant grant, int64_t elements) {
    absl::StatusOr<BlockList> blocks = pool_->Take(elements);
    if (blocks.ok()) return Loan{std::move(grant), *std::move(blocks)};
    // A parameter may live until the caller's statement ends, and whoever waits is told within it.
    grant = Grant();
    return std::move(blocks).status();
  }

  // Has a compute thread hand it over. The outcome of one that was cancelled ends here, without the lock.
  void Finish(WaitId wait, absl::StatusOr<Loan> outcome) {
    MutexLock lock(&mutex_);
    const auto found = borrowers_.find(wait);
    if (found == borrowers_.end()) return;
    found->second.outcome = std::move(outcome);
    // With the lock, so that nothing comes to the compute pool when the lender has ended.
    compute_->Run(
        1, [self = shared_from_this(), wait](int64_t) { self->HandOver(wait); }, [] {});
  }

  void HandOver(WaitId wait) {
    std::map<WaitId, Borrower>::node_type borrower;
    {
      MutexLock lock(&mutex_);
      borrower = borrowers_.extract(wait);
    }
    if (!borrower.empty()) borrower.mapped().done(*std::move(borrower.mapped().outcome));
  }

  BlockPool* const pool_;
  ComputePool* const compute_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  WaitId last_wait_ ABSL_GUARDED_BY(mutex_) = kNoWait;
  std::map<WaitId, Borrower> borrowers_ ABSL_GUARDED_BY(mutex_);
  // Those to be mapped, by size and in order, and some that were cancelled.
  std::array<std::deque<WaitId>, kSizes> unmapped_ ABSL_GUARDED_BY(mutex_);
};

Lender::Lender(BlockPool* pool, ComputePool* compute)
    : pool_(pool),
      borrowers_(std::make_shared<Borrowers>(pool, compute)),
      small_mapper_([this] { borrowers_->Map(Borrowers::kSmall); }),
      large_mapper_([this] { borrowers_->Map(Borrowers::kLarge); }) {}

Lender::~Lender() {
  borrowers_->Stop();
  small_mapper_.join();
  large_mapper_.join();
  borrowers_->CancelAll();
}

Lender::WaitId Lender::Borrow(Budget* budget, int64_t bytes, int64_t elements, absl::Duration patience, Done done) {
  absl::StatusOr<Grant> grant = budget == nullptr ? Grant() : budget->TryReserve(bytes);
  if (grant.ok()) {
    if (std::optional<BlockList> blocks = pool_->TakeIdle(elements); blocks.has_value()) {
      done(Loan{*std::move(grant), *std::move(blocks)});
      return kNoWait;
    }
  } else if (!absl::IsResourceExhausted(grant.status())) {
    done(std::move(grant).status());
    return kNoWait;
  }
  const WaitId wait = borrowers_->Add({.elements = elements, .done = std::move(done), .budget = budget});
  if (grant.ok()) {
    borrowers_->Reserved(wait, elements, std::move(grant));
    return wait;
  }
  const Budget::WaitId reservation =
      budget->Reserve(bytes, patience, [borrowers = borrowers_, wait, elements](absl::StatusOr<Grant> reserved) {
        borrowers->Reserved(wait, elements, std::move(reserved));
      });
  borrowers_->SetReservation(wait, reservation);
  return wait;
}

void Lender::Cancel(WaitId wait) { borrowers_->Cancel(wait); }

}  // namespace adamant::core
