// From chunks to blocks: coverage, copies, measures, and where a bad element is.
#include "server/core/set/staging.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::shared_ptr<const Schema> MakeSchema(const std::vector<int64_t>& sizes) {
  v1::ParameterSetSpec spec;
  for (const int64_t size : sizes) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat("t", spec.tensors_size() - 1));
    tensor->add_shape(size);
  }
  v1::ParameterGroup group;
  group.set_name("default");
  return *Schema::Create(spec, {group});
}

std::shared_ptr<const TensorSelection> All(std::shared_ptr<const Schema> schema) {
  return std::make_shared<const TensorSelection>(std::move(schema));
}

void ExpectChunkError(const absl::Status& status, v1::ErrorReason reason, int32_t tensor, int64_t offset) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  const v1::ErrorDetail detail = GetErrorDetail(status);
  EXPECT_EQ(detail.reason(), reason) << status;
  EXPECT_EQ(detail.tensor(), tensor);
  EXPECT_EQ(detail.offset(), offset);
}

TEST(ForEachRunTest, CutsARangeAtBlocks) {
  using Run = std::tuple<int64_t, int64_t, int64_t>;
  const auto runs = [](int64_t begin, int64_t end) {
    std::vector<Run> runs;
    ForEachRun(begin, end, [&](int64_t block, int64_t from, int64_t to) { runs.emplace_back(block, from, to); });
    return runs;
  };
  constexpr int64_t kB = kBlockElements;
  EXPECT_THAT(runs(7, 7), IsEmpty());
  EXPECT_THAT(runs(7, 9), ElementsAre(Run(0, 7, 9)));
  EXPECT_THAT(runs(0, kB), ElementsAre(Run(0, 0, kB)));
  EXPECT_THAT(runs(kB, kB + 1), ElementsAre(Run(1, 0, 1)));
  EXPECT_THAT(runs(kB - 1, 3 * kB + 2), ElementsAre(Run(0, kB - 1, kB), Run(1, 0, kB), Run(2, 0, kB), Run(3, 0, 2)));
}

TEST(CoverageTest, AdvanceReturnsTheFlatIndex) {
  Coverage coverage(All(MakeSchema({20, 5})));
  EXPECT_EQ(*coverage.Advance(1, 0, 3), 32);
  EXPECT_EQ(*coverage.Advance(0, 0, 20), 0);
  EXPECT_EQ(*coverage.Advance(1, 3, 2), 35);
  EXPECT_TRUE(coverage.CheckComplete().ok());
}

TEST(CoverageTest, AnUnknownTensorIsRefused) {
  Coverage coverage(All(MakeSchema({20, 5})));
  for (const int32_t tensor : {2, -1, INT32_MAX, INT32_MIN}) {
    const absl::Status status = coverage.Advance(tensor, 3, 1).status();
    ExpectChunkError(status, v1::ERROR_REASON_UNKNOWN_TENSOR, tensor, 3);
    EXPECT_EQ(GetErrorDetail(status).field(), "tensor");
  }
}

TEST(CoverageTest, AnEmptyChunkIsRefused) {
  Coverage coverage(All(MakeSchema({20})));
  for (const int64_t count : {int64_t{0}, int64_t{-1}, INT64_MIN}) {
    ExpectChunkError(coverage.Advance(0, 0, count).status(), v1::ERROR_REASON_MALFORMED_CHUNK, 0, 0);
  }
}

TEST(CoverageTest, AChunkThatReachesOutOfItsTensorIsRefused) {
  Coverage coverage(All(MakeSchema({20, 5})));
  const std::pair<int64_t, int64_t> chunks[] = {
      {0, 21}, {0, INT64_MAX}, {20, 1},         {21, 1}, {INT64_MAX, 1}, {INT64_MAX, 5},
      {-1, 1}, {INT64_MIN, 1}, {INT64_MIN, 30}, {1, 20}, {1, INT64_MAX}, {INT64_MAX, INT64_MAX}};
  for (const auto& [offset, count] : chunks) {
    const absl::Status status = coverage.Advance(0, offset, count).status();
    ExpectChunkError(status, v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, 0, offset);
    EXPECT_EQ(GetErrorDetail(status).expected_offset(), 20) << "as far as it may reach";
  }
}

TEST(CoverageTest, GapsAndRepetitionsAreRefusedSayingWhatWasExpected) {
  Coverage coverage(All(MakeSchema({20})));
  ASSERT_TRUE(coverage.Advance(0, 0, 8).ok());
  for (const int64_t offset : {0, 7, 9}) {
    const absl::Status status = coverage.Advance(0, offset, 1).status();
    ExpectChunkError(status, v1::ERROR_REASON_CHUNK_OUT_OF_ORDER, 0, offset);
    EXPECT_EQ(GetErrorDetail(status).field(), "offset");
    EXPECT_EQ(GetErrorDetail(status).expected_offset(), 8);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("`offset`: expected 8, where tensor 0 (`t0`) goes on, got ", offset)));
  }
  EXPECT_TRUE(coverage.Advance(0, 8, 12).ok()) << "what was refused was not accounted for";
  EXPECT_TRUE(coverage.CheckComplete().ok());
}

TEST(CoverageTest, WhatIsMissingIsNamedFromTheFront) {
  Coverage coverage(All(MakeSchema({4, 20, 5})));
  ExpectChunkError(coverage.CheckComplete(), v1::ERROR_REASON_INCOMPLETE, 0, 0);
  ASSERT_TRUE(coverage.Advance(2, 0, 5).ok());
  ASSERT_TRUE(coverage.Advance(1, 0, 19).ok());
  ASSERT_TRUE(coverage.Advance(0, 0, 4).ok());
  ExpectChunkError(coverage.CheckComplete(), v1::ERROR_REASON_INCOMPLETE, 1, 19);
  EXPECT_EQ(GetErrorDetail(coverage.CheckComplete()).expected_offset(), 19);
  EXPECT_THAT(std::string(coverage.CheckComplete().message()),
              HasSubstr("expected all 20 elements of tensor 1 (`t1`), got 19"));
  ASSERT_TRUE(coverage.Advance(1, 19, 1).ok());
  EXPECT_TRUE(coverage.CheckComplete().ok());
}

TEST(CoverageTest, ATensorWithoutElementsNeedsNoChunkAndTakesEmptyOnes) {
  Coverage coverage(All(MakeSchema({0, 20, 0})));
  EXPECT_EQ(*coverage.Advance(0, 0, 0), 0);
  EXPECT_EQ(*coverage.Advance(0, 0, 0), 0);
  ASSERT_TRUE(coverage.Advance(1, 0, 20).ok());
  EXPECT_TRUE(coverage.CheckComplete().ok());

  ExpectChunkError(coverage.Advance(2, 0, 1).status(), v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, 2, 0);
  ExpectChunkError(coverage.Advance(2, 1, 0).status(), v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, 2, 1);
  ExpectChunkError(coverage.Advance(2, 0, -1).status(), v1::ERROR_REASON_MALFORMED_CHUNK, 2, 0);
}

TEST(CoverageTest, WithoutAnyElementsAllHasCome) {
  EXPECT_TRUE(Coverage(All(MakeSchema({0, 0}))).CheckComplete().ok());
}

// Whoever sends elements of another width is asked about it.
TEST(CoverageTest, AsksOfWhatTypeElementsAreThatAddUpToAnotherWidth) {
  const auto schema = All(MakeSchema({20}));
  const auto answer = [](const absl::Status& status) { return std::string(status.message()); };
  // A whole tensor at once.
  EXPECT_THAT(answer(Coverage(schema).Advance(0, 0, 40).status()), HasSubstr("; is this float64?"));
  Coverage halves(schema);
  ASSERT_TRUE(halves.Advance(0, 0, 10).ok());
  EXPECT_THAT(answer(halves.CheckComplete()), HasSubstr("; is this float16 or bfloat16?"));
  Coverage quarters(schema);
  ASSERT_TRUE(quarters.Advance(0, 0, 5).ok());
  EXPECT_THAT(answer(quarters.CheckComplete()), HasSubstr("; is this int8?"));
  // In pieces: where the second begins shows how much the first was meant to bring.
  Coverage doubles(schema);
  ASSERT_TRUE(doubles.Advance(0, 0, 8).ok());
  EXPECT_THAT(answer(doubles.Advance(0, 4, 8).status()), HasSubstr("; is this float64?"));
  EXPECT_THAT(answer(halves.Advance(0, 20, 0).status()), Not(HasSubstr("float"))) << "no elements";
  EXPECT_THAT(answer(Coverage(schema).Advance(0, 0, 21).status()), Not(HasSubstr("float")));
  EXPECT_THAT(answer(Coverage(schema).Advance(0, 0, INT64_MAX).status()), Not(HasSubstr("float")));
  EXPECT_THAT(answer(Coverage(schema).CheckComplete()), Not(HasSubstr("is this")));
}

// The blocks that were measured since a test began: first element and size.
std::vector<std::pair<float, int64_t>>& Measured() {
  static std::vector<std::pair<float, int64_t>> measured;
  return measured;
}

kernels::GradientStats Measure(const float* g, int64_t size) {
  Measured().emplace_back(g[0], size);
  kernels::GradientStats stats;
  for (int64_t i = 0; i < size; ++i) {
    stats.sum_of_squares += static_cast<double>(g[i]) * g[i];
    stats.max_magnitude_bits = std::max(stats.max_magnitude_bits, std::bit_cast<uint32_t>(std::fabs(g[i])));
  }
  return stats;
}

class StagingTest : public ::testing::Test {
 protected:
  StagingTest() { Measured().clear(); }

  // Blocks full of NaN, as used ones may be.
  BlockList TakeBlocks(const Schema& schema) {
    BlockList blocks = *pool_.Take(schema.flat_size());
    for (const BlockRef& block : blocks) std::fill_n(block.mutable_data(), block.size(), kNaN);
    return blocks;
  }

  Staging Stage(const std::shared_ptr<const Schema>& schema, kernels::MeasureFunction measure = &Measure) {
    return Staging(All(schema), TakeBlocks(*schema), measure);
  }

  // Adds a chunk of one value.
  static absl::Status Add(Staging* staging, int32_t tensor, int64_t offset, int64_t count, float value) {
    return staging->Add(tensor, offset, count, [value](float* to, int64_t n) { std::fill_n(to, n, value); });
  }

  static float At(const Staging& staging, int64_t flat) {
    return staging.blocks()[flat / kBlockElements].data()[flat % kBlockElements];
  }

  BlockPool pool_;
};

TEST_F(StagingTest, ChunksLandWhereTheirElementsLieInOrder) {
  const auto schema = MakeSchema({3, kBlockElements + 10, 5});
  Staging staging = Stage(schema);
  float next = 0;
  const auto count_up = [&next](float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = next++;
  };
  ASSERT_TRUE(staging.Add(1, 0, 1000, count_up).ok());
  ASSERT_TRUE(staging.Add(2, 0, 5, count_up).ok());
  ASSERT_TRUE(staging.Add(1, 1000, kBlockElements - 990, count_up).ok());
  ASSERT_TRUE(staging.Add(0, 0, 3, count_up).ok());
  ASSERT_TRUE(staging.CheckComplete().ok());

  const auto tensors = schema->tensors();
  EXPECT_EQ(At(staging, tensors[1].begin), 0);
  EXPECT_EQ(At(staging, tensors[1].begin + 999), 999);
  EXPECT_EQ(At(staging, tensors[2].begin), 1000);
  for (int64_t i = 1000; i < tensors[1].size(); ++i) ASSERT_EQ(At(staging, tensors[1].begin + i), i + 5);
  EXPECT_EQ(At(staging, tensors[0].begin + 2), kBlockElements + 17);
}

TEST_F(StagingTest, PaddingIsZeroFromTheStart) {
  const auto schema = MakeSchema({0, 3, kBlockElements - 1, 0, 17, 0});
  const Staging staging = Stage(schema);
  const auto tensors = schema->tensors();
  for (int64_t flat = 0; flat < schema->flat_size(); ++flat) {
    const bool padding = flat >= tensors[schema->TensorAt(flat)].end;
    ASSERT_EQ(std::isnan(At(staging, flat)), !padding) << flat;
  }
}

TEST_F(StagingTest, AChunkThatIsRefusedCopiesNothing) {
  const auto schema = MakeSchema({20});
  Staging staging = Stage(schema);
  const auto fail = [](float*, int64_t) { FAIL() << "copied"; };
  ExpectChunkError(staging.Add(1, 0, 1, fail), v1::ERROR_REASON_UNKNOWN_TENSOR, 1, 0);
  ExpectChunkError(staging.Add(0, 1, 1, fail), v1::ERROR_REASON_CHUNK_OUT_OF_ORDER, 0, 1);
  ExpectChunkError(staging.Add(0, 0, INT64_MAX, fail), v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, 0, 0);
  ExpectChunkError(staging.CheckComplete(), v1::ERROR_REASON_INCOMPLETE, 0, 0);
}

TEST_F(StagingTest, ABlockIsMeasuredOnceWhenItsLastElementHasCome) {
  // Tensor 0 fills block 0 and 16 elements of block 1; tensors 1 and 2 lie behind it there.
  const auto schema = MakeSchema({kBlockElements + 16, 1, 2});
  Staging staging = Stage(schema);
  ASSERT_TRUE(Add(&staging, 1, 0, 1, 4).ok());
  ASSERT_TRUE(Add(&staging, 0, 0, kBlockElements - 1, 1).ok());
  EXPECT_THAT(Measured(), IsEmpty());
  ASSERT_TRUE(Add(&staging, 0, kBlockElements - 1, 17, 2).ok());
  EXPECT_THAT(Measured(), ElementsAre(std::pair(1.0f, kBlockElements)));
  ASSERT_TRUE(Add(&staging, 2, 0, 2, 8).ok());
  EXPECT_THAT(Measured(), ElementsAre(std::pair(1.0f, kBlockElements), std::pair(2.0f, int64_t{48})));
}

TEST_F(StagingTest, StatsAddBlocksInOrderOfBlocksNotOfArrival) {
  // 2^53 + 1 + 1 is 2^53 when added from the left, and 2^53 + 2 when the ones are added first.
  const auto first_only = [](const float* g, int64_t) {
    return kernels::GradientStats{.sum_of_squares = g[0], .max_magnitude_bits = std::bit_cast<uint32_t>(g[0])};
  };
  Staging staging = Stage(MakeSchema({kBlockElements, kBlockElements, 16}), first_only);
  ASSERT_TRUE(Add(&staging, 2, 0, 16, 1).ok());
  ASSERT_TRUE(Add(&staging, 1, 0, kBlockElements, 1).ok());
  ASSERT_TRUE(Add(&staging, 0, 0, kBlockElements, 0x1p53f).ok());
  EXPECT_EQ(staging.Stats().sum_of_squares, 0x1p53);
  EXPECT_EQ(staging.Stats().max_magnitude_bits, std::bit_cast<uint32_t>(0x1p53f));
}

TEST_F(StagingTest, WithoutAMeasureNothingIsMeasured) {
  const auto schema = MakeSchema({20});
  Staging staging = Stage(schema, nullptr);
  ASSERT_TRUE(Add(&staging, 0, 0, 20, 1).ok());
  EXPECT_TRUE(staging.CheckComplete().ok());
  EXPECT_FALSE(staging.FindNotBelow(2).has_value());
  EXPECT_THAT(Measured(), IsEmpty());
}

TEST_F(StagingTest, BlocksCanBeTakenOut) {
  const auto schema = MakeSchema({20});
  Staging staging = Stage(schema);
  ASSERT_TRUE(Add(&staging, 0, 0, 20, 1).ok());
  const BlockList blocks = staging.TakeBlocks();
  ASSERT_EQ(blocks.size(), 1u);
  EXPECT_TRUE(blocks[0].unique());
  EXPECT_EQ(blocks[0].data()[19], 1);
}

// With and without a measure, which lets blocks be passed over.
class FindNotBelowTest : public StagingTest, public ::testing::WithParamInterface<bool> {
 protected:
  // All ones, but for the elements given as (tensor, offset, value).
  Staging Fill(const std::vector<std::tuple<int, int64_t, float>>& elements) {
    const auto schema = MakeSchema(sizes_);
    Staging staging = Stage(schema, GetParam() ? &Measure : nullptr);
    for (int32_t tensor = 0; tensor < static_cast<int32_t>(sizes_.size()); ++tensor) {
      std::vector<float> values(sizes_[tensor], 1.0f);
      for (const auto& [of, offset, value] : elements) {
        if (of == tensor) values[offset] = value;
      }
      const float* from = values.data();
      EXPECT_TRUE(staging
                      .Add(tensor, 0, sizes_[tensor],
                           [&from](float* to, int64_t n) {
                             std::copy_n(from, n, to);
                             from += n;
                           })
                      .ok());
    }
    return staging;
  }

  static void ExpectPlace(const std::optional<Staging::Place>& place, int tensor, int64_t offset) {
    ASSERT_TRUE(place.has_value());
    EXPECT_EQ(place->tensor, tensor);
    EXPECT_EQ(place->offset, offset);
  }

  const std::vector<int64_t> sizes_ = {3, 2 * kBlockElements + 10, 5};
};

TEST_P(FindNotBelowTest, FindsNothingWhereAllIsBelow) { EXPECT_FALSE(Fill({}).FindNotBelow(1.5f).has_value()); }

TEST_P(FindNotBelowTest, TheLimitItselfIsNotBelow) {
  ExpectPlace(Fill({}).FindNotBelow(1.0f), 0, 0);
  ExpectPlace(Fill({{2, 4, -2.0f}}).FindNotBelow(2.0f), 2, 4);
}

TEST_P(FindNotBelowTest, FindsTheLowestOfSeveral) {
  ExpectPlace(Fill({{2, 0, kNaN}, {1, kBlockElements, -kInfinity}, {1, 2 * kBlockElements, 9.0f}}).FindNotBelow(2.0f),
              1, kBlockElements);
}

TEST_P(FindNotBelowTest, ANaNIsFoundBesideInfinitiesAndBeyondAnyLimit) {
  ExpectPlace(Fill({{1, 2 * kBlockElements + 9, kNaN}}).FindNotBelow(kInfinity), 1, 2 * kBlockElements + 9);
  ExpectPlace(Fill({{1, 7, -kNaN}, {1, 8, kInfinity}}).FindNotBelow(kInfinity), 1, 7);
  ExpectPlace(Fill({{1, 7, kInfinity}, {1, 8, kNaN}}).FindNotBelow(kInfinity), 1, 7);
}

TEST_P(FindNotBelowTest, PaddingIsPassedOver) { ExpectPlace(Fill({}).FindNotBelow(0.0f), 0, 0); }

INSTANTIATE_TEST_SUITE_P(MeasuredAndNot, FindNotBelowTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "Measured" : "NotMeasured"; });

}  // namespace
}  // namespace adamant::core
