// The exchange moves what it says: every byte, both ways, round after round.
#include "tests/bench/exchange.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/wire/target.h"
#include "proto/wire/tensor_message.h"

namespace adamant::bench {
namespace {

using testing::Each;

class ExchangeTest : public testing::TestWithParam<int64_t> {
 protected:
  ExchangeTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterCallbackGenericService(&service_);
    server_ = builder.BuildAndStart();
    const std::string target = absl::StrCat("127.0.0.1:", port);
    channel_ = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), wire::ArgumentsForTarget(target));
  }

  ~ExchangeTest() override { server_->Shutdown(); }

  absl::Status RunRounds(int rounds) {
    const std::vector<float> source(GetParam(), 2.0f);
    ExchangeCall call(channel_, {reinterpret_cast<const char*>(source.data()), source.size() * sizeof(float)},
                      {reinterpret_cast<char*>(sink_.data()), sink_.size() * sizeof(float)});
    absl::Status status;
    for (int round = 0; round < rounds; ++round) {
      std::fill(sink_.begin(), sink_.end(), 0.0f);
      status.Update(call.Round());
    }
    return status;
  }

  ExchangeService service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::vector<float> sink_ = std::vector<float>(GetParam());
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

INSTANTIATE_TEST_SUITE_P(Sizes, ExchangeTest,
                         testing::Values(1, 75, kMessageFloats - 1, kMessageFloats, kMessageFloats + 1,
                                         5 * kMessageFloats + 3));

}  // namespace
}  // namespace adamant::bench
