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
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace adamant::e2e {
namespace {

// What the server allows on a connection.
constexpr size_t kCallsAConnection = 100;
// How often to look whether it is done, where nothing happens on the connections.
constexpr int kLookMs = 10;

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
  std::string path;
  std::shared_ptr<const std::string> bytes;
  size_t sent = 0;
  std::optional<int> code;  // its answer
  bool closed = false;
};

class HalfSentCalls::Connection {
 public:
  Connection(int port, int window)
      : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), reads_(window != kUnreadSockets) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    // So that what nobody reads soon fills it.
    constexpr int kSmallBuffer = 4096;
    if (!reads_) setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &kSmallBuffer, sizeof(kSmallBuffer));
    Check(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    fcntl(socket_, F_SETFL, O_NONBLOCK);

    nghttp2_session_callbacks* callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_send_callback(callbacks, &Send);
    nghttp2_session_callbacks_set_recv_callback(callbacks, &Receive);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, &OnHeader);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &OnClose);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, &OnFrame);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, &OnFrameSent);
    nghttp2_option* options;
    nghttp2_option_new(&options);
    nghttp2_option_set_no_auto_window_update(options, 1);  // what comes is taken by nobody
    nghttp2_session_client_new2(&session_, callbacks, this, options);
    nghttp2_option_del(options);
    nghttp2_session_callbacks_del(callbacks);
    constexpr int kMostWindow = std::numeric_limits<int32_t>::max();
    const nghttp2_settings_entry setting = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
                                            static_cast<uint32_t>(reads_ ? window : kMostWindow)};
    ++asked_;
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, &setting, 1);
    if (!reads_) nghttp2_submit_window_update(session_, NGHTTP2_FLAG_NONE, 0, kMostWindow - kUsualWindow);
  }

  ~Connection() {
    nghttp2_session_del(session_);
    close(socket_);
  }

  const std::list<Call>& calls() const { return calls_; }
  // How many calls have been begun on the wire, ever.
  size_t begun() const { return begun_; }

  void Begin(absl::string_view method, std::shared_ptr<const std::string> bytes) {
    Call& call = calls_.emplace_back();
    call.path = absl::StrCat(method[0] == '/' ? "" : "/adamant.v1.OptimizerService/", method);
    call.bytes = std::move(bytes);
    const nghttp2_nv fields[] = {Field(":method", "POST"),
                                 Field(":scheme", "http"),
                                 Field(":path", call.path),
                                 Field(":authority", "test"),
                                 Field("content-type", "application/grpc"),
                                 Field("te", "trailers")};
    nghttp2_data_provider body;
    body.source.ptr = &call;
    body.read_callback = &ReadBody;
    Check(nghttp2_submit_request(session_, nullptr, fields, std::size(fields), &body, &call) > 0);
  }

  // Forgets the calls that have ended, and begins them once more.
  void Renew() {
    std::list<Call> ended;
    for (auto call = calls_.begin(); call != calls_.end();) {
      const auto next = std::next(call);
      if (call->closed) ended.splice(ended.end(), calls_, call);
      call = next;
    }
    for (Call& call : ended) Begin(call.path, std::move(call.bytes));
  }

  // Asks for an answer that comes after the server has taken in everything sent before. Not by a ping: there is a limit
  // for these.
  void Ask() {
    ++asked_;
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, nullptr, 0);
  }
  bool answered() const { return broken_ || answers_ == asked_ || (!reads_ && !nghttp2_session_want_write(session_)); }

  pollfd Wish() const {
    pollfd wish = {broken_ ? -1 : socket_, 0, 0};
    if (reads_) wish.events |= POLLIN;
    if (nghttp2_session_want_write(session_)) wish.events |= POLLOUT;
    return wish;
  }

  void Work() {
    if (broken_) return;
    if (!reads_ || nghttp2_session_recv(session_) == 0) {
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
    if (call == nullptr) return 0;
    if (!call->code.has_value()) call->code = grpc::StatusCode::UNKNOWN;
    call->closed = true;
    return 0;
  }

  static int OnFrame(nghttp2_session*, const nghttp2_frame* frame, void* self) {
    const bool answer = frame->hd.type == NGHTTP2_SETTINGS && (frame->hd.flags & NGHTTP2_FLAG_ACK) != 0;
    if (answer) ++static_cast<Connection*>(self)->answers_;
    return 0;
  }

  static int OnFrameSent(nghttp2_session*, const nghttp2_frame* frame, void* self) {
    static_cast<Connection*>(self)->begun_ += frame->hd.type == NGHTTP2_HEADERS;
    return 0;
  }

  const int socket_;
  const bool reads_;
  nghttp2_session* session_;
  std::list<Call> calls_;
  size_t begun_ = 0;
  int asked_ = 0;
  int answers_ = 0;
  bool broken_ = false;
};

std::string Framed(absl::string_view message, size_t missing) {
  const uint32_t size = htonl(static_cast<uint32_t>(message.size()));
  const absl::string_view prefix(reinterpret_cast<const char*>(&size), sizeof(size));
  return absl::StrCat(absl::string_view("\0", 1), prefix, message.substr(0, message.size() - missing));
}

HalfSentCalls::HalfSentCalls(const std::string& address, int connections, int window)
    : port_([&address] {
        int port;
        Check(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
        return port;
      }()),
      window_(window),
      spread_(connections) {}

HalfSentCalls::~HalfSentCalls() = default;

void HalfSentCalls::Begin(absl::string_view method, std::shared_ptr<const std::string> bytes) {
  NextConnection()->Begin(method, std::move(bytes));
}

HalfSentCalls::Connection* HalfSentCalls::NextConnection() {
  const size_t turn = begun_++;
  if (spread_ != kAsFewAsPossible && turn >= spread_) return &*std::next(connections_.begin(), turn % spread_);
  if (spread_ != kAsFewAsPossible || turn % kCallsAConnection == 0) connections_.emplace_back(port_, window_);
  return &connections_.back();
}

void HalfSentCalls::Run(absl::FunctionRef<bool()> done) {
  for (;;) {
    for (Connection& connection : connections_) connection.Work();
    if (done()) return;
    std::vector<pollfd> wishes;
    for (const Connection& connection : connections_) wishes.push_back(connection.Wish());
    poll(wishes.data(), wishes.size(), kLookMs);
  }
}

void HalfSentCalls::RunRenewing(absl::FunctionRef<bool()> done) {
  Run([&] {
    for (Connection& connection : connections_) connection.Renew();
    return done();
  });
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
    progress += connection.begun();
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
