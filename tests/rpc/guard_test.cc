// Watched connections as gRPC sees them: TCP sockets that are read with recvmsg, and waited for with epoll.
#include "server/rpc/guard.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/base/mutex.h"
#include "tests/rpc/http2_frames.h"
#include "tests/rpc/local_connection.h"

namespace adamant::rpc {
namespace {

using ::adamant::http2::Acknowledgement;
using ::adamant::http2::Frame;
using ::adamant::http2::Hello;
using ::adamant::http2::kData;
using ::adamant::http2::kEndHeaders;
using ::adamant::http2::kHeaders;
using ::adamant::http2::kPing;
using ::adamant::http2::kSettings;
using ::adamant::http2::PartOfFrame;
using ::adamant::http2::Reset;

// Within which something happens, or never.
constexpr int kHangMs = 60000;

// Both ends of a TCP connection.
class Connection {
 public:
  Connection() {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = LoopbackAt("127.0.0.1:0");
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener, 1), 0);
    EXPECT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
    client_ = ConnectLoopback(absl::StrCat("127.0.0.1:", ntohs(address.sin_port)));
    server_ = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    close(listener);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    epoll_event event = {EPOLLIN | EPOLLET, {}};
    EXPECT_EQ(epoll_ctl(epoll_, EPOLL_CTL_ADD, server_, &event), 0);
  }
  ~Connection() {
    close(epoll_);
    CloseServer();
    if (client_ >= 0) close(client_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int server() const { return server_; }
  void CloseServer() {
    if (server_ >= 0) close(server_);
    server_ = -1;
  }

  // Returns when the system has them ready at the server's end. Requires: they fit there, 64 KiB in all.
  void Send(const std::string& bytes) {
    const int before = Waiting();
    ASSERT_EQ(send(client_, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
    while (Waiting() < before + static_cast<int>(bytes.size())) continue;
  }
  // Sends them from the server's end, and waits until the client's system has taken them.
  void Answer(const std::string& bytes) {
    ASSERT_EQ(send(server_, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
    std::string taken(bytes.size(), '\0');
    ASSERT_EQ(recv(client_, taken.data(), taken.size(), MSG_WAITALL), static_cast<ssize_t>(bytes.size()));
  }
  // Waits until epoll has told of the server's end once more. Returns false if it never does.
  bool AwaitEdge() {
    epoll_event event;
    return epoll_wait(epoll_, &event, 1, kHangMs) == 1;
  }
  // Whether epoll has told of it.
  bool HasEdge() {
    epoll_event event;
    return epoll_wait(epoll_, &event, 1, 0) == 1;
  }
  // As recvmsg has it, into two buffers.
  ssize_t Receive(size_t room = size_t{64} << 10) {
    std::string buffer(room, '\0');
    iovec parts[] = {{buffer.data(), room / 2}, {buffer.data() + room / 2, room - room / 2}};
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t bytes = recvmsg(server_, &message, 0);
    EXPECT_EQ(message.msg_iovlen, 2);
    EXPECT_EQ(parts[0].iov_len + parts[1].iov_len, room);
    if (bytes > 0) received_.append(buffer, 0, static_cast<size_t>(bytes));
    return bytes;
  }
  // Ends it as a client does that crashes.
  void ResetFromClient() {
    const linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(client_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(std::exchange(client_, -1));
  }
  // Sends from the server's end for as long as there is room.
  void AnswerUntilFull() {
    const std::string bytes(size_t{64} << 10, 'x');
    while (send(server_, bytes.data(), bytes.size(), MSG_NOSIGNAL) > 0) continue;
  }
  // Receives until there is no more to be had. Returns what recvmsg said then.
  ssize_t ReceiveAll() {
    for (;;) {
      if (const ssize_t bytes = Receive(); bytes <= 0) return bytes;
    }
  }
  const std::string& received() const { return received_; }

 private:
  // Bytes that can be received now.
  int Waiting() const {
    int bytes = 0;
    EXPECT_EQ(ioctl(server_, FIONREAD, &bytes), 0);
    return bytes;
  }

  int client_;
  int server_;
  int epoll_;
  std::string received_;
};

std::string Calls(int count, int header_bytes = 20) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    bytes += Frame(kHeaders, kEndHeaders, 2 * i + 1, std::string(header_bytes, 'h')) + Reset(2 * i + 1);
  }
  return bytes;
}

// What the server says of itself.
class Server {
 public:
  Guard::CallsLeftOver CallsLeftOver() {
    return [this] {
      core::MutexLock lock(&mutex_);
      ++looks_;
      changed_.NotifyAll();
      return calls_left_over_;
    };
  }
  void SetCallsLeftOver(int64_t calls) {
    core::MutexLock lock(&mutex_);
    calls_left_over_ = calls;
  }
  void AwaitLooks(int count) {
    core::MutexLock lock(&mutex_);
    for (const int enough = looks_ + count; looks_ < enough;) changed_.Wait(&mutex_);
  }

 private:
  core::Mutex mutex_;
  core::CondVar changed_;
  int64_t calls_left_over_ ABSL_GUARDED_BY(mutex_) = 0;
  int looks_ ABSL_GUARDED_BY(mutex_) = 0;
};

TEST(GuardTest, OtherFilesAreTheSystems) {
  Connection connection;
  connection.Send(Calls(1000));
  while (connection.received().size() < Calls(1000).size()) {
    ASSERT_GT(connection.Receive(), 0);
  }
  EXPECT_EQ(connection.Receive(), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST(GuardTest, WhatHoldsToTheRulesComesAsItIs) {
  Server server;
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  std::string bytes = Hello() + Acknowledgement();
  for (int i = 0; i < 50; ++i) {
    bytes += Frame(kHeaders, kEndHeaders, 2 * i + 1, std::string(1000, static_cast<char>(i)));
  }
  connection.Send(bytes);
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_EQ(connection.received(), bytes);
}

TEST(GuardTest, WhoBeginsManyCallsIsPausedUntilTheServerHasCaughtUp) {
  Server server;
  server.SetCallsLeftOver(1000);
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  const std::string bytes = Hello() + Acknowledgement() + Calls(1000);
  connection.Send(bytes);
  ASSERT_TRUE(connection.AwaitEdge());
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_LT(connection.received().size(), bytes.size() / 2);
  EXPECT_EQ(connection.Receive(), -1);  // gRPC asks once more before it waits
  server.AwaitLooks(20);
  EXPECT_FALSE(connection.HasEdge());
  server.SetCallsLeftOver(0);
  while (connection.received().size() < bytes.size()) {
    ASSERT_TRUE(connection.AwaitEdge());
    while (connection.ReceiveAll() != -1 || connection.Receive() != -1) continue;
  }
  EXPECT_EQ(connection.received(), bytes);
}

TEST(GuardTest, WhoSendsFramesThatMoveNoMessageIsPausedNowAndThen) {
  Server server;
  server.SetCallsLeftOver(1000);  // none goes on
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  std::string bytes = Hello() + Acknowledgement();
  for (int i = 0; i < 3000; ++i) bytes += Frame(0x77, 0, 0);
  connection.Send(bytes);
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_EQ(connection.Receive(), -1);
  EXPECT_GT(connection.received().size(), 9000);
  EXPECT_LT(connection.received().size(), bytes.size());
  server.SetCallsLeftOver(0);
  while (connection.received().size() < bytes.size()) {
    ASSERT_TRUE(connection.AwaitEdge());
    while (connection.ReceiveAll() != -1 || connection.Receive() != -1) continue;
  }
}

TEST(GuardTest, WhereTheServerIsFarBehindEachBeginsFewCalls) {
  Server server;
  server.SetCallsLeftOver(2000);
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  const std::string bytes = Hello() + Acknowledgement() + Calls(50);
  connection.Send(bytes);
  ASSERT_TRUE(connection.AwaitEdge());
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_GT(connection.received().size(), Hello().size());
  EXPECT_LT(connection.received().size(), 500);
  EXPECT_EQ(connection.Receive(), -1);
  server.SetCallsLeftOver(0);
  ASSERT_TRUE(connection.AwaitEdge());
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_EQ(connection.received(), bytes);
}

TEST(GuardTest, MessagesComeWhereTheServerIsFarBehind) {
  Server server;
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  std::string bytes = Hello() + Acknowledgement() + Frame(kHeaders, kEndHeaders, 1, "h");
  connection.Send(bytes);
  EXPECT_EQ(connection.ReceiveAll(), -1);
  server.SetCallsLeftOver(2000);
  const std::string message = Frame(kData, 0, 1, std::string(10000, 'x'));
  for (int i = 0; i < 3; ++i) {
    connection.Send(message);
    bytes += message;
  }
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_EQ(connection.received(), bytes);
}

TEST(GuardTest, NobodyWaitsForCallsThatAreStuck) {
  Server server;
  server.SetCallsLeftOver(1000000);
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  const std::string bytes = Hello() + Acknowledgement() + Calls(50);
  connection.Send(bytes);
  while (connection.received().size() < bytes.size()) {
    ASSERT_TRUE(connection.AwaitEdge());
    while (connection.ReceiveAll() != -1 || connection.Receive() != -1) continue;
  }
  EXPECT_EQ(connection.received(), bytes);
}

TEST(GuardTest, TheEndOfAPausedConnectionIsSeen) {
  Server server;
  server.SetCallsLeftOver(2000);
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  connection.Send(Hello() + Acknowledgement());
  EXPECT_EQ(connection.ReceiveAll(), -1);
  connection.Send(Frame(kHeaders, kEndHeaders, 1, "h"));
  EXPECT_EQ(connection.ReceiveAll(), -1);
  EXPECT_EQ(errno, EAGAIN);
  while (connection.HasEdge()) continue;
  connection.ResetFromClient();
  ASSERT_TRUE(connection.AwaitEdge());
  EXPECT_EQ(connection.Receive(), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

TEST(GuardTest, WhoTakesNothingIsCutOffWhereManyCallsAreStuck) {
  Server server;
  server.SetCallsLeftOver(5000);
  Guard guard(server.CallsLeftOver());
  Connection mute;
  guard.Watch(mute.server(), "mute");
  Connection other;
  guard.Watch(other.server(), "other");
  for (Connection* connection : {&mute, &other}) {
    connection->Send(Hello() + Acknowledgement() + Frame(kHeaders, kEndHeaders, 1, "h"));
    while (connection->ReceiveAll() != -1 || connection->Receive() != -1) continue;
  }
  mute.AnswerUntilFull();
  while (mute.Receive() != 0) ASSERT_TRUE(mute.AwaitEdge());
  other.Send(Frame(kHeaders, kEndHeaders, 3, "h"));
  EXPECT_NE(other.Receive(), 0);
}

TEST(GuardTest, PausedConnectionsGoOnAfterItsEnd) {
  Server server;
  auto guard = std::make_unique<Guard>(server.CallsLeftOver());
  Connection connection;
  guard->Watch(connection.server(), "peer");
  const std::string bytes = Hello() + Acknowledgement() + Calls(1000);
  connection.Send(bytes);
  EXPECT_EQ(connection.ReceiveAll(), -1);
  guard.reset();
  while (connection.received().size() < bytes.size()) {
    ASSERT_TRUE(connection.AwaitEdge());
    while (connection.ReceiveAll() != -1 || connection.Receive() != -1) continue;
  }
  EXPECT_EQ(connection.received(), bytes);
}

TEST(GuardTest, WhoBreaksARuleIsAtItsEnd) {
  Server server;
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  connection.Send(Hello() + Calls(101));
  EXPECT_EQ(connection.ReceiveAll(), 0);
  EXPECT_EQ(connection.Receive(), 0);
}

TEST(GuardTest, ANumberThatIsFreeAgainIsWatchedNoMore) {
  Server server;
  Guard guard(server.CallsLeftOver());
  int number;
  {
    Connection connection;
    number = connection.server();
    guard.Watch(number, "peer");
    connection.Send(Hello() + Calls(101));
    EXPECT_EQ(connection.ReceiveAll(), 0);
  }
  std::vector<std::unique_ptr<Connection>> others;
  do {
    others.push_back(std::make_unique<Connection>());
  } while (others.back()->server() != number && others.size() < 10);
  for (const std::unique_ptr<Connection>& other : others) {
    other->Send("x");
    EXPECT_EQ(other->Receive(), 1);
  }
}

TEST(GuardTest, AClientThatTakesNoAnswersIsCutOff) {
  Server server;
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  connection.Send(Hello() + Acknowledgement());
  connection.Answer(Frame(kSettings, 0, 0));
  std::string pings;
  for (int i = 0; i < 255; ++i) pings += Frame(kPing, 0, 0, "12345678");
  connection.Send(pings);
  EXPECT_EQ(connection.ReceiveAll(), 0);
}

TEST(GuardTest, AClientThatTakesItsAnswersMayAskOn) {
  Server server;
  Guard guard(server.CallsLeftOver());
  Connection connection;
  guard.Watch(connection.server(), "peer");
  connection.Send(Hello() + Acknowledgement());
  const std::string answer = Frame(kPing, 1, 0, "12345678");
  for (int i = 0; i < 2000; ++i) {
    connection.Send(Frame(kPing, 0, 0, "12345678"));
    ASSERT_EQ(connection.ReceiveAll(), -1) << i;
    ASSERT_EQ(errno, EAGAIN) << i;
    connection.Answer(answer);
  }
}

TEST(GuardTest, TheOldestUnfinishedHeadersGiveWay) {
  constexpr int kBytes = 16000;
  Server server;
  Guard guard(server.CallsLeftOver());
  std::vector<std::unique_ptr<Connection>> connections;
  const auto begin_headers = [&] {
    connections.push_back(std::make_unique<Connection>());
    guard.Watch(connections.back()->server(), "peer");
    connections.back()->Send(Hello() + Acknowledgement() +
                             PartOfFrame(kBytes + 1, kHeaders, kEndHeaders, 1, std::string(kBytes, 'h')));
    return connections.back()->ReceiveAll();
  };
  // One that is done in time takes no part.
  EXPECT_EQ(begin_headers(), -1);
  connections.back()->Send("h");
  EXPECT_EQ(connections.back()->ReceiveAll(), -1);
  constexpr int kKept = (256 << 10) / (kBytes - 256);
  constexpr int kMost = (512 << 10) / (kBytes - 256);
  for (int i = 0; i < kKept; ++i) EXPECT_EQ(begin_headers(), -1);
  for (const std::unique_ptr<Connection>& connection : connections) EXPECT_EQ(connection->ReceiveAll(), -1);
  EXPECT_EQ(begin_headers(), -1);
  EXPECT_EQ(connections[0]->ReceiveAll(), -1);
  EXPECT_EQ(connections[1]->ReceiveAll(), 0);
  EXPECT_EQ(connections[2]->ReceiveAll(), -1);
  // As long as nobody closes those that gave way, there is room for as many more, and then for none.
  for (int i = kKept + 1; i < kMost; ++i) EXPECT_EQ(begin_headers(), -1);
  EXPECT_EQ(begin_headers(), 0);
  connections[1]->CloseServer();
  EXPECT_EQ(begin_headers(), -1);
}

}  // namespace
}  // namespace adamant::rpc
