// What a set remembers of a write whose state is lost again: nothing, or a client that repeats it would be told that
// the set has what it has not.
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

class LostStateTest : public ::testing::Test {
 protected:
  // Begins a full write and breaks it off.
  void LoseState(ParameterSet* set) {
    WriteDelivery write = BeginWrite(set, FullHeader(7, "broken"));
    ASSERT_TRUE(write.admitted());
  }

  const Arrays arrays_ = {
      .step = 1000, .parameters = Values(65, 1.0f), .exp_avg = Values(65, 2.0f), .exp_avg_sq = Values(65, 3.0f)};
};

TEST_F(LostStateTest, AWriteIsRepeatedInEarnestWhenItsStateIsLost) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec());
  ASSERT_THAT(Write(set.get(), FullHeader(1000, "restore"), arrays_), IsOk());
  LoseState(set.get());
  const absl::StatusOr<v1::WriteTensorsResponse> again = Write(set.get(), FullHeader(1000, "restore"), arrays_);
  ASSERT_THAT(again, IsOk());
  EXPECT_FALSE(again->replayed());
  EXPECT_TRUE(*FetchState(set.get()) == arrays_);
}

TEST_F(LostStateTest, AWriteThatIsBeingRepeatedFailsWhenItsStateIsLost) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec());
  ASSERT_THAT(Write(set.get(), FullHeader(1000, "restore"), arrays_), IsOk());
  WriteDelivery retry = BeginWrite(set.get(), FullHeader(1000, "restore"));
  LoseState(set.get());
  ASSERT_THAT(retry.Complete(), IsOk());
  EXPECT_THAT(retry.Take(), FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_UNINITIALIZED));
}

}  // namespace
}  // namespace adamant::core
