// Who gives way to whom where places are short.
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

using GivingWayTest = OpenCallsTest;

TEST_F(GivingWayTest, IdleCallGivesWayToOneThatWaits) {
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

TEST_F(GivingWayTest, AsManyGiveWayAsThereAreWhoWaitTheLongestSilenceFirst) {
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

TEST_F(GivingWayTest, CallOfTheConnectionWithTheFewestOpenCallsIsLetInFirst) {
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

TEST_F(GivingWayTest, AmongConnectionsWithoutPlacesTheOneThatAsksForLeastIsFirst) {
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

TEST_F(GivingWayTest, CallOfAConnectionThatAsksForLittleTakesTheTurnOfOneThatAsksForMuch) {
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

TEST_F(GivingWayTest, IdleCallAboveItsShareGivesWayAtOnceToAConnectionBelow) {
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

TEST_F(GivingWayTest, IdleCallWithinItsShareKeepsItsPatience) {
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

TEST_F(GivingWayTest, IdleCallAboveItsShareKeepsItsPatienceAmongItsLikes) {
  std::shared_ptr<QuietCall> first = OpenOn("a");
  std::shared_ptr<QuietCall> second = OpenOn("a");
  std::shared_ptr<QuietCall> waits = OpenOn("a");
  clock_.Advance(kPatience - absl::Seconds(1));
  EXPECT_EQ(first->overs() + second->overs(), 0);
  Close(std::move(waits));
  Close(std::move(first));
  Close(std::move(second));
}

TEST_F(GivingWayTest, PlaceOfACallWhoseMessageIsUnderWayIsHeldUntilGrpcIsDoneWithIt) {
  std::shared_ptr<QuietCall> idle = OpenOn("a");
  idle->End(absl::OkStatus());
  EXPECT_EQ(streams_.used(), kStreamBytes);
  idle->BeDone();
  EXPECT_EQ(streams_.used(), 0);
}

TEST_F(GivingWayTest, LargeRequestOfAConnectionWhoseCallsGaveWayHasLessTimeWhenANewOneComes) {
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
