// Programs that are started, listened to and ended.
#include "tests/bench/child_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "absl/strings/numbers.h"

namespace adamant::bench {
namespace {

std::unique_ptr<ChildProcess> StartShell(const std::string& script) {
  return *ChildProcess::Start({"/bin/sh", "-c", script}, {{"ADAMANT_BENCH_TEST", "from outside"}});
}

TEST(ChildProcessTest, IsReadLineByLine) {
  const std::unique_ptr<ChildProcess> process = StartShell("echo first; echo; printf last");

  EXPECT_EQ(*process->ReadLine(), "first");
  EXPECT_EQ(*process->ReadLine(), "");
  EXPECT_EQ(*process->ReadLine(), "last");
  EXPECT_TRUE(absl::IsOutOfRange(process->ReadLine().status()));
}

TEST(ChildProcessTest, SeesItsEnvironmentAndOurs) {
  const std::unique_ptr<ChildProcess> process = StartShell("echo $ADAMANT_BENCH_TEST; echo ${PATH:+path}");

  EXPECT_EQ(*process->ReadLine(), "from outside");
  EXPECT_EQ(*process->ReadLine(), "path");
}

TEST(ChildProcessTest, EndsItsOutputWhereTheProgramCannotBeRun) {
  const auto process = ChildProcess::Start({"/no/such/program"}, {});

  ASSERT_TRUE(process.ok());
  EXPECT_TRUE(absl::IsOutOfRange((*process)->ReadLine().status()));
}

TEST(ChildProcessTest, IsGoneWithItsObject) {
  std::unique_ptr<ChildProcess> process = StartShell("echo $$; exec sleep 1000");
  int pid = 0;
  ASSERT_TRUE(absl::SimpleAtoi(*process->ReadLine(), &pid));

  process.reset();

  EXPECT_EQ(kill(pid, 0), -1);
}

}  // namespace
}  // namespace adamant::bench
