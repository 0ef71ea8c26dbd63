// What clients of all kinds do with calls: those that wait for the headers, that come in bursts, with much metadata,
// that think, stall, or come back. The server is a process of its own.
#include <gmock/gmock.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/core/mutex.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"
#include "tests/rpc/local_connection.h"

namespace adamant::e2e {
namespace {

using ::grpc::internal::RpcMethod;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

using BytesStream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

// A call of any method, as a stream of bytes on which nothing has been sent.
std::unique_ptr<BytesStream> OpenStream(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* context,
                                        const char* name) {
  const RpcMethod method(name, RpcMethod::BIDI_STREAMING, channel);
  return std::unique_ptr<BytesStream>(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel.get(), method,
                                                                                            context));
}

class StreamTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Methods, StreamTest,
                         testing::Values("/adamant.v1.OptimizerService/Step",
                                         "/adamant.v1.OptimizerService/WriteTensors",
                                         "/adamant.v1.OptimizerService/ReadTensors", "/grpc.health.v1.Health/Watch",
                                         "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
                         [](const auto& info) {
                           const std::string name = info.param;
                           return name.substr(name.rfind('/') + 1);
                         });

TEST_P(StreamTest, AnswersWithItsHeadersBeforeAnythingIsSent) {
  ServerProcess server;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
  TestClient client(server.address());
  const auto stream = OpenStream(client.channel(), &context, GetParam());
  stream->WaitForInitialMetadata();
  context.TryCancel();
  // The wait would have ended at the deadline, too.
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(CallsTest, MethodThatThereIsNotIsNamed) {
  ServerProcess server;
  grpc::ClientContext context;
  TestClient client(server.address());
  const auto stream = OpenStream(client.channel(), &context, "/adamant.v1.OptimizerService/Stepp");
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("OptimizerService/Stepp"));
}

TEST(CallsTest, CallWithTooMuchMetadataEndsAlone) {
  ServerProcess server;
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(SmallSpec()).ok());
  grpc::ClientContext other_context;
  const auto other = OpenStream(client.channel(), &other_context, "/adamant.v1.OptimizerService/Step");
  other->WaitForInitialMetadata();
  const auto get = [&](size_t bytes) {
    grpc::ClientContext context;
    context.AddMetadata("much", std::string(bytes, 'x'));
    v1::GetParameterSetRequest request;
    request.set_name(SmallSpec().name());
    v1::GetParameterSetResponse response;
    return wire::FromGrpcStatus(client.stub()->GetParameterSet(&context, request, &response));
  };

  EXPECT_TRUE(get(31 << 10).ok()) << get(31 << 10);
  const absl::Status refused = get(60 << 10);

  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_MESSAGE_TOO_LARGE) << refused;
  other->WritesDone();
  EXPECT_TRUE(other->Finish().ok());
}

TEST(CallsTest, CallThatWaitsPaysForItsMetadata) {
  constexpr int kEntries = 500;
  ServerProcess server({"--max_streams=1"});
  TestClient client(server.address());
  StepStream has_the_place(client.stub());
  ASSERT_TRUE(TestClient::Until([&] { return client.UsedBudgets()["streams"] > 0; }));
  grpc::ClientContext plain_context;
  const auto plain = OpenStream(client.channel(), &plain_context, "/adamant.v1.OptimizerService/Step");
  ASSERT_TRUE(TestClient::Until([&] { return client.UsedBudgets()["waiting"] > 0; }));
  const int64_t one = client.UsedBudgets()["waiting"];

  grpc::ClientContext context;
  for (int i = 0; i < kEntries; ++i) context.AddMetadata(absl::StrCat("key-", i), "");
  const auto stream = OpenStream(client.channel(), &context, "/adamant.v1.OptimizerService/Step");

  EXPECT_TRUE(TestClient::Until([&] { return client.UsedBudgets()["waiting"] > 2 * one + kEntries * 200; }));
  plain_context.TryCancel();
  context.TryCancel();
  EXPECT_FALSE(plain->Finish().ok());
  EXPECT_FALSE(stream->Finish().ok());
}

// An HTTP/2 connection that pings and makes no calls.
class PingingConnection {
 public:
  explicit PingingConnection(const std::string& address) : socket_(ConnectLoopback(address)) {
    Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    Send(absl::string_view("\0\0\0\4\0\0\0\0\0", 9));  // empty settings
  }
  ~PingingConnection() { close(socket_); }

  void Ping() { Send(absl::string_view("\0\0\x8\6\0\0\0\0\0pingping", 17)); }

  // Takes in what the server sends, for as long as `time` or until it says goodbye.
  void Listen(absl::Duration time) {
    const absl::Time end = absl::Now() + time;
    while (!told_to_go_) {
      pollfd wish = {socket_, POLLIN, 0};
      const auto left = static_cast<int>(absl::ToInt64Milliseconds(end - absl::Now()));
      if (left <= 0 || poll(&wish, 1, left) == 0) return;
      char bytes[4096];
      const ssize_t n = recv(socket_, bytes, sizeof(bytes), 0);
      if (n <= 0) return;
      received_.append(bytes, n);
      told_to_go_ = absl::StrContains(received_, "too_many_pings");
    }
  }
  bool told_to_go() const { return told_to_go_; }

 private:
  void Send(absl::string_view bytes) { send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

  const int socket_;
  std::string received_;
  bool told_to_go_ = false;
};

TEST(CallsTest, FloodOfPingsIsToldToGo) {
  ServerProcess server;
  PingingConnection connection(server.address());
  for (int i = 0; i < 10; ++i) connection.Ping();
  connection.Listen(kHang);
  EXPECT_TRUE(connection.told_to_go());
}

TEST(CallsTest, KeepaliveWithoutCallsIsWelcome) {
  // As seldom as keepalive pings may come, and more often than the strikes that a server forgives.
  constexpr absl::Duration kInterval = absl::Milliseconds(5200);
  ServerProcess server;
  PingingConnection connection(server.address());
  for (int i = 0; i < 4; ++i) {
    connection.Ping();
    connection.Listen(kInterval);
    EXPECT_FALSE(connection.told_to_go()) << "after ping " << i;
  }
}

// Many calls of one method at once, on one connection. Returns how many succeeded.
template <typename Request, typename Response>
int CallAtOnce(
    int count, const Request& request,
    absl::FunctionRef<void(grpc::ClientContext*, const Request*, Response*, std::function<void(grpc::Status)>)> call) {
  struct OneCall {
    grpc::ClientContext context;
    Response response;
  };
  std::vector<OneCall> calls(count);
  core::Mutex mutex;
  core::CondVar changed;
  int ended = 0;
  int succeeded = 0;
  for (OneCall& one : calls) {
    one.context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    call(&one.context, &request, &one.response, [&](const grpc::Status& status) {
      EXPECT_TRUE(status.ok()) << status.error_code() << " " << status.error_message();
      core::MutexLock lock(&mutex);
      ++ended;
      succeeded += status.ok();
      changed.NotifyAll();
    });
  }
  core::MutexLock lock(&mutex);
  while (ended < count) changed.Wait(&mutex);
  return succeeded;
}

TEST(CallsTest, BurstOfCallsWaitsForPlacesAndIsNotRefused) {
  constexpr int kCalls = 300;
  ServerProcess server({"--max_streams=4"});
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(SmallSpec()).ok());
  v1::GetParameterSetRequest get;
  get.set_name(SmallSpec().name());
  EXPECT_EQ((CallAtOnce<v1::GetParameterSetRequest, v1::GetParameterSetResponse>(
                kCalls, get,
                [&](auto* context, auto* request, auto* response, auto done) {
                  client.stub()->async()->GetParameterSet(context, request, response, done);
                })),
            kCalls);
  v1::StepOnceRequest step;
  *step.mutable_header() = StepHeader(SmallSpec().name());
  for (const v1::TensorChunk& chunk : Chunks(SmallSpec(), Gradient(ParameterCount(SmallSpec()), 1), 65536)) {
    *step.add_chunks() = chunk;
  }
  EXPECT_EQ((CallAtOnce<v1::StepOnceRequest, v1::StepOnceResponse>(
                kCalls, step,
                [&](auto* context, auto* request, auto* response, auto done) {
                  client.stub()->async()->StepOnce(context, request, response, done);
                })),
            kCalls);
  EXPECT_EQ(client.Get(SmallSpec().name())->step(), kCalls);
  const auto health = ::grpc::health::v1::Health::NewStub(client.channel());
  EXPECT_EQ((CallAtOnce<::grpc::health::v1::HealthCheckRequest, ::grpc::health::v1::HealthCheckResponse>(
                kCalls / 3, {},
                [&](auto* context, auto* request, auto* response, auto done) {
                  health->async()->Check(context, request, response, done);
                })),
            kCalls / 3);
}

TEST(CallsTest, LimitsCanBeAsked) {
  ServerProcess server({"--patience=31s", "--think_time=7m", "--min_rate=1000", "--admission_wait=3s",
                        "--max_streams=5", "--max_connections=77"});
  TestClient client(server.address());
  const absl::StatusOr<v1::GetServerInfoResponse> info =
      client.Call(&v1::OptimizerService::Stub::GetServerInfo, v1::GetServerInfoRequest());
  ASSERT_TRUE(info.ok()) << info.status();
  const v1::ServerLimits& limits = info->limits();
  EXPECT_EQ(limits.patience().seconds(), 31);
  EXPECT_EQ(limits.think_time().seconds(), 7 * 60);
  EXPECT_EQ(limits.admission_wait().seconds(), 3);
  EXPECT_EQ(limits.min_rate(), 1000);
  EXPECT_EQ(limits.max_streams(), 5);
  EXPECT_EQ(limits.max_connections(), 77);
  EXPECT_EQ(limits.max_calls_per_connection(), 100);
  EXPECT_GE(limits.max_waiting_calls(), 64);
  EXPECT_EQ(limits.max_message_bytes(), 4 << 20);
  EXPECT_EQ(limits.recommended_message_bytes(), (1 << 20) + (1 << 10));
  EXPECT_EQ(limits.recommended_chunk_elements(), 1 << 18);
  EXPECT_EQ(limits.max_metadata_bytes(), 32 << 10);
  EXPECT_EQ(limits.max_request_bytes(), 64 << 10);
}

TEST(CallsTest, LogTellsAnOperatorWhatHappened) {
  ServerProcess server({"--patience=100ms", "--think_time=100ms", "--min_rate=1000000000"});
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(LargeSpec()).ok());
  EXPECT_THAT(server.program().standard_error().AwaitLine("created"),
              testing::Optional(ContainsRegex("INFO set .* created: .* tensors, 329997 parameters, ")));
  StepStream stream(client.stub());
  ASSERT_TRUE(stream.Send(
      StepMessages(StepHeader(LargeSpec().name()), Chunks(LargeSpec(), Gradient(ParameterCount(LargeSpec()), 1), 65536))
          .front()));
  EXPECT_EQ(stream.Finish().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(server.program().standard_error().AwaitLine("stalled"),
              testing::Optional(
                  ContainsRegex("WARNING stalled: /adamant.v1.OptimizerService/Step from ipv4:.*: the "
                                "server waited .* for the rest of the step: expected all .* elements of tensor 0")));
  ASSERT_TRUE(client.Delete(LargeSpec().name()).ok());
  EXPECT_TRUE(server.program().standard_error().AwaitLine("deleted").has_value());
}

// A client that stops reading in the middle of a message, and reads on when the server has given it up.
TEST(CallsTest, ReaderThatComesBackIsToldThatItStalled) {
  ServerProcess server({"--patience=3s", "--min_rate=1000000000"});
  TestClient client(server.address());
  v1::ParameterSetSpec spec = SmallSpec("megabytes");
  spec.mutable_tensors(0)->clear_shape();
  spec.mutable_tensors(0)->add_shape(8 << 20);
  ASSERT_TRUE(client.Create(spec).ok());
  grpc::ClientContext context;
  v1::ReadTensorsRequest request;
  request.set_set(spec.name());
  const auto read = client.stub()->ReadTensors(&context, request);
  v1::ReadTensorsResponse response;
  ASSERT_TRUE(read->Read(&response));

  ASSERT_TRUE(server.program().standard_error().AwaitLine("stalled").has_value());
  while (read->Read(&response)) {
  }

  const absl::Status status = wire::FromGrpcStatus(read->Finish());
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_STALLED) << status;
}

TEST(CallsTest, ReaderThatDoesNotComeBackIsCutOff) {
  ServerProcess server({"--patience=100ms", "--min_rate=1000000000"});
  TestClient client(server.address());
  v1::ParameterSetSpec spec = SmallSpec("megabytes");
  spec.mutable_tensors(0)->clear_shape();
  spec.mutable_tensors(0)->add_shape(8 << 20);
  ASSERT_TRUE(client.Create(spec).ok());
  grpc::ClientContext context;
  v1::ReadTensorsRequest request;
  request.set_set(spec.name());
  const auto read = client.stub()->ReadTensors(&context, request);
  v1::ReadTensorsResponse response;
  ASSERT_TRUE(read->Read(&response));

  EXPECT_TRUE(server.program().standard_error().AwaitLine("cut off in the middle of a message").has_value());
  EXPECT_TRUE(TestClient::Until([&] { return client.UsedBudgets()["read"] == 0; }));
  context.TryCancel();
}

}  // namespace
}  // namespace adamant::e2e
