// Which ends of calls an operator is told of.
#include "server/rpc/call_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "proto/error/error.h"
#include "server/log.h"

namespace adamant::rpc {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Logged(const absl::Status& status) {
  testing::internal::CaptureStderr();
  LogEnd([] { return std::string("/Service/Method from ipv4:127.0.0.1:1"); }, status);
  FlushLog(absl::Seconds(30));
  return testing::internal::GetCapturedStderr();
}

TEST(CallLogTest, NamesTheCallAndWhatItEndedWith) {
  const std::string line =
      Logged(Error(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED, "a commit failed half way"));
  EXPECT_THAT(line, HasSubstr("ERROR poisoned: /Service/Method from ipv4:127.0.0.1:1: a commit failed half way"));
}

TEST(CallLogTest, TellsWhatIsShort) {
  EXPECT_THAT(Logged(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED, "no room")),
              HasSubstr("WARNING memory is short: "));
  EXPECT_THAT(Logged(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS, "no place")),
              HasSubstr("WARNING places are short: "));
  EXPECT_THAT(Logged(Error(absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED, "silence")),
              HasSubstr("WARNING stalled: "));
}

TEST(CallLogTest, LeavesTheClientsOwnMistakesToTheClient) {
  EXPECT_THAT(Logged(Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD, "wrong")), IsEmpty());
  EXPECT_THAT(Logged(absl::CancelledError("the client is gone")), IsEmpty());
}

}  // namespace
}  // namespace adamant::rpc
