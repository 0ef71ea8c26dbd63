// adamant-diloco against the real server: that it trains as well as workers that make every step together, and that
// workers come and go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/e2e/program_output.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kSet[] = "diloco/1";

std::unique_ptr<ChildProgram> Start(const char* program, const std::string& target, std::vector<std::string> flags) {
  flags.insert(flags.begin(), {program, absl::StrCat("--target=", target)});
  return std::make_unique<ChildProgram>(flags);
}

class DilocoTest : public testing::Test {
 protected:
  std::unique_ptr<ChildProgram> Diloco(const std::vector<std::string>& flags) {
    return Start(ADAMANT_DILOCO, server_.address(), flags);
  }
  // One worker of those that train `kSet`.
  std::unique_ptr<ChildProgram> Worker(int rank, std::vector<std::string> flags) {
    flags.insert(flags.end(), {absl::StrCat("--set=", kSet), absl::StrCat("--rank=", rank)});
    return Diloco(flags);
  }
  // All that a program prints, which ends well.
  static std::string OutputOf(ChildProgram& program) {
    EXPECT_EQ(program.Wait(), 0) << program.standard_error().AwaitEnd();
    return program.standard_output().AwaitEnd();
  }

  ServerProcess server_;
};

TEST_F(DilocoTest, ComesWithinTwoPercentOfSynchronousTrainingWithASixteenthOfTheTraffic) {
  for (int seed = 0; seed < (ADAMANT_SANITIZED ? 1 : 3); ++seed) {
    const std::string seed_flag = absl::StrCat("--seed=", seed);
    // Both see 30 times 4,096 samples, 64 at a time.
    const auto together = Start(ADAMANT_SANITY_TRAIN, server_.address(),
                                {"--synchronous", "--workers=4", "--layers=96,4,1", "--samples=4096", "--epochs=30",
                                 "--batch=64", "--lr=0.02", "--schedule=linear", "--timeout=60s", seed_flag});
    // The last pass over the samples, in which the learning rate comes to zero: 0.3 % more than after it.
    const double synchronous = Losses(OutputOf(*together)).back();
    EXPECT_THAT(together->standard_error().AwaitEnd(), HasSubstr("1920 steps in "));

    const auto apart = Diloco({"--workers=4", "--quorum=4", "--layers=96,4,1", "--samples=4096", "--steps=120",
                               "--local_steps=16", "--batch=16", "--lr=0.02", "--round_timeout=60s", seed_flag});
    const double diloco = Losses(OutputOf(*apart)).back();
    EXPECT_THAT(apart->standard_error().AwaitEnd(), HasSubstr("480 contributions of 16 local steps, 0 of them late"));

    std::cout << "seed " << seed << ": together " << synchronous << ", apart " << diloco << "\n";
    EXPECT_LE(diloco, 1.02 * synchronous);
  }
}

TEST_F(DilocoTest, RunHasTheSameBitsEveryTimeAndLeavesNothingBehind) {
  TestClient client(server_.address());
  const std::map<std::string, int64_t> before = client.UsedBudgets();
  const std::vector<std::string> flags = {"--steps=8", "--quorum=4", "--round_timeout=60s"};
  const std::string first = OutputOf(*Diloco(flags));
  EXPECT_THAT(Lines(first), SizeIs(8));
  EXPECT_EQ(OutputOf(*Diloco(flags)), first);
  EXPECT_TRUE(client.ReturnsTo(before));
}

TEST_F(DilocoTest, WorkersOfTheirOwnThatBeginAtOnceDoWhatThreadsDo) {
  const std::vector<std::string> flags = {"--steps=8", "--quorum=4", "--round_timeout=60s"};
  const std::string threads = OutputOf(*Diloco(flags));
  std::vector<std::unique_ptr<ChildProgram>> workers;
  for (int rank = 0; rank < 4; ++rank) workers.push_back(Worker(rank, flags));
  for (const auto& worker : workers) EXPECT_EQ(OutputOf(*worker), threads);
}

TEST_F(DilocoTest, WorkerThatIsKilledAndOneThatJoinsLateChangeNothingForTheOthers) {
  const std::vector<std::string> all = {"--layers=32,4,1", "--samples=2048", "--steps=40"};
  const double undisturbed = Losses(OutputOf(*Diloco(all))).back();

  std::vector<std::string> flags = all;
  // As one of them is missing all of the time, each step takes this.
  flags.insert(flags.end(), {"--quorum=1", "--round_timeout=200ms"});
  const auto first = Worker(0, flags);
  const auto killed = Worker(1, flags);
  const auto other = Worker(3, flags);
  EXPECT_TRUE(first->standard_output().AwaitLine("of 3 workers").has_value());
  killed->Signal(SIGKILL);
  EXPECT_EQ(killed->Wait(), 128 + SIGKILL);
  EXPECT_TRUE(first->standard_output().AwaitLine("of 2 workers").has_value());
  const auto late = Worker(2, flags);
  EXPECT_TRUE(first->standard_output().AwaitLine("of 3 workers").has_value());

  const std::vector<double> losses = Losses(OutputOf(*first));
  const double loss = losses.back();
  EXPECT_EQ(Losses(OutputOf(*other)).back(), loss);
  EXPECT_EQ(Losses(OutputOf(*late)).back(), loss);
  std::cout << "undisturbed " << undisturbed << ", disturbed " << loss << "\n";
  EXPECT_LE(loss, 1.05 * undisturbed);
}

TEST_F(DilocoTest, ContributionOfAWorkerThatIsKilledAndStartedAgainCountsOnce) {
  const std::vector<std::string> flags = {"--workers=2", "--quorum=2", "--round_timeout=60s", "--steps=1"};
  const std::string undisturbed = OutputOf(*Diloco(flags));

  const auto killed = Worker(0, flags);
  TestClient client(server_.address());
  ASSERT_TRUE(TestClient::Until([&] {
    const auto result = client.GetStepResult(kSet, "round-1-rank-0");
    return result.ok() && result->state() == v1::STEP_STATE_ACCUMULATED;
  }));
  killed->Signal(SIGKILL);
  killed->Wait();
  const auto again = Worker(0, flags);
  const auto other = Worker(1, flags);

  EXPECT_EQ(OutputOf(*other), undisturbed);
  // It sends its contribution again and waits with the other, or comes after both, and finds the step made.
  EXPECT_THAT(OutputOf(*again), AnyOf(undisturbed, IsEmpty()));
}

TEST_F(DilocoTest, NamedSetStaysAndIsTrainedFurther) {
  const std::vector<std::string> flags = {"--quorum=4", "--round_timeout=60s", absl::StrCat("--set=", kSet)};
  std::vector<std::string> half = flags;
  half.emplace_back("--steps=2");
  EXPECT_THAT(Losses(OutputOf(*Diloco(half))), SizeIs(2));
  std::vector<std::string> whole = flags;
  whole.emplace_back("--steps=4");
  EXPECT_THAT(Lines(OutputOf(*Diloco(whole))), ElementsAre(HasSubstr("Step 003"), HasSubstr("Step 004")));
}

TEST_F(DilocoTest, InterruptedRunDeletesItsSet) {
  TestClient client(server_.address());
  const std::map<std::string, int64_t> before = client.UsedBudgets();
  const auto run = Diloco({"--steps=1000000000", "--round_timeout=1s"});
  ASSERT_TRUE(TestClient::Until([&] { return client.UsedBudgets() != before; }));
  run->Signal(SIGINT);
  EXPECT_EQ(run->Wait(), 1);
  EXPECT_THAT(run->standard_error().AwaitEnd(), HasSubstr("interrupted"));
  EXPECT_TRUE(client.ReturnsTo(before));
}

class DilocoFlagTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Each, DilocoFlagTest,
                         testing::Values("--workers=0", "--workers=65", "--quorum=5", "--rank=1", "--rank=-1",
                                         "--round_timeout=0", "--samples=3", "--steps=0", "--local_steps=0",
                                         "--batch=0", "--lr=-1", "--timeout=0", "stray"));

TEST_P(DilocoFlagTest, IsAnErrorAndExitCodeOne) {
  const auto run = Start(ADAMANT_DILOCO, "127.0.0.1:1", {GetParam()});
  EXPECT_EQ(run->Wait(), 1);
  const std::string error = run->standard_error().AwaitEnd();
  EXPECT_THAT(Lines(error), SizeIs(1)) << error;
  EXPECT_THAT(run->standard_output().AwaitEnd(), IsEmpty());
}

}  // namespace
}  // namespace adamant::e2e
