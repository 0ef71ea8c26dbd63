// Who computes what, in which turn, and what has ended when `done` is called.
#include "server/core/base/compute_pool.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/gate.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;

TEST(ComputePoolTest, EveryItemIsWorkedOnOnceAndDoneFollowsAll) {
  for (const int threads : {1, 2, 5}) {
    ComputePool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    std::vector<std::atomic<int>> calls(1000);
    Gate done;
    std::atomic<int> returned{0};
    int returned_when_done = 0;
    pool.Run(
        1000,
        [&](int64_t i) {
          ++calls[i];
          ++returned;
        },
        [&] {
          returned_when_done = returned;
          done.Open();
        });
    done.Pass();
    EXPECT_EQ(returned_when_done, 1000);
    for (const std::atomic<int>& count : calls) ASSERT_EQ(count, 1);
  }
}

TEST(ComputePoolTest, JobsTakeTurnsItemByItem) {
  std::vector<std::string> order;
  {
    ComputePool pool(1);
    Gate start;
    pool.Run(
        1, [&](int64_t) { start.Pass(); }, [] {});
    for (const char* job : {"a", "b"}) {
      pool.Run(
          3, [&order, job](int64_t i) { order.push_back(absl::StrCat(job, i)); },
          [&order, job] { order.push_back(absl::StrCat(job, " done")); });
    }
    start.Open();
  }
  EXPECT_THAT(order, ElementsAre("a0", "b0", "a1", "b1", "a2", "a done", "b2", "b done"));
}

TEST(ComputePoolTest, AJobThatComesLaterTakesTheNextTurnButOne) {
  std::vector<std::string> order;
  {
    ComputePool pool(1);
    Gate running;
    Gate submitted;
    pool.Run(
        4,
        [&](int64_t i) {
          order.push_back(absl::StrCat("large", i));
          if (i > 0) return;
          running.Open();
          submitted.Pass();
        },
        [] {});
    running.Pass();
    pool.Run(
        1, [&](int64_t) { order.emplace_back("small"); }, [] {});
    submitted.Open();
  }
  EXPECT_THAT(order, ElementsAre("large0", "large1", "small", "large2", "large3"));
}

TEST(ComputePoolTest, SeveralThreadsWorkOnOneJobAtTheSameTime) {
  ComputePool pool(2);
  Gate gates[2];
  Gate done;
  // Each item waits for the other one to begin.
  pool.Run(
      2,
      [&](int64_t i) {
        gates[i].Open();
        gates[1 - i].Pass();
      },
      [&] { done.Open(); });
  done.Pass();
}

TEST(ComputePoolTest, WorkIsDestroyedBeforeDoneIsCalledAndDoneAfterwards) {
  const auto work_owns = std::make_shared<int>();
  const auto done_owns = std::make_shared<int>();
  int64_t work_count = 0;
  int64_t done_count = 0;
  {
    ComputePool pool(3);
    pool.Run(
        100, [owned = work_owns](int64_t) {},
        [&, owned = done_owns] {
          work_count = work_owns.use_count();
          done_count = done_owns.use_count();
        });
  }
  EXPECT_EQ(work_count, 1);
  EXPECT_EQ(done_count, 2);
  EXPECT_EQ(done_owns.use_count(), 1);
}

TEST(ComputePoolTest, ItsEndFinishesTheJobsThatItHasAndThoseThatTheyRun) {
  std::atomic<int> items{0};
  std::atomic<int> ends{0};
  {
    ComputePool pool(2);
    for (int job = 0; job < 10; ++job) {
      pool.Run(
          20, [&](int64_t) { ++items; },
          [&] {
            ++ends;
            pool.Run(
                20, [&](int64_t) { ++items; }, [&] { ++ends; });
          });
    }
  }
  EXPECT_EQ(items, 400);
  EXPECT_EQ(ends, 20);
}

// For ThreadSanitizer: what any item wrote, plainly, is seen by `done` and by whoever it tells.
TEST(ComputePoolTest, DoneSeesWhatWorkWrote) {
  ComputePool pool(4);
  for (int round = 0; round < 100; ++round) {
    std::vector<int64_t> squares(50);
    int64_t sum = 0;
    Gate done;
    pool.Run(
        50, [&squares](int64_t i) { squares[i] = i * i; },
        [&] {
          for (const int64_t square : squares) sum += square;
          done.Open();
        });
    done.Pass();
    ASSERT_EQ(sum, 40425);
  }
}

TEST(ComputePoolTest, ThreadsMaySubmitAtTheSameTime) {
  std::atomic<int> items{0};
  std::atomic<int> ends{0};
  {
    ComputePool pool(2);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int job = 1; job <= 50; ++job) {
          pool.Run(
              job, [&](int64_t) { ++items; }, [&] { ++ends; });
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(items, 4 * 1275);
  EXPECT_EQ(ends, 200);
}

}  // namespace
}  // namespace adamant::core
