#include "server/rpc/acceptor.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/log.h"

namespace adamant::rpc {
namespace {

// Connections accepted at one socket before another has its turn.
constexpr int kAcceptsInARow = 64;
// File descriptors that are left to others than connections.
constexpr rlim_t kSpareFiles = 16;
// How long to wait where the system has no room for another connection.
constexpr int kNoRoomWaitMs = 100;

// A peer that is gone without a word is found out by the system within 40 s, also while this process is stopped, which
// would be the peer's silence to gRPC's own pings.
constexpr int kKeepaliveIdleSeconds = 20;
constexpr int kKeepaliveIntervalSeconds = 5;
constexpr int kKeepaliveProbes = 4;
// A peer that acknowledges nothing of what was sent to it. Longer than a client may be silent.
constexpr unsigned int kUserTimeoutMs = 60000;

absl::Status CannotListen(absl::string_view address, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why));
}

void SetOption(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof(value)); }

// Accepted connections inherit these.
void SetTcpOptions(int fd) {
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveIdleSeconds);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveIntervalSeconds);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMs);
}

int NewSocket(int family) { return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

// Whether somebody takes connections at the socket `address`.
bool IsServed(const sockaddr_un& address) {
  const int connection = NewSocket(AF_UNIX);
  const bool served =
      connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 || errno == EAGAIN;
  close(connection);
  return served;
}

int PortOf(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

void SetPort(int port, sockaddr* address) {
  const auto network_port = htons(static_cast<uint16_t>(port));
  if (address->sa_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = network_port;
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = network_port;
  }
}

// Whether this machine has IPv6.
bool HasIpv6() {
  const int fd = NewSocket(AF_INET6);
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  const bool bound = fd >= 0 && bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  if (fd >= 0) close(fd);
  return bound;
}

}  // namespace

Acceptor::File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Acceptor::File& Acceptor::File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Acceptor::File::~File() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const std::vector<std::string>& addresses,
                                                           int max_connections, TrustedNetworks trusted) {
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Acceptor> acceptor(new Acceptor);
  for (const std::string& address : addresses) {
    if (absl::Status status = acceptor->ListenAt(address); !status.ok()) return status;
  }
  acceptor->stop_ = File(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  acceptor->max_connections_ = max_connections;
  acceptor->trusted_ = std::move(trusted);
  return acceptor;
}

Acceptor::~Acceptor() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(stop_.get(), &one, sizeof(one));
    thread_.join();
  }
  for (const std::string& path : paths_) unlink(path.c_str());
}

absl::Status Acceptor::ListenAt(const std::string& address) {
  if (absl::string_view path = address; absl::ConsumePrefix(&path, "unix:")) {
    absl::ConsumePrefix(&path, "//");
    return ListenAtPath(address, path);
  }
  const size_t colon = address.rfind(':');
  int port;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", address, ": expected HOST:PORT, with a port in [0, 65535], or unix:PATH"));
  }
  absl::string_view host = absl::string_view(address).substr(0, colon);
  if (host.empty() || host == "*") host = "0.0.0.0";
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  return ListenAtPort(address, std::string(host), port);
}

absl::Status Acceptor::ListenAtPath(const std::string& address, absl::string_view path) {
  if (path.empty()) return absl::InvalidArgumentError("cannot listen on unix:, expected unix:PATH");
  sockaddr_un place = {};
  place.sun_family = AF_UNIX;
  if (path.size() >= sizeof(place.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot listen on ", address, ": a path has at most ",
                                                   sizeof(place.sun_path) - 1, " bytes, got ", path.size()));
  }
  path.copy(place.sun_path, path.size());
  if (IsServed(place)) return CannotListen(address, "it is in use");
  File listener(NewSocket(AF_UNIX));
  // What a server that crashed has left behind; but not a file that is no socket.
  struct stat left_behind;
  if (lstat(place.sun_path, &left_behind) == 0 && S_ISSOCK(left_behind.st_mode)) unlink(place.sun_path);
  if (listener.get() < 0 || bind(listener.get(), reinterpret_cast<const sockaddr*>(&place), sizeof(place)) != 0 ||
      listen(listener.get(), SOMAXCONN) != 0) {
    return CannotListen(address, std::strerror(errno));
  }
  listeners_.push_back(std::move(listener));
  paths_.emplace_back(path);
  addresses_.push_back(address);
  return absl::OkStatus();
}

absl::Status Acceptor::ListenAtPort(const std::string& address, const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  const bool all = (host == "0.0.0.0" || host == "::") && HasIpv6();
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(all ? "::" : host.c_str(), nullptr, &hints, &found); error != 0) {
    return CannotListen(address, gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> places(found, &freeaddrinfo);
  std::string why;
  bool listens = false;
  for (const addrinfo* place = places.get(); place != nullptr; place = place->ai_next) {
    File listener(NewSocket(place->ai_family));
    SetOption(listener.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (place->ai_family == AF_INET6) SetOption(listener.get(), IPPROTO_IPV6, IPV6_V6ONLY, all ? 0 : 1);
    SetTcpOptions(listener.get());
    // All addresses of a host have one port.
    SetPort(port, place->ai_addr);
    if (listener.get() < 0 || bind(listener.get(), place->ai_addr, place->ai_addrlen) != 0 ||
        listen(listener.get(), SOMAXCONN) != 0) {
      why = std::strerror(errno);
      // One of a host's addresses may be none of this machine's; one that somebody else has would be theirs.
      if (errno != EADDRNOTAVAIL && errno != EAFNOSUPPORT) return CannotListen(address, why);
      continue;
    }
    port = PortOf(listener.get());
    listens = true;
    listeners_.push_back(std::move(listener));
  }
  if (!listens) return CannotListen(address, why);
  addresses_.push_back(absl::StrCat(address.substr(0, address.rfind(':') + 1), port));
  return absl::OkStatus();
}

void Acceptor::Start(Handler handler, Guard::CallsLeftOver calls_left_over) {
  handler_ = std::move(handler);
  guard_ = std::make_unique<Guard>(std::move(calls_left_over));
  const File lowest_free(dup(stop_.get()));
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  const rlim_t most_files = std::min<rlim_t>(std::max(files.rlim_cur, kSpareFiles) - kSpareFiles, Guard::kMostFiles);
  const rlim_t asked_for = static_cast<rlim_t>(lowest_free.get()) + static_cast<rlim_t>(max_connections_);
  bound_ = most_files < asked_for ? "the limit of open files (ulimit -n)" : "--max_connections";
  first_refused_fd_ = static_cast<int>(std::min(asked_for, most_files));
  thread_ = std::thread([this] { Loop(); });
}

void Acceptor::Loop() {
  std::vector<pollfd> wishes = {{stop_.get(), POLLIN, 0}};
  for (const File& listener : listeners_) wishes.push_back({listener.get(), POLLIN, 0});
  bool room = true;
  for (;;) {
    // Where there is no room, what waits at the sockets would end every poll at once.
    if (poll(wishes.data(), room ? wishes.size() : 1, room ? -1 : kNoRoomWaitMs) < 0) continue;
    if (wishes[0].revents != 0) return;
    room = true;
    for (size_t i = 1; i < wishes.size(); ++i) room = AcceptAll(wishes[i].fd) && room;
  }
}

bool Acceptor::AcceptAll(int listener) {
  static RateLimitedLog refused(LogLevel::kWarning);
  for (int i = 0; i < kAcceptsInARow; ++i) {
    sockaddr_storage peer = {};
    socklen_t peer_size = sizeof(peer);
    const int fd = accept4(listener, reinterpret_cast<sockaddr*>(&peer), &peer_size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= first_refused_fd_) {
      close(fd);
      refused.Write(absl::StrCat("connection refused: as many are open as ", bound_, " allows"));
    } else if (fd >= 0) {
      GuardFrom(peer, fd);
      handler_(listener, fd);
    } else if (errno == EAGAIN) {
      return true;
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      refused.Write(absl::StrCat("connections have to wait: ", std::strerror(errno)));
      return false;
    }
    // Whatever else is wrong is wrong with that one connection.
  }
  return true;
}

void Acceptor::GuardFrom(const sockaddr_storage& peer, int fd) {
  const std::optional<IpAddress> address = IpAddress::Of(peer);
  if (address.has_value() && !trusted_.Contain(*address)) guard_->Watch(fd, address->ToString());
}

}  // namespace adamant::rpc
