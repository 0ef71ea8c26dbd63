// Medians, ratios, and the forms of results.
#include "tests/bench/samples.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace adamant::bench {
namespace {

constexpr double kFloatBytes = 4;

const char* Name(Part part) {
  switch (part) {
    case Part::kStep:
      return "step";
    case Part::kExchange:
      return "exchange";
    case Part::kTcp:
      return "tcp";
    case Part::kKernel:
      return "kernel";
    case Part::kDeviceStep:
      return "device_step";
    case Part::kHalfStep:
      return "half_step";
    case Part::kRowsStep:
      return "rows_step";
    case Part::kDurableStep:
      return "durable_step";
  }
  return "";
}

// What is said of `over`, where all of it was measured.
struct Quotient {
  const char* key;
  Part over;
  std::vector<Part> under;

  std::string Text() const {
    const std::string sum =
        absl::StrJoin(under, " + ", [](std::string* out, Part part) { absl::StrAppend(out, Name(part)); });
    return under.size() == 1 ? absl::StrCat(Name(over), " / ", sum) : absl::StrCat(Name(over), " / (", sum, ")");
  }
};

const std::vector<Quotient>& Quotients() {
  static const auto& quotients =
      *new std::vector<Quotient>{{"ratio", Part::kStep, {Part::kExchange, Part::kKernel}},
                                 {"exchange_ratio", Part::kStep, {Part::kExchange}},
                                 {"tcp_ratio", Part::kStep, {Part::kTcp}},
                                 {"tcp_kernel_ratio", Part::kStep, {Part::kTcp, Part::kKernel}},
                                 {"exchange_tcp_ratio", Part::kExchange, {Part::kTcp}},
                                 {"device_ratio", Part::kDeviceStep, {Part::kStep}},
                                 {"half_speedup", Part::kStep, {Part::kHalfStep}},
                                 {"rows_slowdown", Part::kRowsStep, {Part::kStep}},
                                 {"durable_slowdown", Part::kDurableStep, {Part::kStep}}};
  return quotients;
}

// 1.234 ms
std::string Time(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.1f us", seconds * 1e6);
  return seconds < 1 ? absl::StrFormat("%.2f ms", seconds * 1e3) : absl::StrFormat("%.3f s", seconds);
}

std::string Spread(const Result::Ratio& ratio) {
  return absl::StrFormat("%.3f (%.3f to %.3f)", ratio.median, ratio.min, ratio.max);
}

}  // namespace

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

double Min(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }
double Max(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

Result Summarize(const std::vector<PairSamples>& pairs, Result result) {
  std::map<Part, std::vector<double>> medians;
  for (const PairSamples& pair : pairs) {
    for (const auto& [part, rounds] : pair) medians[part].push_back(Median(rounds));
  }
  const Part subject = medians.begin()->first;
  std::vector<double> minima;
  for (const PairSamples& pair : pairs) minima.push_back(Min(pair.at(subject)));

  result.pairs = static_cast<int>(pairs.size());
  result.steps = static_cast<int>(pairs.front().at(subject).size());
  result.median_seconds = Median(medians.at(subject));
  result.min_seconds = Min(minima);
  for (const auto& [part, seconds] : medians) {
    if (part != subject) result.beside.emplace_back(part, Median(seconds));
  }
  for (const Quotient& quotient : Quotients()) {
    const auto measured = [&](Part part) { return medians.count(part) > 0; };
    if (!measured(quotient.over) || !std::all_of(quotient.under.begin(), quotient.under.end(), measured)) continue;
    std::vector<double> ratios;
    for (size_t pair = 0; pair < pairs.size(); ++pair) {
      double under = 0;
      for (const Part part : quotient.under) under += medians.at(part)[pair];
      ratios.push_back(medians.at(quotient.over)[pair] / under);
    }
    result.ratios.push_back({.key = quotient.key,
                             .text = quotient.Text(),
                             .median = Median(ratios),
                             .min = Min(ratios),
                             .max = Max(ratios)});
  }
  return result;
}

std::string JsonLine(const Result& result) {
  std::string line = absl::StrFormat(
      R"({"name":"%s","params":%d,"dtype":"float32","transport":"%s","allocator":"%s","pairs":%d,"steps":%d,)"
      R"("median_seconds":%.9g,"min_seconds":%.9g)",
      result.name, result.params, result.transport, result.allocator, result.pairs, result.steps, result.median_seconds,
      result.min_seconds);
  for (const auto& [part, seconds] : result.beside) {
    absl::StrAppendFormat(&line, R"(,"%s_seconds":%.9g)", Name(part), seconds);
  }
  for (const Result::Ratio& ratio : result.ratios) {
    absl::StrAppendFormat(&line, R"(,"%1$s":%2$.4f,"%1$s_min":%3$.4f,"%1$s_max":%4$.4f)", ratio.key, ratio.median,
                          ratio.min, ratio.max);
  }
  return line + "}";
}

std::string Text(const Result& result) {
  std::string text =
      absl::StrFormat("%-8s %10d parameters, %s, %s: median %s, least %s, %.2f GB/s", result.name, result.params,
                      result.transport, result.allocator, Time(result.median_seconds), Time(result.min_seconds),
                      2 * kFloatBytes * result.params / result.median_seconds / 1e9);
  const char* separator = "; ";
  for (const auto& [part, seconds] : result.beside) {
    absl::StrAppend(&text, std::exchange(separator, ", "), Name(part), " ", Time(seconds));
  }
  for (const Result::Ratio& ratio : result.ratios) {
    absl::StrAppendFormat(&text, "\n  %-28s %s in %d pairs", ratio.text, Spread(ratio), result.pairs);
  }
  return text;
}

std::string Table(const std::vector<Result>& results) {
  std::string table;
  const auto append = [&](absl::string_view name, absl::string_view median) {
    absl::StrAppendFormat(&table, "%-26s %10s", name, median);
  };
  append("", "median");
  for (const auto& [part, seconds] : results.front().beside) absl::StrAppendFormat(&table, " %10s", Name(part));
  for (const Result::Ratio& ratio : results.front().ratios) absl::StrAppend(&table, "  ", ratio.text);
  for (const Result& result : results) {
    absl::StrAppend(&table, "\n");
    append(result.name, Time(result.median_seconds));
    for (const auto& [part, seconds] : result.beside) absl::StrAppendFormat(&table, " %10s", Time(seconds));
    for (const Result::Ratio& ratio : result.ratios) absl::StrAppend(&table, "  ", Spread(ratio));
  }
  return table;
}

}  // namespace adamant::bench
