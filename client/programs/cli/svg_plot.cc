#include "client/programs/cli/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace adamant::programs::cli {
namespace {

constexpr double kWidth = 800, kLeft = 84, kRight = 24, kTop = 56, kBottom = 52;
constexpr double kPanelHeight = 220, kOnlyPanelHeight = 340, kPanelGap = 48;
// A line of more points than this is thinner, so that it does not become a band.
constexpr size_t kManyPoints = 300;
constexpr double kLegendLine = 18;
// Okabe and Ito's, which most eyes tell apart.
constexpr const char* kColors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"};
constexpr char kMarkColor[] = "#d62728";

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, absl::string_view attributes, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, attributes, Escape(text));
}

std::string Seconds(double seconds) {
  if (seconds == 0) return "0";
  if (seconds < 1e-3) return absl::StrFormat("%.3g µs", seconds * 1e6);
  if (seconds < 1) return absl::StrFormat("%.3g ms", seconds * 1e3);
  return absl::StrFormat("%.3g s", seconds);
}

// From the least to the most that is to be seen, and where that is on paper.
class Axis {
 public:
  Axis(double least, double most, bool logarithmic, double begin, double end)
      : logarithmic_(logarithmic), begin_(begin), end_(end) {
    if (!(least <= most)) {
      // There is nothing to be seen.
      least = logarithmic ? 1 : 0;
      most = logarithmic ? 10 : 1;
    } else if (least == most) {
      least = logarithmic ? least / 2 : least - std::max(std::abs(least) / 2, 1e-12);
      most = logarithmic ? most * 2 : most + std::max(std::abs(most) / 2, 1e-12);
    }
    least_ = least;
    most_ = most;
  }
  // Widened, so that no line runs along the edge.
  Axis Widened() const {
    Axis axis = *this;
    const double margin = (Scale(most_) - Scale(least_)) * 0.05;
    axis.least_ = logarithmic_ ? std::pow(10, Scale(least_) - margin) : least_ - margin;
    axis.most_ = logarithmic_ ? std::pow(10, Scale(most_) + margin) : most_ + margin;
    // A quantity that is never negative has no axis below zero.
    if (!logarithmic_ && least_ >= 0) axis.least_ = std::max(axis.least_, 0.0);
    return axis;
  }

  bool Shows(double value) const { return std::isfinite(value) && (!logarithmic_ || value > 0); }
  double At(double value) const {
    return begin_ + (Scale(value) - Scale(least_)) / (Scale(most_) - Scale(least_)) * (end_ - begin_);
  }
  std::vector<double> Ticks() const { return cli::Ticks(least_, most_, logarithmic_); }

 private:
  double Scale(double value) const { return logarithmic_ ? std::log10(value) : value; }

  bool logarithmic_;
  double begin_, end_;
  double least_ = 0, most_ = 1;
};

struct Extent {
  void Add(double value, bool logarithmic) {
    if (!std::isfinite(value) || (logarithmic && value <= 0)) return;
    least = std::min(least, value);
    most = std::max(most, value);
  }
  double least = std::numeric_limits<double>::infinity();
  double most = -std::numeric_limits<double>::infinity();
};

double PanelHeight(const Chart& chart) { return chart.panels.size() == 1 ? kOnlyPanelHeight : kPanelHeight; }

std::string DrawPanel(const Chart& chart, const Panel& panel, const Axis& horizontal, double top, bool last) {
  Extent extent;
  for (const Series& series : panel.series) {
    for (const auto& [x, y] : series.points) extent.Add(y, panel.logarithmic);
  }
  const double height = PanelHeight(chart);
  const double bottom = top + height;
  const Axis vertical = Axis(extent.least, extent.most, panel.logarithmic, bottom, top).Widened();
  std::string svg = Text(kLeft, top - 10, "class=\"panel\"", panel.title);
  for (const double tick : vertical.Ticks()) {
    const double y = vertical.At(tick);
    absl::StrAppendFormat(&svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", kLeft, y,
                          kWidth - kRight, y);
    absl::StrAppend(&svg, Text(kLeft - 8, y + 4, "class=\"tick\" text-anchor=\"end\"",
                               panel.seconds ? Seconds(tick) : absl::StrFormat("%.4g", tick)));
  }
  for (const double tick : horizontal.Ticks()) {
    const double x = horizontal.At(tick);
    absl::StrAppendFormat(&svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", x, top, x,
                          bottom);
    if (last) {
      absl::StrAppend(&svg,
                      Text(x, bottom + 18, "class=\"tick\" text-anchor=\"middle\"", absl::StrFormat("%.10g", tick)));
    }
  }
  absl::StrAppendFormat(&svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"frame\"/>\n", kLeft,
                        top, kWidth - kLeft - kRight, height);

  for (size_t i = 0; i < panel.series.size(); ++i) {
    const char* const color = kColors[i % std::size(kColors)];
    std::string path, dots;
    bool gap = true;
    for (const auto& [x, y] : panel.series[i].points) {
      if (!horizontal.Shows(x) || !vertical.Shows(y)) {
        gap = true;
        continue;
      }
      absl::StrAppendFormat(&path, "%c%.2f %.2f", gap ? 'M' : 'L', horizontal.At(x), vertical.At(y));
      gap = false;
      if (chart.dots || panel.series[i].points.size() == 1) {
        absl::StrAppendFormat(&dots, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"3.5\" fill=\"%s\"/>\n", horizontal.At(x),
                              vertical.At(y), color);
      }
    }
    absl::StrAppendFormat(&svg, "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%g\"/>\n%s", path, color,
                          panel.series[i].points.size() > kManyPoints ? 1.1 : 1.8, dots);
  }
  for (const double mark : panel.marks) {
    if (!horizontal.Shows(mark)) continue;
    const double x = horizontal.At(mark);
    absl::StrAppendFormat(&svg,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"1.2\" "
                          "stroke-dasharray=\"3 3\"/>\n",
                          x, top, x, bottom, kMarkColor);
  }
  if (panel.series.size() > 1) {
    size_t longest = 0;
    for (const Series& series : panel.series) longest = std::max(longest, series.name.size());
    const double width = 44 + 7.2 * static_cast<double>(longest);
    const double x = kLeft + 12, y = top + 10;
    absl::StrAppendFormat(&svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"legend\"/>\n", x, y,
                          width, 10 + kLegendLine * static_cast<double>(panel.series.size()));
    for (size_t i = 0; i < panel.series.size(); ++i) {
      const double line = y + 14 + kLegendLine * static_cast<double>(i);
      absl::StrAppendFormat(
          &svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"3\"/>\n", x + 8,
          line, x + 28, line, kColors[i % std::size(kColors)]);
      absl::StrAppend(&svg, Text(x + 36, line + 4, "class=\"tick\"", panel.series[i].name));
    }
  }
  return svg;
}

}  // namespace

std::vector<double> Ticks(double least, double most, bool logarithmic) {
  std::vector<double> ticks;
  if (logarithmic) {
    const double decades = std::log10(most / least);
    const int every = std::max(1, static_cast<int>(std::ceil(decades / 8)));
    const int first = static_cast<int>(std::floor(std::log10(least)));
    const int last = static_cast<int>(std::ceil(std::log10(most)));
    for (int exponent = first; exponent <= last; ++exponent) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        const double tick = digit * std::pow(10, exponent);
        if (digit > 1 && decades > 2) break;
        if (digit == 1 && decades > 2 && (exponent - first) % every != 0) continue;
        if (tick >= least && tick <= most) ticks.push_back(tick);
      }
    }
    if (ticks.size() > 1) return ticks;
    ticks.clear();
  }
  // The round step that makes some six of them.
  const double raw = (most - least) / 6;
  if (!(raw > 0)) return {least};
  const double magnitude = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * magnitude;
  for (const double digit : {1.0, 2.0, 2.5, 5.0}) {
    if (digit * magnitude >= raw) {
      step = digit * magnitude;
      break;
    }
  }
  const double tolerance = step * 1e-9;
  const double first = std::ceil((least - tolerance) / step);
  for (double i = first; i * step <= most + tolerance; ++i) ticks.push_back(i == 0 ? 0 : i * step);
  return ticks;
}

std::string RenderSvg(const Chart& chart) {
  Extent extent;
  for (const Panel& panel : chart.panels) {
    for (const Series& series : panel.series) {
      for (const auto& [x, y] : series.points) extent.Add(x, chart.logarithmic);
    }
    for (const double mark : panel.marks) extent.Add(mark, chart.logarithmic);
  }
  Axis horizontal(extent.least, extent.most, chart.logarithmic, kLeft, kWidth - kRight);
  if (chart.dots) horizontal = horizontal.Widened();
  const auto count = static_cast<double>(chart.panels.size());
  const double height = kTop + 16 + count * PanelHeight(chart) + (count - 1) * kPanelGap + kBottom;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\">\n"
      "<style>text{font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#222}"
      ".title{font-size:17px;font-weight:600}.panel{font-size:13px;font-weight:600}.tick{font-size:12px;fill:#444}"
      ".grid{stroke:#e4e4e4}.frame{fill:none;stroke:#888}.legend{fill:#fff;fill-opacity:.85;stroke:#ccc}</style>\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
      kWidth, height, kWidth, height);
  absl::StrAppend(&svg, Text(kLeft, 28, "class=\"title\"", chart.title));
  double top = kTop + 16;
  for (size_t i = 0; i < chart.panels.size(); ++i) {
    absl::StrAppend(&svg, DrawPanel(chart, chart.panels[i], horizontal, top, i + 1 == chart.panels.size()));
    top += PanelHeight(chart) + kPanelGap;
  }
  absl::StrAppend(&svg, Text((kLeft + kWidth - kRight) / 2, height - 14, "class=\"tick\" text-anchor=\"middle\"",
                             chart.horizontal_title));
  return svg + "</svg>\n";
}

}  // namespace adamant::programs::cli
