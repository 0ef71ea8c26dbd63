// Two threads a connection.
#include "tests/e2e/cutting_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace adamant::e2e {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

int ParsePort(const std::string& address) {
  int port;
  Check(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  return port;
}

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int NewSocket() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  Check(fd >= 0);
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  return fd;
}

}  // namespace

CuttingProxy::CuttingProxy(const std::string& target) : target_port_(ParsePort(target)), listener_(NewSocket()) {
  // A socket that is bound to a port by its number keeps it while it does not listen; one that was given a free port
  // does not.
  const int finder = NewSocket();
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  Check(bind(finder, reinterpret_cast<sockaddr*>(&address), size) == 0);
  Check(getsockname(finder, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  Check(bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0);
  close(finder);
  address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  ComeUp();
}

CuttingProxy::~CuttingProxy() {
  GoDown();
  close(listener_);
}

void CuttingProxy::GoDown() {
  {
    core::MutexLock lock(&mutex_);
    down_ = true;
  }
  shutdown(listener_, SHUT_RDWR);
  if (acceptor_.joinable()) acceptor_.join();
  std::list<Connection> connections;
  {
    core::MutexLock lock(&mutex_);
    connections.swap(connections_);
  }
  for (Connection& connection : connections) {
    shutdown(connection.client, SHUT_RDWR);
    shutdown(connection.server, SHUT_RDWR);
    connection.up.join();
    connection.down.join();
    close(connection.client);
    close(connection.server);
  }
}

void CuttingProxy::ComeUp() {
  {
    core::MutexLock lock(&mutex_);
    down_ = false;
  }
  Check(listen(listener_, SOMAXCONN) == 0);
  acceptor_ = std::thread([this] { Accept(); });
}

void CuttingProxy::BreakNext(int connections) {
  core::MutexLock lock(&mutex_);
  left_to_break_ = connections;
}

int CuttingProxy::LeftToBreak() {
  core::MutexLock lock(&mutex_);
  return left_to_break_;
}

void CuttingProxy::CutAfter(Direction direction, int64_t bytes) {
  core::MutexLock lock(&mutex_);
  cut_ = Cut{direction, bytes};
}

bool CuttingProxy::Disarm() {
  core::MutexLock lock(&mutex_);
  const bool armed = cut_.has_value();
  cut_.reset();
  return armed;
}

void CuttingProxy::Accept() {
  for (;;) {
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    core::MutexLock lock(&mutex_);
    if (down_) {
      if (client >= 0) close(client);
      return;
    }
    if (client < 0) continue;
    if (left_to_break_ > 0) {
      --left_to_break_;
      close(client);
      continue;
    }
    const int server = NewSocket();
    const sockaddr_in address = Loopback(target_port_);
    // A server that is gone shows to the client as a connection that breaks.
    if (connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      close(client);
      close(server);
      continue;
    }
    Connection* const connection = &connections_.emplace_back();
    connection->client = client;
    connection->server = server;
    connection->up = std::thread([this, connection] { Pump(connection, Direction::kUp); });
    connection->down = std::thread([this, connection] { Pump(connection, Direction::kDown); });
  }
}

void CuttingProxy::Pump(Connection* connection, Direction direction) {
  const int from = direction == Direction::kUp ? connection->client : connection->server;
  const int to = direction == Direction::kUp ? connection->server : connection->client;
  char piece[65536];
  for (;;) {
    const ssize_t received = recv(from, piece, sizeof(piece), 0);
    if (received <= 0) break;
    const int64_t pass = Pass(direction, received);
    int64_t sent = 0;
    while (sent < pass) {
      const ssize_t n = send(to, piece + sent, pass - sent, MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += n;
    }
    if (sent < received) break;
  }
  shutdown(connection->client, SHUT_RDWR);
  shutdown(connection->server, SHUT_RDWR);
}

int64_t CuttingProxy::Pass(Direction direction, int64_t n) {
  core::MutexLock lock(&mutex_);
  if (!cut_.has_value() || cut_->direction != direction) return n;
  const int64_t pass = std::min(n, cut_->bytes);
  cut_->bytes -= pass;
  if (pass < n) cut_.reset();
  return pass;
}

}  // namespace adamant::e2e
