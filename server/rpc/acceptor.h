// The sockets that a server listens on, and the thread that accepts connections at them.
//
// gRPC could do this itself, but gRPC 1.51 never accepts again once it has run out of file descriptors: 1,500 connects
// in 0.07 s at `ulimit -n 1024` made a server deaf for good.
#ifndef ADAMANT_SERVER_RPC_ACCEPTOR_H_
#define ADAMANT_SERVER_RPC_ACCEPTOR_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace adamant::rpc {

// Thread-compatible; the handler is called on the acceptor's own thread.
class Acceptor {
 public:
  // Takes the connection `fd`, non-blocking, that was accepted at the listening socket `listener`: closes it one day.
  using Handler = std::function<void(int listener, int fd)>;

  // Listens at each address: `HOST:PORT` (port 0 for one that is free; a host that stands for several addresses is
  // listened to at all of them; 0.0.0.0 stands for all of IPv4 and IPv6), or `unix:PATH` (a socket that nobody serves
  // any more is taken over). Errors: INVALID_ARGUMENT or UNAVAILABLE, naming the address that could not be had.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::vector<std::string>& addresses,
                                                          int max_connections);
  // Listens no more. Connections that were accepted live on.
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Where it listens: as asked for, with the port that it got.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Begins to accept. While `max_connections` file descriptors are open beyond those that are now, or while too few are
  // left to the process, a connection that comes is closed at once, and the log says so. Once.
  void Start(Handler handler);

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
  // Accepts what has come to one socket, up to some connections. Returns false if the system has no room for more now.
  bool AcceptAll(int listener);

  std::vector<std::string> addresses_;
  std::vector<std::string> paths_;  // of the unix sockets, removed at the end
  std::vector<File> listeners_;
  File stop_;  // an eventfd that ends the loop
  // A connection with this number or a higher one is one too many: the system gives out the lowest number that is free.
  int max_connections_ = 0;
  int first_refused_fd_ = 0;
  Handler handler_;
  std::thread thread_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_ACCEPTOR_H_
