// The floor that the raw exchange is compared with: the same bytes up, then down, over a plain socket without gRPC.
// Both sides block; what comes is read in pieces that stay in cache and copied to its place, as a gather copy does it.
#ifndef ADAMANT_TESTS_BENCH_SOCKET_EXCHANGE_H_
#define ADAMANT_TESTS_BENCH_SOCKET_EXCHANGE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace adamant::bench {

// One end of a connection, which it owns. Thread-compatible.
class SocketConnection {
 public:
  // Takes over a stream socket that is connected.
  explicit SocketConnection(int descriptor);
  ~SocketConnection();
  SocketConnection(const SocketConnection&) = delete;
  SocketConnection& operator=(const SocketConnection&) = delete;

  // Returns when the system has taken all of `bytes`, or the connection broke off.
  absl::Status Send(absl::Span<const char> bytes);
  // Fills all of `bytes`. OUT_OF_RANGE if the other end closed the connection before the first of them.
  absl::Status Receive(absl::Span<char> bytes);

 private:
  const int descriptor_;
  std::vector<char> buffer_;
};

// Where the answering side is to be found. Thread-compatible.
class SocketPeer {
 public:
  // Listens at HOST:PORT, where port 0 is any that is free and HOST is a name or an IPv4 address, or at unix:PATH.
  static absl::StatusOr<std::unique_ptr<SocketPeer>> Listen(const std::string& address);
  ~SocketPeer();
  SocketPeer(const SocketPeer&) = delete;
  SocketPeer& operator=(const SocketPeer&) = delete;

  // Where it listens, as a client would say it.
  const std::string& address() const { return address_; }

  // Waits for the next connection.
  absl::StatusOr<std::unique_ptr<SocketConnection>> Accept();

 private:
  SocketPeer(int descriptor, std::string address) : descriptor_(descriptor), address_(std::move(address)) {}

  const int descriptor_;
  std::string address_;
};

// The answering side: answers the rounds of a connection until it is closed. An error if it ended within a round.
absl::Status ServeRounds(SocketConnection* connection);

// The asking side. Thread-compatible.
class SocketExchange {
 public:
  // Connects to a peer. Rounds send `source` and receive into `sink`: of the same size, at least one byte, not
  // overlapping, both outliving this and left alone.
  static absl::StatusOr<std::unique_ptr<SocketExchange>> Connect(const std::string& address,
                                                                 absl::Span<const char> source, absl::Span<char> sink);

  // One exchange. After an error there is no other.
  absl::Status Round();

 private:
  SocketExchange(int descriptor, absl::Span<const char> source, absl::Span<char> sink)
      : connection_(descriptor), source_(source), sink_(sink) {}

  SocketConnection connection_;
  const absl::Span<const char> source_;
  const absl::Span<char> sink_;
};

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_SOCKET_EXCHANGE_H_
