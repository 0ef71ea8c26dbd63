// Line charts as SVG: panels below each other over one horizontal axis.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_SVG_PLOT_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_SVG_PLOT_H_

#include <string>
#include <utility>
#include <vector>

namespace adamant::programs::cli {

struct Series {
  // Shown in a legend where a panel has several.
  std::string name;
  // Ascending in the first. What is not finite, or not positive on a logarithmic axis, is a gap.
  std::vector<std::pair<double, double>> points;
};

struct Panel {
  std::string title;
  std::vector<Series> series;
  // Where something happened that the title of the chart explains: a mark on the horizontal axis.
  std::vector<double> marks = {};
  bool logarithmic = false;
  // A seconds axis says ms and us.
  bool seconds = false;
};

struct Chart {
  std::string title;
  std::string horizontal_title;
  std::vector<Panel> panels;
  bool logarithmic = false;
  // Whether each point is a measurement of its own, and gets a dot.
  bool dots = false;
};

// The chart as a file of its own, which looks alike on light and dark pages.
std::string RenderSvg(const Chart& chart);

// Where an axis from `least` to `most` has its ticks, ascending, within these: some 3 to 8 round numbers, or powers of
// ten, with others between where there would be fewer than two. Requires: least <= most, both finite and, if
// logarithmic, positive.
std::vector<double> Ticks(double least, double most, bool logarithmic);

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_SVG_PLOT_H_
