// The sockets that a server listens on, and the thread that accepts connections at them.
//
// gRPC could do this itself, but gRPC 1.51 never accepts again once it has run out of file descriptors: 1,500 connects
// in 0.07 s at `ulimit -n 1024` made a server deaf for good.
#ifndef ADAMANT_SERVER_RPC_ACCEPTOR_H_
#define ADAMANT_SERVER_RPC_ACCEPTOR_H_

#include <sys/socket.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/rpc/guard.h"
#include "server/rpc/trusted_networks.h"

namespace adamant::rpc {

// Thread-compatible; the handler is called on the acceptor's own thread.
class Acceptor {
 public:
  // Takes the non-blocking connection `fd`, which was accepted at the listening socket `listener`. The handler owns
  // `fd` and must close it.
  using Handler = std::function<void(int listener, int fd)>;

  // Listens at each address. `HOST:PORT` is all addresses that the host has, with port 0 for one that is free; 0.0.0.0
  // is all of IPv4 and IPv6. `unix:PATH` takes a socket over that nobody serves any more. Errors: INVALID_ARGUMENT or
  // UNAVAILABLE, naming the address that could not be had. TCP connections from elsewhere than `trusted` are guarded;
  // those of unix sockets never: the permissions of a file say who gets there.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::vector<std::string>& addresses,
                                                          int max_connections, TrustedNetworks trusted = {});
  // Listens no more. Connections that were accepted live on.
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Where it listens: as asked for, with the port that it got.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Begins to accept. Call it once. `calls_left_over` is for the guard. A connection is closed at once, and the log
  // says so, while `max_connections` more file descriptors are open than when Start was called, or while too few are
  // left to the process.
  void Start(
      Handler handler, Guard::CallsLeftOver calls_left_over = [] { return 0; });

 private:
  // A file descriptor, closed at its end.
  class File {
   public:
    explicit File(int fd = -1) : fd_(fd) {}
    File(File&& other) noexcept;
    File& operator=(File&& other) noexcept;
    ~File();
    int get() const { return fd_; }

   private:
    int fd_;
  };

  Acceptor() = default;

  absl::Status ListenAt(const std::string& address);
  absl::Status ListenAtPath(const std::string& address, absl::string_view path);
  absl::Status ListenAtPort(const std::string& address, const std::string& host, int port);

  void Loop();
  // Accepts at most kAcceptsInARow connections at one socket. Returns false if the system has no room for more now.
  bool AcceptAll(int listener);
  // `fd` is a connection of `peer`, just accepted.
  void GuardFrom(const sockaddr_storage& peer, int fd);

  std::vector<std::string> addresses_;
  std::vector<std::string> paths_;  // of the unix sockets, removed at the end
  std::vector<File> listeners_;
  TrustedNetworks trusted_;
  std::unique_ptr<Guard> guard_;  // from Start on
  File stop_;                     // an eventfd that ends the loop
  // A connection with this number or a higher one is one too many: the system gives out the lowest number that is free.
  int max_connections_ = 0;
  int first_refused_fd_ = 0;
  const char* bound_ = nullptr;  // what sets it, for the log
  Handler handler_;
  std::thread thread_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_ACCEPTOR_H_
