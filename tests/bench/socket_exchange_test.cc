// The exchange over plain sockets moves what it says: every byte, both ways, round after round.
#include "tests/bench/socket_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace adamant::bench {
namespace {

using testing::Each;

constexpr int64_t kReadFloats = 16384;

class SocketExchangeTest : public testing::TestWithParam<std::string> {
 protected:
  SocketExchangeTest() {
    std::string folder = testing::TempDir() + "socket-exchange-XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    peer_ = *SocketPeer::Listen(GetParam() == "unix" ? absl::StrCat("unix:", folder, "/socket") : GetParam());
  }

  ~SocketExchangeTest() override { std::filesystem::remove_all(folder_); }

  static absl::Span<const char> Bytes(const std::vector<float>& floats) {
    return {reinterpret_cast<const char*>(floats.data()), floats.size() * sizeof(float)};
  }
  static absl::Span<char> MutableBytes(std::vector<float>* floats) {
    return {reinterpret_cast<char*>(floats->data()), floats->size() * sizeof(float)};
  }

  std::filesystem::path folder_;
  std::unique_ptr<SocketPeer> peer_;
};

TEST_P(SocketExchangeTest, FillsTheWholeSinkInEveryRound) {
  for (const int64_t size : {int64_t{1}, int64_t{75}, kReadFloats, kReadFloats + 1, 10 * kReadFloats + 3}) {
    SCOPED_TRACE(size);
    const std::vector<float> source(size, 2.0f);
    std::vector<float> sink(size);
    absl::Status served;
    std::thread peer([&] { served = ServeRounds(peer_->Accept()->get()); });
    {
      const auto exchange = SocketExchange::Connect(peer_->address(), Bytes(source), MutableBytes(&sink));
      EXPECT_TRUE(exchange.ok()) << exchange.status();
      for (int round = 0; exchange.ok() && round < 3; ++round) {
        std::fill(sink.begin(), sink.end(), 0.0f);
        EXPECT_TRUE((*exchange)->Round().ok());
        EXPECT_THAT(sink, Each(1.0f));
      }
    }
    peer.join();
    EXPECT_TRUE(served.ok()) << served;
  }
}

TEST_P(SocketExchangeTest, FailsWhenThePeerIsGone) {
  const std::vector<float> source(10 * kReadFloats, 2.0f);
  std::vector<float> sink(source.size());
  const auto exchange = SocketExchange::Connect(peer_->address(), Bytes(source), MutableBytes(&sink));
  ASSERT_TRUE(exchange.ok()) << exchange.status();

  peer_.reset();

  EXPECT_FALSE((*exchange)->Round().ok());
}

TEST_P(SocketExchangeTest, FailsToConnectWhereNobodyListens) {
  const std::string address = peer_->address();
  peer_.reset();
  const std::vector<float> source(1);
  std::vector<float> sink(1);

  const auto exchange = SocketExchange::Connect(address, Bytes(source), MutableBytes(&sink));

  EXPECT_TRUE(absl::StrContains(exchange.status().message(), address)) << exchange.status();
}

INSTANTIATE_TEST_SUITE_P(Transports, SocketExchangeTest, testing::Values("127.0.0.1:0", "unix"));

// What ServeRounds makes of a client that sends `size`, so many bytes of its first round, and then closes.
absl::Status ServeClient(int64_t size, size_t bytes) {
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  auto client = std::make_unique<SocketConnection>(ends[0]);
  SocketConnection connection(ends[1]);
  EXPECT_TRUE(client->Send({reinterpret_cast<const char*>(&size), sizeof(size)}).ok());
  EXPECT_TRUE(client->Send(std::string(bytes, 'a')).ok());
  client.reset();
  return ServeRounds(&connection);
}

TEST(ServeRoundsTest, EndsWhereNoRoundHasBegun) { EXPECT_TRUE(ServeClient(8, 0).ok()); }

TEST(ServeRoundsTest, SaysThatARoundBrokeOff) { EXPECT_TRUE(absl::IsUnavailable(ServeClient(8, 7))); }

TEST(ServeRoundsTest, RefusesARoundOfNothing) { EXPECT_TRUE(absl::IsInvalidArgument(ServeClient(0, 0))); }

TEST(SocketPeerTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"nothing", "127.0.0.1:no-such-port", "unix:"}) {
    EXPECT_FALSE(SocketPeer::Listen(absl::StrCat(address)).ok()) << address;
  }
  EXPECT_FALSE(SocketPeer::Listen(absl::StrCat("unix:", std::string(200, 'a'))).ok());
}

}  // namespace
}  // namespace adamant::bench
