// Which targets are on this machine, and so are not looked for through a proxy.
#include "proto/wire/target.h"

#include "gtest/gtest.h"

namespace adamant::wire {
namespace {

using ::testing::Values;

class LocalTargetTest : public ::testing::TestWithParam<const char*> {};
class DistantTargetTest : public ::testing::TestWithParam<const char*> {};

TEST_P(LocalTargetTest, IsLocal) { EXPECT_TRUE(IsLocalTarget(GetParam())); }
TEST_P(DistantTargetTest, IsNotLocal) { EXPECT_FALSE(IsLocalTarget(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Unix, LocalTargetTest,
                         Values("unix:/run/adamant", "unix:relative", "unix:///run/adamant", "unix-abstract:adamant"));
INSTANTIATE_TEST_SUITE_P(HostAndPort, LocalTargetTest,
                         Values("localhost:50051", "localhost", "LocalHost:1", "localhost.:1", "127.0.0.1:50051",
                                "127.255.255.254:1", "127.0.0.1", "0.0.0.0:50051", "[::1]:50051", "[::1]", "::1",
                                "[::]:50051", "[::ffff:127.0.0.1]:1"));
INSTANTIATE_TEST_SUITE_P(WithScheme, LocalTargetTest,
                         Values("dns:localhost:50051", "dns:///localhost:50051", "dns:///127.0.0.1:50051",
                                "dns:/127.0.0.1:50051", "dns:///[::1]:50051", "dns://9.9.9.9/localhost:50051",
                                "dns://9.9.9.9:53/127.0.0.1:1", "ipv4:127.0.0.1:50051", "ipv4:///127.0.0.1:50051",
                                "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:50051", "ipv6:%5B::1%5D:50051",
                                "ipv6:///%5b::1%5d:50051", "ipv6:[::1]:1,[::ffff:127.0.0.1]:1"));

INSTANTIATE_TEST_SUITE_P(HostAndPort, DistantTargetTest,
                         Values("example.com:50051", "server:50051", "localhost.example.com:1", "notlocalhost:1",
                                "128.0.0.1:1", "10.0.0.1:50051", "1.127.0.0:1", "127.0.0.1.example.com:1", "[::2]:1",
                                "[fe80::1]:1", "[::ffff:10.0.0.1]:1", "unix", "", ":50051"));
INSTANTIATE_TEST_SUITE_P(WithScheme, DistantTargetTest,
                         Values("dns:///example.com:50051", "dns://127.0.0.1/example.com:50051", "dns://localhost",
                                "dns:", "ipv4:10.0.0.1:50051", "ipv4:127.0.0.1:1,10.0.0.1:1", "ipv6:[2001:db8::1]:1",
                                "xds:///localhost:1"));

}  // namespace
}  // namespace adamant::wire
