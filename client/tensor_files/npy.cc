// The header is a Python dictionary as a literal, of which numpy writes three fields and reads no others.
#include "client/tensor_files/npy.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace adamant::tensor_files {
namespace {

constexpr absl::string_view kMagic = "\x93NUMPY";
constexpr size_t kVersionBytes = 2;
// numpy's own alignment, so that arrays can be mapped.
constexpr size_t kAlignment = 64;

absl::Status NoHeader(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("the header is not as numpy writes it: ", why));
}

// What is left of a literal to be read.
class Literal {
 public:
  explicit Literal(absl::string_view text) : rest_(text) {}

  // Whether `token` comes next, behind white space; it is then taken.
  bool Take(absl::string_view token) {
    rest_ = absl::StripLeadingAsciiWhitespace(rest_);
    return absl::ConsumePrefix(&rest_, token);
  }
  // A string in quotes of either kind, without escapes.
  std::optional<absl::string_view> TakeString() {
    rest_ = absl::StripLeadingAsciiWhitespace(rest_);
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) return std::nullopt;
    const size_t end = rest_.find(rest_[0], 1);
    if (end == absl::string_view::npos) return std::nullopt;
    const absl::string_view text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }
  std::optional<int64_t> TakeNumber() {
    rest_ = absl::StripLeadingAsciiWhitespace(rest_);
    size_t digits = 0;
    while (digits < rest_.size() && absl::ascii_isdigit(rest_[digits])) ++digits;
    int64_t number;
    if (!absl::SimpleAtoi(rest_.substr(0, digits), &number)) return std::nullopt;
    rest_.remove_prefix(digits);
    // Python 2's.
    absl::ConsumePrefix(&rest_, "L");
    return number;
  }
  // A tuple of numbers.
  std::optional<std::vector<int64_t>> TakeShape() {
    if (!Take("(")) return std::nullopt;
    std::vector<int64_t> shape;
    while (!Take(")")) {
      const std::optional<int64_t> extent = TakeNumber();
      if (!extent.has_value()) return std::nullopt;
      shape.push_back(*extent);
      if (Take(",")) continue;
      if (!Take(")")) return std::nullopt;
      break;
    }
    return shape;
  }
  bool done() { return absl::StripLeadingAsciiWhitespace(rest_).empty(); }

 private:
  absl::string_view rest_;
};

}  // namespace

absl::StatusOr<NpyHeader> ParseNpyHeader(absl::string_view start) {
  if (!absl::StartsWith(start, kMagic)) {
    return absl::InvalidArgumentError("the file does not begin as a .npy file does");
  }
  if (start.size() < kMagic.size() + kVersionBytes) return NoHeader("the file is cut off");
  const int version = start[kMagic.size()];
  if (version < 1 || version > 3) {
    return absl::InvalidArgumentError(absl::StrCat("the version of the format: expected 1 to 3, got ", version));
  }
  const size_t length_bytes = version == 1 ? 2 : 4;
  const size_t begin = kMagic.size() + kVersionBytes + length_bytes;
  if (start.size() < begin) return NoHeader("the file is cut off");
  size_t length = 0;
  for (size_t i = length_bytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(start[begin - length_bytes + i]);
  if (start.size() - begin < length) {
    return NoHeader(absl::StrCat("the file is cut off: expected ", length, " bytes of it, got ", start.size() - begin));
  }

  Literal literal(start.substr(begin, length));
  std::optional<std::string> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
  if (!literal.Take("{")) return NoHeader("expected a dictionary");
  while (!literal.Take("}")) {
    const std::optional<absl::string_view> key = literal.TakeString();
    if (!key.has_value() || !literal.Take(":")) return NoHeader("expected a key, or the end of the dictionary");
    if (*key == "descr" && !descr.has_value()) {
      const std::optional<absl::string_view> type = literal.TakeString();
      if (!type.has_value()) return NoHeader("expected a plain type as 'descr'");
      descr = std::string(*type);
    } else if (*key == "fortran_order" && !fortran_order.has_value()) {
      fortran_order = literal.Take("True");
      if (!*fortran_order && !literal.Take("False")) return NoHeader("expected True or False as 'fortran_order'");
    } else if (*key == "shape" && !shape.has_value()) {
      shape = literal.TakeShape();
      if (!shape.has_value()) return NoHeader("expected a tuple of numbers as 'shape'");
    } else {
      return NoHeader(
          absl::StrCat("'", absl::CHexEscape(key->substr(0, 64)), "' is there twice, or is none of its keys"));
    }
    if (literal.Take(",")) continue;
    if (!literal.Take("}")) return NoHeader("expected a comma, or the end of the dictionary");
    break;
  }
  if (!literal.done()) return NoHeader("expected nothing behind the dictionary");
  if (!descr.has_value() || !fortran_order.has_value() || !shape.has_value()) {
    return NoHeader("expected 'descr', 'fortran_order' and 'shape'");
  }
  if (*fortran_order && shape->size() > 1) {
    return absl::InvalidArgumentError(
        "the array is column-major: save numpy.ascontiguousarray of it, which is row-major");
  }
  return NpyHeader{.descr = *descr, .shape = *shape, .data_offset = static_cast<int64_t>(begin + length)};
}

std::string FormatNpyHeader(absl::Span<const int64_t> shape) {
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < shape.size(); ++i) absl::StrAppend(&text, i > 0 ? ", " : "", shape[i]);
  absl::StrAppend(&text, shape.size() == 1 ? ",), }" : "), }");
  const size_t begin = kMagic.size() + kVersionBytes + 2;
  // The line's end is the header's last byte.
  text.append((kAlignment - (begin + text.size() + 1) % kAlignment) % kAlignment, ' ');
  text += '\n';
  std::string header(kMagic);
  header += {1, 0, static_cast<char>(text.size() & 0xff), static_cast<char>(text.size() >> 8)};
  return header + text;
}

}  // namespace adamant::tensor_files
