// How a server begins and ends, in this process.
#include "server/rpc/server.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
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

}  // namespace
}  // namespace adamant::rpc
