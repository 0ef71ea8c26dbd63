// Memory for what clients send and read: room in a budget, and blocks to fill, without anybody having to wait for the
// system.
#ifndef ADAMANT_SERVER_CORE_MEMORY_LENDER_H_
#define ADAMANT_SERVER_CORE_MEMORY_LENDER_H_

#include <cstdint>
#include <memory>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/base/compute_pool.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"

namespace adamant::core {

// Thread-safe. The one place where blocks are mapped: for those who borrow, by threads of its own, one loan after the
// other, and small ones beside large ones, so that no thread that others wait for, as a gRPC thread or the clock's,
// stands still while the system finds pages.
class Lender {
 public:
  // In this order, so that blocks are returned before what pays for them.
  struct Loan {
    Grant grant;
    BlockList blocks;
  };
  using Done = absl::AnyInvocable<void(absl::StatusOr<Loan>)>;
  using WaitId = uint64_t;
  // What Borrow returns when `done` has been called already.
  static constexpr WaitId kNoWait = 0;

  // Both outlive the lender, and `compute` runs what the lender has handed to it even after the lender's end.
  Lender(BlockPool* pool, ComputePool* compute);
  // Drops what is under way: whoever waits is neither called nor holds anything. Blocks that are being mapped are
  // waited for. Requires: nobody borrows any more.
  ~Lender();
  Lender(const Lender&) = delete;
  Lender& operator=(const Lender&) = delete;

  // Reserves `bytes` of `budget`, as Budget::Reserve does, waiting for at most `patience`, and lends blocks for
  // `elements` elements, of arbitrary content. Where `budget` is null somebody else has paid, and nothing is reserved;
  // if the blocks lie idle then no lock is taken.
  //
  // Calls `done` once: before it returns, if there is room and the blocks lie idle, or with TOO_LARGE; or later, on a
  // thread of the compute pool and with no lock held, perhaps while this returns. Errors: as of Budget::Reserve, and
  // BUDGET_EXHAUSTED if the system has no memory. After an error nothing is held.
  WaitId Borrow(Budget* budget, int64_t bytes, int64_t elements, absl::Duration patience, Done done);

  // Gives up waiting. `done` is destroyed without having been called, unless it is being called already, and what was
  // had for it is given back: at once, or when it has been mapped if that is under way.
  void Cancel(WaitId wait);

  // Blocks for `elements` elements that are zero and paid for: for a thread that nobody waits for, as one that creates
  // sets. The caller's thread maps them: those who borrow for a step do not have to wait until a large set has its
  // memory.
  absl::StatusOr<BlockList> TakeZeroed(int64_t elements) { return pool_->TakeZeroed(elements); }

 private:
  struct Borrower;
  class Borrowers;

  BlockPool* const pool_;
  // Shared with callbacks that are on their way in the clock or in the compute pool, which may run after the lender's
  // end, and find nothing then.
  const std::shared_ptr<Borrowers> borrowers_;
  std::thread small_mapper_;
  std::thread large_mapper_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_MEMORY_LENDER_H_
