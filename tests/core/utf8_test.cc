// The edges of UTF-8, from the Unicode Standard's table of well-formed byte sequences (3-7).
#include "server/core/base/utf8.h"

#include <string>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace adamant::core {
namespace {

using ::std::string_literals::operator""s;  // NOLINT(misc-unused-using-decls): a suffix, which the check does not see

TEST(Utf8Test, WellFormedTextOfEveryLengthIsUtf8) {
  for (const std::string& text :
       {""s, "a"s, "\0"s, "\x7F"s, "\xC2\x80"s, "\xDF\xBF"s, "\xE0\xA0\x80"s, "\xED\x9F\xBF"s, "\xEE\x80\x80"s,
        "\xEF\xBF\xBF"s, "\xF0\x90\x80\x80"s, "\xF4\x8F\xBF\xBF"s, "w\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z"s}) {
    EXPECT_TRUE(IsUtf8(text)) << testing::PrintToString(text);
  }
}

TEST(Utf8Test, IllFormedTextIsNot) {
  for (const std::string& text : {"\x80"s,              // continuation without a lead
                                  "\xC1\xBF"s,          // overlong, 2 bytes
                                  "\xE0\x9F\xBF"s,      // overlong, 3 bytes
                                  "\xF0\x8F\xBF\xBF"s,  // overlong, 4 bytes
                                  "\xED\xA0\x80"s,      // first surrogate
                                  "\xED\xBF\xBF"s,      // last surrogate
                                  "\xF4\x90\x80\x80"s,  // above U+10FFFF
                                  "\xF8\x88\x80\x80\x80"s, "\xFF"s,
                                  "\xC2"s,      // cut short
                                  "\xE2\x82"s,  // cut short
                                  "\xC2\x41"s,  // not a continuation
                                  "\xC2\xC2"s, "a\xE2\x82\x41"s}) {
    EXPECT_FALSE(IsUtf8(text)) << testing::PrintToString(text);
    EXPECT_FALSE(IsUtf8WithoutControls(text)) << testing::PrintToString(text);
  }
}

TEST(Utf8Test, ControlCharactersOfBothRangesAreFound) {
  for (const std::string& text : {"a\0b"s, "\x1F"s, "line\n"s, "\x7F"s, "\xC2\x80"s, "\xC2\x9F"s}) {
    EXPECT_TRUE(IsUtf8(text)) << testing::PrintToString(text);
    EXPECT_FALSE(IsUtf8WithoutControls(text)) << testing::PrintToString(text);
  }
  for (const std::string& text : {""s, " "s, "~"s, "\xC2\xA0"s, "layer.0/\xCE\xB2"s}) {
    EXPECT_TRUE(IsUtf8WithoutControls(text)) << testing::PrintToString(text);
  }
}

}  // namespace
}  // namespace adamant::core
