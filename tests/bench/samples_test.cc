// The benchmark's statistics and its lines of results, read back by another JSON parser.
#include "tests/bench/samples.h"

#include <gmock/gmock.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::Pair;

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

MATCHER_P4(IsRatio, text, median, min, max, "") {
  return arg.text == text && arg.median == median && arg.min == min && arg.max == max;
}

TEST(SummarizeTest, TakesTheMedianOfThePairsRatiosNotTheRatioOfMedians) {
  // Ratios 2, 1 and 1.5; medians over all: 4 / (2 + 1).
  const std::vector<PairSamples> pairs = {
      {{Part::kStep, {4, 4, 40}}, {Part::kExchange, {1, 1, 1}}, {Part::kTcp, {1, 1, 5}}, {Part::kKernel, {1, 1, 9}}},
      {{Part::kStep, {6, 6, 6}}, {Part::kExchange, {4, 4, 4}}, {Part::kTcp, {2, 2, 2}}, {Part::kKernel, {2, 2, 2}}},
      {{Part::kStep, {4.5, 4, 5}}, {Part::kExchange, {2, 2, 2}}, {Part::kTcp, {1, 1, 1}}, {Part::kKernel, {1, 1, 1}}}};

  const Result result = Summarize(pairs, kStep);

  EXPECT_EQ(result.pairs, 3);
  EXPECT_EQ(result.steps, 3);
  EXPECT_EQ(result.median_seconds, 4.5);
  EXPECT_EQ(result.min_seconds, 4);
  EXPECT_THAT(result.beside, ElementsAre(Pair(Part::kExchange, 2), Pair(Part::kTcp, 1), Pair(Part::kKernel, 1)));
  EXPECT_THAT(result.ratios,
              ElementsAre(IsRatio("step / (exchange + kernel)", 1.5, 1, 2), IsRatio("step / exchange", 2.25, 1.5, 4),
                          IsRatio("step / tcp", 4, 3, 4.5), IsRatio("step / (tcp + kernel)", 2, 1.5, 2.25),
                          IsRatio("exchange / tcp", 2, 1, 2)));
}

TEST(SummarizeTest, IsAboutTheExchangeWhereNoStepWasMeasured) {
  const Result result = Summarize({{{Part::kExchange, {3, 1, 2}}, {Part::kTcp, {1}}}}, kStep);

  EXPECT_EQ(result.median_seconds, 2);
  EXPECT_EQ(result.min_seconds, 1);
  EXPECT_THAT(result.beside, ElementsAre(Pair(Part::kTcp, 1)));
  EXPECT_THAT(result.ratios, ElementsAre(IsRatio("exchange / tcp", 2, 2, 2)));
}

TEST(SummarizeTest, ComparesWithNothingWhereNothingElseWasMeasured) {
  const Result result = Summarize({{{Part::kTcp, {1}}}}, kStep);

  EXPECT_EQ(result.median_seconds, 1);
  EXPECT_THAT(result.beside, IsEmpty());
  EXPECT_THAT(result.ratios, IsEmpty());
}

const PairSamples kCompared = {{Part::kStep, {3}}, {Part::kExchange, {1.5}}, {Part::kTcp, {1}}, {Part::kKernel, {0.5}}};

TEST(JsonLineTest, IsOneObjectOnOneLine) {
  const Result result = Summarize({{{Part::kStep, {2e-5, 3e-5, 4e-5}}}}, kStep);

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
  const auto fields = Parse(JsonLine(Summarize({kCompared}, kStep))).fields();

  EXPECT_EQ(fields.at("exchange_seconds").number_value(), 1.5);
  EXPECT_EQ(fields.at("tcp_seconds").number_value(), 1);
  EXPECT_EQ(fields.at("kernel_seconds").number_value(), 0.5);
  const std::pair<const char*, double> ratios[] = {
      {"ratio", 1.5}, {"exchange_ratio", 2}, {"tcp_ratio", 3}, {"tcp_kernel_ratio", 2}, {"exchange_tcp_ratio", 1.5}};
  for (const auto& [key, value] : ratios) {
    for (const char* suffix : {"", "_min", "_max"}) {
      EXPECT_EQ(fields.at(absl::StrCat(key, suffix)).number_value(), value) << key << suffix;
    }
  }
}

TEST(TextTest, IsALineAndOneForEachRatio) {
  EXPECT_EQ(Text(Summarize({kCompared}, kStep)),
            "step             65 parameters, tcp, glibc: median 3.000 s, least 3.000 s, 0.00 GB/s; exchange 1.500 s, "
            "tcp 1.000 s, kernel 500.00 ms\n"
            "  step / (exchange + kernel)   1.500 (1.500 to 1.500) in 1 pairs\n"
            "  step / exchange              2.000 (2.000 to 2.000) in 1 pairs\n"
            "  step / tcp                   3.000 (3.000 to 3.000) in 1 pairs\n"
            "  step / (tcp + kernel)        2.000 (2.000 to 2.000) in 1 pairs\n"
            "  exchange / tcp               1.500 (1.500 to 1.500) in 1 pairs");
}

TEST(TableTest, HasTitlesAndALineForEachResult) {
  Result probing = kStep;
  probing.name = "probe on";
  const Result first = Summarize({{{Part::kExchange, {3}}, {Part::kTcp, {2}}}}, kStep);
  const Result second = Summarize({{{Part::kExchange, {5}}, {Part::kTcp, {2}}}}, probing);

  EXPECT_EQ(Table({first, second}),
            "                               median        tcp  exchange / tcp\n"
            "step                          3.000 s    2.000 s  1.500 (1.500 to 1.500)\n"
            "probe on                      5.000 s    2.000 s  2.500 (2.500 to 2.500)");
}

}  // namespace
}  // namespace adamant::bench
