// Programs that a benchmark starts, listens to and ends.
#ifndef ADAMANT_TESTS_BENCH_CHILD_PROCESS_H_
#define ADAMANT_TESTS_BENCH_CHILD_PROCESS_H_

#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace adamant::bench {

// Thread-compatible. The process is killed if the thread that started it ends first.
class ChildProcess {
 public:
  using Environment = std::vector<std::pair<std::string, std::string>>;

  // Runs `arguments`, the first of which is the program's path, with `environment` on top of this process's. Its stdout
  // is read here; its stderr is ours. UNAVAILABLE if there can be no more processes; a program that cannot be run shows
  // as an end of its output.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::vector<std::string>& arguments,
                                                             const Environment& environment);
  // Ends it with SIGTERM, and waits.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The next line of its stdout, without its end. OUT_OF_RANGE if there is none.
  absl::StatusOr<std::string> ReadLine();

 private:
  ChildProcess(std::string program, pid_t pid, std::FILE* output);

  const std::string program_;
  const pid_t pid_;
  std::FILE* const output_;
};

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_CHILD_PROCESS_H_
