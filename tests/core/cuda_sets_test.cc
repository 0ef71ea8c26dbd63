// Sets on a CUDA device: the promises, and the bits, of those on the processor. Skipped where there is no device.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/scalars.h"
#include "tests/core/cuda_device.h"
#include "tests/core/every_optimizer.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/core/sparse_steps.h"

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
  SequentialModel model_{GetParam()};
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

TEST(CudaRowsTest, RowsEndAsOnTheProcessor) {
  ASSERT_FALSE(Devices().warned());
  if (Devices().empty()) GTEST_SKIP();
  for (const Groups& groups : kEveryOptimizer) {
    v1::ParameterSetSpec spec = WithGroups(TablesSpec(), groups);
    spec.mutable_clipping()->set_max_norm(10);
    TestServer server({.backend = Devices().device(), .registrar = Devices().registrar()});
    std::shared_ptr<ParameterSet> set = server.MakeSet(spec);
    SequentialModel model(spec);
    // Whose parameters are held in every other step, and then copied.
    std::unique_ptr<Reading> reading;
    Values held;
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const std::vector<int> whole = seed % 3 == 1 ? std::vector<int>{kBias, kScalar} : std::vector<int>{};
      const std::vector<BroughtRows> rows = {RandomRows(set->schema(), kTable, seed % 3 == 2 ? 700 : 40, seed),
                                             RandomRows(set->schema(), kWide, 3, seed),
                                             RandomRows(set->schema(), kNarrow, 20, seed)};
      const Values gradient = Gradient(model.parameter_count(), seed);
      const v1::StepHeader header = WithRows({}, whole, rows);
      const absl::StatusOr<StepReply> reply = StepRows(set.get(), header, whole, gradient, rows);
      ASSERT_THAT(reply, IsOk()) << groups.name;
      EXPECT_EQ(reply->result.grad_norm(), model.GradNorm(gradient, header, rows));
      model.Apply(gradient, header, rows);
      ExpectRowsOf(set->schema(), *reply, rows, model.arrays().parameters);
      EXPECT_TRUE(reading == nullptr || SameBits(*Fetch(*reading, v1::SLOT_PARAMETER), held));
      EXPECT_TRUE(*FetchState(set.get()) == model.arrays()) << groups.name << seed;
      reading.reset();
      if (seed % 2 == 0) {
        reading = *Read(set.get(), ReadRequest());
        held = model.arrays().parameters;
      }
    }
    reading.reset();
    set.reset();
    server.AwaitUnused();
  }
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
  const std::shared_ptr<const Schema> schema = *Schema::Create(GetParam(), set_->configuration()->groups());
  const std::unique_ptr<SlotArrays> arrays = *Devices().device()->NewArrays(
      {schema, {v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ}}, resources.lender, resources.compute);
  BlockList gradient = *resources.lender->TakeZeroed(elements);
  for (const BlockRef& block : gradient) std::fill_n(block.mutable_data(), block.size(), 1.0f);
  const kernels::UpdateScalars scalars =
      kernels::MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}, 1, {});
  const auto work =
      std::make_shared<const StepWork>(std::make_shared<const TensorSelection>(schema), [](int) { return int64_t{0}; });
  const StepPlan plan = {.work = work,
                         .recipes = std::vector<kernels::Recipe>(work->cohorts().size(), {kernels::kAdam, scalars}),
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

// Everything that a step can mean, for each optimizer.
class CudaOptimizerTest : public ::testing::TestWithParam<std::tuple<Groups, bool>> {
 protected:
  static v1::ParameterSetSpec Spec() {
    const auto& [groups, large] = GetParam();
    return WithGroups(large ? LargeSpec() : SmallSpec(), groups);
  }
  // The device's threads may still hold what they have answered with.
  ~CudaOptimizerTest() override {
    set_.reset();
    server_.AwaitUnused();
  }

  void SetUp() override {
    if (Devices().empty()) GTEST_SKIP();
    set_ = server_.MakeSet(Spec());
  }

  void StepBoth(const v1::StepHeader& header, uint64_t seed) {
    const Values gradient = Gradient(model_.parameter_count(), seed);
    ASSERT_THAT(Step(set_.get(), header, gradient), IsOk());
    model_.Apply(gradient, header);
  }
  void ExpectSameState() {
    const absl::StatusOr<Arrays> state = FetchState(set_.get());
    ASSERT_THAT(state, IsOk());
    EXPECT_TRUE(*state == model_.arrays());
  }
  // The tensors whose bits `chosen` has; none stands for all.
  v1::StepHeader Bringing(uint64_t chosen) const {
    v1::StepHeader header;
    for (int i = 0; i < static_cast<int>(set_->schema().tensors().size()); ++i) {
      if ((chosen >> i & 1) != 0) header.add_tensors(i);
    }
    return header;
  }

  TestServer server_{{.backend = Devices().empty() ? nullptr : Devices().device(), .registrar = Devices().registrar()}};
  std::shared_ptr<ParameterSet> set_;
  SequentialModel model_{Spec()};
};

INSTANTIATE_TEST_SUITE_P(EveryOptimizer, CudaOptimizerTest,
                         ::testing::Combine(::testing::ValuesIn(kEveryOptimizer), ::testing::Bool()),
                         [](const auto& test) {
                           return absl::StrCat(std::get<0>(test.param).name,
                                               std::get<1>(test.param) ? "Large" : "Small");
                         });

TEST_P(CudaOptimizerTest, StepsThatBringSomeTensorsEndAsOnTheProcessor) {
  // All of them; the same ones again, whose pieces the device knows; and more and more counts.
  for (const uint64_t chosen : {0, 1, 1, 6, 0, 0, 4, 2, 3, 0}) {
    StepBoth(Bringing(chosen), chosen);
    ExpectSameState();
  }
}

TEST_P(CudaOptimizerTest, AStateWithUnequalCountsGoesOn) {
  Arrays arrays = model_.arrays();
  arrays.step = 9;
  v1::WriteHeader header = FullHeader(arrays.step);
  for (int i = 0; i < model_.tensors(); ++i) arrays.update_counts.push_back(3 * i);
  header.mutable_update_counts()->Add(arrays.update_counts.begin(), arrays.update_counts.end());
  // Before the write, so that the device has pieces of other counts.
  StepBoth({}, 1);
  ASSERT_THAT(Write(set_.get(), header, arrays), IsOk());
  *model_.mutable_arrays() = arrays;
  for (uint64_t step = 2; step < 4; ++step) {
    StepBoth({}, step);
    ExpectSameState();
  }
}

TEST_P(CudaOptimizerTest, AScaledStepWithAnOverrideEndsAsOnTheProcessor) {
  v1::StepHeader header;
  header.set_grad_scale(0x1p-3);
  v1::GroupOverride* const override = header.add_overrides();
  override->set_group("slow");
  override->set_learning_rate(0.25);
  override->set_weight_decay(0.125);
  StepBoth(header, 1);
  StepBoth({}, 2);
  ExpectSameState();
}

TEST_P(CudaOptimizerTest, ASetGrowsAndGoesOn) {
  StepBoth({}, 1);
  // Within the last block, and beyond it.
  for (const auto& sizes : {std::vector<int64_t>{5, 0, 3}, std::vector<int64_t>{70'000}}) {
    v1::AddTensorsRequest request = Tensors(sizes);
    for (v1::TensorSpec& tensor : *request.mutable_tensors())
      tensor.set_name(absl::StrCat(tensor.name(), sizes.size()));
    ASSERT_THAT(AddTensors(set_.get(), request), IsOk());
    model_.Grow(request);
    ExpectSameState();
    StepBoth({}, 2);
    StepBoth(Bringing(9), 3);
    ExpectSameState();
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
