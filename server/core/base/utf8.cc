// A decoder of UTF-8, one code point at a time.
#include "server/core/base/utf8.h"

#include <cstddef>
#include <cstdint>
#include <optional>

namespace adamant::core {
namespace {

// Takes the first code point off `text`, which is not empty. Nothing if it does not begin with one.
std::optional<uint32_t> TakeCodePoint(absl::string_view* text) {
  const uint8_t lead = static_cast<uint8_t>(text->front());
  size_t length;
  uint32_t code_point;
  uint32_t lowest;  // below it a shorter form exists
  if (lead < 0x80) {
    length = 1, code_point = lead, lowest = 0;
  } else if (lead >> 5 == 0b110) {
    length = 2, code_point = lead & 0x1F, lowest = 0x80;
  } else if (lead >> 4 == 0b1110) {
    length = 3, code_point = lead & 0x0F, lowest = 0x800;
  } else if (lead >> 3 == 0b11110) {
    length = 4, code_point = lead & 0x07, lowest = 0x10000;
  } else {
    return std::nullopt;
  }
  if (text->size() < length) return std::nullopt;
  for (const char c : text->substr(1, length - 1)) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (byte >> 6 != 0b10) return std::nullopt;
    code_point = code_point << 6 | (byte & 0x3F);
  }
  const bool surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
  if (code_point < lowest || code_point > 0x10FFFF || surrogate) return std::nullopt;
  text->remove_prefix(length);
  return code_point;
}

bool IsControl(uint32_t code_point) { return code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0); }

}  // namespace

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    if (!TakeCodePoint(&text).has_value()) return false;
  }
  return true;
}

bool IsUtf8WithoutControls(absl::string_view text) {
  while (!text.empty()) {
    const std::optional<uint32_t> code_point = TakeCodePoint(&text);
    if (!code_point.has_value() || IsControl(*code_point)) return false;
  }
  return true;
}

}  // namespace adamant::core
