// A small step meets nobody else's: from its header to its outcome it takes no lock that another set's step takes.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/core/system_calls.h"

namespace adamant::core {
namespace {

using ::testing::IsEmpty;

// Delivers a step as soon as it is admitted, as a call does whose client sends it in one message.
class OneMessage final : public StepListener {
 public:
  OneMessage(const Schema* schema, const Values* gradient, std::function<void()> at_outcome)
      : schema_(schema), gradient_(gradient), at_outcome_(std::move(at_outcome)) {}

  void set_attempt(StepAttempt* attempt) { attempt_ = attempt; }
  bool applied() const { return applied_; }

  void OnAdmitted() override { delivered_ = Deliver(attempt_, *schema_, *gradient_); }
  void OnOutcome(absl::StatusOr<StepReply> reply) override {
    applied_ = reply.ok();
    at_outcome_();
  }

 private:
  const Schema* const schema_;
  const Values* const gradient_;
  const std::function<void()> at_outcome_;
  StepAttempt* attempt_ = nullptr;
  absl::Status delivered_;
  bool applied_ = false;
};

class SmallStepTest : public ::testing::TestWithParam<int64_t> {
 protected:
  std::shared_ptr<ParameterSet> MakeSet(const std::string& name) {
    v1::ParameterSetSpec spec = SmallSpec(name);
    spec.clear_tensors();
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name("weights");
    tensor->add_shape(GetParam());
    tensor->set_group(spec.groups(0).name());
    return server_.MakeSet(spec);
  }

  // `at_outcome` is called while everything of the step is there still.
  void StepOn(
      ParameterSet* set, int64_t step, std::function<void()> at_outcome = [] {}) {
    const auto listener = std::make_shared<OneMessage>(&set->schema(), &gradient_, std::move(at_outcome));
    const std::shared_ptr<StepAttempt> attempt = set->NewStep(Header(absl::StrCat("step ", step), step), listener);
    listener->set_attempt(attempt.get());
    attempt->Start();
    EXPECT_TRUE(listener->applied());
  }

  TestServer server_;
  const Values gradient_ = Gradient(GetParam(), 1);
};

// One page, and the largest that is small.
INSTANTIATE_TEST_SUITE_P(Sizes, SmallStepTest, ::testing::Values(65, kSmallStepBytes / 4),
                         [](const auto& test) { return absl::StrCat(test.param); });

TEST_P(SmallStepTest, TakesNoLockThatAnotherSetsStepTakes) {
  const std::shared_ptr<ParameterSet> one = MakeSet("one");
  const std::shared_ptr<ParameterSet> other = MakeSet("other");
  StepOn(one.get(), 0);
  StepOn(other.get(), 0);
  LockRecorder of_one;
  // Within the first one's step, so that no memory of the one is the other's.
  std::optional<LockRecorder> of_other;
  std::vector<const void*> locked_by_other;
  StepOn(one.get(), 1, [&] {
    of_other.emplace();
    StepOn(other.get(), 1);
    locked_by_other = of_other->locked();
    of_other.reset();
  });
  EXPECT_THAT(locked_by_other, Not(IsEmpty()));
  std::vector<const void*> shared;
  for (const void* const mutex : locked_by_other) {
    if (std::count(of_one.locked().begin(), of_one.locked().end(), mutex) > 0) shared.push_back(mutex);
  }
  EXPECT_THAT(shared, IsEmpty());
}

}  // namespace
}  // namespace adamant::core
