// What the benchmark makes of the times that it took, and how it prints them.
#ifndef ADAMANT_TESTS_BENCH_SAMPLES_H_
#define ADAMANT_TESTS_BENCH_SAMPLES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/optional.h"

namespace adamant::bench {

// Requires: not empty. Of an even number: the mean of the two in the middle.
double Median(std::vector<double> values);
double Min(const std::vector<double>& values);
double Max(const std::vector<double>& values);

// Seconds of every counted round that one pair of fresh processes ran, interleaved. What was not measured is empty.
struct PairSamples {
  std::vector<double> rounds = {};  // what the line is about
  std::vector<double> exchange = {};
  std::vector<double> kernel = {};
};

// A line of results.
struct Result {
  std::string name;
  int64_t params;
  std::string transport;
  std::string allocator;
  int pairs = 0;
  int steps = 0;  // rounds counted in each pair
  double median_seconds = 0;
  double min_seconds = 0;
  // With a comparison only.
  struct Comparison {
    double exchange_seconds;
    double kernel_seconds;
    // Median over the pairs of round / (exchange + kernel), each the pair's own median; and its spread.
    double ratio;
    double ratio_min;
    double ratio_max;
    // Likewise round / exchange.
    double exchange_ratio;
  };
  absl::optional<Comparison> comparison = {};
};

// `result.median_seconds` and the comparison's seconds are medians of the pairs' medians. `result` has everything else.
// Requires: at least one pair, each with rounds; exchange and kernel in all of them or in none.
Result Summarize(const std::vector<PairSamples>& pairs, Result result);

// One JSON object on one line, without an end.
std::string JsonLine(const Result& result);

// The same for a reader.
std::string TextLine(const Result& result);

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_SAMPLES_H_
