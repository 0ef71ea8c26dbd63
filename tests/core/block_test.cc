// Blocks and their references: where memory comes from, when it comes back, and who may write.
#include "server/core/memory/block.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "tests/core/system_calls.h"

namespace adamant::core {
namespace {

TEST(BlockPoolTest, TakeGivesFullBlocksAndOneShorterAtTheEnd) {
  BlockPool pool;
  const absl::StatusOr<BlockList> list = pool.Take(2 * kBlockElements + 48);
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 3u);
  EXPECT_EQ((*list)[0].size(), kBlockElements);
  EXPECT_EQ((*list)[1].size(), kBlockElements);
  EXPECT_EQ((*list)[2].size(), 48);

  EXPECT_EQ(pool.Take(kBlockElements)->size(), 1u);
  EXPECT_EQ(pool.Take(16)->size(), 1u);
  EXPECT_TRUE(pool.Take(0)->empty());
}

TEST(BlockPoolTest, BlocksAreWritableDisjointAndAligned) {
  BlockPool pool;
  const BlockList list = *pool.Take(20 * kBlockElements + 16);
  std::vector<std::pair<const float*, const float*>> ranges;
  for (const BlockRef& block : list) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block.data()) % 64, 0u);
    std::fill_n(block.mutable_data(), block.size(), 1.0f);
    ranges.emplace_back(block.data(), block.data() + block.size());
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) EXPECT_LE(ranges[i - 1].second, ranges[i].first);
}

TEST(BlockPoolTest, ALargeExtentBeginsAtAHugePage) {
  BlockPool pool;
  const BlockList list = *pool.Take(16 * kBlockElements);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(list[0].data()) % (2 << 20), 0u);
  for (int i = 1; i < 16; ++i) EXPECT_EQ(list[i].data(), list[i - 1].data() + kBlockElements);
}

TEST(BlockPoolTest, FullBlocksAreKeptAndUsedAgain) {
  BlockPool pool;
  std::set<const float*> first;
  {
    const BlockList list = *pool.Take(4 * kBlockElements + 16);
    for (int i = 0; i < 4; ++i) first.insert(list[i].data());
  }
  EXPECT_EQ(pool.idle_blocks(), 4);
  const BlockList again = *pool.Take(6 * kBlockElements);
  EXPECT_EQ(pool.idle_blocks(), 0);
  EXPECT_EQ(std::count_if(again.begin(), again.end(), [&](const BlockRef& b) { return first.count(b.data()) > 0; }), 4);
}

TEST(BlockPoolTest, ShortBlocksAreKeptAndUsedAgainForAsManyPages) {
  BlockPool pool;
  const float* const first = (*pool.Take(2000))[0].data();
  EXPECT_NE((*pool.Take(1024))[0].data(), first) << "one page instead of two";
  const BlockList again = *pool.Take(1040);
  EXPECT_EQ(again[0].data(), first);
  EXPECT_EQ(again[0].size(), 1040);
}

TEST(BlockPoolTest, WholePagesAreCharged) {
  BlockPool pool;
  EXPECT_EQ(BlockPool::ChargedBytes(0), 0);
  for (const int64_t elements : {16, 1024, 1040, 65520, 65536, 65552, 330032}) {
    const BlockList list = *pool.Take(elements);
    EXPECT_EQ(pool.used_bytes(), BlockPool::ChargedBytes(elements)) << elements;
    EXPECT_GE(pool.used_bytes(), elements * 4);
    EXPECT_LT(pool.used_bytes(), elements * 4 + 65536) << "no page is larger";
  }
  EXPECT_EQ(pool.used_bytes(), 0);
}

// More than kIdleBytes, so that what lies idle is too much beside anything else.
constexpr int64_t kManyBlocks = 100;
// One of them.
constexpr int64_t kBlockBytes = kBlockElements * 4;

TEST(BlockPoolTest, IdleBlocksMakeRoomForThoseOfOtherSizes) {
  BlockPool pool;
  constexpr int64_t kShort = kBlockElements / 2;
  const int64_t most = kManyBlocks * kBlockBytes + BlockPool::kIdleBytes;
  ASSERT_TRUE(pool.Take(kManyBlocks * kBlockElements).ok());
  ASSERT_EQ(pool.idle_blocks(), kManyBlocks);
  std::vector<BlockList> small;
  while (static_cast<int64_t>(small.size()) < 2 * kManyBlocks) small.push_back(*pool.Take(kShort));
  EXPECT_EQ(pool.idle_blocks(), BlockPool::kIdleBytes / kBlockBytes);
  EXPECT_EQ(pool.held_bytes(), most);
  small.clear();

  const BlockList all = *pool.Take(kManyBlocks * kBlockElements);
  EXPECT_EQ(pool.held_bytes(), most);
  for (const BlockRef& block : all) std::fill_n(block.mutable_data(), block.size(), 1.0f);
  EXPECT_LE(ResidentBytes(), most);
}

TEST(BlockPoolTest, TheAllocatorGivesBackWhatItKeepsBeforeMoreIsPopulated) {
  int releases = 0;
  BlockPool pool([&releases] { ++releases; });
  std::vector<BlockList> lists;
  const auto take = [&](int64_t bytes) {
    for (int64_t taken = 0; taken < bytes; taken += kBlockBytes / 2) lists.push_back(*pool.Take(kBlockElements / 2));
  };
  take(BlockPool::kIdleBytes - kBlockBytes / 2);
  EXPECT_EQ(releases, 0);
  take(kBlockBytes / 2);
  EXPECT_EQ(releases, 1);
  ASSERT_TRUE(pool.Take(kManyBlocks * kBlockElements).ok());
  EXPECT_EQ(releases, 2);
  // Those are idle now.
  ASSERT_TRUE(pool.Take(kManyBlocks * kBlockElements).ok());
  EXPECT_EQ(releases, 2);
}

void ExpectOutOfMemory(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_TRUE(GetRetryDelay(status).has_value());
}

TEST(BlockPoolTest, WhatCannotBeHadTakesNothing) {
  BlockPool pool;
  ASSERT_TRUE(pool.Take(3 * kBlockElements + 16).ok());
  ASSERT_EQ(pool.idle_blocks(), 3);
  const int64_t held = pool.held_bytes();
  for (const int64_t elements : {4 * kBlockElements, 3 * kBlockElements + 5000}) {
    const PopulateHook shortage([] { return Populating::kRefused; });
    ExpectOutOfMemory(pool.Take(elements).status());
    EXPECT_EQ(pool.idle_blocks(), 3);
    EXPECT_EQ(pool.used_bytes(), 0);
    EXPECT_EQ(pool.held_bytes(), held);
  }
  EXPECT_TRUE(pool.Take(4 * kBlockElements).ok());
}

TEST(BlockPoolTest, BlocksWhoseMemoryDoesNotComeBackCanBeTakenLater) {
  BlockPool pool;
  ASSERT_TRUE(pool.Take(kManyBlocks * kBlockElements).ok());
  {
    std::vector<BlockList> drivers;
    for (int i = 0; i < 2 * kManyBlocks; ++i) drivers.push_back(*pool.Take(kBlockElements / 2));
  }
  ASSERT_EQ(pool.idle_blocks(), 64);
  {
    const PopulateHook shortage([] { return Populating::kRefused; });
    ExpectOutOfMemory(pool.Take(kManyBlocks * kBlockElements).status());
  }
  EXPECT_EQ(pool.idle_blocks(), 64);
  EXPECT_EQ(pool.used_bytes(), 0);
  const CallCounts before = CallsOfThisThread();
  const absl::StatusOr<BlockList> blocks = pool.Take(kManyBlocks * kBlockElements);
  ASSERT_TRUE(blocks.ok()) << blocks.status();
  EXPECT_EQ(CallsOfThisThread().mappings, before.mappings) << "they have addresses";
  for (const BlockRef& block : *blocks) std::fill_n(block.mutable_data(), block.size(), 1.0f);
}

TEST(BlockPoolTest, TakeIdleGivesAllOrNothing) {
  BlockPool pool;
  EXPECT_FALSE(pool.TakeIdle(16).has_value());
  ASSERT_TRUE(pool.Take(2 * kBlockElements + 16).ok());
  const int64_t held = pool.held_bytes();
  EXPECT_FALSE(pool.TakeIdle(3 * kBlockElements).has_value());
  EXPECT_FALSE(pool.TakeIdle(2 * kBlockElements + 5000).has_value());
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.held_bytes(), held);

  const std::optional<BlockList> list = pool.TakeIdle(2 * kBlockElements + 16);
  ASSERT_TRUE(list.has_value());
  EXPECT_EQ(list->size(), 3u);
  EXPECT_EQ((*list)[2].size(), 16);
  EXPECT_EQ(pool.used_bytes(), held);
  EXPECT_TRUE(pool.TakeIdle(0)->empty());
}

TEST(BlockPoolTest, WhatLiesIdleStaysThereForOthersWhileMoreIsPopulated) {
  BlockPool pool;
  ASSERT_TRUE(pool.Take(2 * kBlockElements + 16).ok());
  std::vector<BlockList> others;
  const PopulateHook hook([&] {
    if (others.empty()) others.push_back(pool.TakeIdle(2 * kBlockElements + 16).value_or(BlockList()));
    return Populating::kDone;
  });
  const absl::StatusOr<BlockList> list = pool.Take(8 * kBlockElements + 16);
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(others.size(), 1u);
  EXPECT_EQ(others[0].size(), 3u);
  EXPECT_TRUE(std::all_of(list->begin(), list->end(), [](const BlockRef& block) { return block.unique(); }));
  EXPECT_EQ(pool.held_bytes(), pool.used_bytes()) << "as much as both have";
}

void ExpectZero(const BlockList& list) {
  for (const BlockRef& block : list) {
    EXPECT_EQ(std::count(block.data(), block.data() + block.size(), 0.0f), block.size());
  }
}

TEST(BlockPoolTest, ZeroedBlocksAreZeroHoweverTheyWereUsed) {
  BlockPool pool;
  for (const int64_t elements : {3 * kBlockElements + 48, 5 * kBlockElements + 32}) {
    const BlockList list = *pool.TakeZeroed(elements);
    ExpectZero(list);
    for (const BlockRef& block : list) std::fill_n(block.mutable_data(), block.size(), 1.0f);
  }
  // With memory that was taken away in between.
  std::vector<BlockList> used;
  for (int i = 0; i < 200; ++i) {
    used.push_back(*pool.Take(kBlockElements / 2));
    std::fill_n(used.back()[0].mutable_data(), kBlockElements / 2, 1.0f);
  }
  used.clear();
  for (int i = 0; i < 2; ++i) ExpectZero(*pool.TakeZeroed(kManyBlocks * kBlockElements));
  ExpectZero(*pool.TakeZeroed(kBlockElements / 2));
}

TEST(BlockPoolTest, FreshMemoryIsNotFilledWithTheZerosThatItHolds) {
  BlockPool pool;
  // So that what is populated afterwards is what somebody has touched.
  const PopulateHook hook([] { return Populating::kPretended; });
  const int64_t before = ResidentBytes();
  const BlockList list = *pool.TakeZeroed(20 * kBlockElements + 5008);
  EXPECT_EQ(ResidentBytes(), before);
  ExpectZero(list);
}

// What a small step takes: up to four full blocks, or three and a short one.
constexpr int64_t kSmallStepElements[] = {4 * kBlockElements, 3 * kBlockElements + 70 * 16, 80, kBlockElements - 16};

TEST(BlockPoolTest, WhatASmallStepNeedsIsTakenAndReturnedWithoutALockOrACallOfTheSystem) {
  BlockPool pool;
  for (const int64_t elements : kSmallStepElements) ASSERT_TRUE(pool.Take(elements).ok());
  EXPECT_GT(CallsOfThisThread().locks, 0) << "they would be seen";
  EXPECT_GT(CallsOfThisThread().mappings, 0);
  const CallCounts before = CallsOfThisThread();
  for (int round = 0; round < 10; ++round) {
    for (const int64_t elements : kSmallStepElements) {
      BlockList taken = *pool.Take(elements);
      taken = BlockList();
      EXPECT_TRUE(pool.TakeIdle(elements).has_value());
      EXPECT_TRUE(pool.TakeZeroed(elements).ok());
    }
  }
  EXPECT_EQ(CallsOfThisThread().locks, before.locks);
  EXPECT_EQ(CallsOfThisThread().mappings, before.mappings);
  EXPECT_EQ(CallsOfThisThread().advices, before.advices);
}

TEST(BlockPoolTest, SmallSetsOfAllSizesThatStepInTurnTakeNoMemoryAwayFromEachOther) {
  BlockPool pool;
  const auto step_each = [&] {
    for (int64_t elements = 1024; elements <= kBlockElements; elements += 1024) ASSERT_TRUE(pool.Take(elements).ok());
  };
  step_each();
  const CallCounts before = CallsOfThisThread();
  step_each();
  EXPECT_EQ(CallsOfThisThread().advices, before.advices);
}

uint64_t Seed() {
  const char* const given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  return seed;
}

// Sets of all sizes are created and deleted in waves, as an enemy would: those of about one size fill what may be
// charged, some or every second one goes, and others of another size take their place.
TEST(BlockPoolTest, InAnyOrderItHoldsNoMoreThanWasChargedAtOneTime) {
  constexpr int64_t kCapacity = int64_t{48} << 20;
  constexpr int kWaves = 40;
  std::mt19937_64 random(Seed());
  const auto choose = [&random](int64_t n) { return static_cast<int64_t>(random() % n); };
  BlockPool pool;
  struct Set {
    BlockList blocks;
    int64_t charge;
  };
  std::vector<Set> sets;
  int64_t charged = 0;
  int64_t peak = 0;
  for (int wave = 0; wave < kWaves; ++wave) {
    const int64_t largest = int64_t{16} << choose(17);  // up to 16 full blocks
    for (;;) {
      const int64_t elements = 16 * (1 + choose(largest / 16));
      const int64_t charge = BlockPool::ChargedBytes(elements);
      if (charged + charge > kCapacity) break;
      charged += charge;
      peak = std::max(peak, charged);
      sets.push_back({*(choose(2) == 0 ? pool.Take(elements) : pool.TakeZeroed(elements)), charge});
      for (const BlockRef& block : sets.back().blocks) std::fill_n(block.mutable_data(), block.size(), 1.0f);
      ASSERT_LE(pool.held_bytes(), peak + BlockPool::kIdleBytes);
      ASSERT_EQ(pool.used_bytes(), charged);
    }
    ASSERT_LE(ResidentBytes(), peak + BlockPool::kIdleBytes) << "wave " << wave;
    // All but each so manyth.
    const int64_t kept = 1 + choose(4);
    std::vector<Set> left;
    for (size_t i = 0; i < sets.size(); ++i) {
      if (i % (kept + 1) == 0) {
        left.push_back(std::move(sets[i]));
      } else {
        charged -= sets[i].charge;
      }
    }
    sets = std::move(left);
  }
  EXPECT_EQ(pool.held_bytes(), ResidentBytes()) << "it knows what it holds";
}

TEST(BlockRefTest, AnEmptyReferenceRefersToNothing) {
  const BlockRef none;
  EXPECT_FALSE(none);
  const BlockRef copy = none;  // NOLINT(performance-unnecessary-copy-initialization)
  EXPECT_FALSE(copy);
}

TEST(BlockRefTest, ABlockComesBackWithItsLastReference) {
  BlockPool pool;
  BlockRef first = (*pool.Take(kBlockElements))[0];
  EXPECT_TRUE(first.unique());
  BlockRef second = first;
  EXPECT_EQ(second.data(), first.data());
  EXPECT_FALSE(first.unique());
  first = BlockRef();
  EXPECT_TRUE(second.unique());
  EXPECT_EQ(pool.idle_blocks(), 0);
  second = BlockRef();
  EXPECT_EQ(pool.idle_blocks(), 1);
}

TEST(BlockRefTest, MovesDoNotCount) {
  BlockPool pool;
  BlockRef first = (*pool.Take(kBlockElements))[0];
  BlockRef second = std::move(first);
  EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): a moved reference is empty
  EXPECT_TRUE(second.unique());
  BlockRef& same = second;
  second = std::move(same);
  EXPECT_TRUE(second.unique());
  second = same;  // NOLINT(bugprone-use-after-move): a move to itself changes nothing
  EXPECT_TRUE(second.unique());
}

// For ThreadSanitizer as much as for the count: what the last holder finds, and what a taker of the same block does,
// happens after all that former holders did.
TEST(BlockRefTest, ThreadsShareAndReturnBlocks) {
  BlockPool pool;
  constexpr int kThreads = 4;
  constexpr int kRounds = 200;
  for (int round = 0; round < kRounds; ++round) {
    BlockRef block = (*pool.Take(kBlockElements))[0];
    block.mutable_data()[0] = static_cast<float>(round);
    std::vector<std::thread> readers;
    for (int t = 0; t < kThreads; ++t) {
      readers.emplace_back([copy = block, round]() mutable {
        EXPECT_EQ(copy.data()[0], static_cast<float>(round));
        copy = BlockRef();
      });
    }
    while (!block.unique()) std::this_thread::yield();
    block.mutable_data()[0] = -1;
    block = BlockRef();
    for (std::thread& reader : readers) reader.join();
  }
  EXPECT_EQ(pool.idle_blocks(), 1) << "one block served all rounds";
}

// Each block is one thread's, whatever the others do, and what is held stays within what is charged.
TEST(BlockPoolTest, ThreadsTakeAndReturn) {
  constexpr int kThreads = 4;
  constexpr int64_t kMost = 4 * kBlockElements;  // what one takes
  BlockPool pool;
  const uint64_t seed = Seed();
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&pool, seed, t] {
      std::mt19937_64 random(seed + t);
      for (int i = 0; i < 500; ++i) {
        const int64_t elements = 16 * (1 + static_cast<int64_t>(random() % ((int64_t{16} << random() % 15) / 16)));
        std::optional<BlockList> list = pool.TakeIdle(elements);
        if (!list.has_value()) list = *pool.TakeZeroed(elements);
        for (const BlockRef& block : *list) {
          block.mutable_data()[0] = static_cast<float>(t);
          block.mutable_data()[block.size() - 1] = static_cast<float>(t);
        }
        std::this_thread::yield();
        for (const BlockRef& block : *list) {
          ASSERT_EQ(block.data()[0], static_cast<float>(t));
          ASSERT_EQ(block.data()[block.size() - 1], static_cast<float>(t));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.held_bytes(), ResidentBytes());
  EXPECT_LE(pool.held_bytes(), kThreads * kMost * 4 + BlockPool::kIdleBytes);
}

bool IsResident(const void* address, size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  std::vector<unsigned char> resident((bytes + page - 1) / page);
  mincore(const_cast<void*>(address), bytes, resident.data());
  return std::all_of(resident.begin(), resident.end(), [](unsigned char one) { return (one & 1) != 0; });
}

// What is registered now, and whether more can be.
class FakeRegistrar final : public MemoryRegistrar {
 public:
  bool Register(void* address, size_t bytes) override {
    EXPECT_LE(bytes, size_t{64} << 20);
    EXPECT_TRUE(IsResident(address, bytes)) << "what has no memory cannot be registered";
    if (fails) return false;
    pieces[address] = bytes;
    return true;
  }
  void Unregister(void* address) override { EXPECT_EQ(pieces.erase(address), 1u); }

  std::map<void*, size_t> pieces;
  bool fails = false;
};

TEST(RegisteredBlockPoolTest, FullBlocksAreRegisteredInPiecesAndKeepTheirMemory) {
  FakeRegistrar registrar;
  {
    BlockPool pool([] {}, &registrar);
    constexpr int64_t kBlocks = 300;  // 75 MiB
    std::vector<const float*> blocks;
    {
      const BlockList list = *pool.Take(kBlocks * kBlockElements + 16);
      for (int64_t i = 0; i < kBlocks; ++i) blocks.push_back(list[i].data());
    }
    ASSERT_EQ(registrar.pieces.size(), 2u);
    {
      const BlockList list = *pool.Take(kBlocks * kBlockElements);
      int pieces = 1;
      for (int64_t i = 1; i < kBlocks; ++i) {
        EXPECT_EQ(list[i].data(), list[i - 1].data() + kBlockElements);
        pieces += list[i].Continues(list[i - 1]) ? 0 : 1;
        EXPECT_EQ(list[i].Continues(list[i - 1]), registrar.pieces.count(list[i].mutable_data()) == 0);
      }
      EXPECT_EQ(pieces, 2);
    }
    // Short ones in such a number that the pool would take the memory of the full ones, which lie idle.
    std::vector<BlockList> small;
    for (int i = 0; i < 300; ++i) small.push_back(*pool.Take(kBlockElements / 2));
    for (const float* const block : blocks) EXPECT_TRUE(IsResident(block, kBlockElements * sizeof(float)));
    EXPECT_EQ(registrar.pieces.size(), 2u);
    small.clear();
    EXPECT_EQ(pool.idle_blocks(), kBlocks);
  }
  EXPECT_TRUE(registrar.pieces.empty());
}

TEST(RegisteredBlockPoolTest, WhatStaysTakesNoMemoryAwayFromShortBlocks) {
  FakeRegistrar registrar;
  BlockPool pool([] {}, &registrar);
  { const BlockList full = *pool.Take(200 * kBlockElements); }
  // More than kIdleBytes of them, which come and go.
  std::vector<BlockList> half, third;
  for (int i = 0; i < 200; ++i) half.push_back(*pool.Take(kBlockElements / 2));
  half.clear();
  for (int i = 0; i < 10; ++i) third.push_back(*pool.Take(kBlockElements / 4));
  EXPECT_TRUE(pool.TakeIdle(kBlockElements / 2).has_value());
}

TEST(BlockPoolTest, IdleMemoryIsGivenUpWhenSomebodyElseNeedsIt) {
  FakeRegistrar registrar;
  BlockPool pool;
  BlockPool registered([] {}, &registrar);
  for (BlockPool* const one : {&pool, &registered}) {
    const BlockList used = *one->Take(16);
    { const BlockList idle = *one->Take(3 * kBlockElements + 16); }
    one->GiveUpIdle();
    EXPECT_EQ(one->idle_blocks(), one == &pool ? 0 : 3);
    EXPECT_EQ(one->held_bytes() - one->used_bytes(), one->idle_blocks() * 4 * kBlockElements);
    EXPECT_TRUE(one->Take(3 * kBlockElements + 16).ok());
  }
}

TEST(RegisteredBlockPoolTest, WhatCannotBeRegisteredServesAllTheSame) {
  FakeRegistrar registrar;
  registrar.fails = true;
  BlockPool pool([] {}, &registrar);
  { EXPECT_TRUE(pool.Take(2 * kBlockElements).ok()); }
  registrar.fails = false;
  const BlockList list = *pool.Take(4 * kBlockElements);
  EXPECT_EQ(list.size(), 4u);
  EXPECT_EQ(registrar.pieces.size(), 1u);
}

}  // namespace
}  // namespace adamant::core
