// Calls whose client stops in the middle, where a gRPC client cannot be made to stop: behind any byte of a message.
#ifndef ADAMANT_TESTS_E2E_HALF_SENT_CALLS_H_
#define ADAMANT_TESTS_E2E_HALF_SENT_CALLS_H_

#include <cstddef>
#include <list>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace adamant::e2e {

// `message` as gRPC frames it, without its last `missing` bytes.
std::string Framed(absl::string_view message, size_t missing = 0);

// Any number of calls to one server, on as many connections as they need. HTTP/2 without gRPC: nothing happens but in
// Run, nothing is retried, and what the server sends is taken by nobody. Thread-compatible.
class HalfSentCalls {
 public:
  // How calls are spread over connections: as many on each as the server allows, or in turn over so many.
  static constexpr int kAsFewAsPossible = 0;
  // What HTTP/2 lets the server send on a call that nobody takes anything from, in bytes.
  static constexpr int kUsualWindow = 65535;
  // As much as there is; but the client reads nothing from its sockets, and knows nothing of what the server says.
  static constexpr int kUnreadSockets = -1;

  // The server's address, 127.0.0.1:PORT.
  explicit HalfSentCalls(const std::string& address, int connections = kAsFewAsPossible, int window = kUsualWindow);
  // Breaks the connections.
  ~HalfSentCalls();
  HalfSentCalls(const HalfSentCalls&) = delete;
  HalfSentCalls& operator=(const HalfSentCalls&) = delete;

  // Begins a call of a method of the optimizer service, such as `StepOnce`, or of any other, such as `/service/Method`,
  // which will send `bytes` and then nothing.
  void Begin(absl::string_view method, std::shared_ptr<const std::string> bytes);

  // Sends, and takes the server's answers, until `done()`, which may become true by itself.
  void Run(absl::FunctionRef<bool()> done);
  // The same, and begins every call that has ended once more.
  void RunRenewing(absl::FunctionRef<bool()> done);
  // Runs until no call sends any more, because it has sent everything, was answered, or the server takes nothing of it
  // now; and the server has taken in all that was sent.
  void RunUntilStopped();

  // Calls that have no answer.
  int open() const;
  // Calls that were answered with this gRPC code, or all that were; a call that was reset without trailers is UNKNOWN.
  int ended(int code) const;
  int ended() const;

 private:
  struct Call;
  class Connection;

  // Grows with everything that is sent or answered.
  size_t Progress() const;

  Connection* NextConnection();

  const int port_;
  const int window_;
  const size_t spread_;
  size_t begun_ = 0;
  std::list<Connection> connections_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_HALF_SENT_CALLS_H_
