// nghttp2 on non-blocking sockets.
#include "tests/e2e/half_sent_calls.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/support/status_code_enum.h>
#include <netinet/in.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"

namespace adamant::e2e {
namespace {

// What the server allows on a connection.
constexpr size_t kCallsAConnection = 100;

void Check(bool holds) {
  if (!holds) std::abort();
}

absl::string_view View(const uint8_t* bytes, size_t n) { return {reinterpret_cast<const char*>(bytes), n}; }

// Refers to both.
nghttp2_nv Field(absl::string_view name, absl::string_view value) {
  const auto bytes = [](absl::string_view text) { return reinterpret_cast<uint8_t*>(const_cast<char*>(text.data())); };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

}  // namespace

struct HalfSentCalls::Call {
  std::shared_ptr<const std::string> bytes;
  size_t sent = 0;
  absl::optional<int> code;  // its answer
};

class HalfSentCalls::Connection {
 public:
  explicit Connection(int port) : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    Check(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    fcntl(socket_, F_SETFL, O_NONBLOCK);

    nghttp2_session_callbacks* callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_send_callback(callbacks, &Send);
    nghttp2_session_callbacks_set_recv_callback(callbacks, &Receive);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, &OnHeader);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &OnClose);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, &OnFrame);
    nghttp2_option* options;
    nghttp2_option_new(&options);
    nghttp2_option_set_no_auto_window_update(options, 1);  // what comes is taken by nobody
    nghttp2_session_client_new2(&session_, callbacks, this, options);
    nghttp2_option_del(options);
    nghttp2_session_callbacks_del(callbacks);
    Ask();
  }

  ~Connection() {
    nghttp2_session_del(session_);
    close(socket_);
  }

  const std::list<Call>& calls() const { return calls_; }

  void Begin(absl::string_view method, std::shared_ptr<const std::string> bytes) {
    Call& call = calls_.emplace_back();
    call.bytes = std::move(bytes);
    const std::string path = absl::StrCat(method[0] == '/' ? "" : "/adamant.v1.OptimizerService/", method);
    const nghttp2_nv fields[] = {Field(":method", "POST"),
                                 Field(":scheme", "http"),
                                 Field(":path", path),
                                 Field(":authority", "test"),
                                 Field("content-type", "application/grpc"),
                                 Field("te", "trailers")};
    nghttp2_data_provider body;
    body.source.ptr = &call;
    body.read_callback = &ReadBody;
    Check(nghttp2_submit_request(session_, nullptr, fields, std::size(fields), &body, &call) > 0);
  }

  // Asks for an answer that comes after the server has taken in everything sent before. Not by a ping: there is a limit
  // for these.
  void Ask() {
    ++asked_;
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, nullptr, 0);
  }
  bool answered() const { return broken_ || answers_ == asked_; }

  pollfd Wish() const {
    pollfd wish = {broken_ ? -1 : socket_, POLLIN, 0};
    if (nghttp2_session_want_write(session_)) wish.events |= POLLOUT;
    return wish;
  }

  void Work() {
    if (broken_) return;
    if (nghttp2_session_recv(session_) == 0) {
      nghttp2_session_send(session_);
      return;
    }
    // The server has closed the connection, and with it all calls.
    broken_ = true;
    for (Call& call : calls_) {
      if (!call.code.has_value()) call.code = grpc::StatusCode::UNKNOWN;
    }
  }

 private:
  static ssize_t Send(nghttp2_session*, const uint8_t* bytes, size_t n, int, void* self) {
    const ssize_t sent = send(static_cast<Connection*>(self)->socket_, bytes, n, MSG_NOSIGNAL);
    return sent >= 0 ? sent : Error();
  }

  static ssize_t Receive(nghttp2_session*, uint8_t* bytes, size_t n, int, void* self) {
    const ssize_t received = recv(static_cast<Connection*>(self)->socket_, bytes, n, 0);
    if (received == 0) return NGHTTP2_ERR_EOF;
    return received > 0 ? received : Error();
  }

  // Of the socket operation that has just failed.
  static ssize_t Error() { return errno == EAGAIN ? NGHTTP2_ERR_WOULDBLOCK : NGHTTP2_ERR_CALLBACK_FAILURE; }

  static ssize_t ReadBody(nghttp2_session*, int32_t, uint8_t* to, size_t n, uint32_t*, nghttp2_data_source* source,
                          void*) {
    Call* const call = static_cast<Call*>(source->ptr);
    const size_t count = std::min(n, call->bytes->size() - call->sent);
    if (count == 0) return NGHTTP2_ERR_DEFERRED;  // for good
    std::copy_n(call->bytes->data() + call->sent, count, to);
    call->sent += count;
    return static_cast<ssize_t>(count);
  }

  static int OnHeader(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                      const uint8_t* value, size_t value_size, uint8_t, void*) {
    Call* const call = static_cast<Call*>(nghttp2_session_get_stream_user_data(session, frame->hd.stream_id));
    int code;
    if (call != nullptr && View(name, name_size) == "grpc-status" && absl::SimpleAtoi(View(value, value_size), &code)) {
      call->code = code;
    }
    return 0;
  }

  static int OnClose(nghttp2_session* session, int32_t stream, uint32_t, void*) {
    Call* const call = static_cast<Call*>(nghttp2_session_get_stream_user_data(session, stream));
    if (call != nullptr && !call->code.has_value()) call->code = grpc::StatusCode::UNKNOWN;
    return 0;
  }

  static int OnFrame(nghttp2_session*, const nghttp2_frame* frame, void* self) {
    const bool answer = frame->hd.type == NGHTTP2_SETTINGS && (frame->hd.flags & NGHTTP2_FLAG_ACK) != 0;
    if (answer) ++static_cast<Connection*>(self)->answers_;
    return 0;
  }

  const int socket_;
  nghttp2_session* session_;
  std::list<Call> calls_;
  int asked_ = 0;
  int answers_ = 0;
  bool broken_ = false;
};

std::string Framed(absl::string_view message, size_t missing) {
  const uint32_t size = htonl(static_cast<uint32_t>(message.size()));
  const absl::string_view prefix(reinterpret_cast<const char*>(&size), sizeof(size));
  return absl::StrCat(absl::string_view("\0", 1), prefix, message.substr(0, message.size() - missing));
}

HalfSentCalls::HalfSentCalls(const std::string& address)
    : port_([&address] {
        int port;
        Check(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
        return port;
      }()) {}

HalfSentCalls::~HalfSentCalls() = default;

void HalfSentCalls::Begin(absl::string_view method, std::shared_ptr<const std::string> bytes) {
  if (connections_.empty() || connections_.back().calls().size() == kCallsAConnection) connections_.emplace_back(port_);
  connections_.back().Begin(method, std::move(bytes));
}

void HalfSentCalls::Run(absl::FunctionRef<bool()> done) {
  for (;;) {
    for (Connection& connection : connections_) connection.Work();
    if (done()) return;
    std::vector<pollfd> wishes;
    for (const Connection& connection : connections_) wishes.push_back(connection.Wish());
    poll(wishes.data(), wishes.size(), /*timeout=*/-1);
  }
}

void HalfSentCalls::RunUntilStopped() {
  for (size_t before = 1, now = 0; before != now;) {
    before = Progress();
    for (Connection& connection : connections_) connection.Ask();
    Run([this] {
      return std::all_of(connections_.begin(), connections_.end(),
                         [](const Connection& connection) { return connection.answered(); });
    });
    now = Progress();
  }
}

size_t HalfSentCalls::Progress() const {
  size_t progress = ended();
  for (const Connection& connection : connections_) {
    for (const Call& call : connection.calls()) progress += call.sent;
  }
  return progress;
}

int HalfSentCalls::open() const {
  int count = 0;
  for (const Connection& connection : connections_) {
    for (const Call& call : connection.calls()) count += !call.code.has_value();
  }
  return count;
}

int HalfSentCalls::ended(int code) const {
  int count = 0;
  for (const Connection& connection : connections_) {
    for (const Call& call : connection.calls()) count += call.code == code;
  }
  return count;
}

int HalfSentCalls::ended() const {
  int count = 0;
  for (const Connection& connection : connections_) count += static_cast<int>(connection.calls().size());
  return count - open();
}

}  // namespace adamant::e2e
