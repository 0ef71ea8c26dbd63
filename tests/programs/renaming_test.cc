#include "client/programs/cli/renaming.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace adamant::programs::cli {
namespace {

using ::testing::HasSubstr;

Renaming Rules(const std::vector<std::string>& rules) {
  absl::StatusOr<Renaming> renaming = Renaming::Parse(rules);
  EXPECT_TRUE(renaming.ok()) << renaming.status();
  return renaming.ok() ? *std::move(renaming) : Renaming();
}

TEST(RenamingTest, NamesAndPatternsAndTheFirstThatFitsDecides) {
  const Renaming renaming = Rules({"a=b", "model.*=*", "*.weight=w.*", "layers.*.bias=blocks.*.b=0", "a=c"});
  EXPECT_EQ(renaming.Apply("a"), "b");
  EXPECT_EQ(renaming.Apply("aa"), "aa");
  EXPECT_EQ(renaming.Apply("model.x.weight"), "x.weight");
  EXPECT_EQ(renaming.Apply("x.weight"), "w.x");
  EXPECT_EQ(renaming.Apply("layers.0.bias"), "blocks.0.b=0");
  EXPECT_EQ(renaming.Apply("layers.bias"), "layers.bias");
  EXPECT_EQ(Rules({"*=model.*"}).Apply("x"), "model.x");
  EXPECT_EQ(Renaming().Apply("x"), "x");
}

TEST(RenamingTest, RulesOfAnotherFormAreRefused) {
  for (const std::string rule : {"", "=", "a", "a=", "=b", "a*=b", "a=b*", "*a*=*", "*a*=*b*"}) {
    EXPECT_THAT(Renaming::Parse({rule}).status().message(), HasSubstr("got '" + rule + "'")) << rule;
  }
}

TEST(RenamingTest, RulesAreForSomethingAndKeepTensorsApart) {
  EXPECT_TRUE(Rules({"a.*=*", "c=d"}).Check({"a.x", "b", "c"}).ok());
  EXPECT_TRUE(Rules({"a=b", "b=a"}).Check({"a", "b"}).ok());
  EXPECT_THAT(Rules({"a=b", "z*=*"}).Check({"a", "c"}).message(), HasSubstr("'z*=*' is for no tensor"));
  EXPECT_THAT(Rules({"a=b"}).Check({"a", "b"}).message(), HasSubstr("'a' and 'b' would both be 'b'"));
}

}  // namespace
}  // namespace adamant::programs::cli
