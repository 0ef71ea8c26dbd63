#include "tests/e2e/stranger.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "tests/rpc/http2_frames.h"
#include "tests/rpc/local_connection.h"

namespace adamant::e2e {
namespace {

// How long one that does not read waits for room: it comes at once, or never.
constexpr int kNoRoomMs = 100;

}  // namespace

Stranger::Stranger(const std::string& address, Manners manners)
    : manners_(manners), socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  if (!manners.reads) {
    const int little = 2048;
    setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &little, sizeof(little));
  }
  ConnectLoopback(socket_, address);
  const std::string hello = http2::Hello();
  EXPECT_EQ(send(socket_, hello.data(), hello.size(), MSG_NOSIGNAL), static_cast<ssize_t>(hello.size()));
  if (!manners.acknowledges) return;
  char settings[9];
  EXPECT_EQ(recv(socket_, settings, sizeof(settings), MSG_WAITALL), static_cast<ssize_t>(sizeof(settings)));
  Send(http2::Acknowledgement());
}

Stranger::~Stranger() { close(socket_); }

bool Stranger::Send(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (errno != EAGAIN) {
      return false;
    }
    if (manners_.reads && !Take()) return false;
    if (bytes.empty()) break;
    pollfd wish = {socket_, POLLOUT, 0};
    if (manners_.reads) wish.events |= POLLIN;
    if (poll(&wish, 1, manners_.reads ? -1 : kNoRoomMs) == 0) return false;
  }
  return true;
}

bool Stranger::AwaitBytes(int64_t bytes) {
  while (taken_ < bytes) {
    if (!Take()) return false;
    pollfd wish = {socket_, POLLIN, 0};
    if (taken_ < bytes) poll(&wish, 1, -1);
  }
  return true;
}

bool Stranger::Take() {
  char bytes[16384];
  for (;;) {
    const ssize_t taken = recv(socket_, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (taken == 0) return false;
    if (taken < 0) return errno == EAGAIN;
    taken_ += taken;
  }
}

}  // namespace adamant::e2e
