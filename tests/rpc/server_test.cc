// How a server begins and ends, in this process.
#include "server/rpc/server.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/dispatch.h"
#include "kernels/update.h"
#include "server/core/memory/block.h"
#include "tests/core/gate.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::rpc {
namespace {

// Within which nothing ends by its timeout.
constexpr absl::Duration kLong = absl::Hours(1);

absl::StatusOr<std::unique_ptr<Server>> StartAt(const std::string& address) {
  ServerOptions options = e2e::SmallServer();
  options.addresses = {address};
  return Server::Start(options);
}

TEST(ServerTest, ASocketThatAServerListensOnIsNotTakenFromIt) {
  const std::string address = absl::StrCat("unix:", testing::TempDir(), "adamant-server-test-", getpid());
  absl::StatusOr<std::unique_ptr<Server>> first = StartAt(address);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(StartAt(address).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(e2e::TestClient(address).Create(e2e::SmallSpec()).ok());
  (*first)->Drain(kLong);
}

TEST(ServerTest, ASocketThatNobodyListensOnIsTaken) {
  const std::string path = absl::StrCat(testing::TempDir(), "adamant-server-test-", getpid());
  // A program that crashed leaves its socket behind.
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int crashed = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(crashed, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(crashed);
  absl::StatusOr<std::unique_ptr<Server>> server = StartAt(absl::StrCat("unix:", path));
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->Drain(kLong);
}

TEST(ServerTest, ADrainDoesNotWaitForIdleConnections) {
  absl::StatusOr<std::unique_ptr<Server>> server = StartAt("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  e2e::TestClient client((*server)->addresses().front());
  ASSERT_TRUE(client.Create(e2e::SmallSpec()).ok());
  (*server)->Drain(kLong);
}

TEST(ServerTest, AnIdleStreamDoesNotKeepADeletedSet) {
  absl::StatusOr<std::unique_ptr<Server>> server = StartAt("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  e2e::TestClient client((*server)->addresses().front());
  const v1::ParameterSetSpec spec = e2e::SmallSpec();
  ASSERT_TRUE(client.Create(spec).ok());
  e2e::StepStream stream(client.stub());
  const e2e::Values gradient = e2e::Gradient(e2e::ParameterCount(spec), 1);
  stream.Send(e2e::StepMessages(e2e::StepHeader(spec.name()), e2e::Chunks(spec, gradient, 65536)));
  ASSERT_TRUE(stream.ReadReply(spec).ok());
  ASSERT_TRUE(client.Delete(spec.name()).ok());
  EXPECT_TRUE(e2e::TestClient::Until([&] { return client.UsedBudgets()["state"] == 0; }));
  (*server)->Drain(kLong);
}

// Computes blocks until there were kOpenBlocks, and holds the others until the gate is open.
constexpr int kOpenBlocks = 5;
core::Gate* gate = nullptr;
std::atomic<int> computed = 0;

void GatedAdam(const kernels::UpdateScalars& scalars, const kernels::UpdateSpan& span) {
  if (computed.fetch_add(1) >= kOpenBlocks) gate->Pass();
  kernels::BestKernels().update[kernels::kAdam](scalars, span);
}

TEST(ServerTest, ReplyBeginsWhileLaterBlocksAreComputed) {
  core::Gate opened_below;
  gate = &opened_below;
  computed = 0;
  kernels::KernelTable gated = kernels::BestKernels();
  gated.update[kernels::kAdam] = &GatedAdam;
  ServerOptions options = e2e::SmallServer();
  options.kernels = &gated;
  e2e::TestServer server(options);
  e2e::TestClient client(server.address());
  v1::ParameterSetSpec spec = e2e::SmallSpec();
  spec.clear_tensors();
  v1::TensorSpec* tensor = spec.add_tensors();
  tensor->set_name("w");
  tensor->add_shape(8 * core::kBlockElements);
  ASSERT_TRUE(client.Create(spec).ok());
  const e2e::Values gradient = e2e::Gradient(e2e::ParameterCount(spec), 1);

  e2e::StepStream stream(client.stub());
  stream.Send(e2e::StepMessages(e2e::StepHeader(spec.name()), e2e::Chunks(spec, gradient, 65536)));
  v1::StepResponse first;
  ASSERT_TRUE(stream.Receive(&first));
  EXPECT_FALSE(first.has_result());
  ASSERT_EQ(first.chunks_size(), 1);
  const size_t early = first.chunks(0).data().size() / sizeof(float);
  EXPECT_EQ(early, 4 * core::kBlockElements);
  opened_below.Open();

  e2e::Values parameters(early);
  std::memcpy(parameters.data(), first.chunks(0).data().data(), first.chunks(0).data().size());
  v1::StepResponse next;
  while (!next.has_result()) {
    ASSERT_TRUE(stream.Receive(&next));
    for (const v1::TensorChunk& chunk : next.chunks()) {
      ASSERT_EQ(chunk.offset(), static_cast<int64_t>(parameters.size()));
      parameters.resize(parameters.size() + chunk.data().size() / sizeof(float));
      std::memcpy(parameters.data() + chunk.offset(), chunk.data().data(), chunk.data().size());
    }
  }
  EXPECT_EQ(next.result().outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(parameters, client.ReadState(spec)->arrays.parameters);
}

}  // namespace
}  // namespace adamant::rpc
