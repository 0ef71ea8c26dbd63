// Slots, drain and patience, without a network: gRPC keeps what a call starts until the call is bound, which these
// never are, and the test tells a call what gRPC would.
#include "server/rpc/open_calls.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <utility>

#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "server/rpc/call.h"
#include "tests/core/manual_clock.h"

namespace adamant::rpc {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(10);
constexpr double kMinRate = 1000;
constexpr int kSlots = 2;

// A call that does nothing by itself.
class QuietCall final : public Call {
 public:
  explicit QuietCall(OpenCalls* open_calls, std::function<void()> at_open = nullptr)
      : Call(open_calls, nullptr), at_open_(std::move(at_open)) {}

  using Call::BeginOperation;
  using Call::End;
  using Call::EndOperation;
  using Call::Read;

  // What gRPC says when a message has come, and when it is done with the call.
  void HaveRead() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnReadDone(true); }
  void BeDone() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnDone(); }

  bool opened() const { return opened_; }
  int overs() const { return overs_; }

 private:
  void OnOpen() override {
    opened_ = true;
    if (at_open_) at_open_();
    EndOperation();
  }
  void OnMessage(const grpc::ByteBuffer&) override {}
  void OnHalfClose() override {}
  void OnWritten() override {}
  void OnOver() override { ++overs_; }

  const std::function<void()> at_open_;
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

  // Ends a call, and gRPC is done with it.
  static void Close(std::shared_ptr<QuietCall> call) {
    call->End(absl::OkStatus());
    call->BeDone();
  }

  core::ManualClock clock_;
  core::Budget streams_{"streams", kSlots* kStreamBytes, &clock_};
  OpenCalls open_calls_{&streams_, &clock_, {kPatience, kMinRate}};
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

TEST_F(OpenCallsTest, CallBeyondTheSlotsIsRefusedAndWorthARetry) {
  std::shared_ptr<QuietCall> first = Open();
  std::shared_ptr<QuietCall> second = Open();
  const absl::Status refused = open_calls_.Enter(first.get()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(refused).reason(), v1::ERROR_REASON_TOO_MANY_STREAMS);
  EXPECT_TRUE(GetRetryDelay(refused).has_value());

  std::shared_ptr<QuietCall> third = Open();
  EXPECT_FALSE(third->opened());
  EXPECT_EQ(third->overs(), 1);
  third->BeDone();

  Close(std::move(first));
  std::shared_ptr<QuietCall> fourth = Open();
  EXPECT_TRUE(fourth->opened());
  Close(std::move(second));
  Close(std::move(fourth));
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
  const absl::Status refused = open_calls_.Enter(late.get()).status();
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
  busy->BeginOperation(0);
  open_calls_.Drain();
  EXPECT_EQ(busy->overs(), 0);
  busy->EndOperation();
  EXPECT_EQ(busy->overs(), 1);
  busy->BeDone();
}

TEST_F(OpenCallsTest, ClientThatKeepsAnOperationWaitingIsEndedWhenPatienceIsOver) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation(0);
  call->Read();
  clock_.Advance(kPatience);
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(OpenCallsTest, BytesAddToPatienceAtTheLowestRate) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation(/*bytes=*/5 * static_cast<int64_t>(kMinRate));
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
  call->BeginOperation(10 * wire::kMaxMessageBytes);
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
  call->BeginOperation(0);
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

TEST_F(OpenCallsTest, TimeThatTheServerTakesIsNotTheClients) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation(0);
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
  call->BeginOperation(0);
  call->Read();
  clock_.Advance(kPatience);
  call->HaveRead();
  call->EndOperation();
  call->Read();
  clock_.Advance(100 * kPatience);
  EXPECT_EQ(call->overs(), 0);
  call->HaveRead();
  call->BeginOperation(0);
  call->Read();
  clock_.Advance(kPatience);
  EXPECT_EQ(call->overs(), 0);
  Close(std::move(call));
}

}  // namespace
}  // namespace adamant::rpc
