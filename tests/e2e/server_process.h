// The real server, as a process of its own: for what only a process has, such as signals, exit codes and memory.
#ifndef ADAMANT_TESTS_E2E_SERVER_PROCESS_H_
#define ADAMANT_TESTS_E2E_SERVER_PROCESS_H_

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/child_program.h"

namespace adamant::e2e {

// A sanitizer makes the server slow: a twentieth of the calls has it take the same paths.
inline constexpr int kFewer = ADAMANT_SANITIZED ? 20 : 1;

// Thread-compatible, but for what ChildProgram says.
class ServerProcess {
 public:
  // Starts a server and returns when it serves. `flags` on top of one TCP address with a free port, which a --listen
  // among them replaces. A server that does not start has no address.
  explicit ServerProcess(const std::vector<std::string>& flags = {});

  // Where it listens, in the order of its --listen.
  const std::vector<std::string>& addresses() const { return addresses_; }
  const std::string& address() const { return addresses_.front(); }

  ChildProgram& program() { return *program_; }

 private:
  std::unique_ptr<ChildProgram> program_;
  std::vector<std::string> addresses_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_SERVER_PROCESS_H_
