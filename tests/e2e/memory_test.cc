// What clients can make the server hold, however they stop: never more than its budgets, and nothing when they are
// gone.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/e2e/bounded_server.h"
#include "tests/e2e/half_sent_calls.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {
namespace {

using Server = BoundedServer;

constexpr int64_t kInflightBytes = BoundedServer::kInflightBytes;
constexpr int64_t kReadBytes = BoundedServer::kReadBytes;

std::shared_ptr<const std::string> Share(std::string text) {
  return std::make_shared<const std::string>(std::move(text));
}

// The header and the first chunk of a step of the large set: it is admitted, and waits for the rest.
std::shared_ptr<const std::string> HalfAStep() {
  const v1::ParameterSetSpec spec = LargeSpec();
  v1::StepRequest message;
  *message.mutable_header() = StepHeader(spec.name());
  *message.add_chunks() = Chunks(spec, Gradient(ParameterCount(spec), 1), 1000).front();
  return Share(Framed(message.SerializeAsString()));
}

// The largest message that there may be, without its last byte.
std::shared_ptr<const std::string> AlmostAMessage() { return Share(Framed(std::string(4 * kMiB, '\0'), 1)); }

// Calls that were refused or gave way, and are worth a retry; UNAVAILABLE where the server was too busy for more words.
int RefusedForNow(const HalfSentCalls& calls) {
  return calls.ended(grpc::StatusCode::RESOURCE_EXHAUSTED) + calls.ended(grpc::StatusCode::UNAVAILABLE);
}

int LargeStepsThatFit() {
  constexpr int64_t kLargeStepBytes = 1320128;  // 330,032 elements, padding included
  return static_cast<int>(kInflightBytes / kLargeStepBytes);
}

TEST(MemoryTest, StreamsStoppedInTheMiddleOfAStepHoldTheInflightBudgetAndNoMore) {
  Server server(/*max_streams=*/500);
  const auto half = HalfAStep();
  {
    HalfSentCalls calls(server.address());
    for (int i = 0; i < 500; ++i) calls.Begin("Step", half);
    calls.Run([&] { return calls.open() <= LargeStepsThatFit(); });
    calls.RunUntilStopped();
    EXPECT_EQ(calls.open(), LargeStepsThatFit());
    EXPECT_EQ(calls.ended(grpc::StatusCode::RESOURCE_EXHAUSTED), 500 - LargeStepsThatFit());
    const absl::Status refused = server.Step(LargeSpec()).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_BUDGET_EXHAUSTED);
    EXPECT_TRUE(GetRetryDelay(refused).has_value());
    // Who needs no grant goes on.
    EXPECT_TRUE(server.Step(SmallSpec()).ok());
    server.ExpectBounded();
  }
  server.ExpectAsBefore();
}

// So many that `calls` are spread evenly: then none holds more than its share, and no call gives way to another.
int ConnectionsFor(int calls) { return (calls + 79) / 80; }

struct HalfSent {
  const char* name;
  std::vector<const char*> methods;
  int calls;
};

class HalfSentTest : public testing::TestWithParam<HalfSent> {};

INSTANTIATE_TEST_SUITE_P(Each, HalfSentTest,
                         testing::Values(HalfSent{"Streams", {"Step", "WriteTensors"}, 500 / kFewer},
                                         HalfSent{"UnaryCalls", {"WriteTensorsOnce", "StepOnce"}, 2000 / kFewer}),
                         [](const auto& info) { return info.param.name; });

TEST_P(HalfSentTest, AreTakenWhileThereArePlacesAndWaitBeyond) {
  constexpr int kPlaces = 100 / kFewer;
  Server server(kPlaces);
  const auto half = AlmostAMessage();
  {
    HalfSentCalls calls(server.address(), ConnectionsFor(GetParam().calls));
    for (int i = 0; i < GetParam().calls; ++i) calls.Begin(GetParam().methods[i % GetParam().methods.size()], half);
    EXPECT_TRUE(server.AllWaitBut(kPlaces, &calls));
    EXPECT_GT(calls.open(), 2 * kPlaces);
    EXPECT_EQ(RefusedForNow(calls), calls.ended());
    server.ExpectBounded();
  }
  server.ExpectAsBefore();
}

TEST(MemoryTest, CallsBeyondThoseThatMayWaitAreRefused) {
  constexpr int kPlaces = 4;
  constexpr int kTooMany = 50;
  Server server(kPlaces);
  const int most = server.Info().limits().max_waiting_calls();
  const auto half = AlmostAMessage();
  {
    HalfSentCalls calls(server.address(), ConnectionsFor(kPlaces + most + kTooMany));
    for (int i = 0; i < kPlaces + most + kTooMany; ++i) calls.Begin("StepOnce", half);
    EXPECT_TRUE(server.AllWaitBut(kPlaces, &calls));
    EXPECT_GE(calls.ended(), kTooMany);
    EXPECT_EQ(RefusedForNow(calls), calls.ended());
    EXPECT_GT(server.WaitingCalls(), most / 2);
    EXPECT_LE(server.WaitingCalls(), most);
    server.ExpectBounded();
  }
  server.ExpectAsBefore();
}

TEST(MemoryTest, HalfSentCallsThatMoveNoTensorsHavePlacesOfTheirOwn) {
  Server server(/*max_streams=*/20);
  const auto half = AlmostAMessage();
  {
    HalfSentCalls calls(server.address());
    for (int i = 0; i < 2000 / kFewer; ++i) calls.Begin(i % 2 == 0 ? "CreateParameterSet" : "GetServerInfo", half);
    calls.RunUntilStopped();
    // Those that move tensors are not concerned.
    EXPECT_TRUE(server.Step(LargeSpec()).ok());
  }
  EXPECT_TRUE(TestClient::Until([&] { return server.client().Get(SmallSpec().name()).ok(); }));
  server.ExpectBounded();
  server.ExpectAsBefore();
}

TEST(MemoryTest, HalfSentHealthChecksAndReflectionHavePlacesOfTheirOwn) {
  Server server(/*max_streams=*/20);
  const auto half = AlmostAMessage();
  {
    HalfSentCalls calls(server.address());
    for (int i = 0; i < 500 / kFewer; ++i) {
      calls.Begin("/grpc.health.v1.Health/Check", half);
      calls.Begin("/grpc.health.v1.Health/Watch", half);
      calls.Begin(i % 2 == 0 ? "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
                             : "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                  half);
    }
    calls.RunUntilStopped();
    EXPECT_TRUE(server.client().Get(SmallSpec().name()).ok());
    EXPECT_TRUE(server.Step(LargeSpec()).ok());
  }
  server.ExpectBounded();
  server.ExpectAsBefore();
}

TEST(MemoryTest, RepliesThatNobodyReadsAreWaitedForBeforeOthersAreMade) {
  // A page of tensors is 1 MiB, of which a client that reads nothing takes 64 KiB.
  constexpr int kCalls = 1200;
  Server server(/*max_streams=*/4);
  v1::ParameterSetSpec spec = SmallSpec("names");
  spec.clear_tensors();
  for (int i = 0; i < 4096; ++i) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat(std::string(400, 'n'), i));
    tensor->set_group(spec.groups(0).name());
    tensor->add_shape(1);
  }
  ASSERT_TRUE(server.client().Create(spec).ok());
  v1::ListTensorsRequest request;
  request.set_name(spec.name());
  const auto bytes = Share(Framed(request.SerializeAsString()));
  {
    HalfSentCalls calls(server.address());
    for (int i = 0; i < kCalls; ++i) calls.Begin("ListTensors", bytes);
    calls.RunUntilStopped();
    EXPECT_TRUE(server.Step(SmallSpec()).ok());
    server.ExpectRoom(kCalls * kMiB / 2);
  }
  EXPECT_TRUE(TestClient::Until([&] { return server.client().Get(SmallSpec().name()).ok(); }));
}

TEST(MemoryTest, UnknownFieldsOfACreateAreRefusedBeforeTheyAreKept) {
  Server server(/*max_streams=*/4);
  std::string fields;
  while (fields.size() < 4 * kMiB - 2) fields += "\x98\x06\x01";  // number 99, 1
  const auto bytes = Share(Framed(fields));
  HalfSentCalls calls(server.address());
  for (int i = 0; i < 8; ++i) calls.Begin("CreateParameterSet", bytes);
  calls.Run([&] { return calls.open() == 0; });
  EXPECT_EQ(calls.ended(grpc::StatusCode::INVALID_ARGUMENT), 8);
  server.ExpectRoom(150 * kMiB);
}

TEST(MemoryTest, CompressedMessageIsNotInflated) {
  Server server(/*max_streams=*/1);
  v1::GetParameterSetRequest request;
  request.set_name(std::string(300 * kMiB, 'a'));  // 0.3 MiB on the wire
  v1::GetParameterSetResponse response;
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  const grpc::Status status = server.client().stub()->GetParameterSet(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << status.error_message();
  server.ExpectBounded();
}

// A set of one tensor.
v1::ParameterSetSpec SetOf(const std::string& name, int64_t elements) {
  v1::ParameterSetSpec spec = SmallSpec(name);
  spec.clear_tensors();
  v1::TensorSpec* tensor = spec.add_tensors();
  tensor->set_name("all");
  tensor->add_shape(elements);
  tensor->set_group(spec.groups(0).name());
  return spec;
}

TEST(MemoryTest, WhatManySmallSetsHeldIsThereForLargeOnes) {
  constexpr int64_t kBytesOfASet = 768 << 10;
  constexpr int64_t kManyBytes = 720 * kMiB;
  constexpr int64_t kStateBytes = kManyBytes + 40 * kMiB;
  Server server(/*max_streams=*/4, {absl::StrCat("--state_bytes=", kStateBytes)});
  for (int i = 0; i < kManyBytes / kBytesOfASet; ++i) {
    // Arrays that are less than a block.
    ASSERT_TRUE(server.client().Create(SetOf(absl::StrCat("small-", i), kBytesOfASet / 12 - 16)).ok());
  }
  for (int i = 0; i < kManyBytes / kBytesOfASet; ++i) {
    ASSERT_TRUE(server.client().Delete(absl::StrCat("small-", i)).ok());
  }
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(server.client().Create(SetOf(absl::StrCat("large-", i), kManyBytes / 12 / 4)).ok());
  }
  server.ExpectRoom(kStateBytes + kSlackBytes);
}

TEST(MemoryTest, WhatEverySecondSmallSetHeldIsThereForOthers) {
  constexpr int64_t kStateBytes = 512 * kMiB;
  Server server(/*max_streams=*/4, {absl::StrCat("--state_bytes=", kStateBytes)});
  // Each time so many as there is room for, each too large for the place that one before it had; then every second one
  // goes.
  for (const int64_t elements : {4000, 16000, 60000}) {
    const auto name = [&](int64_t i) { return absl::StrCat("set-", elements, "-", i); };
    int64_t created = 0;
    while (server.client().Create(SetOf(name(created), elements)).ok()) ++created;
    for (int64_t i = 0; i < created; i += 2) ASSERT_TRUE(server.client().Delete(name(i)).ok());
  }
  server.ExpectRoom(kStateBytes + kSlackBytes);
}

TEST(MemoryTest, MessageBeyondTheLimitIsNotTakenIn) {
  Server server(/*max_streams=*/20);
  HalfSentCalls calls(server.address());
  for (const char* method : {"StepOnce", "WriteTensors", "ReadTensors"}) {
    calls.Begin(method, Share(Framed(std::string(512 * kMiB, '\0'), 1)));
  }
  calls.Run([&] { return calls.open() == 0; });
  server.ExpectBounded();
  server.ExpectAsBefore();
}

TEST(MemoryTest, AllKindsOfStoppedCallsTogetherStayWithinTheBudgets) {
  constexpr int kPlaces = 400 / kFewer;
  constexpr int kEach = 500 / kFewer;
  Server server(kPlaces);
  const auto half_step = HalfAStep();
  const auto half_message = AlmostAMessage();
  {
    HalfSentCalls calls(server.address(), ConnectionsFor(6 * kEach));
    for (int i = 0; i < kEach; ++i) calls.Begin("Step", half_step);
    calls.Run([&] { return calls.open() <= LargeStepsThatFit(); });
    for (int i = 0; i < kEach; ++i) {
      calls.Begin("Step", half_message);
      calls.Begin("WriteTensorsOnce", half_message);
      calls.Begin("WriteTensorsOnce", half_message);
      calls.Begin("StepOnce", half_message);
      calls.Begin("StepOnce", half_message);
    }
    EXPECT_TRUE(server.AllWaitBut(kPlaces, &calls));
    EXPECT_GT(calls.open(), 2 * kPlaces);
    server.ExpectBounded();
  }
  server.ExpectAsBefore();
}

TEST(MemoryTest, ManyConnectionsCostLittle) {
  Server server(/*max_streams=*/20);
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int i = 0; i < 200; ++i) {
    clients.push_back(std::make_unique<TestClient>(server.address()));
    ASSERT_FALSE(clients.back()->UsedBudgets().empty());
  }
  server.ExpectBounded();
  clients.clear();
  server.ExpectAsBefore();
}

// Chunks of one element take ten times their bytes once they are decoded.
v1::StepOnceRequest StepOfSingleElements(const std::string& set, int chunks) {
  v1::StepOnceRequest request;
  *request.mutable_header() = StepHeader(set);
  for (int i = 0; i < chunks; ++i) {
    v1::TensorChunk* chunk = request.add_chunks();
    chunk->set_offset(i);
    chunk->add_values(1);
  }
  return request;
}

TEST(MemoryTest, ChunksOfOneElementAreTakenUpToTheLimit) {
  Server server(/*max_streams=*/20);
  v1::ParameterSetSpec spec = SmallSpec("chunks");
  spec.clear_tensors();
  spec.add_tensors()->set_name("weights");
  const int most = server.Info().limits().max_chunks_per_message();
  spec.mutable_tensors(0)->add_shape(most);
  ASSERT_TRUE(server.client().Create(spec).ok());
  const absl::StatusOr<v1::StepOnceResponse> taken = server.client().StepOnce(StepOfSingleElements(spec.name(), most));
  EXPECT_TRUE(taken.ok()) << taken.status();
  const absl::Status refused = server.client().StepOnce(StepOfSingleElements(spec.name(), most + 1)).status();
  EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_MALFORMED_MESSAGE) << refused;
  server.ExpectBounded();
}

v1::ReadTensorsRequest ReadEverything() {
  v1::ReadTensorsRequest request;
  request.set_set(LargeSpec().name());
  for (const v1::Slot slot : {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ}) request.add_slots(slot);
  return request;
}

// A whole step of the large set.
std::shared_ptr<const std::string> WholeStep() {
  const v1::ParameterSetSpec spec = LargeSpec();
  std::string bytes;
  for (const v1::StepRequest& message :
       StepMessages(StepHeader(spec.name()), Chunks(spec, Gradient(ParameterCount(spec), 1), 65536))) {
    bytes += Framed(message.SerializeAsString());
  }
  return Share(std::move(bytes));
}

TEST(MemoryTest, StalledReaderHoldsItsOneSnapshotWhileStepsGoOn) {
  Server server(/*max_streams=*/20, {"--patience=1h"});
  {
    HalfSentCalls calls(server.address());
    calls.Begin("ReadTensors", Share(Framed(ReadEverything().SerializeAsString())));
    calls.RunUntilStopped();
    ASSERT_TRUE(TestClient::Until([&] { return server.client().UsedBudgets()["read"] > 0; }));
    const int64_t paid = server.client().UsedBudgets()["read"];
    EXPECT_GE(paid, 3 * ParameterCount(LargeSpec()) * static_cast<int64_t>(sizeof(float)));
    for (int step = 1; step <= 20; ++step) {
      const absl::StatusOr<StepReply> reply = server.Step(LargeSpec());
      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_EQ(reply->result.step(), step);
    }
    EXPECT_EQ(server.client().UsedBudgets()["read"], paid);
    EXPECT_EQ(calls.open(), 1);
    server.ExpectBounded();
  }
  server.ExpectAsBefore();
}

TEST(MemoryTest, StalledReadersBeyondTheBudgetAreRefusedAndStepsGoOn) {
  Server server(/*max_streams=*/100, {"--patience=1h"});
  const auto request = Share(Framed(ReadEverything().SerializeAsString()));
  constexpr int kFit = kReadBytes / (3 * 1320128);
  {
    HalfSentCalls calls(server.address());
    for (int i = 0; i < 50; ++i) calls.Begin("ReadTensors", request);
    calls.Run([&] { return calls.open() <= kFit; });
    calls.RunUntilStopped();
    EXPECT_EQ(calls.open(), kFit);
    EXPECT_EQ(calls.ended(grpc::StatusCode::RESOURCE_EXHAUSTED), 50 - kFit);
    const absl::Status refused = server.client().ReadArrays(LargeSpec()).status();
    EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_BUDGET_EXHAUSTED) << refused;
    EXPECT_TRUE(GetRetryDelay(refused).has_value());
    EXPECT_TRUE(server.Step(LargeSpec()).ok());
    server.ExpectBounded();
  }
  server.ExpectAsBefore();
}

TEST(MemoryTest, StalledReaderIsEndedWhenPatienceIsOver) {
  Server server(/*max_streams=*/20, {"--patience=200ms", "--think_time=200ms", "--min_rate=1000000000"});
  HalfSentCalls calls(server.address());
  calls.Begin("ReadTensors", Share(Framed(ReadEverything().SerializeAsString())));
  calls.Run([&] { return calls.open() == 0; });
  EXPECT_EQ(calls.ended(grpc::StatusCode::DEADLINE_EXCEEDED), 1);
  server.ExpectAsBefore();
}

TEST(MemoryTest, ClientThatNeverTakesTheReplyOfItsStepIsEndedWhenPatienceIsOver) {
  Server server(/*max_streams=*/20, {"--patience=200ms", "--think_time=200ms", "--min_rate=1000000000"});
  HalfSentCalls calls(server.address());
  calls.Begin("Step", WholeStep());
  calls.Run([&] { return calls.open() == 0; });
  EXPECT_EQ(calls.ended(grpc::StatusCode::DEADLINE_EXCEEDED), 1);
  // The step had been complete, and was applied.
  EXPECT_EQ(server.client().Get(LargeSpec().name())->step(), 1);
  server.ExpectAsBefore();
}

TEST(MemoryTest, ClientThatStopsInTheMiddleIsEndedWhenPatienceIsOver) {
  Server server(/*max_streams=*/20, {"--patience=200ms", "--think_time=200ms", "--min_rate=1000000000"});
  HalfSentCalls calls(server.address());
  calls.Begin("Step", HalfAStep());
  calls.Begin("StepOnce", AlmostAMessage());
  calls.Begin("WriteTensors", AlmostAMessage());
  calls.Begin("ReadTensors", AlmostAMessage());
  calls.Run([&] { return calls.open() == 0; });
  EXPECT_EQ(calls.ended(grpc::StatusCode::DEADLINE_EXCEEDED), 4);
  server.ExpectAsBefore();
}

TEST(MemoryTest, StallIsNamedAsTheReason) {
  Server server(/*max_streams=*/20, {"--patience=200ms", "--think_time=200ms", "--min_rate=1000000000"});
  const v1::ParameterSetSpec spec = LargeSpec();
  StepStream stream(server.client().stub());
  ASSERT_TRUE(stream.Send(
      StepMessages(StepHeader(spec.name()), Chunks(spec, Gradient(ParameterCount(spec), 1), 65536)).front()));
  const absl::Status end = stream.Finish();
  EXPECT_EQ(end.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(end), v1::ERROR_REASON_STALLED) << end;
}

}  // namespace
}  // namespace adamant::e2e
