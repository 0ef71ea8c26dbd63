// fork, exec, and a pipe.
#include "tests/bench/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace adamant::bench {

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const std::vector<std::string>& arguments,
                                                                  const Environment& environment) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const pid_t pid = fork();
  if (pid < 0) {
    const absl::Status failed = absl::ErrnoToStatus(errno, "fork");
    close(ends[0]);
    close(ends[1]);
    return failed;
  }
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(ends[1], STDOUT_FILENO);
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(ends[1]);
  return std::unique_ptr<ChildProcess>(new ChildProcess(arguments[0], pid, fdopen(ends[0], "r")));
}

ChildProcess::ChildProcess(std::string program, pid_t pid, std::FILE* output)
    : program_(std::move(program)), pid_(pid), output_(output) {}

ChildProcess::~ChildProcess() {
  kill(pid_, SIGTERM);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) continue;
  std::fclose(output_);
}

absl::StatusOr<std::string> ChildProcess::ReadLine() {
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t length = getline(&line, &capacity, output_);
  const std::string text(line != nullptr && length > 0 ? std::string(line, length) : "");
  std::free(line);
  if (length <= 0) return absl::OutOfRangeError(absl::StrCat(program_, " ended early"));
  return text.substr(0, text.find('\n'));
}

}  // namespace adamant::bench
