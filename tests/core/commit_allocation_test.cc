// From the first byte that a step changes until its outcome is told, nothing is allocated: so a step that has begun to
// change its set cannot fail for want of memory.
#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/set/requests.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace {

std::atomic<bool> changing = false;
std::atomic<int> allocations = 0;

}  // namespace

// The linker (CMakeLists.txt) leads calls of operator new(size_t) here.
void* RealNew(size_t) asm("__real__Znwm");
void* New(size_t) asm("__wrap__Znwm");
void* New(size_t size) {
  if (changing) ++allocations;
  return RealNew(size);
}

namespace adamant::core {
namespace {

// Notes when the first byte is about to change.
class WatchedBackend final : public FakeBackend {
 private:
  absl::Status Before(const BlockUpdate& /*update*/, bool marked) override {
    if (marked) changing = true;
    return absl::OkStatus();
  }
};

// Notes when the outcome is told, and allocates nothing itself. Thread-safe.
class WatchingListener final : public StepListener {
 public:
  void OnAdmitted() override {}
  void OnOutcome(absl::StatusOr<StepReply> reply) override {
    changing = false;
    reply_ = std::move(reply);
    told_.Open();
  }

  const absl::StatusOr<StepReply>& Await() {
    told_.Pass();
    return reply_;
  }

 private:
  Gate told_;
  absl::StatusOr<StepReply> reply_;
};

class CommitAllocationTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  void StepOn(int64_t step) {
    const auto listener = std::make_shared<WatchingListener>();
    const std::shared_ptr<StepAttempt> attempt = set_->NewStep(Header(absl::StrCat("request ", step), step), listener);
    attempt->Start();
    const Values gradient = Gradient(set_->schema().parameter_count(), step);
    // This thread, too, allocates nothing meanwhile.
    ASSERT_TRUE(Deliver(attempt.get(), set_->schema(), gradient).ok() && listener->Await().ok());
    EXPECT_EQ(allocations.exchange(0), 0) << "step " << step;
  }

  WatchedBackend backend_;
  TestServer server_{{.compute_threads = 2, .backend = &backend_}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(Marked(GetParam()));
};

INSTANTIATE_TEST_SUITE_P(Every, CommitAllocationTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(CommitAllocationTest, AStepAllocatesNothingOnceItChangesItsSet) {
  for (int64_t step = 0; step < 2 * kRememberedSteps; ++step) StepOn(step);
}

TEST_P(CommitAllocationTest, NorDoesOneThatMeetsAReader) {
  for (int64_t step = 0; step < 3; ++step) {
    const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
    ASSERT_THAT(reading, IsOk());
    StepOn(step);
  }
}

}  // namespace
}  // namespace adamant::core
