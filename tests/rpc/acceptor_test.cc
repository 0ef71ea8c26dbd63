// Where connections are accepted, and what happens when there are too many: sockets without gRPC.
#include "server/rpc/acceptor.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/base/mutex.h"
#include "tests/rpc/local_connection.h"

namespace adamant::rpc {
namespace {

// The connections that an acceptor has handed over, as a server holds them.
class Connections {
 public:
  ~Connections() { CloseAll(); }

  Acceptor::Handler Handler() {
    return [this](int, int fd) {
      core::MutexLock lock(&mutex_);
      fds_.push_back(fd);
      changed_.NotifyAll();
    };
  }

  // Waits until `count` have come in all.
  void Await(size_t count) {
    core::MutexLock lock(&mutex_);
    while (fds_.size() < count) changed_.Wait(&mutex_);
  }
  int last() {
    core::MutexLock lock(&mutex_);
    return fds_.back();
  }
  void CloseAll() {
    core::MutexLock lock(&mutex_);
    for (const int fd : fds_) close(fd);
    fds_.clear();
  }

 private:
  core::Mutex mutex_;
  core::CondVar changed_;
  std::vector<int> fds_ ABSL_GUARDED_BY(mutex_);
};

// A connection to 127.0.0.1:PORT, closed at its end.
class TcpClient {
 public:
  explicit TcpClient(const std::string& address) : fd_(ConnectLoopback(address)) {}
  ~TcpClient() { close(fd_); }
  TcpClient(const TcpClient&) = delete;
  TcpClient& operator=(const TcpClient&) = delete;

  // Waits until the server has closed the connection.
  void AwaitClosed() {
    char byte;
    EXPECT_LE(recv(fd_, &byte, 1, 0), 0);
  }

 private:
  const int fd_;
};

std::unique_ptr<Acceptor> ListenAt(const std::string& address, int max_connections = 100) {
  absl::StatusOr<std::unique_ptr<Acceptor>> acceptor = Acceptor::Listen({address}, max_connections);
  EXPECT_TRUE(acceptor.ok()) << acceptor.status();
  return acceptor.ok() ? *std::move(acceptor) : nullptr;
}

TEST(AcceptorTest, HandsConnectionsOver) {
  Connections connections;
  const std::unique_ptr<Acceptor> acceptor = ListenAt("127.0.0.1:0");
  acceptor->Start(connections.Handler());
  TcpClient client(acceptor->addresses().front());
  connections.Await(1);
  int value = 0;
  socklen_t size = sizeof(value);
  ASSERT_EQ(getsockopt(connections.last(), IPPROTO_TCP, TCP_NODELAY, &value, &size), 0);
  EXPECT_NE(value, 0);
  ASSERT_EQ(getsockopt(connections.last(), SOL_SOCKET, SO_KEEPALIVE, &value, &size), 0);
  EXPECT_NE(value, 0);
}

TEST(AcceptorTest, ClosesWhatIsTooMuchAndTakesMoreWhenOthersHaveGone) {
  constexpr int kMost = 3;
  Connections connections;
  const std::unique_ptr<Acceptor> acceptor = ListenAt("127.0.0.1:0", kMost);
  // From here on nobody else opens files; each client takes one, too.
  std::vector<std::unique_ptr<TcpClient>> clients;
  acceptor->Start(connections.Handler());
  const auto connect = [&] { clients.push_back(std::make_unique<TcpClient>(acceptor->addresses().front())); };
  connect();
  connections.Await(1);
  connect();
  clients.back()->AwaitClosed();
  connections.CloseAll();
  clients.clear();
  connect();
  connections.Await(1);
}

TEST(AcceptorTest, SurvivesTheEndOfFileDescriptors) {
  Connections connections;
  const std::unique_ptr<Acceptor> acceptor = ListenAt("127.0.0.1:0");
  acceptor->Start(connections.Handler());
  TcpClient first(acceptor->addresses().front());
  connections.Await(1);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  {
    const TcpClient second(acceptor->addresses().front());
    connections.Await(2);
    const int socket_made_before = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // Accepting fails with EMFILE from here on.
    rlimit none = before;
    none.rlim_cur = 3;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    ConnectLoopback(socket_made_before, acceptor->addresses().front());
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    // It had waited, and is taken.
    connections.Await(3);
    close(socket_made_before);
  }
}

TEST(AcceptorTest, NoHostIsAllAddresses) {
  for (const char* address : {":0", "*:0", "0.0.0.0:0", "[::]:0"}) {
    Connections connections;
    const std::unique_ptr<Acceptor> acceptor = ListenAt(address);
    acceptor->Start(connections.Handler());
    TcpClient client(acceptor->addresses().front());
    connections.Await(1);
  }
}

TEST(AcceptorTest, ListensAtAllAddressesOfAHost) {
  const std::unique_ptr<Acceptor> acceptor = ListenAt("localhost:0");
  Connections connections;
  acceptor->Start(connections.Handler());
  TcpClient client(acceptor->addresses().front());
  connections.Await(1);
}

TEST(AcceptorTest, NamesTheAddressThatCannotBeHad) {
  for (const char* address : {"127.0.0.1", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:http", "unix:", "8.8.8.8:1",
                              "no.such.host.invalid:1", "unix:/no/such/folder/socket"}) {
    const absl::Status status = Acceptor::Listen({address}, 1).status();
    EXPECT_FALSE(status.ok()) << address;
    EXPECT_NE(status.message().find(address), std::string::npos) << status;
  }
}

TEST(AcceptorTest, DoesNotTakeAnAddressThatIsInUse) {
  const std::unique_ptr<Acceptor> first = ListenAt("127.0.0.1:0");
  EXPECT_EQ(Acceptor::Listen({first->addresses().front()}, 1).status().code(), absl::StatusCode::kUnavailable);
}

TEST(AcceptorTest, DoesNotRemoveAFileThatIsNoSocket) {
  const std::string path = absl::StrCat(testing::TempDir(), "/no-socket-", getpid());
  std::ofstream(path) << "precious";
  EXPECT_EQ(Acceptor::Listen({absl::StrCat("unix:", path)}, 1).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  unlink(path.c_str());
}

TEST(AcceptorTest, RemovesItsSocketAtItsEnd) {
  const std::string path = absl::StrCat(testing::TempDir(), "/socket-", getpid());
  {
    const std::unique_ptr<Acceptor> acceptor = ListenAt(absl::StrCat("unix:", path));
    EXPECT_EQ(access(path.c_str(), F_OK), 0);
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace adamant::rpc
