// The exchange moves what it says: every byte, both ways, round after round.
#include "tests/bench/exchange.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/wire/target.h"
#include "proto/wire/tensor_message.h"

namespace adamant::bench {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::Pair;

// How many elements are exchanged, and how.
class ExchangeTest : public testing::TestWithParam<std::tuple<int64_t, ExchangeSettings>> {
 protected:
  ExchangeTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterCallbackGenericService(&service_);
    for (const auto& [name, value] : ServerChannelSettings(settings_)) builder.AddChannelArgument(name, value);
    server_ = builder.BuildAndStart();
    const std::string target = absl::StrCat("127.0.0.1:", port);
    grpc::ChannelArguments arguments = wire::ArgumentsForTarget(target);
    AddClientSettings(settings_, &arguments);
    channel_ = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
  }

  ~ExchangeTest() override { server_->Shutdown(); }

  absl::Status RunRounds(int rounds) {
    const std::vector<float> source(sink_.size(), 2.0f);
    ExchangeCall call(channel_, {reinterpret_cast<const char*>(source.data()), source.size() * sizeof(float)},
                      {reinterpret_cast<char*>(sink_.data()), sink_.size() * sizeof(float)}, settings_);
    absl::Status status;
    for (int round = 0; round < rounds; ++round) {
      std::fill(sink_.begin(), sink_.end(), 0.0f);
      status.Update(call.Round());
    }
    return status;
  }

  const ExchangeSettings settings_ = std::get<1>(GetParam());
  std::vector<float> sink_ = std::vector<float>(std::get<0>(GetParam()));
  ExchangeService service_ = ExchangeService(settings_);
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_P(ExchangeTest, FillsTheWholeSinkInEveryRound) {
  ASSERT_TRUE(RunRounds(3).ok());

  EXPECT_THAT(sink_, Each(1.0f));
}

TEST_P(ExchangeTest, FailsWhenThePeerIsGone) {
  server_->Shutdown();

  EXPECT_FALSE(RunRounds(1).ok());
}

constexpr int64_t kMessageFloats = wire::kMessageBytes / static_cast<int64_t>(sizeof(float));

const ExchangeSettings kEverySetting = {.probe = "on",
                                        .frame_bytes = 1 << 20,
                                        .lookahead_bytes = 1 << 24,
                                        .read_chunk_bytes = 1 << 18,
                                        .message_bytes = 100000,
                                        .overlap = true};

INSTANTIATE_TEST_SUITE_P(SizesAndSettings, ExchangeTest,
                         testing::Combine(testing::Values(1, 75, kMessageFloats - 1, kMessageFloats, kMessageFloats + 1,
                                                          5 * kMessageFloats + 3),
                                          testing::Values(ExchangeSettings(), kEverySetting)));

// The numbers among the arguments of a channel, in order.
ChannelSettings ClientChannelSettings(const ExchangeSettings& settings) {
  grpc::ChannelArguments arguments;
  AddClientSettings(settings, &arguments);
  grpc_channel_args values;
  arguments.SetChannelArgs(&values);
  ChannelSettings numbers;
  for (size_t i = 0; i < values.num_args; ++i) {
    if (values.args[i].type == GRPC_ARG_INTEGER) numbers.emplace_back(values.args[i].key, values.args[i].value.integer);
  }
  return numbers;
}

TEST(ChannelSettingsTest, AreTheServersOwnWhereNothingIsSet) {
  EXPECT_THAT(ServerChannelSettings({}),
              ElementsAre(Pair(GRPC_ARG_HTTP2_BDP_PROBE, 0), Pair(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20)));
}

TEST(ChannelSettingsTest, TurnTheProbeOnAtTheEndsThatAreNamed) {
  const auto probes = [](const char* probe) {
    return std::pair(ServerChannelSettings({.probe = probe}).front().second,
                     ClientChannelSettings({.probe = probe}).front().second);
  };

  EXPECT_THAT(probes("on"), Pair(1, 1));
  EXPECT_THAT(probes("off"), Pair(0, 0));
  EXPECT_THAT(probes("server"), Pair(1, 0));
  EXPECT_THAT(probes("client"), Pair(0, 1));
}

TEST(ChannelSettingsTest, AreSetInTheChannel) {
  EXPECT_THAT(
      ClientChannelSettings(kEverySetting),
      ElementsAre(Pair(GRPC_ARG_HTTP2_BDP_PROBE, 1), Pair(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20),
                  Pair(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 24), Pair(GRPC_ARG_TCP_READ_CHUNK_SIZE, 1 << 18),
                  Pair(GRPC_ARG_TCP_MIN_READ_CHUNK_SIZE, 1 << 18), Pair(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, 1 << 18)));
}

}  // namespace
}  // namespace adamant::bench
