// Deletes: they take a turn, end what has not arrived, and give memory back when nobody uses it any more.
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;

class DeleteTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  const Values gradient_ = Gradient(set_->schema().parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(EverySize, DeleteTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(DeleteTest, EverythingIsNotFoundAfterwards) {
  ASSERT_THAT(Delete(set_.get()), IsOk());
  EXPECT_TRUE(set_->deleted());
  const auto not_found = FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND);
  EXPECT_THAT(Step(set_.get(), Header(), gradient_), not_found);
  EXPECT_THAT(Read(set_.get(), ReadRequest()), not_found);
  EXPECT_THAT(BeginWrite(set_.get(), FullHeader(0)).Take(), not_found);
  EXPECT_THAT(StepResultOf(*set_, "a"), not_found);
  EXPECT_THAT(Delete(set_.get()), not_found);
}

TEST_P(DeleteTest, AnotherIncarnationIsAborted) {
  const uint64_t incarnation = set_->Describe().incarnation();
  EXPECT_THAT(Delete(set_.get(), incarnation + 1),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_FALSE(set_->deleted());
  EXPECT_THAT(Delete(set_.get(), incarnation), IsOk());
}

TEST_P(DeleteTest, StepsAndWritesThatHaveNotArrivedEnd) {
  StepDelivery step = BeginStep(set_.get(), Header("a", 0));
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  ASSERT_THAT(Delete(set_.get()), IsOk());
  ASSERT_TRUE(step.done());
  ASSERT_TRUE(write.done());
  EXPECT_THAT(step.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
  EXPECT_THAT(write.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST_P(DeleteTest, ARepeatedWriteEnds) {
  const Arrays arrays = *FetchState(set_.get());
  ASSERT_THAT(Write(set_.get(), FullHeader(7, "w"), arrays), IsOk());
  WriteDelivery repeated = BeginWrite(set_.get(), FullHeader(7, "w"));
  ASSERT_TRUE(repeated.admitted());
  ASSERT_THAT(Delete(set_.get()), IsOk());
  ASSERT_TRUE(repeated.done());
  EXPECT_THAT(repeated.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST_P(DeleteTest, BytesStayChargedUntilTheLastReferenceIsGone) {
  absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
  absl::StatusOr<StepReply> reply = Step(set_.get(), Header(), gradient_);
  const Values parameters = Parameters(*reply);
  ASSERT_THAT(Delete(set_.get()), IsOk());
  server_.StopComputing();
  const int64_t state = server_.used().state;
  EXPECT_GE(state, 3 * ArrayBytes(*set_));
  set_.reset();
  EXPECT_EQ(server_.used().state, state);
  EXPECT_TRUE(SameBits(Fetch(**reading)->parameters, Values(gradient_.size())));
  reading = absl::CancelledError("over");
  EXPECT_EQ(server_.used().state, state);
  EXPECT_TRUE(SameBits(Parameters(*reply), parameters));
  reply = absl::CancelledError("over");
  EXPECT_EQ(server_.used(), (UsedBytes{0, 0, 0}));
}

TEST(DeleteTurnTest, StepsThatAreCompleteCommitBeforeTheDeleteAndThoseBehindItEnd) {
  GatedBackend backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(Marked(LargeSpec()));
  const Values gradient = Gradient(set->schema().parameter_count(), 1);
  const std::vector<Piece> pieces = Cut(set->schema(), kBlockElements);
  StepDelivery before = BeginStep(set.get(), Header());
  StepDelivery behind = BeginStep(set.get(), Header());
  ASSERT_THAT(before.Send(pieces, gradient), IsOk());
  ASSERT_THAT(behind.Send(pieces, gradient), IsOk());
  ASSERT_THAT(before.Complete(), IsOk());
  backend.AwaitHeld();

  Gate deleted;
  bool name_is_free = false;
  set->Delete(
      {}, [&name_is_free] { name_is_free = true; }, [&deleted](absl::Status) { deleted.Open(); });
  ASSERT_THAT(behind.Complete(), IsOk());
  EXPECT_FALSE(set->deleted());
  backend.LetGo();
  deleted.Pass();
  EXPECT_TRUE(name_is_free);
  EXPECT_THAT(before.Take(), IsOk());
  EXPECT_THAT(behind.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST(DeleteTurnTest, WritesBehindADeleteEnd) {
  for (const v1::WriteHeader& header : {ParametersHeader(), FullHeader(7)}) {
    GatedBackend backend;
    TestServer server({.backend = &backend});
    const std::shared_ptr<ParameterSet> set = server.MakeSet(Marked(LargeSpec()));
    const Values values(set->schema().parameter_count());
    const std::vector<Piece> pieces = Cut(set->schema(), kBlockElements);
    StepDelivery before = BeginStep(set.get(), Header());
    ASSERT_THAT(before.Send(pieces, values), IsOk());
    ASSERT_THAT(before.Complete(), IsOk());
    backend.AwaitHeld();

    set->Delete(
        {}, [] {}, [](absl::Status) {});
    WriteDelivery behind = BeginWrite(set.get(), header);
    // A staged write can be complete now; a direct one waits for its turn to begin.
    if (behind.admitted()) {
      ASSERT_THAT(behind.Send(pieces, values), IsOk());
      ASSERT_THAT(behind.Complete(), IsOk());
    }
    backend.LetGo();
    EXPECT_THAT(before.Take(), IsOk());
    EXPECT_THAT(behind.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
  }
}

TEST(DeleteNameTest, ADeletedNameIsFreeAndTheOldSetIsAnother) {
  TestServer server;
  Registry registry({server.resources()});
  v1::CreateParameterSetRequest create;
  *create.mutable_spec() = SmallSpec();
  const uint64_t first = registry.Create(create)->parameter_set().incarnation();
  const std::shared_ptr<ParameterSet> old = *registry.Find("small");
  v1::DeleteParameterSetRequest request;
  request.set_name("small");
  registry.Delete(request, [](absl::Status status) { EXPECT_THAT(status, IsOk()); });
  const absl::StatusOr<v1::CreateParameterSetResponse> second = registry.Create(create);
  ASSERT_THAT(second, IsOk());
  EXPECT_NE(second->parameter_set().incarnation(), first);
  EXPECT_FALSE(Delete(old.get()).ok());
  EXPECT_THAT(registry.Find("small"), IsOk());
}

}  // namespace
}  // namespace adamant::core
