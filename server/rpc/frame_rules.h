// What a client may send on one connection, by the headers of its HTTP/2 frames.
//
// gRPC 1.51 enforces flow control, the number of open calls and the size of metadata, but much of that only once the
// client has acknowledged the server's SETTINGS, and nothing of what a client does beside it. Each rule here stands for
// an attack that took memory without end; the constants in frame_rules.cc say how much.
#ifndef ADAMANT_SERVER_RPC_FRAME_RULES_H_
#define ADAMANT_SERVER_RPC_FRAME_RULES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace adamant::rpc {

// Walks the bytes of one connection as they come, in pieces of any size. It looks at the header of each frame, and at
// the first bytes of each gRPC message, and copies nothing else. Thread-compatible.
class FrameRules {
 public:
  // Takes the next bytes. Returns the rule that they break, for the log: what was expected, and what came. After that
  // the connection is to be cut off, and Walk not to be called again. Bytes that are no HTTP/2 at all break no rule:
  // gRPC ends their connection by itself.
  std::optional<std::string> Walk(absl::string_view bytes);

  // Calls that were begun since the last TakeCalls.
  int TakeCalls();
  // Frames since the last TakeControlFrames that neither begin a call nor bring any of a message.
  int TakeControlFrames();
  // Frames since the last TakeQuestions that the server answers with a frame of its own: SETTINGS and PING.
  int questions() const { return questions_; }
  void TakeQuestions() { questions_ = 0; }
  // Bytes of the header block that is under way; 0 if there is none.
  int64_t open_header_bytes() const;
  // Whether a DATA frame is under way.
  bool in_data() const;
  // Bytes that are still to come of the frame under way.
  int64_t payload_left() const { return payload_left_; }

 private:
  // A call whose client may still send messages.
  struct Stream {
    uint32_t id;
    uint64_t last_use = 0;      // frames that there had been
    int64_t prefix_bytes = 0;   // that have come of the message under way
    int64_t message_bytes = 0;  // of it, as far as its prefix says, that are still to come
    int64_t excess_bytes = 0;   // by which its frames were smaller than they should be: see kBytesOfAFrame
  };

  std::optional<std::string> BeginFrame();
  std::optional<std::string> BeginHeaders(uint32_t stream);
  std::optional<std::string> BeginData(uint32_t stream);
  std::optional<std::string> CheckBlock() const;
  // A stream has at most one frame's worth to its credit.
  static void LimitCredit(Stream* stream);
  // Takes payload of a DATA frame.
  void WalkMessages(absl::string_view bytes);

  // The call of this number; null if there is none.
  Stream* Find(uint32_t id);
  void Add(uint32_t id);
  void Remove(uint32_t id);

  size_t preface_bytes_ = 0;  // that have come
  bool foreign_ = false;      // no HTTP/2
  bool acknowledged_ = false;
  // The frame under way.
  std::array<char, 9> header_;
  size_t header_bytes_ = 0;  // that have come
  int64_t payload_left_ = 0;
  uint8_t type_ = 0;
  uint8_t flags_ = 0;
  // The header block under way, or the last one.
  bool block_open_ = false;
  int64_t block_bytes_ = 0;  // of its frames so far, whole
  int block_frames_ = 0;
  bool trailers_ = false;
  // The calls.
  uint32_t last_stream_ = 0;
  int calls_ = 0;
  int early_calls_ = 0;             // before the client acknowledged SETTINGS
  int64_t early_header_bytes_ = 0;  // before that
  int questions_ = 0;
  int control_frames_ = 0;
  uint64_t frames_ = 0;
  std::vector<Stream> streams_;
  bool made_room_ = false;      // whether any had to leave streams_ for others
  Stream others_{};             // the account of those that are not there
  Stream* receiver_ = nullptr;  // one of streams_, whose DATA frame is under way
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_FRAME_RULES_H_
