// What proves that two runs are the same to the bit: a hash of a set's whole state, chained to the one before it.
//
// It is SHA-256 (FIPS 180-4) of, one behind the other, all integers in 8 bytes and little-endian:
//   the digest before, of 32 bytes; zeros if the incarnation has none;
//   the step;
//   for each tensor by index: how many updates it has had, and for each of the set's slots, in the order of v1::Slot
//   and for each kDigestedElements of its elements there, the last of which may be fewer: the SHA-256 of these, as
//   fp32, little-endian, any NaN as 0x7fc00000.
#ifndef ADAMANT_SERVER_CORE_SET_STATE_DIGEST_H_
#define ADAMANT_SERVER_CORE_SET_STATE_DIGEST_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/then.h"
#include "server/core/memory/lender.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

inline constexpr int64_t kDigestedElements = 65536;

// The digest of an incarnation's last step that has one.
struct LastDigest {
  uint64_t incarnation = 0;
  std::string digest;
};

// A state that is to be digested.
struct DigestedState {
  std::shared_ptr<const Schema> schema;
  std::vector<v1::Slot> slots;  // all that the set has, in the order of v1::Slot
  int64_t step = 0;
  std::vector<int64_t> update_counts;  // by tensor
  std::string previous;                // the digest before; empty: there is none
};

// Copies the elements [begin, end) of the flat space to `to`. Called by several threads, and destroyed before there is
// a digest.
using CopyState = absl::AnyInvocable<void(v1::Slot slot, int64_t begin, int64_t end, float* to) const>;

// Calls `done` with the digest: before it returns, where there is little to do, or later, on a thread of `compute`. The
// caller has room for it.
void DigestState(DigestedState state, CopyState copy, ComputePool* compute, Then<std::string> done);

// What a digest takes while it is computed.
struct DigestRoom {
  Grant grant;
  std::vector<BlockList> spares;  // for a view of each slot, on a device that has memory of its own
};

// Reserves room for a digest of a set with so many slots of optimizers, and for a view of them unless they are
// `on_host`. Errors: as of a read.
void BorrowDigestRoom(const Schema& schema, int slots, bool on_host, Budget* budget, Lender* lender,
                      Then<absl::StatusOr<DigestRoom>> done);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_STATE_DIGEST_H_
