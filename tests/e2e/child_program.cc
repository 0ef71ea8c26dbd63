// fork, exec, and a thread for each pipe.
#include "tests/e2e/child_program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace adamant::e2e {
namespace {

struct Pipe {
  int read_end;
  int write_end;
};

Pipe MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
  return {ends[0], ends[1]};
}

}  // namespace

Output::Output(int fd) : reader_([this, fd] { ReadAll(fd); }) {}

Output::~Output() { reader_.join(); }

void Output::ReadAll(int fd) {
  char piece[4096];
  for (;;) {
    const ssize_t n = read(fd, piece, sizeof(piece));
    if (n < 0 && errno == EINTR) continue;
    core::MutexLock lock(&mutex_);
    if (n <= 0) break;
    text_.append(piece, n);
    changed_.NotifyAll();
  }
  close(fd);
  core::MutexLock lock(&mutex_);
  ended_ = true;
  changed_.NotifyAll();
}

std::optional<std::string> Output::AwaitLine(absl::string_view text) {
  core::MutexLock lock(&mutex_);
  for (;;) {
    size_t end;
    while ((end = text_.find('\n', seen_)) != std::string::npos) {
      std::string line = text_.substr(seen_, end - seen_);
      seen_ = end + 1;
      if (line.find(std::string(text)) != std::string::npos) return line;
    }
    if (ended_) return std::nullopt;
    changed_.Wait(&mutex_);
  }
}

std::string Output::AwaitEnd() {
  core::MutexLock lock(&mutex_);
  while (!ended_) changed_.Wait(&mutex_);
  return text_;
}

std::string Output::text() const {
  core::MutexLock lock(&mutex_);
  return text_;
}

ChildProgram::ChildProgram(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  const Pipe output = MakePipe();
  const Pipe error = MakePipe();
  pid_ = fork();
  if (pid_ < 0) std::abort();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
    dup2(output.write_end, STDOUT_FILENO);
    dup2(error.write_end, STDERR_FILENO);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  close(output.write_end);
  close(error.write_end);
  output_.emplace(output.read_end);
  error_.emplace(error.read_end);
}

ChildProgram::~ChildProgram() {
  Signal(SIGKILL);
  Wait();
  const std::string error = error_->AwaitEnd();
  if (error.find("Sanitizer: ") != std::string::npos) std::cerr << error;
}

void ChildProgram::Signal(int signal) {
  if (!exit_code_.has_value()) kill(pid_, signal);
}

bool ChildProgram::HasEnded() {
  if (!exit_code_.has_value()) TakeExitCode(WNOHANG);
  return exit_code_.has_value();
}

int ChildProgram::Wait() {
  while (!exit_code_.has_value()) TakeExitCode(0);
  return *exit_code_;
}

void ChildProgram::TakeExitCode(int options) {
  int status = 0;
  if (waitpid(pid_, &status, options) != pid_) return;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int64_t ChildProgram::ResidentBytes() const { return StatusField("VmRSS:"); }

int64_t ChildProgram::PeakResidentBytes() const { return StatusField("VmHWM:"); }

void ChildProgram::ResetPeak() { std::ofstream(absl::StrCat("/proc/", pid_, "/clear_refs")) << "5"; }

int64_t ChildProgram::StatusField(absl::string_view field) const {
  std::ifstream file(absl::StrCat("/proc/", pid_, "/status"));
  std::string line;
  while (std::getline(file, line)) {
    absl::string_view rest = line;
    if (!absl::ConsumePrefix(&rest, field)) continue;
    absl::ConsumeSuffix(&rest, "kB");
    int64_t kib;
    if (absl::SimpleAtoi(rest, &kib)) return kib * 1024;
  }
  std::abort();
}

}  // namespace adamant::e2e
