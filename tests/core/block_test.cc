// Blocks and their references: where memory comes from, when it comes back, and who may write.
#include "server/core/block.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "proto/error/error.h"

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

TEST(BlockPoolTest, ShortBlocksDriveMemoryOutOfIdleOnes) {
  BlockPool pool;
  ASSERT_TRUE(pool.Take(4 * kBlockElements).ok());
  ASSERT_EQ(pool.idle_blocks(), 4);
  std::vector<BlockList> small;
  for (int i = 0; i < 2; ++i) small.push_back(*pool.Take(kBlockElements - 16));
  EXPECT_EQ(pool.idle_blocks(), 2);
  small.clear();
  // What came back makes room: nothing more is driven out.
  small.push_back(*pool.Take(kBlockElements - 16));
  EXPECT_EQ(pool.idle_blocks(), 2);

  const BlockList all = *pool.Take(4 * kBlockElements);
  EXPECT_EQ(pool.idle_blocks(), 0);
  for (const BlockRef& block : all) std::fill_n(block.mutable_data(), block.size(), 1.0f);
}

TEST(BlockPoolTest, TheAllocatorGivesBackWhatItKeepsBeforeMoreIsMapped) {
  int releases = 0;
  BlockPool pool([&releases] { ++releases; });
  ASSERT_TRUE(pool.Take(kBlockElements - 16).ok());
  EXPECT_EQ(releases, 0);
  ASSERT_TRUE(pool.Take(2 * kBlockElements).ok());
  EXPECT_EQ(releases, 1);
  // Those are idle now.
  ASSERT_TRUE(pool.Take(2 * kBlockElements).ok());
  EXPECT_EQ(releases, 1);
}

TEST(BlockPoolTest, WhatCannotBeHadTakesNothing) {
  BlockPool pool;
  ASSERT_TRUE(pool.Take(3 * kBlockElements).ok());
  ASSERT_EQ(pool.idle_blocks(), 3);
  // More than an address space.
  const absl::Status status = pool.Take(int64_t{1} << 53).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_EQ(pool.idle_blocks(), 3);
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

TEST(BlockPoolTest, ThreadsTakeAndReturn) {
  BlockPool pool;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 100; ++i) {
        const BlockList list = *pool.Take((1 + (i + t) % 5) * kBlockElements + 16 * t);
        for (const BlockRef& block : list) block.mutable_data()[i % 16] = static_cast<float>(t);
        for (const BlockRef& block : list) ASSERT_EQ(block.data()[i % 16], static_cast<float>(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(pool.idle_blocks(), 5);
  EXPECT_LE(pool.idle_blocks(), 20);
}

}  // namespace
}  // namespace adamant::core
