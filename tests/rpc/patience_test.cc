// How long a client may keep the server waiting, and what counts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "server/rpc/call.h"
#include "server/rpc/open_calls.h"
#include "tests/rpc/open_calls_fixture.h"

namespace adamant::rpc {
namespace {

using PatienceTest = OpenCallsTest;

TEST_F(PatienceTest, ClientThatKeepsAnOperationWaitingIsEndedWhenPatienceIsOver) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 0});
  call->Read();
  clock_.Advance(kPatience);
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(PatienceTest, BytesAddToPatienceAtTheLowestRate) {
  std::shared_ptr<QuietCall> call = Open();
  call->BeginOperation({.bytes = 5 * static_cast<int64_t>(kMinRate)});
  call->Read();
  clock_.Advance(kPatience + absl::Seconds(5));
  EXPECT_EQ(call->overs(), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(call->overs(), 1);
  call->BeDone();
}

TEST_F(PatienceTest, SilenceIsNoLongerThanOneMessageMayTake) {
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

TEST_F(PatienceTest, WaitsOfOneOperationAddUp) {
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

TEST_F(PatienceTest, ClientMayThinkBetweenMessages) {
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

TEST_F(PatienceTest, WhoWaitsForAPlaceShortensThinkingToPatience) {
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

TEST_F(PatienceTest, WhoWaitsForMemoryShortensTheThinkingOfThoseWhoHoldSome) {
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

TEST_F(PatienceTest, TimeInWhichTheProcessWasStoppedIsNobodysSilence) {
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

TEST_F(PatienceTest, MessageUnderWayMayEndBeforeACallThatStalled) {
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

TEST_F(PatienceTest, TimeThatTheServerTakesIsNotTheClients) {
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

TEST_F(PatienceTest, IdleCallMayWaitForAsLongAsItLikes) {
  std::shared_ptr<QuietCall> call = Open();
  call->Read();
  clock_.Advance(100 * kPatience);
  EXPECT_EQ(call->overs(), 0);
  Close(std::move(call));
}

TEST_F(PatienceTest, IdleCallMayBeGivenATime) {
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

TEST_F(PatienceTest, OperationThatIsOverLeavesItsPatienceBehind) {
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

}  // namespace
}  // namespace adamant::rpc
