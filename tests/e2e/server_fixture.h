// A server in this process, behind a real socket.
#ifndef ADAMANT_TESTS_E2E_SERVER_FIXTURE_H_
#define ADAMANT_TESTS_E2E_SERVER_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/dispatch.h"
#include "server/rpc/server.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {

// A small server on a port of its own.
inline rpc::ServerOptions SmallServer() {
  return {.addresses = {"127.0.0.1:0"},
          .state_bytes = int64_t{64} << 20,
          .inflight_bytes = int64_t{16} << 20,
          .read_bytes = int64_t{16} << 20,
          .max_streams = 64,
          .compute_threads = 1,
          .kernels = &kernels::BestKernels(),
          .admission_wait = absl::Seconds(10),
          .patience = absl::Seconds(30),
          .min_rate = 256 * 1024};
}

// Serves from construction to Drain, which its destruction calls if nobody else did.
class TestServer {
 public:
  explicit TestServer(const rpc::ServerOptions& options = SmallServer()) {
    absl::StatusOr<std::unique_ptr<rpc::Server>> server = rpc::Server::Start(options);
    if (!server.ok()) {
      ADD_FAILURE() << server.status();
      std::abort();
    }
    server_ = *std::move(server);
  }
  ~TestServer() { Drain(absl::Seconds(10)); }

  const std::string& address() const { return server_->addresses().front(); }
  void Drain(absl::Duration timeout) {
    if (!std::exchange(drained_, true)) server_->Drain(timeout);
  }

 private:
  std::unique_ptr<rpc::Server> server_;
  bool drained_ = false;
};

// Each test has a server and a client of its own.
class ServerTest : public ::testing::Test {
 protected:
  explicit ServerTest(const rpc::ServerOptions& options = SmallServer())
      : server_(options), client_(server_.address()) {}

  // A set that `spec` is right for.
  v1::ParameterSet MakeSet(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<v1::CreateParameterSetResponse> created = client_.Create(spec);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->parameter_set() : v1::ParameterSet();
  }

  TestServer server_;
  TestClient client_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_SERVER_FIXTURE_H_
