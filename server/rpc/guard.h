// Holds strangers' connections to FrameRules, and to the pace at which the server works off their calls.
//
// gRPC has no place where the bytes of a connection pass by before it parses them. It does read them with recvmsg(2),
// and this program defines that function itself, as an allocator defines malloc: for a connection that is watched it
// looks at what the system's recvmsg has brought, and for all other files it is the system's, as close(2) is, which is
// defined here to know when a connection's number is free again. Nothing is copied and no thread is woken: it costs one
// look at 9 bytes for each frame. A relay in this process would copy everything, and gRPC 1.51's other hooks come after
// its parser.
#ifndef ADAMANT_SERVER_RPC_GUARD_H_
#define ADAMANT_SERVER_RPC_GUARD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace adamant::rpc {

// Thread-safe.
class Guard {
 public:
  // Connections that can be watched have smaller numbers.
  static constexpr int kMostFiles = 1 << 20;

  // How many calls the server holds beyond those that may be open or wait: they are over for their clients, and take
  // memory until gRPC has come to them. Called on any thread.
  using CallsLeftOver = std::function<int64_t()>;

  explicit Guard(CallsLeftOver calls_left_over);
  // Connections that are paused go on, and none is paused any more. All are watched until they are closed.
  ~Guard();
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

  // Watches the TCP connection `fd` of `peer` from its first byte until it is closed. Requires: nobody has read from
  // it, and it is below kMostFiles.
  //
  // One that breaks a rule is shut down, and the log says so: gRPC finds it ended. One that begins many calls at once
  // is paused until the server has caught up: to gRPC it is as if no more had come, so that gRPC turns to what it has
  // read, instead of reading on for as long as there is something to read. 600,000 calls, each reset at once, held 8
  // GiB. Where the server is far behind, one call is many.
  void Watch(int fd, std::string peer);

 private:
  friend class WatchedConnection;
  struct Shared;

  const std::shared_ptr<Shared> shared_;  // its connections may outlive it
  std::thread thread_;                    // lets them go on
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_GUARD_H_
