// Medians, ratios, and the two forms of a line of results.
#include "tests/bench/samples.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace adamant::bench {
namespace {

constexpr double kFloatBytes = 4;

// 1.234 ms
std::string Time(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.1f us", seconds * 1e6);
  return seconds < 1 ? absl::StrFormat("%.2f ms", seconds * 1e3) : absl::StrFormat("%.3f s", seconds);
}

}  // namespace

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

double Min(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }
double Max(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

Result Summarize(const std::vector<PairSamples>& pairs, Result result) {
  std::vector<double> medians, minima, exchanges, kernels, ratios, exchange_ratios;
  for (const PairSamples& pair : pairs) {
    medians.push_back(Median(pair.rounds));
    minima.push_back(Min(pair.rounds));
    if (pair.exchange.empty()) continue;
    exchanges.push_back(Median(pair.exchange));
    kernels.push_back(Median(pair.kernel));
    ratios.push_back(medians.back() / (exchanges.back() + kernels.back()));
    exchange_ratios.push_back(medians.back() / exchanges.back());
  }
  result.pairs = static_cast<int>(pairs.size());
  result.steps = static_cast<int>(pairs.front().rounds.size());
  result.median_seconds = Median(medians);
  result.min_seconds = Min(minima);
  if (!ratios.empty()) {
    result.comparison = {.exchange_seconds = Median(exchanges),
                         .kernel_seconds = Median(kernels),
                         .ratio = Median(ratios),
                         .ratio_min = Min(ratios),
                         .ratio_max = Max(ratios),
                         .exchange_ratio = Median(exchange_ratios)};
  }
  return result;
}

std::string JsonLine(const Result& result) {
  std::string line = absl::StrFormat(
      R"({"name":"%s","params":%d,"dtype":"float32","transport":"%s","allocator":"%s","pairs":%d,"steps":%d,)"
      R"("median_seconds":%.9g,"min_seconds":%.9g)",
      result.name, result.params, result.transport, result.allocator, result.pairs, result.steps, result.median_seconds,
      result.min_seconds);
  if (result.comparison) {
    absl::StrAppendFormat(&line,
                          R"(,"exchange_seconds":%.9g,"kernel_seconds":%.9g,"ratio":%.4f,"ratio_min":%.4f,)"
                          R"("ratio_max":%.4f,"exchange_ratio":%.4f)",
                          result.comparison->exchange_seconds, result.comparison->kernel_seconds,
                          result.comparison->ratio, result.comparison->ratio_min, result.comparison->ratio_max,
                          result.comparison->exchange_ratio);
  }
  return line + "}";
}

std::string TextLine(const Result& result) {
  std::string line =
      absl::StrFormat("%-8s %10d parameters, %s, %s: median %s, least %s, %.2f GB/s", result.name, result.params,
                      result.transport, result.allocator, Time(result.median_seconds), Time(result.min_seconds),
                      2 * kFloatBytes * result.params / result.median_seconds / 1e9);
  if (result.comparison) {
    absl::StrAppendFormat(&line, "; exchange %s, kernel %s; ratio %.3f (%.3f to %.3f in %d pairs), to exchange %.3f",
                          Time(result.comparison->exchange_seconds), Time(result.comparison->kernel_seconds),
                          result.comparison->ratio, result.comparison->ratio_min, result.comparison->ratio_max,
                          result.pairs, result.comparison->exchange_ratio);
  }
  return line;
}

}  // namespace adamant::bench
