#include "client/command_line/byte_count.h"

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace adamant {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ByteCountTest, NumbersMayHaveAUnitAndAreWrittenWithTheLargestThatFits) {
  const struct {
    const char* text;
    int64_t bytes;
    const char* written;
  } cases[] = {{"0", 0, "0"},
               {"1000", 1000, "1000"},
               {"4KiB", 4096, "4KiB"},
               {"65536", 65536, "64KiB"},
               {"64MiB", int64_t{64} << 20, "64MiB"},
               {"1536MiB", int64_t{1536} << 20, "1536MiB"},
               {"1GiB", int64_t{1} << 30, "1GiB"},
               {"2TiB", int64_t{2} << 40, "2TiB"},
               {"-1", -1, "-1"},
               {"9223372036854775807", std::numeric_limits<int64_t>::max(), "9223372036854775807"}};
  for (const auto& each : cases) {
    ByteCount count;
    std::string error;
    EXPECT_TRUE(AbslParseFlag(each.text, &count, &error)) << error;
    EXPECT_EQ(count.bytes, each.bytes) << each.text;
    EXPECT_EQ(AbslUnparseFlag(count), each.written);
  }
}

TEST(ByteCountTest, WhatIsNoNumberOfBytesIsToldWhatIs) {
  for (const std::string text :
       {"", "MiB", "1.5GiB", "64MB", "64mib", "64 M", "1GiB2", "8388608TiB", "9223372036854775808", "ten"}) {
    ByteCount count;
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &count, &error)) << text;
    EXPECT_THAT(error, AllOf(HasSubstr("KiB, MiB, GiB or TiB"), HasSubstr("'" + text + "'")));
  }
}

}  // namespace
}  // namespace adamant
