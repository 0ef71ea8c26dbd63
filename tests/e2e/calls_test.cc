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

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <future>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/core/base/mutex.h"
#include "tests/e2e/child_program.h"
#include "tests/e2e/half_sent_calls.h"
#include "tests/e2e/server_fixture.h"
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

INSTANTIATE_TEST_SUITE_P(
    Methods, StreamTest,
    testing::Values("/adamant.v1.OptimizerService/Step", "/adamant.v1.OptimizerService/WriteTensors",
                    "/adamant.v1.OptimizerService/ReadTensors", "/adamant.v1.OptimizerService/WatchParameterSet",
                    "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
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
  ServerProcess server({"--patience=31s", "--think_time=7m", "--min_rate=2KiB", "--admission_wait=3s",
                        "--max_streams=5", "--max_connections=77", "--state_bytes=16MiB"});
  TestClient client(server.address());
  const absl::StatusOr<v1::GetServerInfoResponse> info =
      client.Call(&v1::OptimizerService::Stub::GetServerInfo, v1::GetServerInfoRequest());
  ASSERT_TRUE(info.ok()) << info.status();
  const v1::ServerLimits& limits = info->limits();
  EXPECT_EQ(limits.patience().seconds(), 31);
  EXPECT_EQ(limits.think_time().seconds(), 7 * 60);
  EXPECT_EQ(limits.admission_wait().seconds(), 3);
  EXPECT_EQ(limits.min_rate(), 2048);
  EXPECT_EQ(info->budgets(0).name(), "state");
  EXPECT_EQ(info->budgets(0).capacity_bytes(), 16 << 20);
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

constexpr const char* kHealthCheck = "/grpc.health.v1.Health/Check";
constexpr const char* kHealthWatch = "/grpc.health.v1.Health/Watch";
constexpr const char* kReflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

// A server that nobody's patience ends a call of, so that only giving way can let anybody in.
class StrangersTest : public testing::Test {
 protected:
  explicit StrangersTest(const std::vector<std::string>& flags = {})
      : server_([&flags] {
          // At this rate a request of 4 MiB takes a quarter of a second.
          std::vector<std::string> all = {"--patience=1h", "--think_time=1h", "--min_rate=16777216"};
          all.insert(all.end(), flags.begin(), flags.end());
          return all;
        }()) {
    TestClient client(server_.address());
    EXPECT_TRUE(client.Create(SmallSpec()).ok());
  }

  // Has strangers hold what they can of the methods, and begin each call again as soon as it has ended, while an honest
  // client on a connection of its own calls several times. Returns what it said at last, and prints how long the calls
  // took.
  absl::Status CallAmong(HalfSentCalls* strangers, const std::function<absl::Status(TestClient*)>& call) {
    strangers->RunUntilStopped();
    std::future<absl::Status> honest = std::async(std::launch::async, [&] {
      absl::Status status;
      std::vector<absl::Duration> times;
      for (int i = 0; i < 10 && status.ok(); ++i) {
        TestClient client(server_.address());
        const absl::Time begin = absl::Now();
        status = call(&client);
        times.push_back(absl::Now() - begin);
      }
      std::sort(times.begin(), times.end());
      std::cout << "median " << times[times.size() / 2] << ", longest " << times.back() << "\n";
      return status;
    });
    strangers->RunRenewing([&] { return honest.wait_for(std::chrono::seconds(0)) == std::future_status::ready; });
    return honest.get();
  }

  static absl::Status Check(TestClient* client) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    ::grpc::health::v1::HealthCheckResponse response;
    return wire::FromGrpcStatus(::grpc::health::v1::Health::NewStub(client->channel())->Check(&context, {}, &response));
  }
  static absl::Status GetServerInfo(TestClient* client) {
    return client->Call(&v1::OptimizerService::Stub::GetServerInfo, v1::GetServerInfoRequest()).status();
  }
  static absl::Status GetStepResult(TestClient* client) {
    return client->GetStepResult(SmallSpec().name(), "no-such-request").status();
  }
  static absl::Status Get(TestClient* client) { return client->Get(SmallSpec().name()).status(); }
  static absl::Status CreateAndDelete(TestClient* client) {
    absl::Status status = client->Create(SmallSpec("other")).status();
    return status.ok() ? client->Delete("other") : status;
  }
  static absl::Status Step(TestClient* client) {
    return client->Step(SmallSpec(), StepHeader(SmallSpec().name()), Gradient(ParameterCount(SmallSpec()), 1)).status();
  }
  // A watch or a reflection that gets its first answer.
  static absl::Status FirstAnswer(TestClient* client, const char* method, const std::string& message) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    const auto stream = OpenStream(client->channel(), &context, method);
    grpc::Slice slice(message);
    stream->Write(grpc::ByteBuffer(&slice, 1));
    grpc::ByteBuffer answer;
    if (!stream->Read(&answer)) return wire::FromGrpcStatus(stream->Finish());
    context.TryCancel();
    stream->Finish();
    return absl::OkStatus();
  }
  static absl::Status Watch(TestClient* client) { return FirstAnswer(client, kHealthWatch, ""); }
  static absl::Status WatchSet(TestClient* client) {
    v1::WatchParameterSetRequest request;
    request.set_name(SmallSpec().name());
    return FirstAnswer(client, "/adamant.v1.OptimizerService/WatchParameterSet", request.SerializeAsString());
  }
  static absl::Status Reflect(TestClient* client) { return FirstAnswer(client, kReflection, std::string("\x3a\0", 2)); }

  ServerProcess server_;
};

const auto kNothing = std::make_shared<const std::string>();
// Of a message of 4 MiB, as much as HTTP/2 lets it send.
const auto kHalfAMessage = std::make_shared<const std::string>(Framed(std::string(4 << 20, 'x'), 1));
const auto kEmptyMessage = std::make_shared<const std::string>(Framed(""));

struct HalfSentKind {
  const char* name;
  std::vector<const char*> methods;
  absl::Status (*call)(TestClient*);
};

class HalfSentRequestsTest : public StrangersTest, public testing::WithParamInterface<HalfSentKind> {
 public:
  using StrangersTest::Check;
  using StrangersTest::CreateAndDelete;
  using StrangersTest::Get;
  using StrangersTest::GetServerInfo;
  using StrangersTest::GetStepResult;
  using StrangersTest::Reflect;
  using StrangersTest::Step;
  using StrangersTest::Watch;
  using StrangersTest::WatchSet;
};

INSTANTIATE_TEST_SUITE_P(
    Each, HalfSentRequestsTest,
    testing::Values(
        HalfSentKind{"HealthChecks", {kHealthCheck}, &HalfSentRequestsTest::Check},
        HalfSentKind{"SmallCalls", {"GetServerInfo", "GetStepResult"}, &HalfSentRequestsTest::GetStepResult},
        HalfSentKind{"ServerInfo", {"GetServerInfo", "DeleteParameterSet"}, &HalfSentRequestsTest::GetServerInfo},
        HalfSentKind{"Pages", {"ListTensors", "GetParameterSet", "UpdateParameterGroup"}, &HalfSentRequestsTest::Get},
        HalfSentKind{"Creations", {"CreateParameterSet"}, &HalfSentRequestsTest::CreateAndDelete},
        HalfSentKind{"SmallCallsAndCreations",
                     {"GetServerInfo", "GetStepResult", "DeleteParameterSet"},
                     &HalfSentRequestsTest::CreateAndDelete},
        HalfSentKind{"Watches", {kHealthWatch}, &HalfSentRequestsTest::Watch},
        HalfSentKind{"SetWatches", {"WatchParameterSet"}, &HalfSentRequestsTest::WatchSet},
        HalfSentKind{"Reflections", {kReflection}, &HalfSentRequestsTest::Reflect},
        HalfSentKind{"UnknownMethods", {"NoSuchMethod", "/no.Service/Method"}, &HalfSentRequestsTest::GetServerInfo},
        HalfSentKind{"AllKinds",
                     {"GetServerInfo", "ListTensors", "CreateParameterSet", "Step", "StepOnce", "WriteTensors",
                      "WriteTensorsOnce", "ReadTensors", "WatchParameterSet", kHealthWatch, kReflection},
                     &HalfSentRequestsTest::GetStepResult}),
    [](const auto& info) { return info.param.name; });

TEST_P(HalfSentRequestsTest, OnOneConnectionHoldNobodyUp) {
  HalfSentCalls strangers(server_.address());
  for (int i = 0; i < 20; ++i) {
    strangers.Begin(GetParam().methods[i % GetParam().methods.size()], i % 2 == 0 ? kNothing : kHalfAMessage);
  }
  const absl::Status status = CallAmong(&strangers, GetParam().call);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(HalfSentRequestsTest, OnManyConnectionsHoldNobodyUp) {
  HalfSentCalls strangers(server_.address(), /*connections=*/7);
  for (int i = 0; i < 700; ++i) {
    strangers.Begin(GetParam().methods[i % GetParam().methods.size()], i % 2 == 0 ? kNothing : kHalfAMessage);
  }
  const absl::Status status = CallAmong(&strangers, GetParam().call);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(StrangersTest, ProbeIsAnsweredAmongHalfSentHealthChecks) {
  for (const int count : {4, 40, 100}) {
    HalfSentCalls strangers(server_.address(), /*connections=*/count == 40 ? 40 : 4);
    for (int i = 0; i < count; ++i) strangers.Begin(kHealthCheck, kNothing);
    EXPECT_EQ(CallAmong(&strangers,
                        [&](TestClient*) {
                          ChildProgram probe({ADAMANT_SERVER, absl::StrCat("--probe=", server_.address())});
                          return probe.Wait() == 0 ? absl::OkStatus() : absl::UnavailableError("the probe failed");
                        }),
              absl::OkStatus());
  }
}

class FullOfStreamsTest : public StrangersTest {
 protected:
  static constexpr int kPlaces = 100;
  FullOfStreamsTest() : StrangersTest({absl::StrCat("--max_streams=", kPlaces)}) {}
};

TEST_F(FullOfStreamsTest, IdleStreamsOnTwoConnectionsLeaveAThirdItsShare) {
  HalfSentCalls strangers(server_.address(), /*connections=*/2);
  for (int i = 0; i < kPlaces; ++i) strangers.Begin("Step", kNothing);
  const absl::Status status = CallAmong(&strangers, &Step);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(FullOfStreamsTest, HalfSentStepsOfManyKindsLeaveOthersTheirShare) {
  HalfSentCalls strangers(server_.address(), /*connections=*/10);
  const char* const methods[] = {"Step", "StepOnce", "WriteTensors", "WriteTensorsOnce", "ReadTensors"};
  for (int i = 0; i < 10 * kPlaces; ++i) strangers.Begin(methods[i % 5], kHalfAMessage);
  const absl::Status status = CallAmong(&strangers, &Step);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(FullOfStreamsTest, StreamsThatTakeNoReplyHoldNobodyUp) {
  std::string step;
  for (const v1::StepRequest& message : StepMessages(
           StepHeader(SmallSpec().name()), Chunks(SmallSpec(), Gradient(ParameterCount(SmallSpec()), 1), 65536))) {
    step += Framed(message.SerializeAsString());
  }
  v1::ReadTensorsRequest read;
  read.set_set(SmallSpec().name());
  const auto step_bytes = std::make_shared<const std::string>(step);
  const auto read_bytes = std::make_shared<const std::string>(Framed(read.SerializeAsString()));
  HalfSentCalls strangers(server_.address(), /*connections=*/4, /*window=*/0);
  for (int i = 0; i < kPlaces; ++i) {
    strangers.Begin("Step", step_bytes);
    strangers.Begin("ReadTensors", read_bytes);
  }
  const absl::Status status = CallAmong(&strangers, &Step);
  EXPECT_TRUE(status.ok()) << status;
}

// A stream that had its place first, and keeps to its share.
TEST_F(FullOfStreamsTest, StreamWithinItsShareOutlivesStrangers) {
  TestClient client(server_.address());
  StepStream stream(client.stub(), absl::InfiniteDuration());
  const std::vector<v1::StepRequest> step = StepMessages(
      StepHeader(SmallSpec().name()), Chunks(SmallSpec(), Gradient(ParameterCount(SmallSpec()), 1), 65536));
  ASSERT_TRUE(stream.Send(step));
  ASSERT_TRUE(stream.ReadReply(SmallSpec()).ok());
  HalfSentCalls strangers(server_.address(), /*connections=*/4);
  for (int i = 0; i < 3 * kPlaces; ++i) strangers.Begin("Step", kNothing);
  EXPECT_TRUE(CallAmong(&strangers, &Step).ok());
  ASSERT_TRUE(stream.Send(step));
  const absl::StatusOr<StepReply> reply = stream.ReadReply(SmallSpec());
  EXPECT_TRUE(reply.ok()) << reply.status();
}

// A set whose specification takes 1.6 MiB.
v1::ParameterSetSpec LongNames(const std::string& name) {
  v1::ParameterSetSpec spec = SmallSpec(name);
  spec.clear_tensors();
  for (int i = 0; i < 4096; ++i) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat(std::string(400, 'n'), i));
    tensor->set_group(spec.groups(0).name());
    tensor->add_shape(1);
  }
  return spec;
}

// The request for a page of 1 MiB, of a set that is made here.
std::shared_ptr<const std::string> LargePage(const std::string& address) {
  const v1::ParameterSetSpec spec = LongNames("names");
  EXPECT_TRUE(TestClient(address).Create(spec).ok());
  v1::ListTensorsRequest list;
  list.set_name(spec.name());
  return std::make_shared<const std::string>(Framed(list.SerializeAsString()));
}

TEST_F(StrangersTest, RepliesThatAreNotTakenHoldNobodyUp) {
  const auto page = LargePage(server_.address());
  HalfSentCalls strangers(server_.address(), /*connections=*/10, /*window=*/0);
  for (int i = 0; i < 400; ++i) {
    strangers.Begin(kHealthCheck, kEmptyMessage);
    strangers.Begin("GetServerInfo", kEmptyMessage);
  }
  for (int i = 0; i < 200; ++i) strangers.Begin("ListTensors", page);
  for (const auto call : {&Check, &GetServerInfo, &GetStepResult, &Get}) {
    const absl::Status status = CallAmong(&strangers, call);
    EXPECT_TRUE(status.ok()) << status;
  }
}

// What the server says to them does not get through, not even that they gave way. What their replies take stays with
// gRPC until the system gives the connection up; so pages are not among those who are asked for.
TEST_F(StrangersTest, ClientsThatReadNothingHoldNobodyUp) {
  const auto page = LargePage(server_.address());
  HalfSentCalls strangers(server_.address(), /*connections=*/1, HalfSentCalls::kUnreadSockets);
  for (int i = 0; i < 15; ++i) strangers.Begin("ListTensors", page);
  for (int i = 0; i < 40; ++i) {
    strangers.Begin(kHealthCheck, kNothing);
    strangers.Begin("GetServerInfo", kNothing);
  }
  for (const auto call : {&Check, &GetServerInfo}) {
    const absl::Status status = CallAmong(&strangers, call);
    EXPECT_TRUE(status.ok()) << status;
  }
}

// Those that wait before it, and those that have come since.
TEST_F(StrangersTest, ThousandsThatWaitKeepNobodyOut) {
  HalfSentCalls strangers(server_.address());
  for (int i = 0; i < 6000 / kFewer; ++i) strangers.Begin(i % 2 == 0 ? "GetServerInfo" : "Step", kNothing);
  for (const auto call : {&GetStepResult, &Step}) {
    const absl::Status status = CallAmong(&strangers, [&](TestClient* client) {
      // In such a flood a request may come too late, and is then worth a retry.
      absl::Status status;
      for (int tries = 0; tries < 20; ++tries) {
        status = call(client);
        const std::optional<absl::Duration> delay = GetRetryDelay(status);
        if (!delay.has_value()) break;
        absl::SleepFor(*delay);
      }
      return status;
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

// Each call ends at once, and holds nothing.
TEST_F(StrangersTest, DrainEndsEveryKindOfHalfSentCall) {
  HalfSentCalls strangers(server_.address(), /*connections=*/4);
  const char* const methods[] = {"GetServerInfo", "CreateParameterSet", "ListTensors",       "Step",
                                 "StepOnce",      "ReadTensors",        "WatchParameterSet", "NoSuchMethod",
                                 kHealthCheck,    kHealthWatch,         kReflection};
  for (int i = 0; i < 20; ++i) {
    for (const char* const method : methods) strangers.Begin(method, kNothing);
  }
  for (int i = 0; i < 20; ++i) strangers.Begin(kHealthWatch, kEmptyMessage);
  strangers.RunUntilStopped();
  server_.program().Signal(SIGTERM);
  strangers.Run([&] { return strangers.open() == 0; });
  EXPECT_EQ(server_.program().Wait(), 0);
}

// What a server in a container of 256 MiB has.
rpc::ServerOptions SmallContainer() {
  rpc::ServerOptions options = SmallServer();
  options.state_bytes = int64_t{512} << 20;
  options.max_streams = 4;
  options.max_waiting_calls = 64;
  options.max_connections = 256;
  return options;
}

class CreatingWorkersTest : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Connections, CreatingWorkersTest, testing::Values(64, 4, 1));

// A fleet that starts: nobody is cut off, whoever is refused is told when to come again, and everybody gets through.
TEST_P(CreatingWorkersTest, AllSucceedInTheEnd) {
  constexpr int kWorkers = 64;
  constexpr int kMostTries = 100;
  TestServer server(SmallContainer());
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int i = 0; i < GetParam(); ++i) clients.push_back(std::make_unique<TestClient>(server.address()));
  std::vector<std::future<int>> workers;
  for (int worker = 0; worker < kWorkers; ++worker) {
    workers.push_back(std::async(std::launch::async, [&, worker] {
      const v1::ParameterSetSpec spec = LongNames(absl::StrCat("worker-", worker));
      int tries = 0;
      for (;;) {
        ++tries;
        const absl::Status status = clients[worker % clients.size()]->Create(spec).status();
        if (status.ok()) return tries;
        const std::optional<absl::Duration> delay = GetRetryDelay(status);
        EXPECT_TRUE(delay.has_value()) << status;
        if (!delay.has_value() || tries == kMostTries) return kMostTries + 1;
        absl::SleepFor(*delay);
      }
    }));
  }
  int most_tries = 0;
  for (std::future<int>& worker : workers) most_tries = std::max(most_tries, worker.get());
  std::cout << "tries: at most " << most_tries << "\n";
  EXPECT_LE(most_tries, kMostTries);
}

}  // namespace
}  // namespace adamant::e2e
