// RFC 1035, as far as it goes for one question and one answer.
#include "tests/e2e/name_server.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant::e2e {
namespace {

using namespace std::string_literals;

constexpr char kName[] = "server.adamant.test";
constexpr size_t kHeaderBytes = 12;
// Of a question behind its name: type and class.
constexpr size_t kQuestionTailBytes = 4;
constexpr char kTypeA = 1;

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

NameServer::NameServer(std::deque<std::string> answers)
    : socket_(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)), answers_(std::move(answers)) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  Check(bind(socket_, reinterpret_cast<sockaddr*>(&address), size) == 0);
  Check(getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Serve(); });
}

NameServer::~NameServer() {
  // Wakes the thread up, although the socket has no peer.
  shutdown(socket_, SHUT_RDWR);
  thread_.join();
  close(socket_);
}

std::string NameServer::TargetWithPort(absl::string_view port) const {
  return absl::StrCat("dns://127.0.0.1:", port_, "/", kName, ":", port);
}

size_t NameServer::LeftToAnswer() {
  core::MutexLock lock(&mutex_);
  return answers_.size() - 1;
}

void NameServer::Serve() {
  for (;;) {
    char message[512];
    sockaddr_in from;
    socklen_t size = sizeof(from);
    const ssize_t n = recvfrom(socket_, message, sizeof(message), 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (n <= 0) return;
    const std::string answer = Answer(std::string(message, n));
    sendto(socket_, answer.data(), answer.size(), 0, reinterpret_cast<const sockaddr*>(&from), size);
  }
}

std::string NameServer::Answer(const std::string& question) {
  const size_t name_end = question.find('\0', kHeaderBytes) + 1;
  Check(question.size() >= name_end + kQuestionTailBytes);
  std::string name;
  for (size_t label = kHeaderBytes; question[label] != 0; label += question[label] + 1) {
    absl::StrAppend(&name, name.empty() ? "" : ".", question.substr(label + 1, question[label]));
  }
  std::string address;
  bool exists = false;
  if (name == kName) {
    core::MutexLock lock(&mutex_);
    exists = !answers_.front().empty();
    if (question[name_end + 1] == kTypeA) {
      address = answers_.front();
      if (answers_.size() > 1) answers_.pop_front();
    }
  }
  // A response, with the question in it: no error, or no such name.
  std::string answer = question.substr(0, 2) + "\x81"s + (exists ? "\x80"s : "\x83"s) + "\0\x01\0\0\0\0\0\0"s;
  if (!address.empty()) answer[7] = 1;
  answer += question.substr(kHeaderBytes, name_end + kQuestionTailBytes - kHeaderBytes);
  if (address.empty()) return answer;
  in_addr bits;
  Check(inet_pton(AF_INET, address.c_str(), &bits) == 1);
  // The question's name; A, IN, not to be kept, four bytes.
  answer += "\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04"s;
  answer.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  return answer;
}

}  // namespace adamant::e2e
