// What strangers can do to a server with what HTTP/2 lets them say, beside its calls. While they are at it a health
// check is answered; memory stays in its bound; and after it the server ends in time.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <iostream>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/e2e/bounded_server.h"
#include "tests/e2e/child_program.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/stranger.h"
#include "tests/e2e/test_client.h"
#include "tests/rpc/http2_frames.h"

namespace adamant::e2e {
namespace {

using ::adamant::http2::BeginningOfField;
using ::adamant::http2::BigEndian;
using ::adamant::http2::CallHeaders;
using ::adamant::http2::Field;
using ::adamant::http2::Frame;
using ::adamant::http2::kContinuation;
using ::adamant::http2::kData;
using ::adamant::http2::kEndHeaders;
using ::adamant::http2::kEndStream;
using ::adamant::http2::kHeaders;
using ::adamant::http2::kLastRemembered;
using ::adamant::http2::kPing;
using ::adamant::http2::kSettings;
using ::adamant::http2::PartOfFrame;
using ::adamant::http2::RememberedField;
using ::adamant::http2::Reset;

constexpr char kStep[] = "/adamant.v1.OptimizerService/Step";
constexpr char kStepOnce[] = "/adamant.v1.OptimizerService/StepOnce";
constexpr int kFrameBytes = 16384;
constexpr int kManyConnections = 800 / kFewer;

// Those of one attack.
using Strangers = std::list<Stranger>;
using Attack = std::function<void(const std::string& address, Strangers* strangers)>;

// Calls of which each is reset at once, on `connections` at the same time.
Attack BegunAndReset(int connections, std::string headers, Stranger::Manners manners = {}) {
  return [=](const std::string& address, Strangers* strangers) {
    constexpr uint32_t kCalls = 60000 / kFewer;
    std::vector<std::thread> threads;
    for (int i = 0; i < connections; ++i) {
      Stranger& stranger = strangers->emplace_back(address, manners);
      threads.emplace_back([&stranger, &headers] {
        std::string bytes;
        for (uint32_t call = 0; call < kCalls; ++call) {
          bytes += Frame(kHeaders, kEndHeaders, 2 * call + 1, headers) + Reset(2 * call + 1);
          if (call % 1000 != 999) continue;
          if (!stranger.Send(bytes)) return;
          bytes.clear();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
}

// One connection that sends `first`, and then `again` until it is cut off, but not more than `bytes`.
Attack Repeated(std::string first, std::string again, int64_t bytes, Stranger::Manners manners = {}) {
  return [=](const std::string& address, Strangers* strangers) {
    Stranger& stranger = strangers->emplace_back(address, manners);
    stranger.Send(first);
    for (int64_t sent = 0; sent < bytes && stranger.Send(again); sent += static_cast<int64_t>(again.size())) continue;
  };
}

// Many connections that send `bytes` each.
Attack OnManyConnections(std::string bytes, Stranger::Manners manners = {}, int connections = kManyConnections) {
  return [=](const std::string& address, Strangers* strangers) {
    for (int i = 0; i < connections; ++i) strangers->emplace_back(address, manners).Send(bytes);
  };
}

std::string Times(int count, const std::string& bytes) {
  std::string all;
  for (int i = 0; i < count; ++i) all += bytes;
  return all;
}

// Calls in one direction without end.
std::string ManyCalls(int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes += Frame(kHeaders, kEndHeaders, 2 * i + 1, CallHeaders(kStep));
  return bytes;
}

std::string CallsThatAreReset(uint32_t count, const std::string& headers) {
  std::string bytes;
  for (uint32_t call = 0; call < count; ++call) {
    bytes += Frame(kHeaders, kEndHeaders, 2 * call + 1, headers) + Reset(2 * call + 1);
  }
  return bytes;
}

// Trailers of fields of one byte, for each of as many calls as may be open.
std::string CallsWithTrailers() {
  std::string bytes;
  for (uint32_t stream = 1; stream < 200; stream += 2) {
    bytes += Frame(kHeaders, kEndHeaders, stream, CallHeaders(kStepOnce) + RememberedField("a", "b")) +
             Frame(kHeaders, kEndHeaders | kEndStream, stream, std::string(3500, kLastRemembered));
  }
  return bytes;
}

// A message for each of many calls, in frames of one byte, as far as a window goes.
std::string MessagesInTinyFrames() {
  std::string bytes;
  for (uint32_t stream = 1; stream < 100; stream += 2) {
    bytes += Frame(kHeaders, kEndHeaders, stream, CallHeaders(kStepOnce)) +
             Frame(kData, 0, stream, BigEndian(0, 1) + BigEndian(4 << 20, 4));
    bytes += Times(60000, Frame(kData, 0, stream, "x"));
  }
  return bytes;
}

struct Case {
  const char* name;
  Attack attack;
  // Whether calls come of it that wait, which a budget pays for.
  bool calls_wait = false;
};

class StrangersTest : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Each, StrangersTest,
                         testing::Values(Case{"CallsThatAreReset", BegunAndReset(4, CallHeaders(kStep)), true},
                                         Case{"CallsThatAreResetOnManyConnections",
                                              OnManyConnections(CallsThatAreReset(1000 / kFewer, CallHeaders(kStep)),
                                                                {}, 60 / kFewer),
                                              true},
                                         Case{"UnknownMethods", BegunAndReset(4, CallHeaders("/no/method"))},
                                         Case{"BadContentTypes", BegunAndReset(4, CallHeaders(kStep, "text/html")),
                                              true},
                                         Case{"UnknownCompression",
                                              BegunAndReset(4, CallHeaders(kStep) + Field("grpc-encoding", "gzip")),
                                              true},
                                         Case{"HeadersWithoutEnd",
                                              Repeated(Frame(kHeaders, 0, 1, CallHeaders(kStep)),
                                                       Frame(kContinuation, 0, 1,
                                                             Times(150, Field("x", std::string(100, 'y')))),
                                                       400 * kMiB)},
                                         // gRPC copies what it has of the field for each of them.
                                         Case{
                                             "AFieldInTinyFrames",
                                             [](const std::string& address, Strangers* strangers) {
                                               const std::string bytes =
                                                   Frame(kHeaders, 0, 1,
                                                         CallHeaders(kStep) + BeginningOfField(120000)) +
                                                   Times(110000, Frame(kContinuation, 0, 1, "x"));
                                               for (int i = 0; i < 60; ++i)
                                                 strangers->emplace_back(address).Send(bytes);
                                             }},
                                         Case{"CallsBeforeSettingsAreAcknowledged",
                                              Repeated(ManyCalls(60000), "", 0, {.acknowledges = false})},
                                         Case{"UnfinishedHeaders",
                                              OnManyConnections(PartOfFrame(kFrameBytes, kHeaders, kEndHeaders, 1,
                                                                            CallHeaders(kStep) +
                                                                                RememberedField("x", "y") +
                                                                                std::string(16000, kLastRemembered)),
                                                                {.acknowledges = false})},
                                         Case{"UnfinishedFields",
                                              OnManyConnections(Frame(kHeaders, 0, 1, CallHeaders(kStep)) +
                                                                Times(7, Frame(kContinuation, 0, 1,
                                                                               std::string(kFrameBytes, 'x'))))},
                                         Case{"Trailers", OnManyConnections(CallsWithTrailers())},
                                         Case{
                                             "SettingsOfOneThatDoesNotRead",
                                             OnManyConnections(Times(20000, Frame(kSettings, 0, 0)), {.reads = false})},
                                         Case{"PingsOfOneThatDoesNotRead",
                                              OnManyConnections(Times(9900, Frame(kPing, 0, 0, "12345678")),
                                                                {.reads = false})},
                                         Case{"MessagesInTinyFrames",
                                              [](const std::string& address, Strangers* strangers) {
                                                const std::string bytes = MessagesInTinyFrames();
                                                for (int i = 0; i < 10; ++i)
                                                  strangers->emplace_back(address).Send(bytes);
                                              }}),
                         [](const auto& info) { return info.param.name; });

// Asks the server at `address` for its health, as an orchestrator does, which gives up what has not answered three
// times in a row, each within a time that a busy machine may take from it. Returns whether it serves.
bool Probe(const std::string& address) {
  for (int tries = 0; tries < 3; ++tries) {
    if (ChildProgram({ADAMANT_SERVER, absl::StrCat("--probe=", address)}).Wait() == 0) return true;
  }
  return false;
}

TEST_P(StrangersTest, AreBounded) {
  BoundedServer server(/*max_streams=*/20, {absl::StrCat("--max_connections=", 2 * kManyConnections)});
  ASSERT_TRUE(Probe(server.address()));
  // They stay until the end.
  Strangers strangers;
  std::atomic<bool> over = false;
  std::thread attack([&] {
    GetParam().attack(server.address(), &strangers);
    over = true;
  });
  std::chrono::steady_clock::duration slowest = {};
  int probes = 0;
  for (bool last = false; !last; ++probes) {
    last = over;
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_TRUE(Probe(server.address()));
    slowest = std::max(slowest, std::chrono::steady_clock::now() - begin);
  }
  attack.join();
  std::cout << probes << " probes, the slowest in " << std::chrono::duration<double>(slowest).count() << " s\n";
  if (GetParam().calls_wait) {
    server.ExpectBounded();
  } else {
    server.ExpectRoom(kSlackBytes);
  }
  server.program().Signal(SIGTERM);
  EXPECT_EQ(server.program().Wait(), 0);
}

// Whether a client that has not acknowledged the server's SETTINGS may begin more calls than that allows.
bool MayBeginManyCalls(const std::string& flag) {
  constexpr int kCalls = 120;
  constexpr int kLeastAnswerBytes = 20;
  ServerProcess server({flag});
  Stranger stranger(server.address(), {.acknowledges = false});
  std::string bytes;
  for (uint32_t call = 0; call < kCalls; ++call) {
    bytes += Frame(kHeaders, kEndHeaders | kEndStream, 2 * call + 1, CallHeaders("/no/method"));
  }
  stranger.Send(bytes);
  return stranger.AwaitBytes(kCalls * kLeastAnswerBytes);
}

TEST(TrustedTest, WhoIsTrustedIsNotGuarded) {
  EXPECT_FALSE(MayBeginManyCalls("--trusted="));
  EXPECT_FALSE(MayBeginManyCalls("--trusted=10.0.0.0/8,::1"));
  EXPECT_TRUE(MayBeginManyCalls("--trusted=10.0.0.0/8,127.0.0.0/8"));
}

TEST(TrustedTest, WhoIsCutOffIsInTheLog) {
  ServerProcess server;
  Stranger stranger(server.address());
  EXPECT_TRUE(stranger.Send(Frame(kHeaders, 0, 1, CallHeaders(kStep)) + PartOfFrame(1 << 20, kContinuation, 0, 1, "")));
  EXPECT_FALSE(stranger.AwaitBytes(kMiB));
  EXPECT_TRUE(
      server.program()
          .standard_error()
          .AwaitLine("connection of 127.0.0.1 cut off: bytes of a header block: expected at most 131072, got 1048")
          .has_value());
}

// Whoever gives up often is no stranger.
TEST(HonestTest, CancelsAsManyCallsAsItLikes) {
  constexpr int kCalls = 60000 / kFewer;
  ServerProcess server;
  TestClient client(server.address());
  ASSERT_TRUE(client.Create(SmallSpec()).ok());
  for (int i = 0; i < kCalls; ++i) {
    grpc::ClientContext context;
    const auto stream = client.stub()->Step(&context);
    context.TryCancel();
  }
  EXPECT_EQ(client.channel()->GetState(/*try_to_connect=*/false), GRPC_CHANNEL_READY);
  EXPECT_TRUE(client.Get(SmallSpec().name()).ok());
  server.program().Signal(SIGTERM);
  EXPECT_EQ(server.program().Wait(), 0);
  EXPECT_EQ(server.program().standard_error().AwaitEnd().find("cut off"), std::string::npos);
}

}  // namespace
}  // namespace adamant::e2e
