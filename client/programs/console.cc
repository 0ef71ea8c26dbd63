#include "client/programs/console.h"

#include <atomic>
#include <csignal>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace adamant::programs {
namespace {

// Written by a handler of signals, which may do that to what is free of locks.
std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

}  // namespace

Console::Console(std::string program) : program_(std::move(program)), bar_(stderr) {}

void Console::Print(absl::string_view line) {
  std::lock_guard<std::mutex> lock(mutex_);
  bar_.Clear();
  absl::PrintF("%s\n", line);
  std::fflush(stdout);
}

void Console::Note(absl::string_view line) {
  std::lock_guard<std::mutex> lock(mutex_);
  bar_.Clear();
  absl::FPrintF(stderr, "%s\n", line);
}

int Console::Fail(absl::string_view message) {
  Note(absl::StrCat(program_, ": ", message));
  return 1;
}

void Console::ShowProgress(int64_t done, int64_t total, absl::string_view note) {
  std::lock_guard<std::mutex> lock(mutex_);
  bar_.Update(done, total, note);
}

ClientOptions Console::MakeClientOptions(absl::Duration timeout) {
  ClientOptions options;
  options.retry.total_timeout = timeout;
  options.connect_timeout = timeout;
  options.unary_timeout = timeout;
  options.step_timeout = timeout;
  options.transfer_timeout = timeout;
  options.on_wait = [this](const absl::Status& reason) {
    Note(absl::StrCat(program_, ": waiting: ", reason.message()));
  };
  return options;
}

std::string CommonFlagError(const std::vector<char*>& arguments, const std::string& target, absl::Duration timeout) {
  if (arguments.size() > 1) return absl::StrCat("unexpected argument '", arguments[1], "'");
  if (target.empty()) return "--target is needed, such as --target=localhost:50051";
  if (timeout <= absl::ZeroDuration()) return "--timeout must be positive";
  return "";
}

void CatchInterrupts() {
  const auto interrupt = [](int number) {
    interrupted = true;
    std::signal(number, SIG_DFL);
  };
  std::signal(SIGINT, interrupt);
  std::signal(SIGTERM, interrupt);
}

bool Interrupted() { return interrupted; }

}  // namespace adamant::programs
