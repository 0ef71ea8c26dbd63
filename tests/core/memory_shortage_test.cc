// When the system has no memory: what needs some is refused and changes nothing, and all the rest goes on.
//
// The linker (CMakeLists.txt) leads the pool's calls of the system to the functions __wrap_* here.
#include <errno.h>
#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace {

enum class Supply { kEnough, kNoAddresses, kNoPages };
std::atomic<Supply> supply = Supply::kEnough;

int Refuse() {
  errno = ENOMEM;
  return -1;
}

}  // namespace

void* RealMap(void*, size_t, int, int, int, off_t) asm("__real_mmap");
void* Map(void*, size_t, int, int, int, off_t) asm("__wrap_mmap");
void* Map(void* address, size_t length, int protection, int flags, int file, off_t offset) {
  if (supply == Supply::kNoAddresses) return reinterpret_cast<void*>(Refuse());
  return RealMap(address, length, protection, flags, file, offset);
}

int RealAdvise(void*, size_t, int) asm("__real_madvise");
int Advise(void*, size_t, int) asm("__wrap_madvise");
int Advise(void* address, size_t length, int advice) {
  if (supply == Supply::kNoPages && advice == MADV_POPULATE_WRITE) return Refuse();
  return RealAdvise(address, length, advice);
}

namespace adamant::core {
namespace {

class Shortage {
 public:
  explicit Shortage(Supply left) { supply = left; }
  ~Shortage() { supply = Supply::kEnough; }
};

MATCHER(IsOutOfMemory, "is out of memory, and says when to come back") {
  const absl::Status& status = StatusOf(arg);
  *result_listener << "which is " << status;
  return absl::IsResourceExhausted(status) && ReasonOf(status) == v1::ERROR_REASON_BUDGET_EXHAUSTED &&
         GetRetryDelay(status).has_value();
}

class MemoryShortageTest : public ::testing::TestWithParam<std::pair<v1::ParameterSetSpec, Supply>> {
 protected:
  // The state is written, not stepped to: nothing is idle in the pool then.
  MemoryShortageTest() {
    *model_.mutable_arrays() = {.step = 7,
                                .parameters = Gradient(model_.parameter_count(), 2),
                                .exp_avg = Gradient(model_.parameter_count(), 3),
                                .exp_avg_sq = Values(model_.parameter_count(), 0.5f)};
    EXPECT_THAT(Write(set_.get(), FullHeader(7), model_.arrays()), IsOk());
    before_ = set_->Describe();
    used_ = server_.used();
  }

  void ExpectUnchanged() {
    EXPECT_EQ(set_->Describe().SerializeAsString(), before_.SerializeAsString());
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
    EXPECT_EQ(server_.used(), used_);
  }

  // Takes the step that sets at 7 are ready for.
  void ExpectStepIsApplied(const v1::StepHeader& header) {
    EXPECT_THAT(Step(set_.get(), header, gradient_), IsOk());
    model_.Apply(gradient_);
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  }

  const Supply left_ = GetParam().second;
  TestServer server_{{.idle_arrays = 0}};
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam().first);
  SequentialModel model_{GetParam().first};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
  v1::ParameterSet before_;
  UsedBytes used_;
};

INSTANTIATE_TEST_SUITE_P(Every, MemoryShortageTest,
                         ::testing::Values(std::pair(SmallSpec(), Supply::kNoPages),
                                           std::pair(LargeSpec(), Supply::kNoPages),
                                           std::pair(LargeSpec(), Supply::kNoAddresses)),
                         [](const auto& test) {
                           return test.param.first.name() +
                                  (test.param.second == Supply::kNoPages ? "WithoutPages" : "WithoutAddresses");
                         });

TEST_P(MemoryShortageTest, ASetIsNotCreatedAndNotChargedFor) {
  v1::ParameterSetSpec spec = GetParam().first;
  spec.set_name("other");
  {
    const Shortage shortage(left_);
    EXPECT_THAT(ParameterSet::Create(server_.resources(), spec), IsOutOfMemory());
  }
  EXPECT_EQ(server_.used(), used_);
  EXPECT_THAT(ParameterSet::Create(server_.resources(), spec), IsOk());
}

TEST_P(MemoryShortageTest, AStepIsRefusedBeforeItsGradientComes) {
  {
    const Shortage shortage(left_);
    StepDelivery step = BeginStep(set_.get(), Header("a", 7));
    EXPECT_THAT(step.Take(), IsOutOfMemory());
    EXPECT_FALSE(step.admitted());
  }
  ExpectUnchanged();
  ExpectStepIsApplied(Header("a", 7, 2));
}

TEST_P(MemoryShortageTest, AStepThatWasAdmittedNeedsNoMore) {
  StepDelivery step = BeginStep(set_.get(), Header("a", 7));
  step.Await();
  {
    const Shortage shortage(left_);
    EXPECT_THAT(Finish(set_.get(), &step, gradient_), IsOk());
  }
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(MemoryShortageTest, AStepThatMeetsReadersNeedsNoMoreEither) {
  const std::unique_ptr<Reading> one = *Read(set_.get(), FullReadRequest());
  const std::unique_ptr<Reading> other = *Read(set_.get(), ReadRequest({v1::SLOT_EXP_AVG_SQ}));
  const Arrays before = model_.arrays();
  StepDelivery step = BeginStep(set_.get(), Header("a", 7));
  step.Await();
  {
    const Shortage shortage(left_);
    EXPECT_THAT(Finish(set_.get(), &step, gradient_), IsOk());
  }
  model_.Apply(gradient_);
  EXPECT_TRUE(*Fetch(*one) == before);
  EXPECT_TRUE(SameBits(*Fetch(*other, v1::SLOT_EXP_AVG_SQ), before.exp_avg_sq));
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(MemoryShortageTest, AReadThatAStepCouldNotGetOutOfTheWayOfIsRefused) {
  {
    const Shortage shortage(left_);
    EXPECT_THAT(Read(set_.get(), FullReadRequest()).status(), IsOutOfMemory());
    // Parameters are never written in place.
    EXPECT_THAT(Read(set_.get(), ReadRequest()), IsOk());
  }
  ExpectUnchanged();
}

TEST_P(MemoryShortageTest, AFullWriteThatCannotReplaceWhatAReaderHoldsChangesNothing) {
  const std::unique_ptr<Reading> reading = *Read(set_.get(), FullReadRequest());
  // Takes what lies idle.
  StepDelivery step = BeginStep(set_.get(), Header());
  step.Await();
  used_ = server_.used();
  WriteDelivery write = [&] {
    const Shortage shortage(left_);
    WriteDelivery refused = BeginWrite(set_.get(), FullHeader(0));
    refused.Await();
    return refused;
  }();
  EXPECT_FALSE(write.admitted());
  EXPECT_THAT(write.Take(), IsOutOfMemory());
  ExpectUnchanged();
  WriteDelivery next = BeginWrite(set_.get(), FullHeader(0));
  next.Await();
  EXPECT_TRUE(next.admitted()) << "the one that failed holds nothing up";
}

TEST_P(MemoryShortageTest, AFullWriteThatReplacesNothingNeedsNone) {
  const Shortage shortage(left_);
  EXPECT_THAT(Write(set_.get(), FullHeader(7), model_.arrays()), IsOk());
}

TEST_P(MemoryShortageTest, AParametersWriteIsRefusedBeforeItsValuesCome) {
  WriteDelivery write = [&] {
    const Shortage shortage(left_);
    WriteDelivery refused = BeginWrite(set_.get(), ParametersHeader());
    refused.Await();
    return refused;
  }();
  EXPECT_FALSE(write.admitted());
  EXPECT_THAT(write.Take(), IsOutOfMemory());
  ExpectUnchanged();
  WriteDelivery next = BeginWrite(set_.get(), ParametersHeader());
  next.Await();
  EXPECT_TRUE(next.admitted()) << "the one that failed holds nothing up";
}

}  // namespace
}  // namespace adamant::core
