// What a training program and its user tell each other: flags, results, progress, waits, errors and interrupts.
#ifndef ADAMANT_CLIENT_PROGRAMS_CONSOLE_H_
#define ADAMANT_CLIENT_PROGRAMS_CONSOLE_H_

#include <adamant/client.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/programs/progress.h"

namespace adamant::programs {

// Results go to stdout, all else to stderr, where a progress bar makes room for it. Thread-safe.
class Console {
 public:
  // `program` is its name, with which errors begin.
  explicit Console(std::string program);

  // A line of stdout, which whoever reads it has at once.
  void Print(absl::string_view line);
  // A line of stderr.
  void Note(absl::string_view line);
  // Says what is wrong, and returns the exit code that says so, too.
  int Fail(absl::string_view message);
  // Draws the bar, as ProgressBar::Update.
  void ShowProgress(int64_t done, int64_t total, absl::string_view note);

  // Options for calls that take at most `timeout` each, waits included, and that say here what they wait for.
  ClientOptions MakeClientOptions(absl::Duration timeout);

 private:
  const std::string program_;
  std::mutex mutex_;
  ProgressBar bar_;  // guarded by `mutex_`
};

// What is wrong with what every program is given, or nothing. `arguments` are those that are no flags, the program's
// name first.
std::string CommonFlagError(const std::vector<char*>& arguments, const std::string& target, absl::Duration timeout);

// From here on the first SIGINT or SIGTERM makes Interrupted true, and a second one ends the program at once.
void CatchInterrupts();
bool Interrupted();

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_CONSOLE_H_
