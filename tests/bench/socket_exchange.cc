// A connection begins with the number of bytes that each round moves each way.
#include "tests/bench/socket_exchange.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tests/bench/float_array.h"

namespace adamant::bench {
namespace {

// What the system is given and asked for at a time. For 256 MiB each way: 94 ms; written in one call 119; read into
// place 99, and 112 if 1 MiB is asked for.
constexpr size_t kWriteBytes = size_t{1} << 20;
constexpr size_t kReadBytes = size_t{64} << 10;

struct Address {
  sockaddr_storage storage = {};
  socklen_t size = 0;

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

absl::StatusOr<Address> Resolve(const std::string& text) {
  Address address;
  absl::string_view path = text;
  if (absl::ConsumePrefix(&path, "unix:")) {
    auto* const unix_address = reinterpret_cast<sockaddr_un*>(&address.storage);
    if (path.empty() || path.size() >= sizeof(unix_address->sun_path)) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected a path of 1 to ", sizeof(unix_address->sun_path) - 1, " bytes, got ", text));
    }
    unix_address->sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), unix_address->sun_path);
    address.size = sizeof(sockaddr_un);
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("expected HOST:PORT or unix:PATH, got ", text));
  }
  const std::string host = text.substr(0, colon);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), text.c_str() + colon + 1, &hints, &found); error != 0) {
    return absl::InvalidArgumentError(absl::StrCat(text, ": ", gai_strerror(error)));
  }
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.size = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

uint16_t BoundPort(int descriptor) {
  Address address;
  address.size = sizeof(address.storage);
  getsockname(descriptor, address.get(), &address.size);
  // Where IPv4 and IPv6 have the same field.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_port);
}

}  // namespace

SocketConnection::SocketConnection(int descriptor) : descriptor_(descriptor), buffer_(kReadBytes) {
  // Fails for a Unix socket, which has nothing to turn off.
  const int on = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

SocketConnection::~SocketConnection() { close(descriptor_); }

absl::Status SocketConnection::Send(absl::Span<const char> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(descriptor_, bytes.data(), std::min(kWriteBytes, bytes.size()), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return absl::ErrnoToStatus(errno, "send");
    bytes.remove_prefix(sent);
  }
  return absl::OkStatus();
}

absl::Status SocketConnection::Receive(absl::Span<char> bytes) {
  const size_t all = bytes.size();
  while (!bytes.empty()) {
    const ssize_t received = recv(descriptor_, buffer_.data(), std::min(buffer_.size(), bytes.size()), 0);
    if (received < 0 && errno == EINTR) continue;
    if (received < 0) return absl::ErrnoToStatus(errno, "receive");
    if (received == 0 && bytes.size() == all) return absl::OutOfRangeError("the connection was closed");
    if (received == 0) return absl::UnavailableError("the connection broke off");
    std::memcpy(bytes.data(), buffer_.data(), received);
    bytes.remove_prefix(received);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SocketPeer>> SocketPeer::Listen(const std::string& address) {
  absl::StatusOr<Address> resolved = Resolve(address);
  if (!resolved.ok()) return resolved.status();
  const int descriptor = socket(resolved->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, address);
  auto peer = std::unique_ptr<SocketPeer>(new SocketPeer(descriptor, address));
  if (bind(descriptor, resolved->get(), resolved->size) != 0 || listen(descriptor, SOMAXCONN) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot listen at ", address));
  }
  if (!absl::StartsWith(address, "unix:")) {
    peer->address_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", BoundPort(descriptor));
  }
  return peer;
}

SocketPeer::~SocketPeer() { close(descriptor_); }

absl::StatusOr<std::unique_ptr<SocketConnection>> SocketPeer::Accept() {
  const int accepted = accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC);
  if (accepted < 0) return absl::ErrnoToStatus(errno, "accept");
  return std::make_unique<SocketConnection>(accepted);
}

absl::Status ServeRounds(SocketConnection* connection) {
  int64_t size = 0;
  if (absl::Status status = connection->Receive({reinterpret_cast<char*>(&size), sizeof(size)}); !status.ok()) {
    return status;
  }
  if (size <= 0) return absl::InvalidArgumentError(absl::StrCat("a round of ", size, " bytes"));
  const int64_t floats = (size + sizeof(float) - 1) / sizeof(float);
  FloatArray source(floats, 1.0f);
  FloatArray sink(floats, 0.0f);
  for (;;) {
    absl::Status status = connection->Receive({sink.bytes(), static_cast<size_t>(size)});
    if (absl::IsOutOfRange(status)) return absl::OkStatus();
    if (status.ok()) status = connection->Send({source.bytes(), static_cast<size_t>(size)});
    if (!status.ok()) return status;
  }
}

absl::StatusOr<std::unique_ptr<SocketExchange>> SocketExchange::Connect(const std::string& address,
                                                                        absl::Span<const char> source,
                                                                        absl::Span<char> sink) {
  absl::StatusOr<Address> resolved = Resolve(address);
  if (!resolved.ok()) return resolved.status();
  const int descriptor = socket(resolved->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, address);
  auto exchange = std::unique_ptr<SocketExchange>(new SocketExchange(descriptor, source, sink));
  if (connect(descriptor, resolved->get(), resolved->size) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot connect to ", address));
  }
  const int64_t size = static_cast<int64_t>(source.size());
  if (absl::Status sent = exchange->connection_.Send({reinterpret_cast<const char*>(&size), sizeof(size)});
      !sent.ok()) {
    return sent;
  }
  return exchange;
}

absl::Status SocketExchange::Round() {
  if (absl::Status sent = connection_.Send(source_); !sent.ok()) return sent;
  return connection_.Receive(sink_);
}

}  // namespace adamant::bench
