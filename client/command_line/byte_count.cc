#include "client/command_line/byte_count.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace adamant {
namespace {

constexpr struct {
  const char* name;
  int64_t bytes;
} kUnits[] = {
    {"TiB", int64_t{1} << 40}, {"GiB", int64_t{1} << 30}, {"MiB", int64_t{1} << 20}, {"KiB", int64_t{1} << 10}};

}  // namespace

bool AbslParseFlag(absl::string_view text, ByteCount* count, std::string* error) {
  absl::string_view number = text;
  int64_t unit_bytes = 1;
  for (const auto& unit : kUnits) {
    if (!absl::ConsumeSuffix(&number, unit.name)) continue;
    unit_bytes = unit.bytes;
    break;
  }
  int64_t units;
  if (absl::SimpleAtoi(number, &units) && !__builtin_mul_overflow(units, unit_bytes, &count->bytes)) return true;
  *error = absl::StrCat(
      "expected a whole number of bytes, KiB, MiB, GiB or TiB, such as 1048576 or 64MiB, and less than 8388608TiB, got "
      "'",
      text, "'");
  return false;
}

std::string AbslUnparseFlag(ByteCount count) {
  for (const auto& unit : kUnits) {
    if (count.bytes != 0 && count.bytes % unit.bytes == 0) return absl::StrCat(count.bytes / unit.bytes, unit.name);
  }
  return absl::StrCat(count.bytes);
}

}  // namespace adamant
