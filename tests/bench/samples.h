// What the benchmark makes of the times that it took, and how it prints them.
#ifndef ADAMANT_TESTS_BENCH_SAMPLES_H_
#define ADAMANT_TESTS_BENCH_SAMPLES_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace adamant::bench {

// Requires: not empty. Of an even number: the mean of the two in the middle.
double Median(std::vector<double> values);
double Min(const std::vector<double>& values);
double Max(const std::vector<double>& values);

// What a worker can measure. The first one that a worker measured is what its line of results is about.
enum class Part { kStep, kExchange, kTcp, kKernel, kDeviceStep, kHalfStep, kRowsStep, kDurableStep };
inline constexpr Part kParts[] = {Part::kStep,       Part::kExchange, Part::kTcp,      Part::kKernel,
                                  Part::kDeviceStep, Part::kHalfStep, Part::kRowsStep, Part::kDurableStep};

// Seconds of every counted round that one pair of fresh processes ran, interleaved, of what was measured.
using PairSamples = std::map<Part, std::vector<double>>;

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

  // What was measured beside, in the order of `kParts`: the median.
  std::vector<std::pair<Part, double>> beside = {};
  // One time against one or two others: over the pairs, the median and the spread of what each pair's own medians give.
  struct Ratio {
    std::string key;   // in JSON
    std::string text;  // such as "step / (exchange + kernel)"
    double median;
    double min;
    double max;
  };
  // All whose times were measured.
  std::vector<Ratio> ratios = {};
};

// `result.median_seconds` and the times beside it are medians of the pairs' medians. `result` has everything else.
// Requires: at least one pair; each has the same parts, at least one, all with rounds.
Result Summarize(const std::vector<PairSamples>& pairs, Result result);

// One JSON object on one line, without an end.
std::string JsonLine(const Result& result);

// The same for a reader: a line, and one for each ratio.
std::string Text(const Result& result);

// For a reader who compares results: a line for each, after one of titles. Requires: all have the same ratios.
std::string Table(const std::vector<Result>& results);

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_SAMPLES_H_
