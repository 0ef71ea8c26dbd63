// A progress bar for a terminal.
#ifndef ADAMANT_CLIENT_PROGRAMS_PROGRESS_H_
#define ADAMANT_CLIENT_PROGRAMS_PROGRESS_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/strings/string_view.h"

namespace adamant::programs {

// `done` of `total` as one line without an end, such as "[=====>    ]  50 % loss 0.5". `width` counts the characters
// between the brackets. Requires: 0 <= done <= total, total > 0, width > 0.
std::string RenderProgress(int64_t done, int64_t total, int width, absl::string_view note);

// Redraws one line in place, unless `stream` is not a terminal: then it writes nothing. Thread-compatible.
class ProgressBar {
 public:
  // `stream` outlives the bar.
  explicit ProgressBar(std::FILE* stream);
  // Clears the line.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws, at most once a hundredth of the way. Requires: 0 <= done <= total, total > 0.
  void Update(int64_t done, int64_t total, absl::string_view note);
  // Makes room for a line of text.
  void Clear();

 private:
  std::FILE* const stream_;
  const bool terminal_;
  int64_t percent_drawn_ = -1;
};

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_PROGRESS_H_
