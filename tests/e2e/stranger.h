// A client that holds to nothing: it sends whatever bytes it is given.
#ifndef ADAMANT_TESTS_E2E_STRANGER_H_
#define ADAMANT_TESTS_E2E_STRANGER_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace adamant::e2e {

// One connection. Thread-compatible.
class Stranger {
 public:
  // Connects to `HOST:PORT` of this machine and sends a client's first bytes. If it `acknowledges`, it waits for the
  // server's SETTINGS and acknowledges them. If it `reads`, it takes what the server sends while it sends, and ignores
  // it; or else it has little room for that.
  struct Manners {
    bool acknowledges = true;
    bool reads = true;
  };
  explicit Stranger(const std::string& address) : Stranger(address, Manners{}) {}
  Stranger(const std::string& address, Manners manners);
  ~Stranger();
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  // Sends `bytes`. Returns when the system has taken them, with false if the server has ended the connection, or if a
  // stranger that does not read finds no room any more.
  bool Send(absl::string_view bytes);
  // Takes and ignores what the server sends, until that were so many bytes in all, with true, or until the server has
  // ended the connection, with false.
  bool AwaitBytes(int64_t bytes);

 private:
  // Takes what there is. Returns false if the server has ended the connection.
  bool Take();

  const Manners manners_;
  int64_t taken_ = 0;
  int socket_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_STRANGER_H_
