// The server as its user starts and stops it: addresses, flags, exit codes, log, health, signals.
#include <gmock/gmock.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/e2e/half_sent_calls.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"
#include "tests/rpc/local_connection.h"

namespace adamant::e2e {
namespace {

using ::grpc::internal::RpcMethod;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr char kService[] = "adamant.v1.OptimizerService";

std::vector<std::string> Lines(const std::string& text) { return absl::StrSplit(text, '\n', absl::SkipEmpty()); }

grpc::ByteBuffer Bytes(const std::string& text) {
  const grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Text(const grpc::ByteBuffer& buffer) {
  grpc::Slice slice;
  return buffer.DumpToSingleSlice(&slice).ok() ? std::string(slice.begin(), slice.end()) : "";
}

// Messages of grpc.health.v1, whose definition Debian's gRPC does not ship: field 1 of the request is the service,
// field 1 of the response the status.
grpc::ByteBuffer HealthRequest(const std::string& service) {
  return Bytes(service.empty() ? "" : absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service));
}
constexpr char kServing[] = "\x08\x01";
// Of a server that cut calls off at its end.
constexpr int kCutOffExitCode = 3;

constexpr char kNotServing[] = "\x08\x02";
constexpr char kServiceUnknown[] = "\x08\x03";

// The response to a health check, or the status's code.
std::string Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::ClientContext context;
  const RpcMethod method("/grpc.health.v1.Health/Check", RpcMethod::NORMAL_RPC, channel);
  grpc::ByteBuffer response;
  const grpc::Status status =
      grpc::internal::BlockingUnaryCall(channel.get(), method, &context, HealthRequest(service), &response);
  return status.ok() ? Text(response) : absl::StrCat("code ", status.error_code());
}

std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> WatchHealth(const std::shared_ptr<grpc::Channel>& channel,
                                                                  grpc::ClientContext* context,
                                                                  const std::string& service) {
  const RpcMethod method("/grpc.health.v1.Health/Watch", RpcMethod::SERVER_STREAMING, channel);
  return std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>>(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(channel.get(), method, context,
                                                                    HealthRequest(service)));
}

std::string ProbeFlag(const ServerProcess& server) { return absl::StrCat("--probe=", server.address()); }

// Whether this machine has ::1, which many containers have not.
bool HasIpv6() {
  const int file = socket(AF_INET6, SOCK_STREAM, 0);
  if (file < 0) return false;
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  const bool bound = bind(file, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  close(file);
  return bound;
}

TEST(ProcessTest, ServesOnSeveralAddressesAtOnce) {
  const std::string second = HasIpv6() ? "[::1]:" : "127.0.0.2:";
  const std::string path = absl::StrCat("unix:", testing::TempDir(), "adamant-", getpid());
  ServerProcess server({absl::StrCat("--listen=127.0.0.1:0,", second, "0,", path)});
  ASSERT_THAT(server.addresses(), SizeIs(3));
  EXPECT_THAT(server.addresses()[0], ContainsRegex("^127\\.0\\.0\\.1:[1-9][0-9]*$"));
  EXPECT_THAT(server.addresses()[1], StartsWith(second));
  EXPECT_THAT(server.addresses()[1], ContainsRegex(":[1-9][0-9]*$"));
  EXPECT_EQ(server.addresses()[2], path);
  // One server behind all of them: what is created through one can be stepped through the others.
  const v1::ParameterSetSpec spec = SmallSpec("set");
  ASSERT_TRUE(TestClient(server.addresses()[0]).Create(spec).ok());
  int64_t step = 0;
  for (const std::string& address : server.addresses()) {
    const absl::StatusOr<StepReply> reply =
        TestClient(address).Step(spec, StepHeader("set"), Gradient(ParameterCount(spec), 1));
    ASSERT_TRUE(reply.ok()) << address << ": " << reply.status();
    EXPECT_EQ(reply->result.step(), ++step) << address;
  }
}

TEST(ProcessTest, AnswersHealthChecksOverallAndForTheService) {
  ServerProcess server;
  const std::shared_ptr<grpc::Channel> channel = TestClient(server.address()).channel();
  EXPECT_EQ(Health(channel, ""), kServing);
  EXPECT_EQ(Health(channel, kService), kServing);
  EXPECT_EQ(Health(channel, "no.such.Service"), absl::StrCat("code ", grpc::StatusCode::NOT_FOUND));
}

TEST(ProcessTest, ManyMayWatchItsHealth) {
  ServerProcess server;
  TestClient client(server.address());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>>> watches;
  for (int i = 0; i < 50; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    watches.push_back(WatchHealth(client.channel(), contexts.back().get(), i % 2 == 0 ? kService : "no.such.Service"));
    grpc::ByteBuffer status;
    ASSERT_TRUE(watches.back()->Read(&status));
    EXPECT_EQ(Text(status), i % 2 == 0 ? kServing : kServiceUnknown);
  }
  EXPECT_EQ(Health(client.channel(), ""), kServing);
  for (const auto& context : contexts) context->TryCancel();
}

TEST(ProcessTest, WatchesThatHaveNotArrivedLeaveHealthChecksAlone) {
  ServerProcess server;
  HalfSentCalls watches(server.address());
  const auto half = std::make_shared<const std::string>(Framed(std::string(100, '\0'), 1));
  for (int i = 0; i < 50; ++i) watches.Begin("/grpc.health.v1.Health/Watch", half);
  // All places for watches are taken, and the rest waits, or has given way.
  watches.RunUntilStopped();
  EXPECT_GT(watches.open(), 0);
  EXPECT_EQ(Health(TestClient(server.address()).channel(), ""), kServing);
}

using ReflectionStream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

std::unique_ptr<ReflectionStream> OpenReflection(const std::shared_ptr<grpc::Channel>& channel,
                                                 grpc::ClientContext* context, const std::string& version) {
  const std::string name = absl::StrCat("/grpc.reflection.", version, ".ServerReflection/ServerReflectionInfo");
  const RpcMethod method(name.c_str(), RpcMethod::BIDI_STREAMING, channel);
  return std::unique_ptr<ReflectionStream>(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel.get(), method,
                                                                                            context));
}

class ReflectionTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Versions, ReflectionTest, testing::Values("v1", "v1alpha"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ReflectionTest, AnswersOneRequestAfterTheOther) {
  ServerProcess server;
  grpc::ClientContext context;
  const auto stream = OpenReflection(TestClient(server.address()).channel(), &context, GetParam());
  grpc::ByteBuffer response;
  // list_services = 7.
  ASSERT_TRUE(stream->Write(Bytes("\x3a\x01*")));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_THAT(Text(response), HasSubstr(kService));
  // file_containing_symbol = 4: the answer holds the service's file.
  const std::string symbol = absl::StrCat(kService, ".Step");
  ASSERT_TRUE(stream->Write(Bytes(absl::StrCat("\x22", std::string(1, static_cast<char>(symbol.size())), symbol))));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_THAT(Text(response), HasSubstr("adamant/v1/service.proto"));
  EXPECT_THAT(Text(response), HasSubstr("GetStepResult"));
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(ProcessTest, ReflectionTakesNoLongRequests) {
  ServerProcess server;
  grpc::ClientContext context;
  const auto stream = OpenReflection(TestClient(server.address()).channel(), &context, "v1");
  // file_by_filename = 3, of 1,100 bytes.
  stream->Write(Bytes(absl::StrCat("\x1a\xcc\x08", std::string(1100, 'x'))));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(ProcessTest, ProbeSaysWhetherAServerServes) {
  ServerProcess server;
  ChildProgram probe({ADAMANT_SERVER, ProbeFlag(server)});
  EXPECT_EQ(probe.Wait(), 0);
  EXPECT_THAT(probe.standard_error().AwaitEnd(), IsEmpty());
  EXPECT_THAT(probe.standard_output().AwaitEnd(), IsEmpty());

  server.program().Signal(SIGKILL);
  server.program().Wait();
  ChildProgram late({ADAMANT_SERVER, ProbeFlag(server)});
  EXPECT_EQ(late.Wait(), 1);
  EXPECT_THAT(Lines(late.standard_error().AwaitEnd()), SizeIs(1));
}

class WrongStartTest : public testing::TestWithParam<std::string> {};

TEST_P(WrongStartTest, IsOneClearLineAndExitCodeOne) {
  ChildProgram server({ADAMANT_SERVER, "--listen=127.0.0.1:0", GetParam()});
  EXPECT_EQ(server.Wait(), 1);
  const std::string flag = GetParam().substr(0, GetParam().find('='));
  const std::string error = server.standard_error().AwaitEnd();
  EXPECT_THAT(Lines(error), SizeIs(1)) << error;
  EXPECT_THAT(error, HasSubstr(flag.substr(flag.find_first_not_of('-'))));
  EXPECT_THAT(server.standard_output().AwaitEnd(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Flags, WrongStartTest,
                         testing::Values("--no_such_flag", "--compute_threads=many", "--compute_threads=-1",
                                         "--isa=abacus", "--log_level=loud", "--patience=0", "--patience=soon",
                                         "--min_rate=0", "--min_rate=1kb", "--read_bytes=1.5GiB", "--think_time=0",
                                         "--max_connections=0", "--trusted=10.0.0.0/33", "--admission_wait=-1s",
                                         "--drain_timeout=-1s", "--listen=", "stray"));
INSTANTIATE_TEST_SUITE_P(Addresses, WrongStartTest,
                         testing::Values("--listen=localhost", "--listen=127.0.0.1:99999", "--listen=127.0.0.1:-1",
                                         "--listen=127.0.0.1:0,unix:/no/such/folder/socket"));

TEST(ProcessTest, AddressInUseIsOneClearLineAndExitCodeOne) {
  ServerProcess first;
  ChildProgram second({ADAMANT_SERVER, absl::StrCat("--listen=", first.address())});
  EXPECT_EQ(second.Wait(), 1);
  const std::string error = second.standard_error().AwaitEnd();
  EXPECT_THAT(Lines(error), SizeIs(1)) << error;
  EXPECT_THAT(error, HasSubstr(first.address()));
  EXPECT_THAT(second.standard_output().AwaitEnd(), IsEmpty());
  EXPECT_EQ(Health(TestClient(first.address()).channel(), ""), kServing);
}

TEST(ProcessTest, BudgetsBeyondTheMemoryAreOneClearLineAndExitCodeOne) {
  ChildProgram server({ADAMANT_SERVER, "--listen=127.0.0.1:0", absl::StrCat("--state_bytes=", int64_t{1} << 60)});
  EXPECT_EQ(server.Wait(), 1);
  const std::string error = server.standard_error().AwaitEnd();
  EXPECT_THAT(Lines(error), SizeIs(1)) << error;
  EXPECT_THAT(error, HasSubstr("memory budgets add up to"));
}

TEST(ProcessTest, LogsOneLineForEachEventOfItsLife) {
  ServerProcess server;
  const std::optional<std::string> started = server.program().standard_error().AwaitLine("started");
  ASSERT_TRUE(started.has_value());
  EXPECT_THAT(*started, ContainsRegex("^[0-9T:.-]*Z INFO adamant-server .* started: kernels "));
  server.program().Signal(SIGTERM);
  EXPECT_EQ(server.program().Wait(), 0);
  const std::vector<std::string> lines = Lines(server.program().standard_error().AwaitEnd());
  ASSERT_THAT(lines, SizeIs(3));
  EXPECT_THAT(lines[1], ContainsRegex("^[0-9T:.-]*Z INFO SIGTERM: draining$"));
  EXPECT_THAT(lines[2], ContainsRegex("^[0-9T:.-]*Z INFO stopped$"));
}

TEST(ProcessTest, LogLevelErrorKeepsAWholeLifeSilent) {
  ServerProcess server({"--log_level=error"});
  server.program().Signal(SIGINT);
  EXPECT_EQ(server.program().Wait(), 0);
  EXPECT_THAT(server.program().standard_error().AwaitEnd(), IsEmpty());
}

TEST(ProcessTest, LogLevelDebugShowsWhatGrpcSays) {
  ServerProcess server({"--log_level=debug"});
  server.program().Signal(SIGTERM);
  EXPECT_EQ(server.program().Wait(), 0);
  EXPECT_THAT(server.program().standard_error().AwaitEnd(), ContainsRegex("Z DEBUG grpc: "));
}

class SignalTest : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Each, SignalTest, testing::Values(SIGTERM, SIGINT, SIGHUP));

TEST_P(SignalTest, EndsAnIdleServerWithExitCodeZero) {
  ServerProcess server;
  server.program().Signal(GetParam());
  EXPECT_EQ(server.program().Wait(), 0);
}

// A command that runs a server after `commands` of the shell, with `redirections`.
std::vector<std::string> Shell(const std::string& commands, const std::string& redirections = "") {
  return {"/bin/bash", "-c", absl::StrCat(commands, " exec ", ADAMANT_SERVER, " --listen=127.0.0.1:0 ", redirections)};
}

// Where such a server listens.
std::string AwaitAddress(ChildProgram* server) {
  const std::optional<std::string> line = server->standard_output().AwaitLine("listening on ");
  return line.has_value() ? line->substr(line->rfind(' ') + 1) : "";
}

// A step of which the first half has come, and been admitted.
struct HalfStep {
  explicit HalfStep(TestClient* client) : stream(client->stub()) {
    const std::vector<v1::TensorChunk> chunks = Chunks(spec, Gradient(ParameterCount(spec), 1), 65536);
    messages = StepMessages(StepHeader(spec.name()), chunks);
    const auto middle = messages.begin() + messages.size() / 2;
    stream.Send({messages.begin(), middle});
    messages.erase(messages.begin(), middle);
    EXPECT_TRUE(TestClient::Until([client] { return client->UsedBudgets()["inflight"] > 0; }));
  }

  const v1::ParameterSetSpec spec = LargeSpec();
  std::vector<v1::StepRequest> messages;  // the rest
  StepStream stream;
};

TEST_P(SignalTest, EndsIdleStreamsLetsAnAdmittedStepRunOnAndRefusesNewWork) {
  ServerProcess server({"--drain_timeout=10m"});
  TestClient client(server.address());
  const v1::ParameterSetSpec small = SmallSpec();
  ASSERT_TRUE(client.Create(small).ok());
  ASSERT_TRUE(client.Create(LargeSpec()).ok());
  const std::vector<v1::StepRequest> step =
      StepMessages(StepHeader(small.name()), Chunks(small, Gradient(ParameterCount(small), 1), 65536));
  // A stream that has made a step and may make another; one in the middle of a step; and somebody who watches.
  StepStream idle(client.stub());
  ASSERT_TRUE(idle.Send(step));
  ASSERT_TRUE(idle.ReadReply(small).ok());
  HalfStep half(&client);
  grpc::ClientContext watch_context;
  const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> health =
      WatchHealth(client.channel(), &watch_context, kService);
  grpc::ByteBuffer status;
  ASSERT_TRUE(health->Read(&status));
  ASSERT_EQ(Text(status), kServing);

  grpc::ClientContext unknown_context;
  const auto unknown = WatchHealth(client.channel(), &unknown_context, "no.such.Service");
  ASSERT_TRUE(unknown->Read(&status));
  grpc::ClientContext reflection_context;
  const auto reflection = OpenReflection(client.channel(), &reflection_context, "v1");
  ASSERT_TRUE(reflection->Write(Bytes("\x3a\x01*")));
  ASSERT_TRUE(reflection->Read(&status));

  server.program().Signal(GetParam());

  const absl::Status idle_end = idle.Finish();
  EXPECT_EQ(idle_end.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(idle_end), v1::ERROR_REASON_DRAINING);
  ASSERT_TRUE(health->Read(&status));
  EXPECT_EQ(Text(status), kNotServing);
  EXPECT_FALSE(health->Read(&status));
  EXPECT_EQ(reflection->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(unknown->Read(&status));
  EXPECT_EQ(unknown->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(health->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Health(client.channel(), kService), absl::StrCat("code ", grpc::StatusCode::UNAVAILABLE));
  StepStream late(client.stub());
  late.Send(step);
  EXPECT_EQ(late.Finish().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.Create(SmallSpec("new")).status().code(), absl::StatusCode::kUnavailable);

  ASSERT_TRUE(half.stream.Send(half.messages));
  const absl::StatusOr<StepReply> reply = half.stream.ReadReply(half.spec);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(reply->result.step(), 1);
  // Behind its reply the stream is idle.
  EXPECT_EQ(ReasonOf(half.stream.Finish()), v1::ERROR_REASON_DRAINING);
  EXPECT_EQ(server.program().Wait(), 0);
}

TEST(ProcessTest, DrainTimeoutCutsOffAStalledStepAndSaysSo) {
  ServerProcess server({"--drain_timeout=100ms"});
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(LargeSpec()).ok());
  HalfStep half(&client);

  server.program().Signal(SIGTERM);

  EXPECT_EQ(server.program().Wait(), kCutOffExitCode);
  EXPECT_FALSE(half.stream.Finish().ok());
  EXPECT_THAT(server.program().standard_error().AwaitEnd(), HasSubstr("WARNING drain timeout: 1 calls were cut off"));
}

TEST(ProcessTest, SecondSignalEndsItAtOnce) {
  ServerProcess server({"--drain_timeout=10m"});
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(LargeSpec()).ok());
  HalfStep half(&client);
  server.program().Signal(SIGTERM);
  ASSERT_TRUE(server.program().standard_error().AwaitLine("draining").has_value());

  // One that comes right behind the first is the same.
  EXPECT_TRUE(TestClient::Until([&] {
    server.program().Signal(SIGTERM);
    return server.program().HasEnded();
  }));

  EXPECT_EQ(server.program().Wait(), kCutOffExitCode);
  EXPECT_THAT(server.program().standard_error().AwaitEnd(), HasSubstr("WARNING a second signal"));
}

TEST(ProcessTest, SignalThatComesTwiceAtOnceIsOne) {
  ServerProcess server({"--drain_timeout=10m"});
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(LargeSpec()).ok());
  HalfStep half(&client);
  server.program().Signal(SIGTERM);
  server.program().Signal(SIGINT);
  ASSERT_TRUE(server.program().standard_error().AwaitLine("draining").has_value());
  ASSERT_TRUE(half.stream.Send(half.messages));
  EXPECT_TRUE(half.stream.ReadReply(half.spec).ok());
  EXPECT_EQ(server.program().Wait(), 0);
}

TEST(ProcessTest, StopAndContinueDoesNotEndADrain) {
  ServerProcess server({"--drain_timeout=10m"});
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(LargeSpec()).ok());
  HalfStep half(&client);
  server.program().Signal(SIGTERM);
  ASSERT_TRUE(server.program().standard_error().AwaitLine("draining").has_value());
  server.program().Signal(SIGSTOP);
  server.program().Signal(SIGCONT);
  ASSERT_TRUE(half.stream.Send(half.messages));
  EXPECT_TRUE(half.stream.ReadReply(half.spec).ok());
  EXPECT_EQ(server.program().Wait(), 0);
}

TEST(ProcessTest, DrainDoesNotWaitForCallsThatHaveSentNoMessage) {
  ServerProcess server({"--drain_timeout=10m"});
  HalfSentCalls calls(server.address());
  const auto half = std::make_shared<const std::string>(Framed(std::string(100, '\0'), 1));
  for (const char* method : {"WriteTensors", "ReadTensors", "GetServerInfo", "StepOnce", "Step"}) {
    calls.Begin(method, half);
  }
  calls.RunUntilStopped();
  server.program().Signal(SIGTERM);
  EXPECT_EQ(server.program().Wait(), 0);
}

TEST(ProcessTest, HangupThatIsToBeIgnoredIsIgnored) {
  ChildProgram server(Shell("trap '' HUP;"));
  TestClient client(AwaitAddress(&server));
  ASSERT_TRUE(client.Create(SmallSpec()).ok());
  server.Signal(SIGHUP);
  EXPECT_TRUE(client.Delete(SmallSpec().name()).ok());
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
  EXPECT_THAT(server.standard_error().AwaitEnd(), HasSubstr("SIGTERM: draining"));
}

TEST(ProcessTest, CreationOfALargeSetDoesNotHoldTheEndUp) {
  ServerProcess server({"--drain_timeout=0s"});
  TestClient client(server.address());
  v1::CreateParameterSetRequest request;
  *request.mutable_spec() = SmallSpec("large");
  request.mutable_spec()->mutable_tensors(0)->clear_shape();
  request.mutable_spec()->mutable_tensors(0)->add_shape(int64_t{64} << 20);
  grpc::ClientContext context;
  v1::CreateParameterSetResponse response;
  std::thread creates([&] { client.stub()->CreateParameterSet(&context, request, &response); });
  ASSERT_TRUE(TestClient::Until([&] { return client.UsedBudgets()["state"] > 0; }));

  server.program().Signal(SIGTERM);

  const int exit_code = server.program().Wait();
  creates.join();
  EXPECT_EQ(exit_code, response.created() ? 0 : kCutOffExitCode);
}

class LostLogTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Each, LostLogTest, testing::Values("2> >(exec true)", "2>&-"),
                         [](const auto& info) { return info.index == 0 ? "ReaderIsGone" : "Closed"; });

TEST_P(LostLogTest, IsNoReasonToEnd) {
  ChildProgram server(Shell("", GetParam()));
  TestClient client(AwaitAddress(&server));
  ASSERT_TRUE(client.Create(SmallSpec()).ok());
  ASSERT_TRUE(client.Delete(SmallSpec().name()).ok());
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
}

TEST(ProcessTest, ThreadsThatCannotBeHadAreOneClearLineAndExitCodeOne) {
  if (ADAMANT_SANITIZED) GTEST_SKIP() << "a sanitizer needs all the address space that there is";
  ChildProgram server(Shell("ulimit -v 500000;", "--compute_threads=1000"));
  EXPECT_EQ(server.Wait(), 1);
  const std::string error = server.standard_error().AwaitEnd();
  EXPECT_THAT(Lines(error), SizeIs(1)) << error;
  EXPECT_THAT(error, HasSubstr("threads"));
}

TEST(ProcessTest, ConnectionsBeyondTheFilesThatThereAreAreRefusedUntilOthersHaveGone) {
  ChildProgram server(Shell("ulimit -n 128;"));
  const std::string address = AwaitAddress(&server);
  TestClient early(address);
  ASSERT_TRUE(early.Create(SmallSpec()).ok());
  std::vector<int> connections;
  for (int i = 0; i < 300; ++i) connections.push_back(ConnectLoopback(address));
  const std::optional<std::string> refused = server.standard_error().AwaitLine("connection refused");
  ASSERT_TRUE(refused.has_value());
  EXPECT_THAT(*refused, HasSubstr(" WARNING "));
  // Who is connected goes on.
  EXPECT_TRUE(early.Get(SmallSpec().name()).ok());
  for (const int connection : connections) close(connection);
  EXPECT_TRUE(TestClient::Until([&] { return TestClient(address).Get(SmallSpec().name()).ok(); }));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
}

}  // namespace
}  // namespace adamant::e2e
