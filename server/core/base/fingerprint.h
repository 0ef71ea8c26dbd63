// A hash that is the same in every process, version and machine.
#ifndef ADAMANT_SERVER_CORE_BASE_FINGERPRINT_H_
#define ADAMANT_SERVER_CORE_BASE_FINGERPRINT_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace adamant::core {

// 64-bit FNV-1a of everything added, in order. Tells things apart that differ by accident; an adversary can collide it.
// Thread-compatible.
class Fingerprint {
 public:
  // As eight bytes, lowest first.
  void AddInteger(uint64_t value) {
    for (int shift = 0; shift < 64; shift += 8) AddByte(static_cast<uint8_t>(value >> shift));
  }

  // With its length before it, so that two strings never run into one.
  void AddString(absl::string_view text) {
    AddInteger(text.size());
    for (const char c : text) AddByte(static_cast<uint8_t>(c));
  }

  uint64_t value() const { return value_; }

 private:
  void AddByte(uint8_t byte) { value_ = (value_ ^ byte) * 0x100000001B3; }

  uint64_t value_ = 0xCBF29CE484222325;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BASE_FINGERPRINT_H_
