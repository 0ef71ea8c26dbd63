// A progress bar, drawn with a carriage return and the terminal's "clear to end of line".
#include "client/programs/progress.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace adamant::programs {
namespace {

constexpr int kWidth = 40;

}  // namespace

std::string RenderProgress(int64_t done, int64_t total, int width, absl::string_view note) {
  const int64_t filled = done * width / total;
  std::string bar(filled, '=');
  if (filled < width) bar += absl::StrCat(">", std::string(width - filled - 1, ' '));
  return absl::StrFormat("[%s] %3d %% %s", bar, done * 100 / total, note);
}

ProgressBar::ProgressBar(std::FILE* stream) : stream_(stream), terminal_(isatty(fileno(stream)) == 1) {}

ProgressBar::~ProgressBar() { Clear(); }

void ProgressBar::Update(int64_t done, int64_t total, absl::string_view note) {
  const int64_t percent = done * 100 / total;
  if (!terminal_ || percent == percent_drawn_) return;
  percent_drawn_ = percent;
  absl::FPrintF(stream_, "\r%s\033[K", RenderProgress(done, total, kWidth, note));
  std::fflush(stream_);
}

void ProgressBar::Clear() {
  if (!terminal_ || percent_drawn_ < 0) return;
  percent_drawn_ = -1;
  std::fputs("\r\033[K", stream_);
  std::fflush(stream_);
}

}  // namespace adamant::programs
