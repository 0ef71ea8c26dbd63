// HTTP/2 as a client of gRPC writes it, and as none does.
#ifndef ADAMANT_TESTS_RPC_HTTP2_FRAMES_H_
#define ADAMANT_TESTS_RPC_HTTP2_FRAMES_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace adamant::http2 {

inline constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

enum Type : uint8_t {
  kData = 0,
  kHeaders = 1,
  kRstStream = 3,
  kSettings = 4,
  kPing = 6,
  kContinuation = 9,
};
inline constexpr uint8_t kEndStream = 1;
inline constexpr uint8_t kAcknowledge = 1;
inline constexpr uint8_t kEndHeaders = 4;

inline std::string BigEndian(uint32_t value, int bytes) {
  std::string text;
  for (int i = bytes - 1; i >= 0; --i) text.push_back(static_cast<char>(value >> (8 * i)));
  return text;
}

// A frame that says that it has `length` bytes, and has those of `payload`.
inline std::string PartOfFrame(uint32_t length, uint8_t type, uint8_t flags, uint32_t stream,
                               absl::string_view payload) {
  return absl::StrCat(BigEndian(length, 3), BigEndian(type, 1), BigEndian(flags, 1), BigEndian(stream, 4), payload);
}

inline std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, absl::string_view payload = "") {
  return PartOfFrame(static_cast<uint32_t>(payload.size()), type, flags, stream, payload);
}

inline std::string Reset(uint32_t stream) { return Frame(kRstStream, 0, stream, BigEndian(8, 4)); }
// A client's first bytes, and what it answers to the server's SETTINGS.
inline std::string Hello() { return absl::StrCat(kPreface, Frame(kSettings, 0, 0)); }
inline std::string Acknowledgement() { return Frame(kSettings, kAcknowledge, 0); }

// HPACK, for texts below 127 bytes.
inline std::string Text(absl::string_view text) {
  return absl::StrCat(std::string(1, static_cast<char>(text.size())), text);
}
inline std::string Field(absl::string_view name, absl::string_view value) {
  return absl::StrCat(absl::string_view("\0", 1), Text(name), Text(value));
}
// A field that lacks its value, which has so many bytes: 127 or more.
inline std::string BeginningOfField(uint32_t value_bytes) {
  std::string field = absl::StrCat(absl::string_view("\0\x01x\x7f", 4));
  for (value_bytes -= 127; value_bytes >= 128; value_bytes >>= 7) {
    field.push_back(static_cast<char>(value_bytes | 128));
  }
  field.push_back(static_cast<char>(value_bytes));
  return field;
}
// A field that the server remembers, and its later self in one byte: the last one that was remembered.
inline std::string RememberedField(absl::string_view name, absl::string_view value) {
  return absl::StrCat("\x40", Text(name), Text(value));
}
inline constexpr char kLastRemembered = '\xbe';

// The header block of a call of `path`.
inline std::string CallHeaders(absl::string_view path, absl::string_view content_type = "application/grpc") {
  return absl::StrCat(Field(":method", "POST"), Field(":scheme", "http"), Field(":path", path),
                      Field(":authority", "test"), Field("content-type", content_type), Field("te", "trailers"));
}

}  // namespace adamant::http2

#endif  // ADAMANT_TESTS_RPC_HTTP2_FRAMES_H_
