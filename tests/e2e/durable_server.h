// A server with a data directory, which ends and comes back.
#ifndef ADAMANT_TESTS_E2E_DURABLE_SERVER_H_
#define ADAMANT_TESTS_E2E_DURABLE_SERVER_H_

#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/e2e/child_program.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"
#include "tests/store/temporary_folder.h"

namespace adamant::e2e {

// Thread-compatible.
class DurableServer {
 public:
  // Starts one, with `flags` in each of its lives, and its directory in `folder`, or in one of its own.
  explicit DurableServer(std::vector<std::string> flags = {}, const std::string& folder = "")
      : own_folder_(folder.empty() ? std::make_unique<store::TemporaryFolder>() : nullptr),
        folder_(folder.empty() ? own_folder_->path() : folder),
        flags_(std::move(flags)) {
    flags_.push_back(absl::StrCat("--data_dir=", directory()));
    Start();
  }

  std::string directory() const { return absl::StrCat(folder_, "/data"); }
  const std::vector<std::string>& flags() const { return flags_; }
  ServerProcess& process() { return *process_; }
  // A connection to the server of now.
  TestClient& client() { return *client_; }

  // Ends it with `signal`; what it is told by that is its own affair. Its exit code.
  int End(int signal) {
    process_->program().Signal(signal);
    return process_->program().Wait();
  }
  // The next life, after its end.
  void Start() {
    client_.reset();
    process_ = std::make_unique<ServerProcess>(flags_);
    if (process_->addresses().empty()) {
      ADD_FAILURE() << process_->program().standard_error().AwaitEnd();
      std::abort();
    }
    client_ = std::make_unique<TestClient>(process_->address());
  }
  // A life, after the end of the one before, that is killed after so long, most likely before it serves.
  void StartAndKill(absl::Duration after) {
    std::vector<std::string> command = {ADAMANT_SERVER, "--listen=127.0.0.1:0"};
    command.insert(command.end(), flags_.begin(), flags_.end());
    ChildProgram program(command);
    absl::SleepFor(after);
    program.Signal(SIGKILL);
    program.Wait();
  }
  void KillAndStart() {
    EXPECT_EQ(End(SIGKILL), 128 + SIGKILL);
    Start();
  }

 private:
  const std::unique_ptr<const store::TemporaryFolder> own_folder_;
  const std::string folder_;
  std::vector<std::string> flags_;
  std::unique_ptr<ServerProcess> process_;
  std::unique_ptr<TestClient> client_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_DURABLE_SERVER_H_
