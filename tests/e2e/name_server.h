// A DNS server that knows one name, and about that what a test tells it.
#ifndef ADAMANT_TESTS_E2E_NAME_SERVER_H_
#define ADAMANT_TESTS_E2E_NAME_SERVER_H_

#include <netinet/in.h>

#include <deque>
#include <string>
#include <thread>

#include "absl/strings/string_view.h"
#include "server/core/base/mutex.h"

namespace adamant::e2e {

// Thread-safe.
class NameServer {
 public:
  // Answers each question for an IPv4 address with the next of `answers`, and with the last of them from then on: an
  // address, or empty where the name does not exist. It has no address of another kind.
  explicit NameServer(std::deque<std::string> answers);
  ~NameServer();
  NameServer(const NameServer&) = delete;
  NameServer& operator=(const NameServer&) = delete;

  // What a channel has to be made for, so that it asks this server: "dns://127.0.0.1:PORT/NAME:port".
  std::string TargetWithPort(absl::string_view port) const;
  // How many answers have not been given yet; the last is never used up.
  size_t LeftToAnswer();

 private:
  void Serve();
  // The answer to `question`, both whole messages.
  std::string Answer(const std::string& question);

  int socket_;
  int port_;
  core::Mutex mutex_;
  std::deque<std::string> answers_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_NAME_SERVER_H_
