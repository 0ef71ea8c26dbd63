// Which memory the kernel is called with; the arithmetic is tested in tests/kernels.
#include "server/core/backend/cpu_backend.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"

namespace adamant::core {
namespace {

// A kernel whose outputs tell all of its inputs apart.
void TestAdam(const kernels::UpdateScalars& scalars, const kernels::UpdateSpan& span) {
  for (int64_t i = 0; i < span.size; ++i) {
    const float g = span.g[i] * scalars.scale;
    span.p_out[i] = span.p_in[i] + g;
    span.slots[0].out[i] = 2 * span.slots[0].in[i] + g;
    span.slots[1].out[i] = 3 * span.slots[1].in[i] + g;
  }
}

kernels::GradientStats TestMeasure(const float*, int64_t) { return {.sum_of_squares = 42, .max_magnitude_bits = 0}; }

const kernels::KernelTable kTestKernels = {.name = "test",
                                           .supported = [] { return true; },
                                           .update = {&TestAdam},
                                           .measure = &TestMeasure,
                                           .widen = {},
                                           .narrow = {},
                                           .fold = nullptr};

kernels::Recipe Scale(float scale) {
  kernels::UpdateScalars scalars = {};
  scalars.scale = scale;
  return {kernels::kAdam, scalars};
}

class CpuBackendTest : public ::testing::Test {
 protected:
  BlockRef Filled(float value) {
    BlockRef block = (*pool_.Take(64))[0];
    std::fill_n(block.mutable_data(), 64, value);
    return block;
  }

  static std::vector<float> Values(const BlockRef& block) { return {block.data(), block.data() + block.size()}; }

  // [0, 16), [16, 48), [48, 64) of these three values.
  static std::vector<float> Thirds(float a, float b, float c) {
    std::vector<float> values(64, b);
    std::fill_n(values.begin(), 16, a);
    std::fill_n(values.end() - 16, 16, c);
    return values;
  }

  BlockPool pool_;
  CpuBackend backend_{kTestKernels};
  const SlotIndices indices_ = IndexSlots({v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ});
};

TEST_F(CpuBackendTest, EachRangeIsUpdatedInPlaceByTheRecipeOfItsCohort) {
  const kernels::Recipe recipes[] = {Scale(10), Scale(100)};
  const WorkRange ranges[] = {{0, 16, 1}, {16, 48, WorkRange::kKept}, {48, 64, 0}};
  const BlockRef gradient = Filled(1), parameters = Filled(0.5f), m = Filled(2), v = Filled(3);
  const SlotBlock slots[] = {{m, m}, {v, v}};
  const absl::Status status = backend_.Update({.index = 0,
                                               .ranges = ranges,
                                               .recipes = recipes,
                                               .gradient = gradient,
                                               .parameters = parameters,
                                               .slots = slots,
                                               .slot_indices = &indices_});
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(Values(gradient), Thirds(100.5f, 0.5f, 10.5f)) << "what is kept is in the new parameters, too";
  EXPECT_EQ(Values(parameters), Thirds(0.5f, 0.5f, 0.5f));
  EXPECT_EQ(Values(m), Thirds(104, 2, 14));
  EXPECT_EQ(Values(v), Thirds(109, 3, 19));
}

TEST_F(CpuBackendTest, HeldMomentsAreReadAndFreshOnesWritten) {
  const kernels::Recipe recipes[] = {Scale(1)};
  const WorkRange ranges[] = {{0, 64, 0}};
  const BlockRef gradient = Filled(1), parameters = Filled(0.5f), m_in = Filled(2), m_out = Filled(-1),
                 v_in = Filled(3), v_out = Filled(-1);
  const SlotBlock slots[] = {{m_in, m_out}, {v_in, v_out}};
  const absl::Status status = backend_.Update({.index = 0,
                                               .ranges = ranges,
                                               .recipes = recipes,
                                               .gradient = gradient,
                                               .parameters = parameters,
                                               .slots = slots,
                                               .slot_indices = &indices_});
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(Values(gradient), Thirds(1.5f, 1.5f, 1.5f));
  EXPECT_EQ(Values(m_in), Thirds(2, 2, 2));
  EXPECT_EQ(Values(m_out), Thirds(5, 5, 5));
  EXPECT_EQ(Values(v_in), Thirds(3, 3, 3));
  EXPECT_EQ(Values(v_out), Thirds(10, 10, 10));
}

TEST_F(CpuBackendTest, WhatIsKeptOfAHeldSlotIsCopiedToItsNewBlock) {
  const kernels::Recipe recipes[] = {Scale(1)};
  const WorkRange ranges[] = {{0, 48, WorkRange::kKept}, {48, 64, 0}};
  const BlockRef gradient = Filled(1), parameters = Filled(0.5f), m_in = Filled(2), m_out = Filled(-1), v = Filled(3);
  const SlotBlock slots[] = {{m_in, m_out}, {v, v}};
  const absl::Status status = backend_.Update({.index = 0,
                                               .ranges = ranges,
                                               .recipes = recipes,
                                               .gradient = gradient,
                                               .parameters = parameters,
                                               .slots = slots,
                                               .slot_indices = &indices_});
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(Values(gradient), Thirds(0.5f, 0.5f, 1.5f));
  EXPECT_EQ(Values(m_out), Thirds(2, 2, 5));
  EXPECT_EQ(Values(v), Thirds(3, 3, 10));
}

TEST_F(CpuBackendTest, WhatAViewLetsGoOfGoesBackToThePool) {
  TestServer server({.backend = &backend_});
  const Resources resources = server.resources();
  const std::shared_ptr<const Schema> schema =
      *Schema::Create(LargeSpec(), (*Configuration::Create(LargeSpec()))->groups());
  const std::unique_ptr<SlotArrays> arrays =
      *backend_.NewArrays({schema, {v1::SLOT_EXP_AVG}}, resources.lender, resources.compute);
  std::unique_ptr<SlotView> view;
  arrays->View({v1::SLOT_EXP_AVG}, {*pool_.Take(schema->flat_size())},
               [&](absl::StatusOr<std::unique_ptr<SlotView>> viewed) { view = *std::move(viewed); });
  const size_t blocks = view->slots()[0].size();
  ASSERT_GT(blocks, 2);
  const int64_t spares = pool_.used_bytes();
  for (size_t block = 0; block < blocks; ++block) {
    const int64_t before = pool_.used_bytes();
    const int64_t charged = BlockPool::ChargedBytes(view->slots()[0][block].size());
    view->Release(0, block);
    EXPECT_FALSE(view->slots()[0][block]);
    EXPECT_EQ(pool_.used_bytes(), before - charged);
  }
  EXPECT_LT(pool_.used_bytes(), spares);
  EXPECT_EQ(pool_.used_bytes(), 0);
  view.reset();
}

TEST_F(CpuBackendTest, OffersItsKernelsMeasureAndName) {
  EXPECT_EQ(backend_.host_kernels().measure(nullptr, 0).sum_of_squares, 42);
  EXPECT_EQ(backend_.Describe().description(), "test");
}

}  // namespace
}  // namespace adamant::core
