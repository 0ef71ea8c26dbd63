// A TCP port of this machine that a test holds, for what is not a server.
#ifndef ADAMANT_TESTS_WIRE_BOUND_SOCKET_H_
#define ADAMANT_TESTS_WIRE_BOUND_SOCKET_H_

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant {

// Thread-compatible. While it does not listen, connections to it are refused, and nobody else gets its port.
class BoundSocket {
 public:
  BoundSocket() : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~BoundSocket() { LetGo(); }
  BoundSocket(const BoundSocket&) = delete;
  BoundSocket& operator=(const BoundSocket&) = delete;

  // 127.0.0.1:PORT.
  const std::string& address() const { return address_; }

  // From now on connections come about, and nobody says a word on them.
  void Listen() { EXPECT_EQ(listen(socket_, SOMAXCONN), 0); }
  // What has come on the first of them so far. Blocks until something has.
  std::string Received() {
    const int connection = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
    char piece[4096];
    const ssize_t n = recv(connection, piece, sizeof(piece), 0);
    close(connection);
    return n > 0 ? std::string(piece, n) : "";
  }

  // Leaves the port to whoever takes it.
  void LetGo() {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
  }

 private:
  int socket_;
  std::string address_;
};

}  // namespace adamant

#endif  // ADAMANT_TESTS_WIRE_BOUND_SOCKET_H_
