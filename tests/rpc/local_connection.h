// A plain TCP connection to a server of this machine, for tests that speak to it without gRPC.
#ifndef ADAMANT_TESTS_RPC_LOCAL_CONNECTION_H_
#define ADAMANT_TESTS_RPC_LOCAL_CONNECTION_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "absl/strings/numbers.h"

namespace adamant {

// Where 127.0.0.1 has the port of `address`, `HOST:PORT`.
inline sockaddr_in LoopbackAt(const std::string& address) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) << address;
  sockaddr_in place = {};
  place.sin_family = AF_INET;
  place.sin_port = htons(static_cast<uint16_t>(port));
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return place;
}

// Connects `fd`, a socket, to that place. Returns it.
inline int ConnectLoopback(int fd, const std::string& address) {
  const sockaddr_in place = LoopbackAt(address);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&place), sizeof(place)), 0);
  return fd;
}

// A new connection, which is the caller's to close.
inline int ConnectLoopback(const std::string& address) {
  return ConnectLoopback(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), address);
}

}  // namespace adamant

#endif  // ADAMANT_TESTS_RPC_LOCAL_CONNECTION_H_
