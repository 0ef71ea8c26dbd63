#include "server/rpc/guard.h"

#include <dlfcn.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/core/base/mutex.h"
#include "server/log.h"
#include "server/rpc/frame_rules.h"

namespace adamant::rpc {
namespace {

// Calls that a connection begins before it is paused: as many as it may have open.
constexpr int kCallsInARow = 100;
// The same of frames that move no message, and of bytes. gRPC's next buffers are as large as what it has read before it
// found nothing more: 2 GiB of frames that it passes over made them overflow, which ended the process.
constexpr int kControlFramesInARow = 1000;
constexpr int64_t kBytesInARow = int64_t{32} << 20;

// What is read at once beyond the frame that is under way, and so without knowing what it is: in the middle of
// messages, which more of them follow; else; and where the server is far behind. A call that is reset at once takes 28
// bytes.
constexpr size_t kBlindBytesInData = size_t{16} << 10;
constexpr size_t kBlindBytes = size_t{4} << 10;
constexpr size_t kBlindBytesFarBehind = 256;

// How many calls may be left over (see Guard::CallsLeftOver) when one that is paused goes on; and when the server is
// far behind, so that each connection is paused after the first calls that it begins. Each holds up to 40 KiB. What has
// been left over for kStuckTicks is not counted, since nobody is to wait for it: calls whose clients do not take their
// answers, and idle health watches.
constexpr int64_t kCaughtUpCalls = 500;
constexpr int64_t kFarBehindCalls = 1500;
constexpr std::chrono::milliseconds kTick(1);
constexpr int kStuckTicks = 1000;
// How many may be stuck. Where there are more, connections are cut off whose peers have taken nothing of what was sent
// to them for half of kStuckTicks: gRPC lets go of a call whose answer cannot leave with its connection only. 200 of
// them, with 100 calls each, held 300 MiB.
constexpr int64_t kMaxStuckCalls = 1500;

// Bytes of header blocks that may be under way at one time, on all connections together, beyond kFreeHeaderBytes of
// each. Where there are more, whose have been under way for the longest is cut off, since those who are honest send
// theirs at once. gRPC keeps up to 80 bytes for one of them (900 connections, 16 KiB each: 824 MiB), and until it has
// closed what was cut off: so there are never twice as many.
constexpr int64_t kMaxHeaderBytes = int64_t{256} << 10;
constexpr int64_t kFreeHeaderBytes = 256;

// Of so many frames that the server answers, the answers to those before must have been taken: gRPC keeps up to 10,000
// for a client that reads nothing (900 connections: 223 MiB). Each has at least 9 bytes.
constexpr int kQuestionsInARow = 256;
constexpr uint64_t kLeastAnswerBytes = 9;

using RecvmsgFunction = ssize_t (*)(int, msghdr*, int);
using CloseFunction = int (*)(int);

template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

ssize_t NextRecvmsg(int fd, msghdr* message, int flags) {
  static const auto next = Next<RecvmsgFunction>("recvmsg");
  return next(fd, message, flags);
}

int NextClose(int fd) {
  static const auto next = Next<CloseFunction>("close");
  return next(fd);
}

// Makes epoll tell of the TCP connection `fd` once more, if there is something to read.
void TellAgain(int fd) {
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
}

// Bytes that there is room for.
size_t RoomIn(const msghdr& message) {
  size_t room = 0;
  for (size_t i = 0; i < message.msg_iovlen; ++i) room += message.msg_iov[i].iov_len;
  return room;
}

// Bytes that were left to read after `message` was: as the system says, or at least 1 if it was not asked to.
int BytesLeft(msghdr& message) {
  for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr; item = CMSG_NXTHDR(&message, item)) {
    if (item->cmsg_level == IPPROTO_TCP && item->cmsg_type == TCP_CM_INQ) {
      int left;
      std::memcpy(&left, CMSG_DATA(item), sizeof(left));
      return left;
    }
  }
  return 1;
}

std::string TooManyHeaderBytes(int64_t bytes) {
  return absl::StrCat("bytes of unfinished header blocks on all connections: expected at most ", kMaxHeaderBytes,
                      ", got ", bytes, ", some of them here");
}

// Whether something that was sent to the peer has not been taken yet.
bool HasUntakenBytes(int fd) {
  int bytes = 0;
  return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

// Bytes that the peer has taken of what was sent to it; 0 where the system does not say.
uint64_t BytesTaken(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof(info);
  getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size);
  return info.tcpi_bytes_acked;
}

}  // namespace

// One connection. Only one thread reads from it at a time.
class WatchedConnection {
 public:
  WatchedConnection(int fd, std::string peer, std::shared_ptr<Guard::Shared> shared);
  // It is about to be closed.
  ~WatchedConnection();

  // What recvmsg does without flags.
  ssize_t Receive(msghdr* message);

 private:
  friend struct Guard::Shared;

  // Nothing comes from now on. gRPC will ask so many times before it waits for more.
  void Pause(int asks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  void BeginRow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  // Receives at most so many bytes.
  ssize_t ReceiveSome(msghdr* message, size_t most) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  // Takes the first `bytes` of what `message` holds. Returns the rule that they break.
  std::optional<std::string> Walk(const msghdr& message, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  std::optional<std::string> CheckAnswers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);

  const int fd_;
  const std::string peer_;
  const std::shared_ptr<Guard::Shared> shared_;
  std::atomic<bool> cut_off_ = false;
  std::atomic<bool> paused_ = false;

  // Held by whoever reads, though gRPC has only one thread do so at a time: it says so to ThreadSanitizer.
  core::Mutex reading_;
  FrameRules rules_ ABSL_GUARDED_BY(reading_);
  int calls_in_a_row_ ABSL_GUARDED_BY(reading_) = 0;
  int control_frames_in_a_row_ ABSL_GUARDED_BY(reading_) = 0;
  int64_t bytes_in_a_row_ ABSL_GUARDED_BY(reading_) = 0;
  int asks_before_it_waits_ ABSL_GUARDED_BY(reading_) = 0;
  bool header_open_ ABSL_GUARDED_BY(reading_) = false;  // as Shared knows it
  uint64_t bytes_taken_ ABSL_GUARDED_BY(reading_) = 0;  // by the peer, at the last look

  // Guarded by the mutex of shared_.
  std::list<WatchedConnection*>::iterator place_;
  std::optional<uint64_t> taken_before_;  // where some bytes were not taken, at the last look at it
  int64_t header_bytes_ = 0;
  std::optional<std::list<WatchedConnection*>::iterator> header_place_;
};

struct Guard::Shared {
  explicit Shared(CallsLeftOver calls) : calls_left_over(std::move(calls)) {}

  // The calls that are left over and not stuck.
  int64_t CallsBehind() const { return ended ? 0 : calls_left_over() - calls_stuck; }
  // Finds out how many are stuck, and whose they are where these are too many.
  void CountTick();
  // Notes who has not taken all that was sent to it. Cuts off, if asked to, who has taken nothing since the last time.
  void LookAtTakers(bool cut_off_mute);

  // Shuts `connection` down, which has broken a rule.
  static void CutOff(WatchedConnection* connection, absl::string_view broken);
  // `connection` is paused, and gRPC waits for it.
  void ResumeLater(WatchedConnection* connection);
  // Lets the one go on that has been paused for the longest, if there is any.
  void ResumeOne();
  // Waits until one is paused, and then for kTick. Returns whether the guard goes on.
  bool AwaitTick();
  // The end of the guard.
  void End();
  // `connection` has `bytes` of a header block under way. Cuts off those whose are the oldest where they are too many.
  // Returns false if they are so many that `connection` is to be cut off before gRPC gets any more of it.
  bool SetHeaderBytes(WatchedConnection* connection, int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  static void Resume(WatchedConnection* connection);

  const CallsLeftOver calls_left_over;
  std::atomic<bool> ended = false;  // only set while mutex is held
  std::atomic<int64_t> calls_stuck = 0;
  // Of the thread of the guard.
  int ticks = 0;
  int64_t least_left_over = 0;  // in these ticks

  core::Mutex mutex;
  core::CondVar changed;
  std::list<WatchedConnection*> all ABSL_GUARDED_BY(mutex);
  // Those that gRPC waits for, the one that has been paused for the longest first.
  std::list<WatchedConnection*> paused ABSL_GUARDED_BY(mutex);
  // Those with a header block under way that are not cut off, the one whose is the oldest first, and their bytes.
  std::list<WatchedConnection*> headers ABSL_GUARDED_BY(mutex);
  int64_t header_bytes_let_be ABSL_GUARDED_BY(mutex) = 0;
  // And of those that are, until they are closed.
  int64_t header_bytes ABSL_GUARDED_BY(mutex) = 0;
};

void Guard::Shared::CutOff(WatchedConnection* connection, absl::string_view broken) {
  static RateLimitedLog cut_off(LogLevel::kWarning);
  if (connection->cut_off_.exchange(true)) return;
  cut_off.Write(absl::StrCat("connection of ", connection->peer_, " cut off: ", broken));
  shutdown(connection->fd_, SHUT_RDWR);
}

void Guard::Shared::ResumeLater(WatchedConnection* connection) {
  core::MutexLock lock(&mutex);
  if (ended) {
    Resume(connection);
    return;
  }
  paused.push_back(connection);
  changed.NotifyAll();
}

void Guard::Shared::ResumeOne() {
  core::MutexLock lock(&mutex);
  if (paused.empty()) return;
  Resume(paused.front());
  paused.pop_front();
}

void Guard::Shared::CountTick() {
  const int64_t now = std::max<int64_t>(0, calls_left_over());
  least_left_over = ticks == 0 ? now : std::min(least_left_over, now);
  ticks = (ticks + 1) % kStuckTicks;
  if (ticks == kStuckTicks / 2) LookAtTakers(false);
  if (ticks == 0) {
    calls_stuck = least_left_over;
    LookAtTakers(least_left_over > kMaxStuckCalls);
  }
  calls_stuck = std::min<int64_t>(calls_stuck, now);
}

void Guard::Shared::LookAtTakers(bool cut_off_mute) {
  core::MutexLock lock(&mutex);
  for (WatchedConnection* connection : all) {
    std::optional<uint64_t> taken;
    if (HasUntakenBytes(connection->fd_)) taken = BytesTaken(connection->fd_);
    const std::optional<uint64_t> before = std::exchange(connection->taken_before_, taken);
    if (!cut_off_mute || taken.value_or(0) == 0 || taken != before) continue;
    CutOff(connection, "it takes nothing of what is sent to it, and many calls are stuck");
  }
}

bool Guard::Shared::AwaitTick() {
  core::MutexLock lock(&mutex);
  while (!ended && paused.empty()) changed.Wait(&mutex);
  const auto tick = std::chrono::steady_clock::now() + kTick;
  while (!ended && !changed.WaitUntil(&mutex, tick)) continue;
  return !ended;
}

void Guard::Shared::End() {
  core::MutexLock lock(&mutex);
  ended = true;
  for (WatchedConnection* connection : paused) Resume(connection);
  paused.clear();
  changed.NotifyAll();
}

void Guard::Shared::Resume(WatchedConnection* connection) {
  connection->paused_ = false;
  TellAgain(connection->fd_);
}

bool Guard::Shared::SetHeaderBytes(WatchedConnection* connection, int64_t bytes) {
  const int64_t more = bytes - connection->header_bytes_;
  if (more > 0 && header_bytes + more > 2 * kMaxHeaderBytes) return false;
  connection->header_bytes_ = bytes;
  header_bytes += more;
  if (connection->header_place_.has_value()) {
    header_bytes_let_be += more;
    if (bytes == 0) headers.erase(*std::exchange(connection->header_place_, std::nullopt));
  } else if (bytes > 0 && !connection->cut_off_) {
    header_bytes_let_be += bytes;
    connection->header_place_ = headers.insert(headers.end(), connection);
  }
  while (header_bytes_let_be > kMaxHeaderBytes) {
    WatchedConnection* const oldest = headers.front();
    CutOff(oldest, TooManyHeaderBytes(header_bytes_let_be));
    header_bytes_let_be -= oldest->header_bytes_;
    headers.erase(*std::exchange(oldest->header_place_, std::nullopt));
  }
  return true;
}

namespace {

// By number.
std::atomic<WatchedConnection*> watched[Guard::kMostFiles];

WatchedConnection* Find(int fd) {
  return fd >= 0 && fd < Guard::kMostFiles ? watched[fd].load(std::memory_order_acquire) : nullptr;
}

}  // namespace

WatchedConnection::WatchedConnection(int fd, std::string peer, std::shared_ptr<Guard::Shared> shared)
    : fd_(fd), peer_(std::move(peer)), shared_(std::move(shared)) {
  core::MutexLock lock(&shared_->mutex);
  place_ = shared_->all.insert(shared_->all.end(), this);
}

WatchedConnection::~WatchedConnection() {
  // gRPC closes what it reads no more, and this tells ThreadSanitizer so.
  { core::MutexLock reading(&reading_); }
  core::MutexLock lock(&shared_->mutex);
  shared_->all.erase(place_);
  shared_->SetHeaderBytes(this, 0);
  shared_->paused.remove(this);
}

ssize_t WatchedConnection::Receive(msghdr* message) {
  if (cut_off_) return 0;
  core::MutexLock reading(&reading_);
  if (paused_) {
    if (asks_before_it_waits_ > 0 && --asks_before_it_waits_ == 0) shared_->ResumeLater(this);
    // An end that comes meanwhile is told once, to whoever waits now.
    char next;
    const ssize_t end = recv(fd_, &next, sizeof(next), MSG_PEEK | MSG_DONTWAIT);
    if (end <= 0) return end;
    errno = EAGAIN;
    return -1;
  }
  const bool far_behind = shared_->CallsBehind() > kFarBehindCalls;
  size_t blind_bytes = rules_.in_data() ? kBlindBytesInData : kBlindBytes;
  if (far_behind) blind_bytes = kBlindBytesFarBehind;
  const ssize_t bytes = ReceiveSome(message, static_cast<size_t>(rules_.payload_left()) + blind_bytes);
  if (bytes <= 0) {
    BeginRow();
    return bytes;
  }
  if (const std::optional<std::string> broken = Walk(*message, static_cast<size_t>(bytes)); broken.has_value()) {
    Guard::Shared::CutOff(this, *broken);
    return 0;
  }
  const int calls = rules_.TakeCalls();
  calls_in_a_row_ += calls;
  control_frames_in_a_row_ += rules_.TakeControlFrames();
  bytes_in_a_row_ += bytes;
  const bool more = BytesLeft(*message) != 0;
  // Where nothing is left to read gRPC turns to what it has read by itself.
  if (!more) BeginRow();
  if (calls_in_a_row_ >= kCallsInARow || control_frames_in_a_row_ >= kControlFramesInARow ||
      bytes_in_a_row_ >= kBytesInARow || (far_behind && calls > 0)) {
    // gRPC asks until its buffers are full, takes in what it has, and asks once more.
    Pause(more && static_cast<size_t>(bytes) < RoomIn(*message) ? 2 : 1);
  }
  const int64_t header_bytes = std::max<int64_t>(0, rules_.open_header_bytes() - kFreeHeaderBytes);
  if (header_open_ || header_bytes > 0) {
    core::MutexLock lock(&shared_->mutex);
    header_open_ = header_bytes > 0;
    if (!shared_->SetHeaderBytes(this, header_bytes)) {
      Guard::Shared::CutOff(this, TooManyHeaderBytes(shared_->header_bytes + header_bytes));
      return 0;
    }
  }
  return bytes;
}

void WatchedConnection::Pause(int asks) {
  paused_ = true;
  asks_before_it_waits_ = asks;
  BeginRow();
}

void WatchedConnection::BeginRow() {
  calls_in_a_row_ = 0;
  control_frames_in_a_row_ = 0;
  bytes_in_a_row_ = 0;
}

ssize_t WatchedConnection::ReceiveSome(msghdr* message, size_t most) const {
  // The list of buffers is cut where the limit falls, and mended after.
  const size_t all_buffers = message->msg_iovlen;
  size_t room = 0;
  size_t left_out = 0;
  for (size_t i = 0; i < all_buffers; ++i) {
    room += message->msg_iov[i].iov_len;
    if (room < most) continue;
    left_out = room - most;
    message->msg_iovlen = i + 1;
    break;
  }
  iovec* const last = all_buffers == 0 ? nullptr : &message->msg_iov[message->msg_iovlen - 1];
  if (last != nullptr) last->iov_len -= left_out;
  const ssize_t bytes = NextRecvmsg(fd_, message, 0);
  if (last != nullptr) last->iov_len += left_out;
  message->msg_iovlen = all_buffers;
  return bytes;
}

std::optional<std::string> WatchedConnection::Walk(const msghdr& message, size_t bytes) {
  for (size_t i = 0; bytes > 0; ++i) {
    const iovec& buffer = message.msg_iov[i];
    const size_t count = std::min(bytes, buffer.iov_len);
    std::optional<std::string> broken = rules_.Walk({static_cast<const char*>(buffer.iov_base), count});
    if (broken.has_value()) return broken;
    bytes -= count;
  }
  return CheckAnswers();
}

std::optional<std::string> WatchedConnection::CheckAnswers() {
  if (rules_.questions() < kQuestionsInARow) return std::nullopt;
  rules_.TakeQuestions();
  const uint64_t before = std::exchange(bytes_taken_, BytesTaken(fd_));
  if (bytes_taken_ == 0) return std::nullopt;
  const uint64_t taken = bytes_taken_ - before;
  constexpr uint64_t kLeast = kQuestionsInARow * kLeastAnswerBytes;
  if (taken >= kLeast) return std::nullopt;
  return absl::StrCat("answers to ", kQuestionsInARow, " SETTINGS and PING frames: expected at least ", kLeast,
                      " bytes to be taken, got ", taken);
}

Guard::Guard(CallsLeftOver calls_left_over)
    : shared_(std::make_shared<Shared>(std::move(calls_left_over))), thread_([this] {
        while (shared_->AwaitTick()) {
          shared_->CountTick();
          if (shared_->CallsBehind() <= kCaughtUpCalls) shared_->ResumeOne();
        }
      }) {}

Guard::~Guard() {
  shared_->End();
  thread_.join();
}

void Guard::Watch(int fd, std::string peer) {
  watched[fd].store(new WatchedConnection(fd, std::move(peer), shared_), std::memory_order_release);
}

}  // namespace adamant::rpc

// Instead of the system's, for the whole program and its libraries: see guard.h.
extern "C" {

__attribute__((visibility("default"))) ssize_t recvmsg(int fd, msghdr* message, int flags) {
  adamant::rpc::WatchedConnection* const connection = flags == 0 ? adamant::rpc::Find(fd) : nullptr;
  return connection != nullptr ? connection->Receive(message) : adamant::rpc::NextRecvmsg(fd, message, flags);
}

__attribute__((visibility("default"))) int close(int fd) {
  if (adamant::rpc::Find(fd) != nullptr) delete adamant::rpc::watched[fd].exchange(nullptr, std::memory_order_acq_rel);
  return adamant::rpc::NextClose(fd);
}

}  // extern "C"
