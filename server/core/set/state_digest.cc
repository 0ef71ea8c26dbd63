#include "server/core/set/state_digest.h"

#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/time/time.h"

namespace adamant::core {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are hashed as they lie in memory");

// Those of as many in all slots are hashed by the thread that asks, in some 100 us: others would take as long to come.
constexpr int64_t kFewElements = 16384;

using Hash = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

// Elements of one tensor in one slot, in the flat space.
struct Leaf {
  v1::Slot slot;
  int64_t begin;
  int64_t end;
};

struct Work {
  DigestedState state;
  CopyState copy;
  std::vector<Leaf> leaves;
  std::vector<Hash> hashes;  // of the leaves
};

Hash HashOf(const void* data, size_t size) {
  Hash hash;
  SHA256(static_cast<const unsigned char*>(data), size, hash.data());
  return hash;
}

void HashLeaf(Work* work, int64_t index) {
  const Leaf& leaf = work->leaves[index];
  // A leaf's, once for each thread of the pool.
  thread_local std::vector<float> elements;
  elements.resize(leaf.end - leaf.begin);
  work->copy(leaf.slot, leaf.begin, leaf.end, elements.data());
  // Which of them it is differs between machines.
  for (float& element : elements) element = std::isnan(element) ? std::numeric_limits<float>::quiet_NaN() : element;
  work->hashes[index] = HashOf(elements.data(), elements.size() * sizeof(float));
}

std::string HashRoot(const Work& work) {
  std::string bytes = work.state.previous;
  bytes.resize(SHA256_DIGEST_LENGTH);
  const auto append = [&bytes](int64_t number) {
    bytes.append(reinterpret_cast<const char*>(&number), sizeof(number));
  };
  append(work.state.step);
  auto hash = work.hashes.begin();
  for (size_t tensor = 0; tensor < work.state.schema->tensors().size(); ++tensor) {
    append(work.state.update_counts[tensor]);
    const int64_t size = work.state.schema->tensors()[tensor].size();
    const int64_t leaves =
        (size + kDigestedElements - 1) / kDigestedElements * static_cast<int64_t>(work.state.slots.size());
    for (int64_t leaf = 0; leaf < leaves; ++leaf, ++hash) bytes.append(hash->begin(), hash->end());
  }
  const Hash root = HashOf(bytes.data(), bytes.size());
  return std::string(root.begin(), root.end());
}

void BorrowSpares(Lender* lender, int64_t elements, int slots, DigestRoom room, Then<absl::StatusOr<DigestRoom>> done) {
  if (static_cast<int>(room.spares.size()) == slots) {
    done(std::move(room));
    return;
  }
  lender->Borrow(/*budget=*/nullptr, 0, elements, absl::InfiniteDuration(),
                 [lender, elements, slots, room = std::move(room),
                  done = std::move(done)](absl::StatusOr<Lender::Loan> loan) mutable {
                   if (!loan.ok()) {
                     done(std::move(loan).status());
                     return;
                   }
                   room.spares.push_back(std::move(loan->blocks));
                   BorrowSpares(lender, elements, slots, std::move(room), std::move(done));
                 });
}

}  // namespace

void DigestState(DigestedState state, CopyState copy, ComputePool* compute, Then<std::string> done) {
  auto work = std::make_shared<Work>();
  for (const Schema::Tensor& tensor : state.schema->tensors()) {
    for (const v1::Slot slot : state.slots) {
      for (int64_t begin = tensor.begin; begin < tensor.begin + tensor.size(); begin += kDigestedElements) {
        work->leaves.push_back({slot, begin, std::min(begin + kDigestedElements, tensor.begin + tensor.size())});
      }
    }
  }
  const bool is_small = state.schema->flat_size() * static_cast<int64_t>(state.slots.size()) <= kFewElements;
  work->state = std::move(state);
  work->copy = std::move(copy);
  work->hashes.resize(work->leaves.size());
  const auto leaves = static_cast<int64_t>(work->leaves.size());
  if (is_small) {
    for (int64_t leaf = 0; leaf < leaves; ++leaf) HashLeaf(work.get(), leaf);
    work->copy = nullptr;
    done(HashRoot(*work));
    return;
  }
  compute->Run(
      leaves, [work](int64_t leaf) { HashLeaf(work.get(), leaf); },
      [work, done = std::move(done)]() mutable {
        work->copy = nullptr;
        std::move(done)(HashRoot(*work));
      });
}

void BorrowDigestRoom(const Schema& schema, int slots, bool on_host, Budget* budget, Lender* lender,
                      Then<absl::StatusOr<DigestRoom>> done) {
  // Of the parameters, too.
  const int64_t all_slots = slots + 1;
  int64_t bytes = sizeof(Work);
  for (const Schema::Tensor& tensor : schema.tensors()) {
    const int64_t leaves = (tensor.size() + kDigestedElements - 1) / kDigestedElements * all_slots;
    // Each leaf's hash stands among the others', and in what the root is the hash of; so do the counts.
    bytes += leaves * static_cast<int64_t>(sizeof(Leaf) + 2 * sizeof(Hash)) + 2 * static_cast<int64_t>(sizeof(int64_t));
  }
  const int64_t elements = schema.flat_size();
  if (!on_host) bytes += BlockPool::ChargedBytes(elements) * slots;
  absl::StatusOr<Grant> grant = budget->TryReserve(bytes);
  if (!grant.ok()) {
    done(std::move(grant).status());
    return;
  }
  BorrowSpares(lender, elements, on_host ? 0 : slots, {*std::move(grant), {}}, std::move(done));
}

}  // namespace adamant::core
