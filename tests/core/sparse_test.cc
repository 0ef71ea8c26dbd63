// Steps that bring some rows of a tensor: what changes, what does not, and what is refused.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/every_optimizer.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/core/sparse_steps.h"

namespace adamant::core {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

class SparseTest : public ::testing::Test {
 protected:
  explicit SparseTest(const ServerOptions& options = {}, const v1::ParameterSetSpec& spec = TablesSpec())
      : server_(options), set_(server_.MakeSet(spec)), model_(spec) {}

  const Schema& schema() const { return set_->schema(); }
  Values SomeGradient(uint64_t seed) const { return Gradient(model_.parameter_count(), seed); }

  // A step of set and model.
  void StepBoth(const v1::StepHeader& header, const std::vector<int>& whole, const std::vector<BroughtRows>& rows,
                uint64_t seed) {
    const Values gradient = SomeGradient(seed);
    const v1::StepHeader with = WithRows(header, whole, rows);
    const absl::StatusOr<StepReply> reply = StepRows(set_.get(), with, whole, gradient, rows);
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(reply->result.grad_norm(), model_.GradNorm(gradient, with, rows));
    model_.Apply(gradient, with, rows);
    ExpectRowsOf(schema(), *reply, rows, model_.arrays().parameters);
  }
  void ExpectSame() const { EXPECT_TRUE(*FetchState(set_.get()) == model_.arrays()); }

  TestServer server_;
  std::shared_ptr<ParameterSet> set_;
  SequentialModel model_;
};

struct Mix {
  Groups groups;
  int rows;  // of each tensor, at most: few make a small step
};

class EveryMixTest : public SparseTest, public ::testing::WithParamInterface<Mix> {
 protected:
  EveryMixTest() : SparseTest({.compute_threads = 2}, SpecOf(GetParam())) {}

  static v1::ParameterSetSpec SpecOf(const Mix& mix) {
    v1::ParameterSetSpec spec = WithGroups(TablesSpec(), mix.groups);
    spec.mutable_clipping()->set_max_norm(10);
    return spec;
  }
};

std::vector<Mix> EveryMix() {
  std::vector<Mix> mixes;
  for (const Groups& groups : kEveryOptimizer) {
    for (const int rows : {5, 900}) mixes.push_back({groups, rows});
  }
  return mixes;
}

INSTANTIATE_TEST_SUITE_P(Optimizers, EveryMixTest, ::testing::ValuesIn(EveryMix()),
                         [](const auto& info) { return absl::StrCat(info.param.groups.name, info.param.rows); });

TEST_P(EveryMixTest, IsThePlainUpdateOfTheRowsAlone) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    std::vector<int> whole;
    std::vector<BroughtRows> rows;
    for (int tensor = 0; tensor < kTensors; ++tensor) {
      const uint64_t choice = (seed * 7 + tensor * (seed + 3)) % 5;
      if (choice >= 3 && tensor != kScalar) {
        const int most = tensor == kWide ? std::min(GetParam().rows, 6) : GetParam().rows;
        rows.push_back(RandomRows(schema(), tensor, most - static_cast<int>(seed % 3), seed + tensor));
      } else if (choice >= 1) {
        whole.push_back(tensor);
      }
    }
    StepBoth({}, whole, rows, seed);
  }
  ExpectSame();
}

TEST_F(SparseTest, OnlyTheRowsThatAreBroughtChange) {
  StepBoth({}, {kTable, kBias}, {}, 1);
  const Arrays before = *FetchState(set_.get());
  const BroughtRows rows = {.tensor = kTable, .rows = {3}, .values = Values(96, 0.5f)};
  StepBoth({}, {}, {rows}, 2);
  Arrays after = *FetchState(set_.get());
  for (Values Arrays::*const array : {&Arrays::parameters, &Arrays::exp_avg, &Arrays::exp_avg_sq}) {
    Values& values = after.*array;
    EXPECT_NE(values[3 * 96], (before.*array)[3 * 96]);
    std::copy_n((before.*array).begin() + 3 * 96, 96, values.begin() + 3 * 96);
    EXPECT_TRUE(SameBits(values, before.*array));
  }
}

TEST_F(SparseTest, RowsThatComeMoreThanOnceAreAddedInTheOrderInWhichTheyCome) {
  // Of 2^24, 1 and -2^24 the sum is 0, or 1 where the first two to be added are the large ones.
  const Values values = {0x1p24f, 1, -0x1p24f, 0x1p24f, -0x1p24f, 1};
  const BroughtRows rows = {.tensor = kBias, .rows = {7, 7, 7, 2, 2, 2}, .values = values};
  const v1::StepHeader header = WithRows({}, {}, {rows});
  const absl::StatusOr<StepReply> reply = StepRows(set_.get(), header, {}, {}, {rows});
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.grad_norm(), 1);
}

TEST_F(SparseTest, RowsOfSeveralChunksAreAddedInTheOrderInWhichTheyCome) {
  const BroughtRows rows = {.tensor = kBias, .rows = {7, 7, 7}, .values = {0x1p24f, 1, -0x1p24f}};
  StepDelivery step = BeginAdmitted(set_.get(), WithRows({}, {}, {rows}));
  for (size_t i = 0; i < 3; ++i) ASSERT_THAT(step.SendRows(kBias, {rows.rows[i]}, {rows.values[i]}), IsOk());
  ASSERT_THAT(step.Complete(), IsOk());
  EXPECT_EQ(step.Take()->result.grad_norm(), 0);
}

TEST_F(SparseTest, NormAndClippingSeeTheSumsInTheStatedOrder) {
  v1::ParameterSetSpec spec = TablesSpec();
  spec.mutable_clipping()->set_max_norm(0.01);
  set_ = server_.MakeSet(spec);
  *model_.mutable_spec() = spec;
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kTable, 200, 1), RandomRows(schema(), kWide, 5, 2),
                                         RandomRows(schema(), kNarrow, 100, 3)};
  v1::StepHeader header;
  header.set_grad_scale(3);
  StepBoth(header, {kBias, kScalar}, rows, 4);
  ExpectSame();
}

TEST_F(SparseTest, OverridesAndGradScaleHoldForRows) {
  v1::StepHeader header;
  header.set_grad_scale(0.25);
  v1::GroupOverride* const override = header.add_overrides();
  override->set_group("slow");
  override->set_learning_rate(0.5);
  override->set_beta1(0.5);
  StepBoth(header, {}, {RandomRows(schema(), kTable, 10, 1), RandomRows(schema(), kNarrow, 10, 2)}, 3);
  ExpectSame();
}

TEST_F(SparseTest, TensorsThatAreNotNamedAreWholeUnlessTheyAreSparse) {
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kTable, 10, 1)};
  v1::StepHeader header = WithRows({}, {}, rows);
  header.clear_tensors();
  const Values gradient = SomeGradient(2);
  ASSERT_THAT(StepRows(set_.get(), header, {kBias, kWide, kScalar, kNarrow, kEmpty}, gradient, rows), IsOk());
  model_.Apply(gradient, header, rows);
  ExpectSame();
}

TEST_F(SparseTest, NoRowsCountAsAnUpdateOfTheTensor) {
  const BroughtRows none = {.tensor = kTable, .rows = {}, .values = {}};
  StepBoth({}, {}, {none}, 1);
  EXPECT_EQ(set_->UpdateCountsFrom(0, kTensors), (std::vector<int64_t>{1, 0, 0, 0, 0, 0}));
  StepBoth({}, {kTable}, {}, 2);
  StepBoth({}, {}, {RandomRows(schema(), kTable, 4, 3)}, 3);
  EXPECT_EQ(set_->UpdateCountsFrom(0, kTensors), (std::vector<int64_t>{3, 0, 0, 0, 0, 0}));
  ExpectSame();
}

TEST_F(SparseTest, EmptyChunkOfNoRowsIsTaken) {
  const BroughtRows none = {.tensor = kTable, .rows = {}, .values = {}};
  StepDelivery step = BeginAdmitted(set_.get(), WithRows({}, {}, {none}));
  EXPECT_THAT(step.Send({.tensor = kTable, .offset = 0, .count = 0, .begin = 0}, {}), IsOk());
  EXPECT_THAT(step.Complete(), IsOk());
  EXPECT_THAT(step.Take(), IsOk());
}

TEST_F(SparseTest, RowsWithoutElementsAreCountedAndChangeNothing) {
  StepBoth({}, {}, {{.tensor = kEmpty, .rows = {7, 0, 7}, .values = {}}}, 1);
  ExpectSame();
}

TEST_F(SparseTest, TensorsThatAreAddedHaveRowsToo) {
  StepBoth({}, {kBias}, {RandomRows(schema(), kTable, 10, 1)}, 1);
  v1::AddTensorsRequest request;
  v1::TensorSpec* const tensor = request.add_tensors();
  tensor->set_name("more");
  tensor->add_shape(50);
  tensor->add_shape(200);
  tensor->set_group("fast");
  ASSERT_THAT(AddTensors(set_.get(), request), IsOk());
  model_.Grow(request);
  StepBoth({}, {kWide}, {RandomRows(schema(), kNarrow, 10, 2), RandomRows(schema(), kTensors, 20, 3)}, 2);
  ExpectSame();
}

// What a reader keeps from being changed in place.
class HeldTest : public ::testing::WithParamInterface<int>, public SparseTest {
 protected:
  // Arrays that lie idle: without any, blocks are mapped while the step has its turn.
  HeldTest() : SparseTest({.compute_threads = 2, .idle_arrays = GetParam()}) {
    StepBoth({}, {kTable, kBias, kWide, kScalar, kNarrow}, {}, 1);
  }

  std::vector<BroughtRows> SomeRows(uint64_t seed) {
    return {RandomRows(schema(), kTable, 40, seed), RandomRows(schema(), kWide, 2, seed),
            RandomRows(schema(), kNarrow, 9, seed)};
  }
};

INSTANTIATE_TEST_SUITE_P(Idle, HeldTest, ::testing::Values(0, 8));

TEST_P(HeldTest, ParametersThatSomebodyReadsStayAsTheyAre) {
  const std::unique_ptr<Reading> reading = *Read(set_.get(), ReadRequest());
  const Values before = *Fetch(*reading, v1::SLOT_PARAMETER);
  StepBoth({}, {}, SomeRows(2), 2);
  StepBoth({}, {kBias}, SomeRows(3), 3);
  EXPECT_TRUE(SameBits(*Fetch(*reading, v1::SLOT_PARAMETER), before));
  ExpectSame();
}

TEST_P(HeldTest, SlotsThatSomebodyReadsStayAsTheyAre) {
  const std::unique_ptr<Reading> reading = *Read(set_.get(), FullReadRequest());
  const Arrays before = *Fetch(*reading);
  StepBoth({}, {}, SomeRows(2), 2);
  StepBoth({}, {kBias}, SomeRows(3), 3);
  EXPECT_TRUE(*Fetch(*reading) == before);
  ExpectSame();
}

TEST_P(HeldTest, RepliesStayAsTheyAre) {
  const Values gradient = SomeGradient(2);
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kNarrow, 9, 2)};
  const v1::StepHeader header = WithRows({}, {kTable, kBias}, rows);
  const absl::StatusOr<StepReply> reply = StepRows(set_.get(), header, {kTable, kBias}, gradient, rows);
  ASSERT_THAT(reply, IsOk());
  model_.Apply(gradient, header, rows);
  const Values parameters = model_.arrays().parameters;
  StepBoth({}, {}, SomeRows(3), 3);
  ExpectRowsOf(schema(), *reply, rows, parameters);
  Values table(schema().sizes()[kTable]);
  CopyRuns(reply->parameters->snapshot->blocks(), 0, schema().sizes()[kTable], table.data());
  EXPECT_TRUE(SameBits(table, Values(parameters.begin(), parameters.begin() + schema().sizes()[kTable])));
  ExpectSame();
}

// Where the parameters of a set lie, block by block.
std::vector<const float*> Addresses(ParameterSet* set) {
  const std::unique_ptr<Reading> reading = *Read(set, ReadRequest());
  std::vector<const float*> addresses;
  for (int64_t begin = 0; begin < set->schema().flat_size(); begin += kBlockElements) {
    reading->Visit(v1::SLOT_PARAMETER, begin, begin + 1,
                   [&](const float* elements, int64_t) { addresses.push_back(elements); });
  }
  return addresses;
}

TEST_F(SparseTest, BlocksThatNobodyHoldsAreChangedInPlace) {
  StepBoth({}, {kTable, kBias, kWide, kScalar, kNarrow}, {}, 1);
  const std::vector<const float*> before = Addresses(set_.get());
  StepBoth({}, {}, {RandomRows(schema(), kTable, 40, 2), RandomRows(schema(), kNarrow, 9, 2)}, 2);
  EXPECT_EQ(Addresses(set_.get()), before);
  ExpectSame();
}

TEST_F(SparseTest, OnlyBlocksThatARowIsInAreCopiedWhereSomebodyHoldsThem) {
  const std::vector<const float*> before = Addresses(set_.get());
  const std::unique_ptr<Reading> reading = *Read(set_.get(), ReadRequest());
  // Row 682 lies across the end of the first block.
  StepBoth({}, {}, {{.tensor = kTable, .rows = {682}, .values = Values(96, 1)}}, 2);
  const std::vector<const float*> after = Addresses(set_.get());
  ASSERT_THAT(after, SizeIs(before.size()));
  for (size_t block = 0; block < before.size(); ++block) EXPECT_EQ(after[block] == before[block], block > 1) << block;
  ExpectSame();
}

// Holds steps inside of the arithmetic of rows.
class GatedRows final : public CpuBackend {
 public:
  GatedRows() : CpuBackend(kernels::BestKernels()) {}

  absl::Status UpdateRows(const RowsUpdate& update) override {
    held_.Open();
    let_go_.Pass();
    return CpuBackend::UpdateRows(update);
  }
  void AwaitHeld() { held_.Pass(); }
  void LetGo() { let_go_.Open(); }

 private:
  Gate held_;
  Gate let_go_;
};

TEST(SparseReadTest, ReadOfParametersThatAreChangedInPlaceWaitsForThePublish) {
  GatedRows backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(TablesSpec());
  const std::unique_ptr<Reading> unheld = [&] {
    v1::ReadTensorsRequest request;
    request.set_may_abort(true);
    const absl::StatusOr<Grant> all = server.read().TryReserve(server.read().capacity());
    return *Read(set.get(), request);
  }();
  ASSERT_FALSE(unheld->holds());
  const BroughtRows rows = {.tensor = kTable, .rows = {1}, .values = Values(96, 1)};
  std::thread stepping([&] { EXPECT_THAT(StepRows(set.get(), WithRows({}, {}, {rows}), {}, {}, {rows}), IsOk()); });
  backend.AwaitHeld();
  PendingRead read(set.get(), ReadRequest());
  EXPECT_FALSE(read.begun());
  EXPECT_THAT(Fetch(*unheld, v1::SLOT_PARAMETER),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_SNAPSHOT_GONE));
  backend.LetGo();
  const absl::StatusOr<std::unique_ptr<Reading>> reading = read.Take();
  stepping.join();
  ASSERT_THAT(reading, IsOk());
  EXPECT_EQ((*reading)->header().step(), 1);
  EXPECT_NE((*Fetch(**reading, v1::SLOT_PARAMETER))[96], 0);
}

// Fails where rows are computed, when it is told to.
class FaultyRows final : public CpuBackend {
 public:
  FaultyRows() : CpuBackend(kernels::BestKernels()) {}

  absl::Status UpdateRows(const RowsUpdate& update) override {
    const absl::Status updated = CpuBackend::UpdateRows(update);
    return fails ? absl::InternalError("the device fell off the bus") : updated;
  }

  std::atomic<bool> fails = false;
};

TEST(SparsePoisonTest, NothingIsReadableAfterAFailureUntilAFullWrite) {
  FaultyRows backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(TablesSpec());
  const Values gradient = Gradient(set->schema().parameter_count(), 1);
  ASSERT_THAT(Step(set.get(), {}, gradient), IsOk());
  const Arrays before = *FetchState(set.get());
  const BroughtRows rows = {.tensor = kTable, .rows = {1}, .values = Values(96, 1)};
  backend.fails = true;
  EXPECT_THAT(StepRows(set.get(), WithRows({}, {kBias}, {rows}), {kBias}, gradient, {rows}),
              FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  backend.fails = false;
  EXPECT_THAT(Read(set.get(), ReadRequest()), FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
  ASSERT_THAT(Write(set.get(), FullHeader(1), before), IsOk());
  EXPECT_TRUE(*FetchState(set.get()) == before);
  EXPECT_THAT(StepRows(set.get(), WithRows({}, {kBias}, {rows}), {kBias}, gradient, {rows}), IsOk());
}

TEST_F(SparseTest, SumThatIsNotFiniteSkipsTheStep) {
  StepBoth({}, {kTable, kBias}, {}, 1);
  const float infinity = std::numeric_limits<float>::infinity();
  BroughtRows rows = {.tensor = kNarrow, .rows = {9, 4, 9}, .values = Values(21, 1)};
  rows.values[3] = infinity;
  rows.values[17] = -infinity;
  const absl::StatusOr<StepReply> reply =
      StepRows(set_.get(), WithRows({}, {kBias}, {rows}), {kBias}, SomeGradient(2), {rows});
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(reply->result.non_finite_tensor(), kNarrow);
  EXPECT_EQ(reply->result.non_finite_offset(), 9 * 7 + 3);
  // What is answered are the parameters as they are.
  ExpectRowsOf(schema(), *reply, {rows}, model_.arrays().parameters);
  ExpectSame();
}

TEST_F(SparseTest, SumThatOverflowsSkipsTheStep) {
  BroughtRows rows = {.tensor = kBias, .rows = {5, 5}, .values = {3e38f, 3e38f}};
  const absl::StatusOr<StepReply> reply = StepRows(set_.get(), WithRows({}, {}, {rows}), {}, {}, {rows});
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(reply->result.non_finite_offset(), 5);
  ExpectSame();
}

TEST_F(SparseTest, LowestTensorThatIsNotFiniteIsNamedWhetherItCameInRowsOrNot) {
  Values gradient = SomeGradient(1);
  gradient[schema().sizes()[kTable] + 17] = NAN;
  BroughtRows rows = {.tensor = kTable, .rows = {3}, .values = Values(96, 1)};
  const absl::StatusOr<StepReply> whole =
      StepRows(set_.get(), WithRows({}, {kBias}, {rows}), {kBias}, gradient, {rows});
  ASSERT_THAT(whole, IsOk());
  EXPECT_EQ(whole->result.non_finite_tensor(), kBias);
  EXPECT_EQ(whole->result.non_finite_offset(), 17);
  rows.values[2] = NAN;
  const absl::StatusOr<StepReply> both = StepRows(set_.get(), WithRows({}, {kBias}, {rows}), {kBias}, gradient, {rows});
  ASSERT_THAT(both, IsOk());
  EXPECT_EQ(both->result.non_finite_tensor(), kTable);
  EXPECT_EQ(both->result.non_finite_offset(), 3 * 96 + 2);
}

TEST_F(SparseTest, StaleStepIsAnsweredWithTheRowsAsTheyAre) {
  StepBoth({}, {kTable}, {}, 1);
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kTable, 6, 2)};
  v1::StepHeader header = WithRows({}, {}, rows);
  header.set_base_step(0);
  const absl::StatusOr<StepReply> reply = StepRows(set_.get(), header, {}, {}, rows);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->result.outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  ExpectRowsOf(schema(), *reply, rows, model_.arrays().parameters);
  ExpectSame();
}

TEST_F(SparseTest, RetryIsNotAppliedAgainAndAnsweredWithoutRows) {
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kTable, 6, 2)};
  StepBoth(Header("step", 0), {kBias}, rows, 1);
  const v1::StepHeader again = WithRows(Header("step", 0, 2), {kBias}, rows);
  const absl::StatusOr<StepReply> reply = StepRows(set_.get(), again, {kBias}, SomeGradient(1), rows);
  ASSERT_THAT(reply, IsOk());
  EXPECT_TRUE(reply->result.replayed());
  EXPECT_EQ(reply->result.step(), 1);
  EXPECT_THAT(RowsOf(*reply), IsEmpty());
  EXPECT_TRUE(reply->parameters->selection->has(kBias));
  ExpectSame();
}

TEST_F(SparseTest, OtherNumberOfRowsIsAnotherRequest) {
  StepBoth(Header("step", 0), {}, {RandomRows(schema(), kTable, 6, 2)}, 1);
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kTable, 7, 2)};
  EXPECT_THAT(StepRows(set_.get(), WithRows(Header("step", 0, 2), {}, rows), {}, {}, rows),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
}

TEST_F(SparseTest, OmittedParametersAreRowsToo) {
  const std::vector<BroughtRows> rows = {RandomRows(schema(), kTable, 6, 2)};
  v1::StepHeader header = WithRows({}, {}, rows);
  header.set_omit_parameters(true);
  const absl::StatusOr<StepReply> reply = StepRows(set_.get(), header, {}, {}, rows);
  ASSERT_THAT(reply, IsOk());
  EXPECT_EQ(reply->parameters->rows, nullptr);
}

// Whatever is wrong, the set stays as it is.
class RefusalTest : public SparseTest {
 protected:
  RefusalTest() { StepBoth({}, {kTable, kBias, kWide, kScalar, kNarrow}, {}, 1); }
  ~RefusalTest() override { ExpectSame(); }

  // A step of three rows of the table, and the bias.
  StepDelivery Begin() {
    return BeginAdmitted(set_.get(), WithRows({}, {kBias}, {{.tensor = kTable, .rows = {0, 0, 0}, .values = {}}}));
  }
  // What is heard of a header.
  absl::Status Refused(const v1::StepHeader& header) {
    StepDelivery step = BeginStep(set_.get(), header);
    step.Await();
    return step.done() ? step.Take().status() : absl::OkStatus();
  }
  static v1::StepHeader SparseHeader(const std::vector<std::pair<int, int64_t>>& sparse) {
    v1::StepHeader header;
    for (const auto& [tensor, rows] : sparse) {
      header.add_sparse()->set_tensor(tensor);
      header.mutable_sparse()->rbegin()->set_rows(rows);
    }
    return header;
  }
};

TEST_F(RefusalTest, RowsOutOfRange) {
  EXPECT_THAT(Begin().SendRows(kTable, {0, 1500}, Values(192)),
              RefusesChunk(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, kTable, 0));
  const absl::Status status = Begin().SendRows(kTable, {0, -1}, Values(192));
  EXPECT_THAT(status, RefusesChunk(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, kTable, 0));
  EXPECT_EQ(GetErrorDetail(status).field(), "rows[1]");
}

TEST_F(RefusalTest, RowsOfATensorThatComesWhole) {
  EXPECT_THAT(Begin().SendRows(kBias, {0}, {1}), RefusesChunk(v1::ERROR_REASON_MALFORMED_CHUNK, kBias, 0));
}

TEST_F(RefusalTest, ElementsThatAreNotWholeRows) {
  EXPECT_THAT(Begin().SendRows(kTable, {0, 1}, Values(191)), RefusesChunk(v1::ERROR_REASON_MALFORMED_CHUNK, kTable, 0));
}

TEST_F(RefusalTest, ElementsWithoutRows) {
  EXPECT_THAT(Begin().Send({.tensor = kTable, .offset = 0, .count = 96, .begin = 0}, Values(96)),
              RefusesChunk(v1::ERROR_REASON_MALFORMED_CHUNK, kTable, 0));
}

TEST_F(RefusalTest, NeitherRowsNorElementsWhereSomeAreAnnounced) {
  EXPECT_THAT(Begin().Send({.tensor = kTable, .offset = 0, .count = 0, .begin = 0}, {}),
              RefusesChunk(v1::ERROR_REASON_MALFORMED_CHUNK, kTable, 0));
}

TEST_F(RefusalTest, MoreRowsThanAnnounced) {
  StepDelivery step = Begin();
  ASSERT_THAT(step.SendRows(kTable, {0, 1}, Values(192)), IsOk());
  EXPECT_THAT(step.SendRows(kTable, {2, 3}, Values(192)), RefusesChunk(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, kTable, 0));
}

TEST_F(RefusalTest, FewerRowsThanAnnounced) {
  StepDelivery step = Begin();
  ASSERT_THAT(step.Send({.tensor = kBias, .offset = 0, .count = 100, .begin = 0}, SomeGradient(1)), IsOk());
  ASSERT_THAT(step.SendRows(kTable, {0, 1}, Values(192)), IsOk());
  EXPECT_THAT(step.Complete(), RefusesChunk(v1::ERROR_REASON_INCOMPLETE, kTable, 0));
}

TEST_F(RefusalTest, RowsInAWrite) {
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  write.Await();
  EXPECT_THAT(write.SendRows(kTable, {0}, Values(96)), RefusesChunk(v1::ERROR_REASON_MALFORMED_CHUNK, kTable, 0));
}

TEST_F(RefusalTest, HeadersThatCannotBe) {
  EXPECT_THAT(Refused(SparseHeader({{kScalar, 1}})), RefusesField("header.sparse[0].tensor"));
  EXPECT_THAT(Refused(SparseHeader({{kTable, 1}, {kTable, 1}})), RefusesField("header.sparse[1].tensor"));
  EXPECT_THAT(Refused(SparseHeader({{kBias, 1}, {kTable, 1}})), RefusesField("header.sparse[1].tensor"));
  EXPECT_THAT(Refused(SparseHeader({{-1, 1}})), RefusesField("header.sparse[0].tensor"));
  EXPECT_THAT(Refused(SparseHeader({{kTensors, 1}})), RefusesField("header.sparse[0].tensor"));
  EXPECT_THAT(Refused(SparseHeader({{kTable, -1}})), RefusesField("header.sparse[0].rows"));
  v1::StepHeader others = SparseHeader({{kTable, 1}});
  others.add_tensors(kBias);
  EXPECT_THAT(Refused(others), RefusesField("header.sparse[0].tensor"));
}

TEST_F(SparseTest, TensorOfAFrozenGroupHasNoRows) {
  v1::ParameterSetSpec spec = TablesSpec();
  spec.mutable_groups(0)->set_frozen(true);
  set_ = server_.MakeSet(spec);
  v1::StepHeader header;
  header.add_sparse()->set_tensor(kTable);
  StepDelivery step = BeginStep(set_.get(), header);
  EXPECT_THAT(step.Take(), RefusesField("header.sparse[0].tensor"));
}

TEST_F(SparseTest, RowThatFitsIntoNoMessageIsRefused) {
  v1::ParameterSetSpec spec = SmallSpec("long");
  spec.mutable_tensors(0)->mutable_shape()->Set(0, 1);
  spec.mutable_tensors(0)->mutable_shape()->Set(1, kMaxRowElements + 1);
  set_ = server_.MakeSet(spec);
  v1::StepHeader header;
  header.add_sparse()->set_rows(1);
  EXPECT_THAT(BeginStep(set_.get(), header).Take(), RefusesField("header.sparse[0].tensor"));
}

// What a step takes of the budget is known from its header.
TEST_F(SparseTest, RowsAreReservedAsAnnounced) {
  const int64_t rows = 5000;
  v1::StepHeader header;
  header.add_tensors(kTable);
  header.add_sparse()->set_rows(rows);
  const int64_t none = server_.used().inflight;
  StepDelivery step = BeginStep(set_.get(), header);
  step.Await();
  const int64_t reserved = server_.used().inflight - none;
  EXPECT_GE(reserved, rows * (96 * 4 + 16));
  EXPECT_LE(reserved, rows * (96 * 4 + 16) + 8192);
  step.Cancel();
}

TEST_F(SparseTest, SmallNumberOfRowsOfALargeTensorIsPaidByItsStream) {
  v1::StepHeader header;
  header.add_tensors(kTable);
  header.add_sparse()->set_rows(1024);
  const StepDelivery step = BeginAdmitted(set_.get(), header);
  EXPECT_TRUE(step.admitted());
  EXPECT_EQ(server_.used().inflight, 0);
}

TEST_F(SparseTest, MoreRowsThanTheBudgetCouldEverHoldAreRefused) {
  for (const int64_t rows : {int64_t{1} << 24, int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    v1::StepHeader header;
    header.add_sparse()->set_rows(rows);
    EXPECT_THAT(BeginStep(set_.get(), header).Take(),
                FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  }
}

TEST_F(SparseTest, NothingIsHeldOnceTheReplyIsGone) {
  const int64_t state = server_.used().state;
  StepBoth({}, {kWide}, {RandomRows(schema(), kTable, 5000, 1)}, 1);
  server_.AwaitIdle();
  EXPECT_EQ(server_.used(), (UsedBytes{.state = state, .inflight = 0, .read = 0}));
}

}  // namespace
}  // namespace adamant::core
