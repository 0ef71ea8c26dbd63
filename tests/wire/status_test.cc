// Errors between absl::Status and grpc::Status, and over a connection.
#include "proto/wire/status.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <limits>
#include <memory>
#include <string>

#include "adamant/v1/error.pb.h"
#include "adamant/v1/service.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "proto/wire/target.h"

namespace adamant::wire {
namespace {

using testing::StartsWith;

constexpr size_t kMaxDetailsBytes = 4096;

std::string Repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

// Every field has its longest encoding, and every text is `text`.
absl::Status LargestError(const std::string& text) {
  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_BUDGET_EXHAUSTED);
  detail.set_set(text);
  detail.set_incarnation(std::numeric_limits<uint64_t>::max());
  detail.set_step(-1);
  detail.set_tensor(-1);
  detail.set_offset(-1);
  detail.set_field(text);
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, text, detail),
                        absl::Hours(1000000) + absl::Nanoseconds(999999999));
}

TEST(StatusTest, EveryCodeGoesThereAndBackByItsNumber) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");

    const grpc::Status grpc_status = ToGrpcStatus(status);

    EXPECT_EQ(grpc_status.error_code(), code);
    EXPECT_EQ(FromGrpcStatus(grpc_status), status);
  }
}

TEST(StatusTest, PayloadsGoThereAndBack) {
  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_INCOMPLETE);
  detail.set_set("run/a");
  detail.set_tensor(0);
  detail.set_offset(17);
  const absl::Status status =
      WithRetryDelay(Error(absl::StatusCode::kInvalidArgument, "elements are missing: ä%\n", detail), absl::Seconds(3));

  EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
}

// What a client of another language reads.
TEST(StatusTest, DetailsAreAStandardStatus) {
  const absl::Status status = WithRetryDelay(
      Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING, "shutting down"), absl::Seconds(3));

  v1::ErrorStatus details;
  ASSERT_TRUE(details.ParseFromString(ToGrpcStatus(status).error_details()));

  EXPECT_EQ(details.code(), 14);
  EXPECT_EQ(details.message(), "shutting down");
  ASSERT_EQ(details.details_size(), 2);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/adamant.v1.ErrorDetail");
  v1::ErrorDetail detail;
  ASSERT_TRUE(detail.ParseFromString(details.details(0).value()));
  EXPECT_EQ(detail.reason(), v1::ERROR_REASON_DRAINING);
  EXPECT_EQ(details.details(1).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  v1::RetryInfo info;
  ASSERT_TRUE(info.ParseFromString(details.details(1).value()));
  EXPECT_EQ(info.retry_delay().seconds(), 3);
}

TEST(StatusTest, LongTextsAreCutAndEverythingElseIsKept) {
  const std::string text(100000, 'x');

  const grpc::Status grpc_status = ToGrpcStatus(LargestError(text));

  EXPECT_EQ(grpc_status.error_message(), absl::StrCat("`", text.substr(0, 2047)));
  EXPECT_LE(grpc_status.error_details().size(), kMaxDetailsBytes);
  const absl::Status status = FromGrpcStatus(grpc_status);
  const v1::ErrorDetail detail = GetErrorDetail(status);
  EXPECT_EQ(detail.reason(), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_EQ(detail.set(), text.substr(0, 512));
  EXPECT_EQ(detail.field(), text.substr(0, 512));
  EXPECT_EQ(detail.step(), -1);
  EXPECT_EQ(GetRetryDelay(status), absl::Hours(1000000) + absl::Nanoseconds(999999999));
}

// Three, two and one bytes from the cut: no cut leaves half a character, which would make the details unreadable.
TEST(StatusTest, TextIsCutBetweenCharacters) {
  for (const std::string prefix : {"", "a", "ab"}) {
    const std::string text = prefix + Repeat("€", 5000);
    const absl::Status error = LargestError(text);

    const grpc::Status grpc_status = ToGrpcStatus(error);

    EXPECT_EQ((grpc_status.error_message().size() - 1 - prefix.size()) % 3, 0u) << "a backtick stands before the text";
    EXPECT_THAT(std::string(error.message()), StartsWith(grpc_status.error_message()));
    // Each of its bytes travels as three.
    EXPECT_LE(grpc_status.error_message().size(), 2048u / 3 + 1 + prefix.size());
    EXPECT_GE(grpc_status.error_message().size(), 2048u / 3 - 3);
    const v1::ErrorDetail detail = GetErrorDetail(FromGrpcStatus(grpc_status));
    EXPECT_EQ((detail.set().size() - prefix.size()) % 3, 0u);
    EXPECT_THAT(text, StartsWith(detail.set()));
    EXPECT_GT(detail.set().size(), 500u);
  }
}

TEST(StatusTest, DetailsThatAreNoneLeaveCodeAndMessage) {
  const std::string details =
      ToGrpcStatus(WithRetryDelay(absl::AbortedError("from elsewhere"), absl::Seconds(1))).error_details();

  for (const std::string& damaged : {std::string("\xff not a protocol buffer"), details + '\xff'}) {
    EXPECT_EQ(FromGrpcStatus(grpc::Status(grpc::StatusCode::ABORTED, "from elsewhere", damaged)),
              absl::AbortedError("from elsewhere"));
  }
}

TEST(StatusTest, MessageThatIsNotTextLeavesCodeAndMessage) {
  google::protobuf::LogSilencer silencer;  // Protobuf writes to stderr about text that is not UTF-8.
  const grpc::Status grpc_status = ToGrpcStatus(absl::AbortedError("\xff\xfe"));

  EXPECT_EQ(FromGrpcStatus(grpc_status), absl::AbortedError("\xff\xfe"));
}

// Answers every GetServerInfo with one status.
class FailingService : public v1::OptimizerService::Service {
 public:
  explicit FailingService(const absl::Status& status) : status_(status) {}

  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse*) override {
    return ToGrpcStatus(status_);
  }

 private:
  const absl::Status status_;
};

absl::Status OverTheNetwork(const absl::Status& status) {
  FailingService service(status);
  int port = 0;
  const std::unique_ptr<grpc::Server> server =
      grpc::ServerBuilder()
          .AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port)
          .RegisterService(&service)
          .BuildAndStart();
  const std::string target = "127.0.0.1:" + std::to_string(port);
  const auto stub = v1::OptimizerService::NewStub(
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), ArgumentsForTarget(target)));
  grpc::ClientContext context;
  v1::GetServerInfoResponse response;
  return FromGrpcStatus(stub->GetServerInfo(&context, {}, &response));
}

TEST(StatusTest, TheLargestErrorReachesAClientWithDefaultLimits) {
  for (const std::string& text : {std::string(100000, 'x'), Repeat("€", 5000), std::string(100000, '%')}) {
    const absl::Status status = LargestError(text);

    EXPECT_EQ(OverTheNetwork(status), FromGrpcStatus(ToGrpcStatus(status)));
  }
}

}  // namespace
}  // namespace adamant::wire
