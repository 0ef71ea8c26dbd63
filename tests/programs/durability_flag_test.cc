// What is kept of a set, as text, there and back.
#include "client/command_line/durability_flag.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace adamant {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

v1::Durability Parsed(const std::string& text) {
  const absl::StatusOr<v1::Durability> parsed = ParseDurability(text);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.value_or(v1::Durability());
}

TEST(DurabilityFlagTest, TextsMeanWhatTheySay) {
  EXPECT_TRUE(Parsed("nothing").has_nothing());
  ASSERT_TRUE(Parsed("every_step").has_every_step());
  EXPECT_EQ(Parsed("every_step").every_step().journal_steps(), 0);
  EXPECT_EQ(Parsed("every_step:64").every_step().journal_steps(), 64);
  const v1::Checkpoints both = Parsed("checkpoints:1000,5m").checkpoints();
  EXPECT_EQ(both.steps(), 1000);
  EXPECT_EQ(both.seconds(), 300);
  EXPECT_FALSE(Parsed("checkpoints:1000").checkpoints().has_seconds());
  EXPECT_FALSE(Parsed("checkpoints:1.5s").checkpoints().has_steps());
  EXPECT_EQ(Parsed("checkpoints:1.5s,7").checkpoints().seconds(), 1.5);
}

TEST(DurabilityFlagTest, EveryTextComesBack) {
  for (const char* text :
       {"nothing", "every_step", "every_step:64", "checkpoints:1000", "checkpoints:1m30s", "checkpoints:2,1.5s"}) {
    EXPECT_EQ(DurabilityText(Parsed(text)), text);
  }
  EXPECT_EQ(DurabilityText(v1::Durability()), "nothing");
}

TEST(DurabilityFlagTest, OtherTextsAreRefusedWithWhatIsExpected) {
  for (const std::string text : {"", "everything", "nothing:1", "every_step:", "every_step:0", "every_step:x",
                                 "every_step:3000000000", "checkpoints", "checkpoints:", "checkpoints:1,",
                                 "checkpoints:1,2", "checkpoints:1s,2s", "checkpoints:1,2s,3"}) {
    const absl::Status status = ParseDurability(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("expected nothing, every_step, every_step:STEPS, or "));
    EXPECT_THAT(std::string(status.message()), EndsWith("got " + text));
  }
}

}  // namespace
}  // namespace adamant
