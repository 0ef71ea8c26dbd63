// Pictures of what was recorded: of a watch, or of a benchmark.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/programs/cli/shell.h"
#include "client/programs/cli/svg_plot.h"

namespace adamant::programs::cli {
namespace {

using nlohmann::json;

// A number as protobuf's JSON has it: those of 64 bits, and those that are not finite, are strings.
std::optional<double> Number(const json& object, const char* key) {
  if (!object.is_object()) return std::nullopt;
  const auto found = object.find(key);
  if (found == object.end()) return std::nullopt;
  if (found->is_number()) return found->get<double>();
  double number;
  if (found->is_string() && absl::SimpleAtod(found->get_ref<const std::string&>(), &number)) return number;
  return std::nullopt;
}

// What a watch has seen, step by step.
struct Record {
  std::string set;
  std::vector<std::string> groups;
  std::vector<std::pair<double, double>> grad_norms;
  std::vector<std::vector<std::pair<double, double>>> learning_rates;  // by group
  std::vector<double> skipped;
  int64_t missed = 0;
};

void TakeEvent(const json& event, Record* record) {
  const std::optional<double> step = Number(event, "step");
  if (!step.has_value()) return;
  record->missed += static_cast<int64_t>(Number(event, "missed").value_or(0));
  for (const char* kind : {"current", "config_changed"}) {
    const auto set = event.find(kind);
    if (set == event.end() || !set->is_object()) continue;
    record->set = set->value("name", "");
    record->groups.clear();
    for (const json& group : set->value("groups", json::array())) {
      record->groups.push_back(group.is_object() ? group.value("name", "") : "");
    }
  }
  if (event.contains("skipped")) record->skipped.push_back(*step);
  const auto committed = event.find("committed");
  if (committed == event.end()) return;
  if (const std::optional<double> norm = Number(*committed, "grad_norm")) record->grad_norms.emplace_back(*step, *norm);
  const json rates = committed->value("learning_rates", json::array());
  for (size_t group = 0; group < rates.size(); ++group) {
    if (record->learning_rates.size() <= group) record->learning_rates.emplace_back();
    if (rates[group].is_number()) record->learning_rates[group].emplace_back(*step, rates[group].get<double>());
  }
}

// A line that runs over several decades is to be seen whole.
bool WantsLogarithm(const std::vector<Series>& all) {
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (const Series& series : all) {
    for (const auto& [x, y] : series.points) {
      if (!std::isfinite(y)) continue;
      // Of a few zeros, such as a warmup's first step, there is nothing to be seen in any case.
      if (y > 0) least = std::min(least, y);
      most = std::max(most, y);
    }
  }
  return most > 20 * least;
}

Chart ChartOf(const Record& record) {
  Panel norm = {.title = "gradient norm", .series = {{"gradient norm", record.grad_norms}}, .marks = record.skipped};
  norm.logarithmic = WantsLogarithm(norm.series);
  Panel rate = {.title = "learning rate", .series = {}};
  for (size_t group = 0; group < record.learning_rates.size(); ++group) {
    const std::string name = group < record.groups.size() ? record.groups[group] : absl::StrCat("group ", group);
    rate.series.push_back({name, record.learning_rates[group]});
  }
  std::string title = record.set.empty() ? "a set" : record.set;
  if (!record.skipped.empty()) {
    absl::StrAppend(&title, " — ", record.skipped.size(), " steps skipped (dashed)");
  }
  if (record.missed > 0) absl::StrAppend(&title, " — ", record.missed, " events missed");
  return {.title = title, .horizontal_title = "step", .panels = {norm, rate}};
}

// Times by what was measured, as `adamant-bench --json` prints them.
Chart ChartOf(const std::vector<json>& results) {
  std::set<std::string> transports;
  for (const json& result : results) transports.insert(result.value("transport", ""));
  std::map<std::string, std::map<double, double>> times;
  for (const json& result : results) {
    const std::optional<double> params = Number(result, "params");
    if (!params.has_value()) continue;
    const std::string transport = result.value("transport", "");
    for (const auto& [key, value] : result.items()) {
      const absl::string_view name = key;
      if (!value.is_number() || !absl::EndsWith(name, "_seconds") || name == "min_seconds") continue;
      const std::string what =
          name == "median_seconds" ? result.value("name", "step") : std::string(name.substr(0, name.rfind('_')));
      // The kernel knows of no transport.
      const bool alike = what == "kernel" || transports.size() == 1;
      const std::string series = alike ? what : absl::StrCat(what, ", ", transport);
      times[series][*params] = value.get<double>();
    }
  }
  const std::string over = transports.size() == 1 && !transports.contains("") ? " over " + *transports.begin() : "";
  Panel panel = {.title = "median time" + over, .series = {}, .logarithmic = true, .seconds = true};
  for (const auto& [name, points] : times) panel.series.push_back({name, {points.begin(), points.end()}});
  return {.title = "Time by number of parameters",
          .horizontal_title = "parameters",
          .panels = {panel},
          .logarithmic = true,
          .dots = true};
}

absl::StatusOr<Chart> ReadChart(const std::string& path) {
  std::ifstream file(path);
  if (!file.is_open()) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  Record record;
  std::vector<json> results;
  int64_t number = 0, events = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.empty()) continue;
    const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": expected a JSON object"));
    }
    if (object.contains("median_seconds")) {
      results.push_back(object);
    } else {
      try {
        TakeEvent(object, &record);
      } catch (const json::exception&) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ":", number, ": expected an event as adamant watch --json prints it"));
      }
      ++events;
    }
  }
  if (!results.empty() && events > 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": has events and results of a benchmark"));
  }
  if (!results.empty()) return ChartOf(results);
  if (record.grad_norms.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected steps as adamant watch --json prints them, or results of adamant-bench --json"));
  }
  return ChartOf(record);
}

absl::Status Plot(Shell* shell, const std::string& record, const std::string& output, const std::string& title) {
  absl::StatusOr<Chart> chart = ReadChart(record);
  if (!chart.ok()) return chart.status();
  if (!title.empty()) chart->title = title;
  const std::string svg = RenderSvg(*chart);
  if (output == "-") {
    shell->Print(absl::StripSuffix(svg, "\n"));
    return absl::OkStatus();
  }
  std::ofstream file(output, std::ios::binary);
  file << svg;
  file.close();
  if (!file) return absl::UnknownError(absl::StrCat(output, ": cannot be written"));
  return absl::OkStatus();
}

}  // namespace

void AddPlotCommand(CLI::App* app, Shell* shell, Command* chosen) {
  struct Options {
    std::string record, output, title;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* const plot = app->add_subcommand(
      "plot",
      "Draws a record as an SVG: gradient norm and learning rate by step, of adamant watch --json; or times by number "
      "of parameters, of adamant-bench --json.");
  plot->add_option("RECORD", options->record, "A file of one JSON object a line.")->required();
  plot->add_option("-o,--output", options->output, "The picture; -: stdout.")->required()->type_name("FILE");
  plot->add_option("--title", options->title, "Instead of the set's name.");
  plot->footer("adamant watch demo --json > demo.jsonl; adamant plot demo.jsonl -o demo.svg");
  plot->callback([=] { *chosen = [=] { return Plot(shell, options->record, options->output, options->title); }; });
}

}  // namespace adamant::programs::cli
