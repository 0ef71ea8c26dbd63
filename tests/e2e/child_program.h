// A program that a test starts, listens to and ends.
#ifndef ADAMANT_TESTS_E2E_CHILD_PROGRAM_H_
#define ADAMANT_TESTS_E2E_CHILD_PROGRAM_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/core/base/mutex.h"

namespace adamant::e2e {

// One output of a program, which ends when the program does. Thread-safe.
class Output {
 public:
  // Reads `fd`, and closes it at its end, on a thread of its own.
  explicit Output(int fd);
  // Waits for the end.
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  // The next line that has `text` in it, without its end: the lines up to it have been seen. Blocks until it has come;
  // nothing if the output has ended without.
  std::optional<std::string> AwaitLine(absl::string_view text);
  // Everything, once it has ended.
  std::string AwaitEnd();
  // Everything so far.
  std::string text() const;

 private:
  void ReadAll(int fd);

  mutable core::Mutex mutex_;
  core::CondVar changed_;
  std::string text_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  size_t seen_ ABSL_GUARDED_BY(mutex_) = 0;  // of text_
  std::thread reader_;
};

// Thread-compatible, but for its outputs. The program is killed if the thread that started it ends first.
class ChildProgram {
 public:
  // Runs `command`, the first of which is the program's path, with nothing to read. A program that cannot be run ends
  // with code 127.
  explicit ChildProgram(const std::vector<std::string>& command);
  // Kills it if it has not ended. Repeats what a sanitizer has found in it, which nobody would see otherwise.
  ~ChildProgram();
  ChildProgram(const ChildProgram&) = delete;
  ChildProgram& operator=(const ChildProgram&) = delete;

  Output& standard_output() { return *output_; }
  Output& standard_error() { return *error_; }

  pid_t pid() const { return pid_; }
  void Signal(int signal);
  // Whether it has ended.
  bool HasEnded();
  // Waits for its end. Its exit code, or 128 and the number of the signal that ended it.
  int Wait();

  // Memory of its that is in RAM: now, and the most that there was since it began or since ResetPeak. Bytes.
  int64_t ResidentBytes() const;
  int64_t PeakResidentBytes() const;
  void ResetPeak();

 private:
  // Takes its exit code in, if it has ended, or once it has.
  void TakeExitCode(int options);
  int64_t StatusField(absl::string_view field) const;

  pid_t pid_;
  std::optional<int> exit_code_;
  std::optional<Output> output_;
  std::optional<Output> error_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_CHILD_PROGRAM_H_
