// A TCP proxy that breaks a connection behind the byte that a test names, and takes none while a test says so.
#ifndef ADAMANT_TESTS_E2E_CUTTING_PROXY_H_
#define ADAMANT_TESTS_E2E_CUTTING_PROXY_H_

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <thread>

#include "server/core/base/mutex.h"

namespace adamant::e2e {

// Thread-safe.
class CuttingProxy {
 public:
  // As seen from the client.
  enum class Direction { kUp, kDown };

  // Forwards to the server at `target`, 127.0.0.1:PORT.
  explicit CuttingProxy(const std::string& target);
  // Breaks what is open.
  ~CuttingProxy();
  CuttingProxy(const CuttingProxy&) = delete;
  CuttingProxy& operator=(const CuttingProxy&) = delete;

  const std::string& address() const { return address_; }

  // Lets `bytes` more bytes through in that direction, and breaks the connection that carries the next one. In place of
  // a cut that has not happened.
  void CutAfter(Direction direction, int64_t bytes);
  // Gives up a cut that has not happened. Whether there was one.
  bool Disarm();

  // Breaks what is open, and refuses connections until ComeUp.
  void GoDown();
  void ComeUp();
  // Breaks the next `connections` as soon as they are open.
  void BreakNext(int connections);
  // How many of them are still to come.
  int LeftToBreak();

 private:
  struct Cut {
    Direction direction;
    int64_t bytes;
  };
  struct Connection {
    int client;
    int server;
    std::thread up;
    std::thread down;
  };

  void Accept();
  void Pump(Connection* connection, Direction direction);
  // How many of `n` bytes may pass; fewer than `n`: the connection is to be broken behind them.
  int64_t Pass(Direction direction, int64_t n);

  const int target_port_;
  int listener_;
  std::string address_;

  core::Mutex mutex_;
  std::optional<Cut> cut_ ABSL_GUARDED_BY(mutex_);
  bool down_ ABSL_GUARDED_BY(mutex_) = false;
  int left_to_break_ ABSL_GUARDED_BY(mutex_) = 0;
  std::list<Connection> connections_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_CUTTING_PROXY_H_
