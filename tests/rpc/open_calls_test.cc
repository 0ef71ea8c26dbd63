// Places, drain and patience, without a network: gRPC keeps what a call starts until the call is bound, which these
// never are, and the test tells a call what gRPC would.
#include "server/rpc/open_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "server/log.h"
#include "server/rpc/call.h"
#include "tests/core/manual_clock.h"

namespace adamant::rpc {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(10);
constexpr double kMinRate = 1000;
constexpr absl::Duration kThinkTime = absl::Hours(2);
constexpr int kPlaces = 2;
constexpr int kMayWait = 2;

// A call that does nothing by itself.
class QuietCall final : public Call {
 public:
  explicit QuietCall(OpenCalls* open_calls, std::function<void()> at_open = nullptr)
      : Call(open_calls, nullptr, CallShape::kStream), at_open_(std::move(at_open)) {}
  QuietCall(OpenCalls* open_calls, std::string connection)
      : Call(open_calls, nullptr, CallShape::kStream), connection_(std::move(connection)) {}

  std::string Connection() const override { return connection_; }

  using Call::BeginOperation;
  using Call::End;
  using Call::EndOperation;
  using Call::Read;
  using Call::ShrinkCharge;
  using Call::Write;

  // What gRPC says when a message has come or left, when the client has cancelled, and when it is done with the call.
  void HaveRead() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnReadDone(true); }
  void HaveWritten() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnWriteDone(true); }
  void HaveCancelled() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnCancel(); }
  void BeDone() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnDone(); }

  // Has the call begin with an operation and a read, as most do, rather than idle.
  void ReadFirst() { reads_first_ = true; }

  bool opened() const { return opened_; }
  int overs() const { return overs_; }

 private:
  void OnOpen() override {
    opened_ = true;
    if (at_open_) at_open_();
    if (reads_first_) {
      BeginOperation({.bytes = 0});
      Read();
    } else {
      EndOperation();
    }
  }
  void OnMessage(const grpc::ByteBuffer&) override {}
  void OnHalfClose() override {}
  void OnWritten() override {}
  void OnOver() override { ++overs_; }

  const std::function<void()> at_open_;
  const std::string connection_;
  bool reads_first_ = false;
  bool opened_ = false;
  int overs_ = 0;
};

class OpenCallsTest : public testing::Test {
 protected:
  // A call that has been let in, or not.
  std::shared_ptr<QuietCall> Open() {
    auto call = std::make_shared<QuietCall>(&open_calls_);
    call->Open();
    return call;
  }

  // The same, on a connection of this name. It is idle, and its next message is awaited.
  std::shared_ptr<QuietCall> OpenOn(const std::string& connection) {
    auto call = std::make_shared<QuietCall>(&open_calls_, connection);
    call->Open();
    if (call->opened()) call->Read();
    return call;
  }

  // Ends a call, and gRPC is done with it.
  static void Close(std::shared_ptr<QuietCall> call) {
    call->End(absl::OkStatus());
    call->BeDone();
  }

  // A large step that waits for memory, because another one has all of it.
  class MemoryWanted {
   public:
    explicit MemoryWanted(core::Budget* memory) : memory_(memory), held_(*memory->TryReserve(memory->capacity())) {
      wait_ = memory->Reserve(1, absl::InfiniteDuration(), [](const absl::StatusOr<core::Grant>&) {});
    }
    ~MemoryWanted() { memory_->Cancel(wait_); }

   private:
    core::Budget* const memory_;
    const core::Grant held_;
    core::Budget::WaitId wait_;
  };

  core::ManualClock clock_;
  core::Budget streams_{"streams", kPlaces* kStreamBytes, &clock_};
  WaitingRoom waiting_{"waiting", kMayWait, &clock_};
  core::Budget memory_{"inflight", 100, &clock_};
  OpenCalls open_calls_{{&streams_, &waiting_, &memory_, &clock_}, {kPatience, kMinRate, kThinkTime}};
};

TEST_F(OpenCallsTest, CallIsChargedForUntilItEnds) {
  std::shared_ptr<QuietCall> call = Open();
  EXPECT_TRUE(call->opened());
  EXPECT_EQ(streams_.used(), kStreamBytes);
  call->End(absl::OkStatus());
  EXPECT_EQ(call->overs(), 1);
  EXPECT_EQ(streams_.used(), 0);
  call->BeDone();
}

TEST_F(OpenCallsTest, CallWithoutAPlaceWaitsInOrderAndReadsNothing) {
  std::shared_ptr<QuietCall> first = Open();
  std::shared_ptr<QuietCall> second = Open();
  std::shared_ptr<QuietCall> third = Open();
  std::shared_ptr<QuietCall> fourth = Open();
  EXPECT_FALSE(third->opened());
  EXPECT_FALSE(fourth->opened());
  EXPECT_EQ(waiting_.budget().used(), 2 * kWaitingCallBytes);

  Close(std::move(first));
  clock_.RunDue();
  EXPECT_TRUE(third->opened());
  EXPECT_FALSE(fourth->opened());
  EXPECT_EQ(waiting_.budget().used(), kWaitingCallBytes);

  Close(std::move(second));
  clock_.RunDue();
  EXPECT_TRUE(fourth->opened());
  EXPECT_EQ(waiting_.budget().used(), 0);
  Close(std::move(third));
  Close(std::move(fourth));
  EXPECT_EQ(streams_.used(), 0);
}

TEST_F(OpenCallsTest, CallBeyondThoseThatMayWaitIsRefusedAndWorthARetry) {
  std::vector<std::shared_ptr<QuietCall>> calls;
  for (int i = 0; i < kPlaces + kMayWait; ++i) calls.push_back(Open());
  auto refused = std::make_shared<QuietCall>(&open_calls_);
  const absl::Status status = open_calls_.Enter(refused);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_TOO_MANY_STREAMS);
  EXPECT_TRUE(GetRetryDelay(status).has_value());
  open_calls_.Leave(refused.get());

  std::shared_ptr<QuietCall> ended = Open();
  EXPECT_EQ(ended->overs(), 1);
  ended->BeDone();
  // From the last to the first, so that nobody is let in.
  for (; !calls.empty(); calls.pop_back()) Close(std::move(calls.back()));
}

TEST_F(OpenCallsTest, CallThatGivesUpWaitingLeavesTheQueue) {
  std::shared_ptr<QuietCall> first = Open();
  std::shared_ptr<QuietCall> second = Open();
  std::shared_ptr<QuietCall> third = Open();
  std::shared_ptr<QuietCall> fourth = Open();
  third->HaveCancelled();
  EXPECT_EQ(third->overs(), 1);
  third->BeDone();
  EXPECT_EQ(waiting_.budget().used(), kWaitingCallBytes);
  Close(std::move(first));
  clock_.RunDue();
  EXPECT_FALSE(third->opened());
  EXPECT_TRUE(fourth->opened());
  Close(std::move(second));
  Close(std::move(fourth));
}

TEST_F(OpenCallsTest, CallMayWaitForAPlaceForAsLongAsItsClientLikes) {
  std::shared_ptr<QuietCall> first = Open();
  first->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> second = Open();
  second->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> third = Open();
  clock_.Advance(kThinkTime + absl::Seconds(1));
  EXPECT_EQ(third->overs(), 0);
  Close(std::move(first));
  clock_.RunDue();
  EXPECT_TRUE(third->opened());
  Close(std::move(second));
  Close(std::move(third));
}

TEST_F(OpenCallsTest, DrainEndsCallsThatWait) {
  std::shared_ptr<QuietCall> first = Open();
  first->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> second = Open();
  second->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> third = Open();
  open_calls_.Drain();
  EXPECT_EQ(first->overs(), 0);
  EXPECT_EQ(third->overs(), 1);
  third->BeDone();
  EXPECT_EQ(waiting_.budget().used(), 0);
  Close(std::move(first));
  Close(std::move(second));
}

TEST_F(OpenCallsTest, CallEndsOnce) {
  std::shared_ptr<QuietCall> call = Open();
  call->End(absl::OkStatus());
  call->End(absl::InternalError("too late"));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, DrainEndsIdleCallsAndLetsNobodyIn) {
  std::shared_ptr<QuietCall> idle = Open();
  idle->Read();
  EXPECT_FALSE(open_calls_.draining());
  open_calls_.Drain();
  EXPECT_EQ(idle->overs(), 1);
  EXPECT_TRUE(open_calls_.draining());
  std::shared_ptr<QuietCall> late = Open();
  EXPECT_FALSE(late->opened());
  const absl::Status refused = open_calls_.Enter(late);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(GetErrorDetail(refused).reason(), v1::ERROR_REASON_DRAINING);
  idle->BeDone();
  late->BeDone();
}

TEST_F(OpenCallsTest, DrainWaitsForACallThatIsJustOpening) {
  int overs = -1;
  std::shared_ptr<QuietCall> call;
  call = std::make_shared<QuietCall>(&open_calls_, [&] {
    open_calls_.Drain();
    overs = call->overs();
  });
  call->Open();
  EXPECT_EQ(overs, 0);
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, DrainEndsABusyCallWhenItsOperationIsOver) {
  std::shared_ptr<QuietCall> busy = Open();
  busy->BeginOperation({.bytes = 0});
  open_calls_.Drain();
  EXPECT_EQ(busy->overs(), 0);
  busy->EndOperation();
  EXPECT_EQ(busy->overs(), 1);
  busy->BeDone();
}

TEST_F(OpenCallsTest, ClientThatKeepsAnOperationWaitingIsEndedWhenPatienceIsOver) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  call->Read();
  clock_.Advance(kPatience);
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, BytesAddToPatienceAtTheLowestRate) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 5 * static_cast<int64_t>(kMinRate)});
  call->Read();
  clock_.Advance(kPatience + absl::Seconds(5));
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, SilenceIsNoLongerThanOneMessageMayTake) {
  const absl::Duration one_message = open_calls_.terms().For(wire::kMaxMessageBytes);
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 10 * wire::kMaxMessageBytes});
  for (int i = 0; i < 2; ++i) {
    call->Read();
    clock_.Advance(one_message);
    EXPECT_EQ(call->overs(), 0);
    call->HaveRead();
  }
  call->Read();
  clock_.Advance(one_message + absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, WaitsOfOneOperationAddUp) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  for (int i = 0; i < 2; ++i) {
    call->Read();
    clock_.Advance(kPatience / 2);
    call->HaveRead();
  }
  EXPECT_EQ(call->overs(), 0);
  call->Read();
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, ClientMayThinkBetweenMessages) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0, .may_think = true, .holds_memory = true});
  for (int i = 0; i < 3; ++i) {
    call->Read();
    clock_.Advance(kThinkTime);
    EXPECT_EQ(call->overs(), 0);
    call->HaveRead();
  }
  call->Read();
  clock_.Advance(kThinkTime + absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, WhoWaitsForAPlaceShortensThinkingToPatience) {
  std::shared_ptr<QuietCall> thinks = Open();
  thinks->BeginOperation({.bytes = 0, .may_think = true});
  thinks->Read();
  std::shared_ptr<QuietCall> busy = Open();
  busy->BeginOperation({.bytes = 0});
  clock_.Advance(kThinkTime / 2);
  std::shared_ptr<QuietCall> waits = Open();
  clock_.Advance(kPatience / 2);
  EXPECT_EQ(thinks->overs(), 0);
  clock_.Advance(kPatience / 2 + absl::Seconds(1));
  EXPECT_EQ(thinks->overs(), 1);
  thinks->BeDone();
  clock_.RunDue();
  EXPECT_TRUE(waits->opened());
  Close(std::move(busy));
  Close(std::move(waits));
}

TEST_F(OpenCallsTest, WhoWaitsForMemoryShortensTheThinkingOfThoseWhoHoldSome) {
  std::shared_ptr<QuietCall> holds = Open();
  holds->BeginOperation({.bytes = 0, .may_think = true, .holds_memory = true});
  holds->Read();
  std::shared_ptr<QuietCall> holds_none = Open();
  holds_none->BeginOperation({.bytes = 0, .may_think = true});
  holds_none->Read();
  const MemoryWanted wanted(&memory_);
  clock_.Advance(kPatience + absl::Seconds(1));
  EXPECT_EQ(holds->overs(), 1);
  EXPECT_EQ(holds_none->overs(), 0);
  holds->BeDone();
  Close(std::move(holds_none));
}

TEST_F(OpenCallsTest, IdleCallGivesWayToOneThatWaits) {
  std::shared_ptr<QuietCall> idle = Open();
  idle->Read();
  std::shared_ptr<QuietCall> busy = Open();
  busy->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> waits = Open();
  clock_.Advance(kPatience - absl::Seconds(1));
  EXPECT_EQ(idle->overs(), 0);
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(idle->overs(), 1);
  idle->BeDone();
  clock_.RunDue();
  EXPECT_TRUE(waits->opened());
  Close(std::move(busy));
  Close(std::move(waits));
}

TEST_F(OpenCallsTest, AsManyGiveWayAsThereAreWhoWaitTheLongestSilenceFirst) {
  std::shared_ptr<QuietCall> longest = Open();
  longest->Read();
  clock_.Advance(kPatience);
  std::shared_ptr<QuietCall> other = Open();
  other->Read();
  clock_.Advance(100 * kPatience);
  std::shared_ptr<QuietCall> waits = Open();
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(longest->overs(), 1);
  longest->BeDone();
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(other->overs(), 0);
  EXPECT_TRUE(waits->opened());
  Close(std::move(other));
  Close(std::move(waits));
}

TEST_F(OpenCallsTest, LogTellsThatCallsWait) {
  std::shared_ptr<QuietCall> first = Open();
  first->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> second = Open();
  second->BeginOperation({.bytes = 0});
  std::shared_ptr<QuietCall> waits = Open();
  testing::internal::CaptureStderr();
  clock_.Advance(absl::Seconds(5));
  FlushLog(absl::Seconds(30));
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::HasSubstr("WARNING places are short (streams): 1 calls wait"));
  Close(std::move(waits));
  Close(std::move(first));
  Close(std::move(second));
}

// gRPC may be done with a call that has ended a while after; nothing of it may be touched meanwhile.
TEST_F(OpenCallsTest, CallThatHasEndedIsNotCutOff) {
  std::shared_ptr<QuietCall> call = Open();
  call->Read();
  clock_.Advance(100 * open_calls_.terms().For(wire::kMaxMessageBytes));
  call->HaveCancelled();
  testing::internal::CaptureStderr();
  clock_.Advance(100 * open_calls_.terms().For(wire::kMaxMessageBytes));
  FlushLog(absl::Seconds(30));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  call->BeDone();
}

TEST_F(OpenCallsTest, DrainThatBeginsWhileACallOpensEndsItBeforeItsFirstMessage) {
  std::shared_ptr<QuietCall> call;
  call = std::make_shared<QuietCall>(&open_calls_, [&] { open_calls_.Drain(); });
  call->ReadFirst();
  call->Open();
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, DrainEndsACallOfWhichNoMessageHasCome) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  call->Read();
  open_calls_.Drain();
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, TimeInWhichTheProcessWasStoppedIsNobodysSilence) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  call->Read();
  clock_.Advance(kPatience / 2);
  clock_.Stop(100 * kPatience);
  clock_.Advance(kPatience / 2 - absl::Seconds(2));
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(4));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, MessageUnderWayMayEndBeforeACallThatStalled) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  call->Write(grpc::ByteBuffer());
  clock_.Advance(kPatience + absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  // Its place is held until the message has left, and with it the status.
  EXPECT_EQ(streams_.used(), kStreamBytes);
  call->HaveWritten();
  EXPECT_EQ(streams_.used(), 0);
  call->BeDone();
}

TEST_F(OpenCallsTest, TimeThatTheServerTakesIsNotTheClients) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  clock_.Advance(10 * kPatience);  // admission
  call->Read();
  clock_.Advance(kPatience / 2);
  call->HaveRead();
  clock_.Advance(10 * kPatience);  // turn and commit
  EXPECT_EQ(call->overs(), 0);
  Close(std::move(call));
}

TEST_F(OpenCallsTest, IdleCallMayWaitForAsLongAsItLikes) {
  std::shared_ptr<QuietCall> call = Open();
  call->Read();
  clock_.Advance(100 * kPatience);
  EXPECT_EQ(call->overs(), 0);
  Close(std::move(call));
}

TEST_F(OpenCallsTest, IdleCallMayBeGivenATime) {
  std::shared_ptr<QuietCall> call = Open();
  call->EndOperation(0);
  call->Read();
  clock_.Advance(kPatience);
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();

  std::shared_ptr<QuietCall> other = Open();
  other->EndOperation(0);
  open_calls_.Drain();
  EXPECT_EQ(other->overs(), 1);
  other->BeDone();
}

TEST_F(OpenCallsTest, OperationThatIsOverLeavesItsPatienceBehind) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  call->Read();
  clock_.Advance(kPatience);
  call->HaveRead();
  call->EndOperation();
  call->Read();
  clock_.Advance(100 * kPatience);
  EXPECT_EQ(call->overs(), 0);
  call->HaveRead();
  call->BeginOperation({.bytes = 0});
  call->Read();
  clock_.Advance(kPatience);
  EXPECT_EQ(call->overs(), 0);
  Close(std::move(call));
}

TEST_F(OpenCallsTest, CallOfTheConnectionWithTheFewestOpenCallsIsLetInFirst) {
  std::shared_ptr<QuietCall> first = OpenOn("a");
  std::shared_ptr<QuietCall> second = OpenOn("a");
  std::shared_ptr<QuietCall> third = OpenOn("a");
  std::shared_ptr<QuietCall> other = OpenOn("b");
  Close(std::move(first));
  clock_.RunDue();
  EXPECT_TRUE(other->opened());
  EXPECT_FALSE(third->opened());
  Close(std::move(second));
  clock_.RunDue();
  EXPECT_TRUE(third->opened());
  Close(std::move(third));
  Close(std::move(other));
}

TEST_F(OpenCallsTest, AmongConnectionsWithoutPlacesTheOneThatAsksForLeastIsFirst) {
  WaitingRoom waiting("waiting", 3, &clock_);
  OpenCalls open_calls({&streams_, &waiting, &memory_, &clock_}, {kPatience, kMinRate, kThinkTime});
  std::vector<std::shared_ptr<QuietCall>> calls;
  for (const char* connection : {"a", "a", "b", "b", "c"}) {
    calls.push_back(std::make_shared<QuietCall>(&open_calls, connection));
    calls.back()->Open();
  }
  Close(calls[0]);
  clock_.RunDue();
  EXPECT_FALSE(calls[2]->opened());
  EXPECT_TRUE(calls[4]->opened());
  // From the last to the first, so that nobody is let in.
  for (int i : {4, 3, 2, 1}) Close(calls[i]);
}

TEST_F(OpenCallsTest, CallOfAConnectionThatAsksForLittleTakesTheTurnOfOneThatAsksForMuch) {
  std::vector<std::shared_ptr<QuietCall>> calls;
  for (int i = 0; i < kPlaces + kMayWait; ++i) calls.push_back(OpenOn("a"));
  std::shared_ptr<QuietCall> other = OpenOn("b");
  EXPECT_EQ(other->overs(), 0);
  EXPECT_EQ(calls[kPlaces]->overs(), 0);
  EXPECT_EQ(calls[kPlaces + 1]->overs(), 1);
  // What was refused is paid for until it has left.
  EXPECT_EQ(waiting_.budget().used(), (kMayWait + 1) * kWaitingCallBytes);
  calls.back()->BeDone();
  calls.pop_back();
  EXPECT_EQ(waiting_.budget().used(), kMayWait * kWaitingCallBytes);
  // With one waiting call each, nobody has more than another.
  std::shared_ptr<QuietCall> third = OpenOn("c");
  EXPECT_EQ(third->overs(), 1);
  third->BeDone();
  Close(std::move(other));
  for (; !calls.empty(); calls.pop_back()) Close(std::move(calls.back()));
}

TEST_F(OpenCallsTest, IdleCallAboveItsShareGivesWayAtOnceToAConnectionBelow) {
  std::shared_ptr<QuietCall> longest = OpenOn("a");
  clock_.Advance(absl::Seconds(1));
  std::shared_ptr<QuietCall> other = OpenOn("a");
  clock_.Advance(absl::Seconds(1));
  std::shared_ptr<QuietCall> waits = OpenOn("b");
  clock_.Advance(kGrace);
  EXPECT_EQ(longest->overs(), 1);
  EXPECT_EQ(other->overs(), 0);
  longest->BeDone();
  clock_.RunDue();
  EXPECT_TRUE(waits->opened());
  Close(std::move(other));
  Close(std::move(waits));
}

TEST_F(OpenCallsTest, IdleCallWithinItsShareKeepsItsPatience) {
  std::shared_ptr<QuietCall> a = OpenOn("a");
  std::shared_ptr<QuietCall> b = OpenOn("b");
  std::shared_ptr<QuietCall> waits = OpenOn("c");
  clock_.Advance(kPatience - absl::Seconds(1));
  EXPECT_EQ(a->overs() + b->overs(), 0);
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(a->overs() + b->overs(), 1);
  for (const auto& call : {a, b, waits}) {
    call->End(absl::OkStatus());
    call->BeDone();
  }
}

TEST_F(OpenCallsTest, IdleCallAboveItsShareKeepsItsPatienceAmongItsLikes) {
  std::shared_ptr<QuietCall> first = OpenOn("a");
  std::shared_ptr<QuietCall> second = OpenOn("a");
  std::shared_ptr<QuietCall> waits = OpenOn("a");
  clock_.Advance(kPatience - absl::Seconds(1));
  EXPECT_EQ(first->overs() + second->overs(), 0);
  Close(std::move(waits));
  Close(std::move(first));
  Close(std::move(second));
}

TEST_F(OpenCallsTest, PlaceOfACallWhoseMessageIsUnderWayIsHeldUntilGrpcIsDoneWithIt) {
  std::shared_ptr<QuietCall> idle = OpenOn("a");
  idle->End(absl::OkStatus());
  EXPECT_EQ(streams_.used(), kStreamBytes);
  idle->BeDone();
  EXPECT_EQ(streams_.used(), 0);
}

TEST_F(OpenCallsTest, LargeRequestOfAConnectionWhoseCallsGaveWayHasLessTimeWhenANewOneComes) {
  constexpr absl::Duration kRequestTime = absl::Seconds(5);
  WaitingRoom waiting("waiting", 3, &clock_);
  OpenCalls large({&streams_, &waiting, &memory_, &clock_, kRequestTime}, {kPatience, kMinRate, kThinkTime});
  const auto open = [&large](const char* connection) {
    auto call = std::make_shared<QuietCall>(&large, connection);
    call->ReadFirst();
    call->Open();
    return call;
  };
  std::shared_ptr<QuietCall> stranger = open("a");
  clock_.Advance(absl::Seconds(1));
  std::shared_ptr<QuietCall> busy = open("b");
  busy->HaveRead();
  std::shared_ptr<QuietCall> other = open("c");
  std::shared_ptr<QuietCall> again = open("a");
  std::shared_ptr<QuietCall> once_more = open("a");
  clock_.Advance(kRequestTime);
  EXPECT_EQ(stranger->overs(), 1);
  stranger->BeDone();
  clock_.RunDue();
  ASSERT_TRUE(other->opened());
  Close(std::move(other));
  clock_.RunDue();
  ASSERT_TRUE(again->opened());
  clock_.Advance(2 * kLargeRequestGrace);
  EXPECT_EQ(again->overs(), 0);
  std::shared_ptr<QuietCall> newcomer = open("d");
  clock_.Advance(kGrace);
  EXPECT_EQ(again->overs(), 1);
  again->BeDone();
  clock_.RunDue();
  EXPECT_TRUE(newcomer->opened());
  Close(std::move(once_more));
  Close(std::move(newcomer));
  Close(std::move(busy));
}

// Places for calls whose requests are small.
class SmallCallsTest : public OpenCallsTest {
 protected:
  // A call whose first message is awaited.
  std::shared_ptr<QuietCall> Open(const std::string& connection) {
    auto call = std::make_shared<QuietCall>(&small_, connection);
    call->ReadFirst();
    call->Open();
    return call;
  }

  OpenCalls small_{{&streams_, &waiting_, &memory_, &clock_, kGrace}, {kPatience, kMinRate, kThinkTime}};
};

TEST_F(SmallCallsTest, RequestThatDoesNotComeGivesWayToACallThatWaits) {
  std::shared_ptr<QuietCall> longest = Open("a");
  clock_.Advance(absl::Seconds(1));
  std::shared_ptr<QuietCall> other = Open("b");
  std::shared_ptr<QuietCall> waits = Open("c");
  clock_.Advance(2 * kGrace);
  EXPECT_EQ(longest->overs(), 1);
  longest->BeDone();
  clock_.RunDue();
  EXPECT_TRUE(waits->opened());
  EXPECT_EQ(other->overs(), 0);
  Close(std::move(other));
  Close(std::move(waits));
}

TEST_F(SmallCallsTest, ConnectionWhoseCallsGaveWayComesAfterOneThatIsNew) {
  std::shared_ptr<QuietCall> first = Open("a");
  std::shared_ptr<QuietCall> second = Open("b");
  std::shared_ptr<QuietCall> third = Open("c");
  clock_.Advance(2 * kGrace);
  EXPECT_EQ(first->overs() + second->overs(), 1);
  const bool first_gave_way = first->overs() == 1;
  std::shared_ptr<QuietCall> again = Open(first_gave_way ? "a" : "b");
  Close(first_gave_way ? first : second);
  clock_.RunDue();
  EXPECT_TRUE(third->opened());
  std::shared_ptr<QuietCall> newcomer = Open("d");
  Close(first_gave_way ? second : first);
  clock_.RunDue();
  EXPECT_FALSE(again->opened());
  EXPECT_TRUE(newcomer->opened());
  for (const auto& call : {again, newcomer, third}) Close(call);
}

TEST_F(SmallCallsTest, CallOfANewConnectionIsSparedWhileOnlyThoseWaitWhoseCallsGaveWay) {
  std::vector<std::shared_ptr<QuietCall>> strangers = {Open("a"), Open("a"), Open("a")};
  std::shared_ptr<QuietCall> newcomer = Open("b");
  clock_.Advance(2 * kGrace);
  EXPECT_EQ(strangers[0]->overs() + strangers[1]->overs(), 2);
  for (int i : {0, 1}) strangers[i]->BeDone();
  clock_.RunDue();
  EXPECT_TRUE(newcomer->opened());
  EXPECT_TRUE(strangers[2]->opened());
  std::shared_ptr<QuietCall> again = Open("a");
  clock_.Advance(2 * kGrace);
  EXPECT_EQ(strangers[2]->overs(), 1);
  EXPECT_EQ(newcomer->overs(), 0);
  strangers[2]->BeDone();
  clock_.RunDue();
  for (const auto& call : {again, newcomer}) Close(call);
}

TEST_F(SmallCallsTest, RequestMayTakeItsTimeWhileNobodyWaits) {
  std::shared_ptr<QuietCall> call = Open("a");
  clock_.Advance(kPatience - absl::Seconds(1));
  EXPECT_EQ(call->overs(), 0);
  Close(std::move(call));
}

TEST_F(SmallCallsTest, CallWhoseRequestHasComeIsSpared) {
  std::vector<std::shared_ptr<QuietCall>> calls = {Open("a"), Open("b")};
  for (const auto& call : calls) call->HaveRead();
  std::shared_ptr<QuietCall> waits = Open("c");
  clock_.Advance(kPatience);
  for (const auto& call : calls) {
    EXPECT_EQ(call->overs(), 0);
    Close(call);
  }
  clock_.RunDue();
  EXPECT_TRUE(waits->opened());
  Close(std::move(waits));
}

TEST_F(SmallCallsTest, ReplyThatIsNotTakenGivesWay) {
  std::vector<std::shared_ptr<QuietCall>> calls = {Open("a"), Open("b")};
  for (const auto& call : calls) {
    call->HaveRead();
    call->Write(grpc::ByteBuffer());
  }
  std::shared_ptr<QuietCall> waits = Open("c");
  clock_.Advance(10 * kGrace);
  EXPECT_EQ(calls[0]->overs() + calls[1]->overs(), 0);
  clock_.Advance(kReplyGrace);
  EXPECT_EQ(calls[0]->overs() + calls[1]->overs(), 1);
  const std::shared_ptr<QuietCall> cut_off = calls[calls[0]->overs() == 1 ? 0 : 1];
  cut_off->HaveWritten();
  clock_.RunDue();
  EXPECT_TRUE(waits->opened());
  cut_off->BeDone();
  Close(calls[cut_off == calls[0] ? 1 : 0]);
  Close(std::move(waits));
}

// Nobody has been silent while the server had no processor to read with.
TEST_F(SmallCallsTest, TimeInWhichTheServerCouldNotReadIsNobodysSilence) {
  std::vector<std::shared_ptr<QuietCall>> calls = {Open("a"), Open("b")};
  std::shared_ptr<QuietCall> waits = Open("c");
  clock_.RunDue();
  for (int i = 0; i < 2; ++i) {
    clock_.Stop(10 * kGrace);
    clock_.RunDue();
  }
  EXPECT_EQ(calls[0]->overs() + calls[1]->overs(), 0);
  Close(std::move(waits));
  for (const auto& call : calls) Close(call);
}

}  // namespace
}  // namespace adamant::rpc
