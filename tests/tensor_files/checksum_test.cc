// The checksum against what RFC 3720 and others print for it.
#include "client/tensor_files/checksum.h"

#include <gtest/gtest.h>

#include <string>

namespace adamant::tensor_files {
namespace {

TEST(ChecksumTest, IsCrc32c) {
  EXPECT_EQ(Checksum("123456789"), 0xE3069283u);
  // RFC 3720, appendix B.4.
  EXPECT_EQ(Checksum(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Checksum(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST(ChecksumTest, OfNothingIsZero) { EXPECT_EQ(Checksum(""), 0u); }

TEST(ChecksumTest, OfTwoPartsIsThatOfBothTogether) {
  const std::string whole = "a step is either applied once or not at all";
  for (size_t i = 0; i <= whole.size(); ++i) {
    EXPECT_EQ(Checksum(whole.substr(i), Checksum(whole.substr(0, i))), Checksum(whole)) << i;
  }
}

}  // namespace
}  // namespace adamant::tensor_files
