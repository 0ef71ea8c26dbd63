// The benchmark's statistics and its lines of results, read back by another JSON parser.
#include "tests/bench/samples.h"

#include <gmock/gmock.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

namespace adamant::bench {
namespace {

using testing::HasSubstr;
using testing::Not;

google::protobuf::Struct Parse(const std::string& line) {
  google::protobuf::Struct object;
  const auto status = google::protobuf::util::JsonStringToMessage(line, &object);
  EXPECT_TRUE(status.ok()) << status.ToString() << "\n" << line;
  return object;
}

const Result kStep = {.name = "step", .params = 65, .transport = "tcp", .allocator = "glibc"};

TEST(MedianTest, IsTheMiddleOfSortedValues) {
  EXPECT_EQ(Median({7}), 7);
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 3, 2}), 2.5);
}

TEST(SummarizeTest, TakesTheMedianOfThePairsRatiosNotTheRatioOfMedians) {
  // Ratios 2, 1 and 1.5; medians over all: 4 / (2 + 1).
  const std::vector<PairSamples> pairs = {{.rounds = {4, 4, 40}, .exchange = {1, 1, 1}, .kernel = {1, 1, 9}},
                                          {.rounds = {6, 6, 6}, .exchange = {4, 4, 4}, .kernel = {2, 2, 2}},
                                          {.rounds = {4.5, 4, 5}, .exchange = {2, 2, 2}, .kernel = {1, 1, 1}}};

  const Result result = Summarize(pairs, kStep);

  EXPECT_EQ(result.pairs, 3);
  EXPECT_EQ(result.steps, 3);
  EXPECT_EQ(result.median_seconds, 4.5);
  EXPECT_EQ(result.min_seconds, 4);
  ASSERT_TRUE(result.comparison);
  EXPECT_EQ(result.comparison->exchange_seconds, 2);
  EXPECT_EQ(result.comparison->kernel_seconds, 1);
  EXPECT_EQ(result.comparison->ratio, 1.5);
  EXPECT_EQ(result.comparison->ratio_min, 1);
  EXPECT_EQ(result.comparison->ratio_max, 2);
  EXPECT_EQ(result.comparison->exchange_ratio, 2.25);
}

TEST(SummarizeTest, ComparesWithNothingWhereNothingElseWasMeasured) {
  EXPECT_FALSE(Summarize({{.rounds = {1}}}, kStep).comparison);
}

TEST(JsonLineTest, IsOneObjectOnOneLine) {
  const Result result = Summarize({{.rounds = {2e-5, 3e-5, 4e-5}}}, kStep);

  const std::string line = JsonLine(result);

  EXPECT_THAT(line, Not(HasSubstr("\n")));
  const auto fields = Parse(line).fields();
  EXPECT_EQ(fields.at("name").string_value(), "step");
  EXPECT_EQ(fields.at("params").number_value(), 65);
  EXPECT_EQ(fields.at("dtype").string_value(), "float32");
  EXPECT_EQ(fields.at("transport").string_value(), "tcp");
  EXPECT_EQ(fields.at("allocator").string_value(), "glibc");
  EXPECT_EQ(fields.at("median_seconds").number_value(), 3e-5);
  EXPECT_EQ(fields.at("min_seconds").number_value(), 2e-5);
  EXPECT_EQ(fields.count("ratio"), 0);
}

TEST(JsonLineTest, HasTheComparisonBeside) {
  const Result result = Summarize({{.rounds = {3}, .exchange = {1.5}, .kernel = {0.5}}}, kStep);

  const auto fields = Parse(JsonLine(result)).fields();

  EXPECT_EQ(fields.at("exchange_seconds").number_value(), 1.5);
  EXPECT_EQ(fields.at("kernel_seconds").number_value(), 0.5);
  EXPECT_EQ(fields.at("ratio").number_value(), 1.5);
  EXPECT_EQ(fields.at("ratio_min").number_value(), 1.5);
  EXPECT_EQ(fields.at("ratio_max").number_value(), 1.5);
  EXPECT_EQ(fields.at("exchange_ratio").number_value(), 2);
}

TEST(TextLineTest, SaysTheRatioAndItsSpread) {
  const Result result = Summarize({{.rounds = {3}, .exchange = {1.5}, .kernel = {0.5}}}, kStep);

  EXPECT_THAT(TextLine(result), HasSubstr("median 3.000 s"));
  EXPECT_THAT(TextLine(result), HasSubstr("ratio 1.500 (1.500 to 1.500 in 1 pairs)"));
}

}  // namespace
}  // namespace adamant::bench
