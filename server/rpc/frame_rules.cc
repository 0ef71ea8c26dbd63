#include "server/rpc/frame_rules.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant::rpc {
namespace {

// RFC 9113.
constexpr absl::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
enum FrameType : uint8_t {
  kData = 0x0,
  kHeaders = 0x1,
  kRstStream = 0x3,
  kSettings = 0x4,
  kPing = 0x6,
  kContinuation = 0x9,
};
constexpr uint8_t kEndStream = 0x1;    // of DATA and HEADERS
constexpr uint8_t kAcknowledge = 0x1;  // of SETTINGS and PING
constexpr uint8_t kEndHeaders = 0x4;

// gRPC takes 128 KiB of metadata uncompressed, counted with 32 bytes a field, so that no header block that it would
// take is longer. It looks at what has come of one only in each frame for itself: 500 MiB of CONTINUATION held 1 GiB.
constexpr int64_t kMaxHeaderBlockBytes = int64_t{128} << 10;
// The frames of that have 16 KiB each; there may be three times as many, for clients that cut them smaller. For each
// gRPC copies what it has of an unfinished field: ten fields, each in 110,000 frames of a byte, kept a health check
// waiting for 1.1 s, and 60 for longer than it waits.
constexpr int kMaxHeaderBlockFrames = 24;

// What gRPC's own limits are before the client has acknowledged SETTINGS: 16 MiB of metadata a call, and calls without
// number (284,000 held 2.1 GiB). Some clients begin calls before they have seen the server's SETTINGS.
constexpr int kMaxEarlyCalls = 100;
constexpr int64_t kMaxEarlyHeaderBytes = int64_t{128} << 10;

// No client of gRPC sends trailers, though a proxy may hand on those of another. gRPC keeps up to 128 KiB of them, a
// field of one byte as 80, with each call until it ends, and nobody is charged for that.
constexpr int64_t kMaxTrailerBytes = 64;

// gRPC keeps 32 bytes and more for each DATA frame of a message that nobody has read yet: 1,000 calls with a window
// full of frames of one byte held 1.2 GiB. So a stream may have one frame for each message, one more if it is no tiny
// one, since some clients write its prefix by itself, one for each 512 bytes, and this many more. Clients cut messages
// where a frame or a window ends, proxies where a TCP segment does.
constexpr int64_t kBytesOfAFrame = 512;
constexpr int64_t kMaxExcessBytes = 256 * kBytesOfAFrame;
// Streams that are looked after, on one connection. More are not open: gRPC allows 100. The rest were ended by the
// server, which is not seen here.
constexpr size_t kMaxStreams = 256;

// What comes before each message: a flag, and the length.
constexpr int64_t kMessagePrefixBytes = 5;
// A window holds fewer frames of messages as large as this, two each, than of empty ones.
constexpr int64_t kTinyMessageBytes = 16;

std::string Broken(absl::string_view what, int64_t most, int64_t got) {
  return absl::StrCat(what, ": expected at most ", most, ", got ", got);
}

uint32_t BigEndian(const char* bytes, int count) {
  uint32_t value = 0;
  for (int i = 0; i < count; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

std::optional<std::string> FrameRules::Walk(absl::string_view bytes) {
  const size_t preface = std::min(bytes.size(), kPreface.size() - preface_bytes_);
  if (bytes.substr(0, preface) != kPreface.substr(preface_bytes_, preface)) foreign_ = true;
  if (foreign_) return std::nullopt;
  preface_bytes_ += preface;
  bytes.remove_prefix(preface);
  while (!bytes.empty()) {
    if (payload_left_ > 0) {
      const auto count = static_cast<size_t>(std::min<int64_t>(payload_left_, static_cast<int64_t>(bytes.size())));
      if (receiver_ != nullptr) WalkMessages(bytes.substr(0, count));
      payload_left_ -= static_cast<int64_t>(count);
      bytes.remove_prefix(count);
    } else {
      const size_t count = std::min(bytes.size(), header_.size() - header_bytes_);
      bytes.copy(header_.data() + header_bytes_, count);
      header_bytes_ += count;
      bytes.remove_prefix(count);
      if (header_bytes_ < header_.size()) break;
      header_bytes_ = 0;
      if (std::optional<std::string> broken = BeginFrame(); broken.has_value()) return broken;
    }
  }
  return std::nullopt;
}

int FrameRules::TakeCalls() { return std::exchange(calls_, 0); }

int FrameRules::TakeControlFrames() { return std::exchange(control_frames_, 0); }

int64_t FrameRules::open_header_bytes() const {
  const bool under_way = block_open_ || (payload_left_ > 0 && (type_ == kHeaders || type_ == kContinuation));
  return under_way ? block_bytes_ - payload_left_ : 0;
}

bool FrameRules::in_data() const { return payload_left_ > 0 && type_ == kData; }

std::optional<std::string> FrameRules::BeginFrame() {
  payload_left_ = BigEndian(header_.data(), 3);
  type_ = static_cast<uint8_t>(header_[3]);
  flags_ = static_cast<uint8_t>(header_[4]);
  const uint32_t stream = BigEndian(header_.data() + 5, 4) & 0x7fffffff;
  receiver_ = nullptr;
  ++frames_;
  if (type_ != kHeaders && (type_ != kData || payload_left_ == 0)) ++control_frames_;
  switch (type_) {
    case kData:
      return BeginData(stream);
    case kHeaders:
      return BeginHeaders(stream);
    case kContinuation:
      block_bytes_ += payload_left_;
      ++block_frames_;
      block_open_ = (flags_ & kEndHeaders) == 0;
      if (!acknowledged_) early_header_bytes_ += payload_left_;
      return CheckBlock();
    case kRstStream:
      Remove(stream);
      break;
    case kSettings:
      if ((flags_ & kAcknowledge) != 0) {
        acknowledged_ = true;
        break;
      }
      ++questions_;
      break;
    case kPing:
      if ((flags_ & kAcknowledge) == 0) ++questions_;
      break;
    default:
      break;
  }
  return std::nullopt;
}

std::optional<std::string> FrameRules::BeginHeaders(uint32_t stream) {
  block_bytes_ = payload_left_;
  block_frames_ = 1;
  block_open_ = (flags_ & kEndHeaders) == 0;
  // A client's calls have odd numbers, and gRPC passes over others.
  const bool begins = stream % 2 == 1 && stream > last_stream_;
  trailers_ = !begins;
  ++calls_;
  if (begins) {
    last_stream_ = stream;
    others_.excess_bytes -= kBytesOfAFrame;
    LimitCredit(&others_);
  }
  if (!acknowledged_) {
    ++early_calls_;
    early_header_bytes_ += payload_left_;
  }
  if ((flags_ & kEndStream) != 0) {
    Remove(stream);
  } else if (!trailers_) {
    Add(stream);
  }
  return CheckBlock();
}

std::optional<std::string> FrameRules::CheckBlock() const {
  if (block_bytes_ > kMaxHeaderBlockBytes) return Broken("bytes of a header block", kMaxHeaderBlockBytes, block_bytes_);
  if (block_frames_ > kMaxHeaderBlockFrames) {
    return Broken("frames of a header block", kMaxHeaderBlockFrames, block_frames_);
  }
  if (trailers_ && block_bytes_ > kMaxTrailerBytes) return Broken("bytes of trailers", kMaxTrailerBytes, block_bytes_);
  if (acknowledged_) return std::nullopt;
  if (early_calls_ > kMaxEarlyCalls) {
    return Broken("calls before the server's SETTINGS are acknowledged", kMaxEarlyCalls, early_calls_);
  }
  if (early_header_bytes_ > kMaxEarlyHeaderBytes) {
    return Broken("bytes of header blocks before the server's SETTINGS are acknowledged", kMaxEarlyHeaderBytes,
                  early_header_bytes_);
  }
  return std::nullopt;
}

std::optional<std::string> FrameRules::BeginData(uint32_t stream) {
  if ((flags_ & kEndStream) != 0) {
    Remove(stream);
    return std::nullopt;
  }
  receiver_ = Find(stream);
  if (receiver_ == nullptr && !made_room_) return std::nullopt;
  Stream& account = receiver_ != nullptr ? *receiver_ : others_;
  account.last_use = frames_;
  account.excess_bytes += kBytesOfAFrame - payload_left_;
  LimitCredit(&account);
  if (account.excess_bytes <= kMaxExcessBytes) return std::nullopt;
  return Broken("DATA frames of a message smaller than 512 bytes", kMaxExcessBytes / kBytesOfAFrame,
                account.excess_bytes / kBytesOfAFrame + 1);
}

void FrameRules::LimitCredit(Stream* stream) { stream->excess_bytes = std::max(stream->excess_bytes, -kBytesOfAFrame); }

void FrameRules::WalkMessages(absl::string_view bytes) {
  Stream& stream = *receiver_;
  while (!bytes.empty()) {
    if (stream.prefix_bytes < kMessagePrefixBytes) {
      if (stream.prefix_bytes == 0) stream.excess_bytes -= kBytesOfAFrame;
      // The first byte is a flag; the others shift it out.
      stream.message_bytes = (stream.message_bytes << 8 | static_cast<uint8_t>(bytes[0])) & 0xffffffff;
      ++stream.prefix_bytes;
      if (stream.prefix_bytes == kMessagePrefixBytes && stream.message_bytes >= kTinyMessageBytes) {
        stream.excess_bytes -= kBytesOfAFrame;
      }
      LimitCredit(&stream);
      bytes.remove_prefix(1);
    } else {
      const auto count = std::min(stream.message_bytes, static_cast<int64_t>(bytes.size()));
      stream.message_bytes -= count;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    if (stream.prefix_bytes == kMessagePrefixBytes && stream.message_bytes == 0) stream.prefix_bytes = 0;
  }
}

FrameRules::Stream* FrameRules::Find(uint32_t id) {
  const auto found = std::find_if(streams_.begin(), streams_.end(), [id](const Stream& s) { return s.id == id; });
  return found == streams_.end() ? nullptr : &*found;
}

void FrameRules::Add(uint32_t id) {
  if (streams_.size() == kMaxStreams) {
    // One that has ended, most likely; and none that has much in excess, or else new calls would clear it.
    streams_.erase(std::min_element(streams_.begin(), streams_.end(), [](const Stream& a, const Stream& b) {
      return std::tie(a.excess_bytes, a.last_use) < std::tie(b.excess_bytes, b.last_use);
    }));
    made_room_ = true;
  }
  streams_.push_back({.id = id, .last_use = frames_});
}

void FrameRules::Remove(uint32_t id) {
  if (const Stream* stream = Find(id); stream != nullptr) streams_.erase(streams_.begin() + (stream - streams_.data()));
}

}  // namespace adamant::rpc
