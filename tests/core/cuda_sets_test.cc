// Sets on a CUDA device: the promises, and the bits, of those on the processor. Skipped where there is no device.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/adam_scalars.h"
#include "tests/core/cuda_device.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

CudaDevices& Devices() {
  static CudaDevices* const devices = new CudaDevices(/*threads=*/3);
  return *devices;
}

// More groups than one launch takes, of tensors whose sizes are no multiples of anything.
v1::ParameterSetSpec ManyGroupsSpec() {
  v1::ParameterSetSpec spec;
  spec.set_name("groups");
  spec.set_initialization(v1::INITIALIZATION_ZEROS);
  for (int i = 0; i < 200; ++i) {
    v1::ParameterGroup* const group = spec.add_groups();
    group->set_name(absl::StrCat("g", i));
    group->set_learning_rate(1e-3 * (i + 1));
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat("t", i));
    tensor->add_shape(1 + i * i % 5003);
    tensor->set_group(absl::StrCat("g", (i * 7) % 200));
  }
  return spec;
}

// Full blocks only, whose memory is registered: what copies them does not wait, as it does for other memory.
v1::ParameterSetSpec FullBlocksSpec() {
  v1::ParameterSetSpec spec;
  spec.set_name("full");
  spec.set_initialization(v1::INITIALIZATION_ZEROS);
  v1::TensorSpec* const tensor = spec.add_tensors();
  tensor->set_name("w");
  tensor->add_shape(4 * kBlockElements);
  return spec;
}

class CudaSetTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  // The device's threads may still hold what they have answered with.
  ~CudaSetTest() override {
    set_.reset();
    server_.AwaitUnused();
  }

  void SetUp() override {
    ASSERT_FALSE(Devices().warned());
    if (Devices().empty()) GTEST_SKIP();
    set_ = server_.MakeSet(GetParam());
  }

  TestServer server_{{.backend = Devices().empty() ? nullptr : Devices().device(), .registrar = Devices().registrar()}};
  std::shared_ptr<ParameterSet> set_;
  SequentialAdam model_{GetParam()};
  const Values gradient_ = Gradient(model_.parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(Every, CudaSetTest,
                         ::testing::Values(SmallSpec(), LargeSpec(), FullBlocksSpec(), EmptySpec(), ManyGroupsSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(CudaSetTest, StepsWritesAndReadsEndAsOnTheProcessor) {
  for (int64_t step = 0; step < 3; ++step) {
    const Values gradient = Gradient(model_.parameter_count(), step);
    const absl::StatusOr<StepReply> reply = Step(set_.get(), Header(), gradient);
    ASSERT_THAT(reply, IsOk());
    model_.Apply(gradient);
    EXPECT_TRUE(SameBits(Parameters(*reply), model_.arrays().parameters));
    EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  }
  Arrays arrays = model_.arrays();
  arrays.step = 7;
  EXPECT_THAT(Write(set_.get(), FullHeader(arrays.step), arrays), IsOk());
  *model_.mutable_arrays() = arrays;
  arrays.parameters = Gradient(model_.parameter_count(), 9);
  EXPECT_THAT(Write(set_.get(), ParametersHeader(), arrays), IsOk());
  model_.mutable_arrays()->parameters = arrays.parameters;
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(CudaSetTest, AWriteThatBreaksOffChangesNothing) {
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  {
    WriteDelivery write = BeginWrite(set_.get(), FullHeader(3));
    write.Await();
    EXPECT_THAT(write.Send(Cut(set_->schema(), kBlockElements), gradient_, v1::SLOT_EXP_AVG), IsOk());
  }
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
  ASSERT_THAT(Step(set_.get(), Header(), gradient_), IsOk());
  model_.Apply(gradient_);
  EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays());
}

TEST_P(CudaSetTest, AFullReadBesideStepsHasTheBitsOfOneStep) {
  std::vector<Arrays> states = {model_.arrays()};
  std::vector<StepDelivery> steps;
  std::vector<PendingRead> reads;
  for (int64_t step = 0; step < 6; ++step) {
    model_.Apply(gradient_);
    states.push_back(model_.arrays());
    steps.push_back(BeginStep(set_.get(), Header()));
    steps.back().Await();
    ASSERT_THAT(steps.back().Send(Cut(set_->schema(), kBlockElements), gradient_), IsOk());
    ASSERT_THAT(steps.back().Complete(), IsOk());
    reads.emplace_back(set_.get(), FullReadRequest());
  }
  for (PendingRead& read : reads) {
    const absl::StatusOr<std::unique_ptr<Reading>> reading = read.Take();
    ASSERT_THAT(reading, IsOk());
    EXPECT_TRUE(*Fetch(**reading) == states[(*reading)->header().step()]);
  }
  for (StepDelivery& step : steps) EXPECT_THAT(step.Take(), IsOk());
}

TEST_P(CudaSetTest, ComputedBlocksHaveTheirNewParameters) {
  const Resources resources = server_.resources();
  const int64_t elements = set_->schema().flat_size();
  GroupRanges ranges;
  ForEachRun(0, elements, [&](int64_t, int64_t begin, int64_t end) { ranges.push_back({{begin, end, 0}}); });
  const std::shared_ptr<const Schema> schema = *Schema::Create(GetParam(), set_->configuration()->groups());
  const std::unique_ptr<SlotArrays> arrays = *Devices().device()->NewArrays(
      {schema, std::make_shared<const GroupRanges>(std::move(ranges)), {v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ}},
      resources.lender, resources.compute);
  BlockList gradient = *resources.lender->TakeZeroed(elements);
  for (const BlockRef& block : gradient) std::fill_n(block.mutable_data(), block.size(), 1.0f);
  const StepPlan plan = {
      .scalars = {kernels::MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}, 1, 1)},
      .before = nullptr,
      .after = std::make_shared<const Snapshot>(1, 1, std::move(gradient))};
  std::vector<Values> computed(plan.after->blocks().size());
  Gate done;
  arrays->Apply(
      plan,
      [&](int64_t block) {
        const BlockRef& parameters = plan.after->blocks()[block];
        computed[block].assign(parameters.data(), parameters.data() + parameters.size());
      },
      [&](const absl::Status& status) {
        EXPECT_THAT(status, IsOk());
        done.Open();
      });
  done.Pass();
  for (size_t block = 0; block < computed.size(); ++block) {
    const BlockRef& parameters = plan.after->blocks()[block];
    EXPECT_TRUE(SameBits(computed[block], Values(parameters.data(), parameters.data() + parameters.size())));
    EXPECT_NEAR(computed[block][0], -1e-3, 1e-6);
  }
}

TEST_P(CudaSetTest, TheDevicesBudgetPaysForItUntilItIsGone) {
  const Budget& budget = *Devices().device()->budget();
  EXPECT_GE(budget.used(), 12 * set_->schema().parameter_count());
  EXPECT_EQ(set_->Describe().device(), "cuda:0");
  set_.reset();
  // Its memory is given back on a thread of the device's.
  for (;;) {
    if (budget.used() == 0) break;
    Devices().AwaitIdle();
  }
}

TEST_P(CudaSetTest, ASetThatMovesBetweenDevicesEqualsOneThatStays) {
  const int64_t steps = model_.parameter_count() < 1000 ? 100 : 5;
  TestServer host;
  const std::shared_ptr<ParameterSet> on_host = host.MakeSet(GetParam());
  ParameterSet* const way[] = {on_host.get(), set_.get(), on_host.get()};
  int64_t step = 0;
  for (ParameterSet* const set : way) {
    ASSERT_THAT(Write(set, FullHeader(step), model_.arrays()), IsOk());
    for (const int64_t end = step + steps; step < end; ++step) {
      const Values gradient = Gradient(model_.parameter_count(), step);
      ASSERT_THAT(Step(set, Header(), gradient), IsOk());
      model_.Apply(gradient);
    }
    const absl::StatusOr<Arrays> arrays = FetchState(set);
    ASSERT_THAT(arrays, IsOk());
    EXPECT_TRUE(*arrays == model_.arrays());
    *model_.mutable_arrays() = *arrays;
  }
}

TEST(CudaRegistrarTest, WhatCannotBeRegisteredIsToldOnce) {
  if (Devices().empty()) GTEST_SKIP();
  std::vector<std::string> lines;
  const std::unique_ptr<MemoryRegistrar> registrar =
      NewCudaRegistrar([&](absl::string_view line) { lines.emplace_back(line); });
  alignas(4096) static char memory[8192];
  ASSERT_TRUE(registrar->Register(memory, sizeof(memory)));
  EXPECT_FALSE(registrar->Register(memory, sizeof(memory)));
  EXPECT_FALSE(registrar->Register(memory, sizeof(memory)));
  EXPECT_THAT(lines, ::testing::ElementsAre(::testing::HasSubstr("cannot be registered")));
  registrar->Unregister(memory);
  EXPECT_TRUE(registrar->Register(memory, sizeof(memory)));
  registrar->Unregister(memory);
}

}  // namespace
}  // namespace adamant::core
