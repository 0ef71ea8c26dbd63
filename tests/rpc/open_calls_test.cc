// Who is let in, who waits, how calls end, and what a drain does.
#include "server/rpc/open_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "server/log.h"
#include "server/rpc/call.h"
#include "tests/rpc/open_calls_fixture.h"

namespace adamant::rpc {
namespace {

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
  clock_.Advance(10 * open_calls_.terms().For(wire::kMaxMessageBytes));
  call->HaveCancelled();
  testing::internal::CaptureStderr();
  clock_.Advance(10 * open_calls_.terms().For(wire::kMaxMessageBytes));
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

}  // namespace
}  // namespace adamant::rpc
