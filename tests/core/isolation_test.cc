// A set that is busy does not hold up another.
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

// With set A inside of its kernel, on that many pool threads, until the test lets it go.
class IsolationTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    ASSERT_THAT(step_.Send(Cut(a_->schema(), kBlockElements), large_gradient_), IsOk());
    ASSERT_THAT(step_.Complete(), IsOk());
    backend_.AwaitHeld();
  }
  void TearDown() override {
    EXPECT_FALSE(step_.done());
    backend_.LetGo();
    EXPECT_THAT(step_.Take(), IsOk());
  }

  GatedBackend backend_;
  TestServer server_{{.compute_threads = GetParam(), .backend = &backend_}};
  std::shared_ptr<ParameterSet> a_ = server_.MakeSet(Marked(LargeSpec("a")));
  std::shared_ptr<ParameterSet> b_ = server_.MakeSet(SmallSpec("b"));
  const Values large_gradient_ = Gradient(a_->schema().parameter_count(), 1);
  StepDelivery step_ = BeginStep(a_.get(), Header("a", 0));
};

INSTANTIATE_TEST_SUITE_P(PoolThreads, IsolationTest, ::testing::Values(1, 2));

TEST_P(IsolationTest, ASmallStepOfAnotherSetCommits) {
  EXPECT_EQ(Step(b_.get(), Header("b", 0), Gradient(65, 1))->result.step(), 1);
}

TEST_P(IsolationTest, AnotherSetIsReadWrittenAndDeleted) {
  const absl::StatusOr<Arrays> arrays = FetchState(b_.get());
  ASSERT_THAT(arrays, IsOk());
  EXPECT_THAT(Write(b_.get(), FullHeader(3), *arrays), IsOk());
  EXPECT_THAT(Delete(b_.get()), IsOk());
}

TEST_P(IsolationTest, AnotherSetIsCreatedAndListed) {
  Registry registry({server_.resources()});
  v1::CreateParameterSetRequest request;
  *request.mutable_spec() = LargeSpec("c");
  EXPECT_THAT(registry.Create(request), IsOk());
  EXPECT_EQ(ListParameterSets(registry, {})->parameter_sets_size(), 1);
}

TEST_P(IsolationTest, TheBusySetDescribesItselfAndIsRead) {
  EXPECT_EQ(a_->Describe().step(), 0);
  EXPECT_EQ(StepResultOf(*a_, "a")->state(), v1::STEP_STATE_IN_FLIGHT);
  EXPECT_THAT(Read(a_.get(), ReadRequest()), IsOk());
}

TEST(FairnessTest, ALargeStepYieldsToAnotherBetweenBlocks) {
  GatedBackend backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> a = server.MakeSet(Marked(LargeSpec("a")));
  const std::shared_ptr<ParameterSet> b = server.MakeSet(LargeSpec("b"));
  const Values gradient = Gradient(a->schema().parameter_count(), 1);
  StepDelivery first = BeginStep(a.get(), Header());
  StepDelivery second = BeginStep(b.get(), Header());
  for (StepDelivery* delivery : {&first, &second}) {
    ASSERT_THAT(delivery->Send(Cut(a->schema(), kBlockElements), gradient), IsOk());
    ASSERT_THAT(delivery->Complete(), IsOk());
    backend.AwaitHeld();  // the first, in its first block
  }
  backend.LetGo();
  ASSERT_THAT(first.Take(), IsOk());
  ASSERT_THAT(second.Take(), IsOk());

  // From where both wait they take turns.
  const std::vector<GatedBackend::Call> calls = backend.calls();
  ASSERT_EQ(calls.size(), 12u);
  EXPECT_TRUE(calls[0].marked);
  for (size_t i = 2; i + 1 < calls.size(); ++i) {
    EXPECT_NE(calls[i].marked, calls[i - 1].marked) << "call " << i;
  }
}

}  // namespace
}  // namespace adamant::core
