#include "server/rpc/trusted_networks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/un.h>

#include <string>
#include <vector>

namespace adamant::rpc {
namespace {

using ::testing::HasSubstr;

bool Contains(const std::vector<std::string>& networks, const char* address) {
  const absl::StatusOr<TrustedNetworks> trusted = TrustedNetworks::Parse(networks);
  EXPECT_TRUE(trusted.ok()) << trusted.status();
  return trusted.ok() && trusted->Contain(*IpAddress::Parse(address));
}

TEST(TrustedNetworksTest, NobodyIsTrustedAtFirst) {
  EXPECT_FALSE(TrustedNetworks().Contain(*IpAddress::Parse("127.0.0.1")));
  EXPECT_FALSE(Contains({}, "::1"));
}

TEST(TrustedNetworksTest, AnAddressIsItself) {
  EXPECT_TRUE(Contains({"10.1.2.3"}, "10.1.2.3"));
  EXPECT_FALSE(Contains({"10.1.2.3"}, "10.1.2.4"));
  EXPECT_TRUE(Contains({"fd00::1", "10.1.2.3"}, "fd00::1"));
  EXPECT_FALSE(Contains({"fd00::1"}, "fd00::2"));
}

TEST(TrustedNetworksTest, APrefixIsAllThatBeginWithIt) {
  EXPECT_TRUE(Contains({"10.0.0.0/8"}, "10.255.1.2"));
  EXPECT_FALSE(Contains({"10.0.0.0/8"}, "11.0.0.0"));
  EXPECT_TRUE(Contains({"192.168.16.0/20"}, "192.168.31.255"));
  EXPECT_FALSE(Contains({"192.168.16.0/20"}, "192.168.32.0"));
  EXPECT_TRUE(Contains({"fd00::/7"}, "fc12::1"));
  EXPECT_FALSE(Contains({"fd00::/8"}, "fc12::1"));
  EXPECT_TRUE(Contains({"10.1.2.3/32"}, "10.1.2.3"));
  EXPECT_FALSE(Contains({"10.1.2.3/32"}, "10.1.2.2"));
}

TEST(TrustedNetworksTest, NoBitsAreEverybodyOfThatKind) {
  EXPECT_TRUE(Contains({"0.0.0.0/0"}, "1.2.3.4"));
  EXPECT_FALSE(Contains({"0.0.0.0/0"}, "fd00::1"));
  EXPECT_TRUE(Contains({"::/0"}, "fd00::1"));
}

// As a socket of both kinds has its peers.
TEST(TrustedNetworksTest, AnAddressOfIpv4IsTheSameInIpv6) {
  EXPECT_TRUE(Contains({"10.0.0.0/8"}, "::ffff:10.1.2.3"));
  EXPECT_EQ(IpAddress::Parse("::ffff:10.1.2.3")->ToString(), "10.1.2.3");
  EXPECT_EQ(IpAddress::Parse("fd00:0::1")->ToString(), "fd00::1");
}

TEST(TrustedNetworksTest, APeerOfAUnixSocketHasNoAddress) {
  sockaddr_storage peer = {};
  peer.ss_family = AF_UNIX;
  EXPECT_FALSE(IpAddress::Of(peer).has_value());
}

TEST(TrustedNetworksTest, NamesWhatIsNone) {
  for (const char* text : {"", "10.0.0", "10.0.0.256", "localhost", "unix", "[::1]", "10.0.0.1:80", "/8"}) {
    const absl::Status status = TrustedNetworks::Parse({"10.1.2.3", text}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), HasSubstr(std::string("got `") + text + "`"));
  }
  for (const char* text : {"10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.0/ 8"}) {
    const absl::Status status = TrustedNetworks::Parse({text}).status();
    EXPECT_THAT(status.message(), HasSubstr("expected a prefix of 0 to 32 bits after the address, got"));
    EXPECT_THAT(status.message(), HasSubstr(text));
  }
  EXPECT_THAT(TrustedNetworks::Parse({"::/129"}).status().message(), HasSubstr("0 to 128 bits"));
}

}  // namespace
}  // namespace adamant::rpc
