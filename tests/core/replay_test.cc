// What is remembered of requests, for how long, and what makes two attempts the same request.
#include "server/core/replay.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace adamant::core {
namespace {

ReplayMemory::Entry Entry(const std::string& request_id, int64_t step) {
  ReplayMemory::Entry entry{.request_id = request_id, .header_hash = 7, .result = {}};
  entry.result.set_step(step);
  return entry;
}

TEST(ReplayMemoryTest, FindsWhatWasRemembered) {
  ReplayMemory memory;
  memory.Remember(Entry("a", 1));
  memory.Remember(Entry("b", 2));
  const ReplayMemory::Entry* found = memory.Find("b");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->request_id, "b");
  EXPECT_EQ(found->header_hash, 7u);
  EXPECT_EQ(found->result.step(), 2);
  EXPECT_EQ(memory.Find("c"), nullptr);
}

TEST(ReplayMemoryTest, TheLast64StepsAreRemembered) {
  ReplayMemory memory;
  for (int64_t step = 1; step <= kRememberedSteps + 1; ++step) memory.Remember(Entry(absl::StrCat("id", step), step));
  EXPECT_EQ(memory.Find("id1"), nullptr);
  for (int64_t step = 2; step <= kRememberedSteps + 1; ++step) {
    ASSERT_NE(memory.Find(absl::StrCat("id", step)), nullptr) << step;
  }
}

TEST(ReplayMemoryTest, AStepWithoutARequestIdTakesAPlaceAndIsNeverFound) {
  ReplayMemory memory;
  memory.Remember(Entry("a", 1));
  for (int64_t step = 2; step <= kRememberedSteps; ++step) memory.Remember(Entry("", step));
  EXPECT_EQ(memory.Find(""), nullptr);
  EXPECT_NE(memory.Find("a"), nullptr);
  memory.Remember(Entry("", kRememberedSteps + 1));
  EXPECT_EQ(memory.Find("a"), nullptr);
}

TEST(ReplayMemoryTest, ClearForgetsEverything) {
  ReplayMemory memory;
  memory.Remember(Entry("a", 1));
  memory.Clear();
  EXPECT_EQ(memory.Find("a"), nullptr);
}

v1::StepHeader Header() {
  v1::StepHeader header;
  header.set_set("models/a");
  header.set_incarnation(3);
  header.set_request_id("request");
  header.set_expected_step(0);
  return header;
}

TEST(HashHeaderTest, TheAttemptDoesNotCount) {
  v1::StepHeader second = Header();
  second.set_attempt(2);
  EXPECT_EQ(HashHeader(second), HashHeader(Header()));
}

TEST(HashHeaderTest, EveryOtherFieldCountsAndSoDoesItsPresence) {
  v1::StepHeader other = Header();
  other.set_set("models/b");
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.clear_incarnation();
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.set_schema_fingerprint(0);
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.set_request_id("other");
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.clear_expected_step();
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
}

}  // namespace
}  // namespace adamant::core
