// What outlives the server's process, at each level of durability: it is killed, or stopped, and started again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/dispatch.h"
#include "tests/e2e/durable_server.h"

namespace adamant::e2e {
namespace {

using ::testing::HasSubstr;

constexpr int kCutOffExitCode = 3;

v1::ParameterSetSpec EveryStep(v1::ParameterSetSpec spec, int32_t journal_steps = 0) {
  spec.mutable_durability()->mutable_every_step()->set_journal_steps(journal_steps);
  return spec;
}

v1::ParameterSetSpec Checkpoints(v1::ParameterSetSpec spec, int64_t steps) {
  spec.mutable_durability()->mutable_checkpoints()->set_steps(steps);
  return spec;
}

v1::ParameterSetSpec Amsgrad(v1::ParameterSetSpec spec) {
  for (v1::ParameterGroup& group : *spec.mutable_groups()) {
    group.mutable_adam()->set_amsgrad(true);
    group.mutable_adam()->set_weight_decay(0.01);
  }
  return spec;
}

v1::ParameterSetSpec Nesterov(v1::ParameterSetSpec spec) {
  for (v1::ParameterGroup& group : *spec.mutable_groups()) {
    group.mutable_sgd()->set_momentum(0.9);
    group.mutable_sgd()->set_nesterov(true);
  }
  return spec;
}

v1::StepHeader RoundHeader(const std::string& set, int rank, int64_t round) {
  v1::StepHeader header = StepHeader(set);
  header.set_rank(rank);
  header.set_round(round);
  return header;
}

// A set, what it is to be, and a server that ends.
class DurabilityTest : public testing::Test {
 protected:
  explicit DurabilityTest(std::vector<std::string> flags = {}) : server_(std::move(flags)) {}

  v1::ParameterSet MakeSet(const v1::ParameterSetSpec& spec) {
    const absl::StatusOr<v1::CreateParameterSetResponse> created = server_.client().Create(spec);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->parameter_set() : v1::ParameterSet();
  }

  static Values GradientOf(const v1::ParameterSetSpec& spec, int64_t step) {
    return Gradient(ParameterCount(spec), step + 1);
  }

  // Takes set and model from `from` to `to`; each step has a request_id of its own.
  void StepBoth(const v1::ParameterSetSpec& spec, int64_t from, int64_t to, SequentialModel* model) {
    for (int64_t step = from; step < to; ++step) {
      const absl::StatusOr<StepReply> reply = Step(spec, step);
      ASSERT_TRUE(reply.ok()) << reply.status();
      model->Apply(GradientOf(spec, step));
      EXPECT_TRUE(SameBits(reply->parameters, model->arrays().parameters));
    }
  }
  absl::StatusOr<StepReply> Step(const v1::ParameterSetSpec& spec, int64_t step, int32_t attempt = 1) {
    return server_.client().Step(spec, StepHeader(spec.name(), absl::StrCat("step ", step), step, attempt),
                                 GradientOf(spec, step));
  }

  v1::ParameterSet Describe(const std::string& set) {
    const absl::StatusOr<v1::ParameterSet> description = server_.client().Get(set);
    EXPECT_TRUE(description.ok()) << description.status();
    return description.value_or(v1::ParameterSet());
  }
  Arrays ArraysOf(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<Arrays> arrays = server_.client().ReadArrays(spec);
    EXPECT_TRUE(arrays.ok()) << arrays.status();
    return arrays.ok() ? *std::move(arrays) : Arrays();
  }
  SetState StateOf(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<SetState> state = server_.client().ReadState(spec);
    EXPECT_TRUE(state.ok()) << state.status();
    return state.value_or(SetState());
  }
  void AwaitCheckpoint(const std::string& set, int64_t step) {
    ASSERT_TRUE(TestClient::Until([&] { return Describe(set).last_checkpoint().step() == step; }));
  }

  // Of a set with a checkpoint each four steps, the first of them after its first: to that of step 5.
  void StepToCheckpoint(const v1::ParameterSetSpec& spec, SequentialModel* model) {
    StepBoth(spec, 0, 1, model);
    AwaitCheckpoint(spec.name(), 1);
    StepBoth(spec, 1, 5, model);
    AwaitCheckpoint(spec.name(), 5);
  }

  DurableServer server_;
};

TEST_F(DurabilityTest, OfNothingNothingIsLeft) {
  v1::ParameterSetSpec spec = SmallSpec();
  MakeSet(spec);
  v1::ParameterSetSpec said = SmallSpec("said");
  said.mutable_durability()->mutable_nothing();
  MakeSet(said);
  const absl::StatusOr<StepReply> reply = Step(spec, 0);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_FALSE(reply->result.has_durable_step());

  server_.KillAndStart();

  EXPECT_EQ(ReasonOf(server_.client().Get(spec.name()).status()), v1::ERROR_REASON_SET_NOT_FOUND);
  EXPECT_EQ(ReasonOf(server_.client().Get(said.name()).status()), v1::ERROR_REASON_SET_NOT_FOUND);
}

class EveryStepTest : public DurabilityTest, public testing::WithParamInterface<v1::ParameterSetSpec> {
 protected:
  EveryStepTest() : DurabilityTest({"--durability=every_step:4"}) {}
};

INSTANTIATE_TEST_SUITE_P(Each, EveryStepTest,
                         testing::Values(SmallSpec("Adam"), Amsgrad(SmallSpec("Amsgrad")),
                                         Nesterov(SmallSpec("Nesterov")), LargeSpec("LargeAdam"),
                                         Amsgrad(LargeSpec("LargeAmsgrad")), Nesterov(LargeSpec("LargeNesterov"))),
                         [](const auto& info) { return info.param.name(); });

TEST_P(EveryStepTest, KilledServerComesBackWithTheSameBitsAndRemembersItsSteps) {
  const v1::ParameterSetSpec& spec = GetParam();
  MakeSet(spec);
  SequentialModel model(spec);
  // More than the journal of a large one holds.
  StepBoth(spec, 0, 7, &model);
  const SetState before = StateOf(spec);
  const absl::StatusOr<StepReply> last = Step(spec, 6, 2);
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(last->result.durable_step(), 7);

  server_.KillAndStart();

  SetState after = StateOf(spec);
  EXPECT_TRUE(after.arrays == model.arrays());
  // The replay above was counted, and is no step.
  after.description.mutable_statistics()->set_replayed(0);
  EXPECT_EQ(after.description.ShortDebugString(), before.description.ShortDebugString());
  const absl::StatusOr<v1::GetStepResultResponse> known = server_.client().GetStepResult(spec.name(), "step 6");
  ASSERT_TRUE(known.ok()) << known.status();
  EXPECT_EQ(known->state(), v1::STEP_STATE_COMMITTED);
  for (int64_t step = 0; step < 7; ++step) {
    const absl::StatusOr<StepReply> retry = Step(spec, step, 2);
    ASSERT_TRUE(retry.ok()) << retry.status();
    EXPECT_TRUE(retry->result.replayed());
    EXPECT_EQ(retry->result.step(), step + 1);
    EXPECT_EQ(retry->result.parameters_step(), 7);
    EXPECT_EQ(retry->result.durable_step(), 7);
    EXPECT_TRUE(SameBits(retry->parameters, model.arrays().parameters));
  }
  EXPECT_EQ(Step(spec, 6, 2)->result.grad_norm(), last->result.grad_norm());
  StepBoth(spec, 7, 9, &model);
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, WriteIsThereAndIsNotWrittenAgain) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  for (int64_t step = 0; step < 3; ++step) model.Apply(GradientOf(spec, step));
  model.mutable_arrays()->update_counts = {3, 1, 0, 2};
  v1::WriteHeader header = core::FullHeader(3, "the write");
  header.mutable_update_counts()->Add(model.arrays().update_counts.begin(), model.arrays().update_counts.end());
  const absl::StatusOr<v1::WriteTensorsResponse> written = server_.client().Write(spec, header, model.arrays());
  ASSERT_TRUE(written.ok()) << written.status();
  StepBoth(spec, 3, 4, &model);

  server_.KillAndStart();

  const absl::StatusOr<v1::WriteTensorsResponse> again = server_.client().Write(spec, header, model.arrays());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed());
  EXPECT_EQ(again->incarnation(), written->incarnation());
  EXPECT_EQ(again->step(), 4);
  StepBoth(spec, 4, 5, &model);
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, WriteOfSomeParametersIsThere) {
  const v1::ParameterSetSpec spec = EveryStep(LargeSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 1, &model);
  Arrays written = model.arrays();
  written.parameters = Gradient(model.parameter_count(), 77);
  v1::WriteHeader header;
  header.set_mode(v1::WRITE_MODE_PARAMETERS);
  ASSERT_TRUE(server_.client().Write(spec, header, written).ok());
  *model.mutable_arrays() = written;

  server_.KillAndStart();

  StepBoth(spec, 1, 3, &model);
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, ChangesOfTheConfigurationAreThere) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 1, &model);
  v1::UpdateParameterGroupRequest group;
  group.set_set(spec.name());
  group.mutable_group()->set_name("fast");
  group.mutable_group()->set_learning_rate(0.25);
  group.mutable_update_mask()->add_paths("learning_rate");
  ASSERT_TRUE(server_.client().Call(&v1::OptimizerService::Stub::UpdateParameterGroup, group).ok());
  model.mutable_spec()->mutable_groups(1)->set_learning_rate(0.25);
  v1::UpdateParameterSetRequest set;
  set.mutable_spec()->set_name(spec.name());
  set.mutable_spec()->mutable_clipping()->set_max_norm(1);
  (*set.mutable_spec()->mutable_labels())["run"] = "7";
  for (const char* path : {"clipping", "labels"}) set.mutable_update_mask()->add_paths(path);
  ASSERT_TRUE(server_.client().Call(&v1::OptimizerService::Stub::UpdateParameterSet, set).ok());
  model.mutable_spec()->mutable_clipping()->set_max_norm(1);
  StepBoth(spec, 1, 2, &model);
  const SetState before = StateOf(spec);

  server_.KillAndStart();

  EXPECT_EQ(StateOf(spec).description.ShortDebugString(), before.description.ShortDebugString());
  EXPECT_EQ(before.description.config_revision(), 3);
  StepBoth(spec, 2, 3, &model);
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, AddedTensorsAreThere) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 2, &model);
  v1::AddTensorsRequest request;
  request.set_set(spec.name());
  v1::TensorSpec* const tensor = request.add_tensors();
  tensor->set_name("more");
  tensor->add_shape(200000);
  tensor->set_group("slow");
  ASSERT_TRUE(server_.client().Call(&v1::OptimizerService::Stub::AddTensors, request).ok());
  model.Grow(request);
  const v1::ParameterSetSpec grown = model.spec();
  StepBoth(grown, 2, 3, &model);
  const SetState before = StateOf(grown);

  server_.KillAndStart();

  EXPECT_TRUE(StateOf(grown) == before);
  StepBoth(grown, 3, 4, &model);
  EXPECT_TRUE(ArraysOf(grown) == model.arrays());
}

TEST_F(DurabilityTest, DeletedSetIsGoneAndItsNameIsFree) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  const v1::ParameterSet first = MakeSet(spec);
  SequentialModel old(spec);
  StepBoth(spec, 0, 1, &old);
  ASSERT_TRUE(server_.client().Delete(spec.name()).ok());

  server_.KillAndStart();

  EXPECT_EQ(ReasonOf(server_.client().Get(spec.name()).status()), v1::ERROR_REASON_SET_NOT_FOUND);
  const v1::ParameterSet second = MakeSet(spec);
  EXPECT_NE(second.incarnation(), first.incarnation());
  server_.KillAndStart();
  EXPECT_EQ(Describe(spec.name()).incarnation(), second.incarnation());
  EXPECT_TRUE(ArraysOf(spec) == SequentialModel(spec).arrays());
}

TEST_F(DurabilityTest, OpenRoundDiesAndThoseBeforeItAreThere) {
  v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  spec.mutable_workers()->set_count(2);
  MakeSet(spec);
  SequentialModel model(spec);
  // Both ranks bring the same, of which the mean is the gradient.
  const auto contribute = [&](int rank, int64_t round, int64_t step) {
    v1::StepHeader header = RoundHeader(spec.name(), rank, round);
    header.set_ack_when_folded(rank == 0);
    StepStream stream(server_.client().stub());
    stream.Send(StepMessages(header, Chunks(spec, GradientOf(spec, step), 65536)));
    return stream.ReadReply(rank == 0 ? std::vector<int64_t>(4) : TensorSizes(spec));
  };
  const int64_t first = Describe(spec.name()).round();
  ASSERT_TRUE(contribute(0, first, 0).ok());
  ASSERT_TRUE(contribute(1, first, 0).ok());
  model.Apply(GradientOf(spec, 0));
  const absl::StatusOr<StepReply> lost = contribute(0, first + 1, 99);
  ASSERT_TRUE(lost.ok()) << lost.status();
  EXPECT_EQ(lost->result.outcome(), v1::STEP_OUTCOME_ACCUMULATED);

  server_.KillAndStart();

  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
  const int64_t round = Describe(spec.name()).round();
  EXPECT_GE(round, first + 1);
  ASSERT_TRUE(contribute(0, round, 1).ok());
  const absl::StatusOr<StepReply> reply = contribute(1, round, 1);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->result.contributions(), 2);
  model.Apply(GradientOf(spec, 1));
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, StepsOfRowsOfSomeTensorsAndOf16BitsAreThere) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 1, &model);

  v1::StepHeader some = StepHeader(spec.name());
  for (const int32_t tensor : {1, 3}) some.add_tensors(tensor);
  some.set_grad_scale(8);
  const Values gradient = GradientOf(spec, 1);
  v1::StepOnceRequest once;
  *once.mutable_header() = some;
  for (const v1::TensorChunk& chunk : Only(Chunks(spec, gradient, 65536), {1, 3})) *once.add_chunks() = chunk;
  ASSERT_TRUE(server_.client().StepOnce(once).ok());
  model.Apply(gradient, some);

  const core::BroughtRows rows = {.tensor = 0, .rows = {3, 1, 3}, .values = Gradient(6, 9)};
  v1::StepHeader sparse = StepHeader(spec.name());
  sparse.add_sparse()->set_tensor(0);
  sparse.mutable_sparse(0)->set_rows(3);
  once.Clear();
  *once.mutable_header() = sparse;
  v1::TensorChunk* const chunk = once.add_chunks();
  chunk->mutable_rows()->Add(rows.rows.begin(), rows.rows.end());
  chunk->mutable_values()->Add(rows.values.begin(), rows.values.end());
  for (const v1::TensorChunk& whole : Only(Chunks(spec, gradient, 65536, ChunkForm::kValues), {1, 2, 3})) {
    *once.add_chunks() = whole;
  }
  const absl::StatusOr<v1::StepOnceResponse> brought = server_.client().StepOnce(once);
  ASSERT_TRUE(brought.ok()) << brought.status();
  model.Apply(gradient, sparse, {rows});

  // What bfloat16 has room for.
  std::vector<uint16_t> halves(gradient.size());
  Values wide(gradient.size());
  const auto count = static_cast<int64_t>(gradient.size());
  kernels::BestKernels().narrow[kernels::kBfloat16](gradient.data(), halves.data(), count);
  kernels::BestKernels().widen[kernels::kBfloat16](halves.data(), wide.data(), count);
  once.Clear();
  *once.mutable_header() = StepHeader(spec.name());
  const uint16_t* next = halves.data();
  for (v1::TensorChunk& narrow : Chunks(spec, wide, 65536)) {
    const size_t n = narrow.data().size() / sizeof(float);
    narrow.set_dtype(v1::DTYPE_BFLOAT16);
    narrow.set_data(next, n * sizeof(uint16_t));
    next += n;
    *once.add_chunks() = narrow;
  }
  ASSERT_TRUE(server_.client().StepOnce(once).ok());
  model.Apply(wide);

  server_.KillAndStart();

  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
  StepBoth(spec, 4, 5, &model);
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, SetThatAwaitsItsFirstWriteStillDoes) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec("small", v1::INITIALIZATION_WRITTEN));
  MakeSet(spec);
  server_.KillAndStart();
  EXPECT_EQ(Describe(spec.name()).state(), v1::PARAMETER_SET_STATE_UNINITIALIZED);
}

TEST_F(DurabilityTest, CheckpointIsWhatAKilledServerComesBackWith) {
  for (const v1::ParameterSetSpec& of : {SmallSpec(), LargeSpec()}) {
    const v1::ParameterSetSpec spec = Checkpoints(of, 4);
    const v1::ParameterSet created = MakeSet(spec);
    SequentialModel model(spec);
    StepToCheckpoint(spec, &model);
    const SequentialModel kept = model;
    StepBoth(spec, 5, 7, &model);
    EXPECT_EQ(Step(spec, 6, 2)->result.durable_step(), 5);

    server_.KillAndStart();

    const v1::ParameterSet description = Describe(spec.name());
    EXPECT_TRUE(ArraysOf(spec) == kept.arrays());
    EXPECT_EQ(description.step(), 5);
    EXPECT_NE(description.incarnation(), created.incarnation());
    EXPECT_EQ(description.restored_from().step(), 5);
    EXPECT_EQ(description.restored_from().incarnation(), created.incarnation());
    // Whoever believes in the steps that are lost is told.
    v1::StepHeader header = StepHeader(spec.name(), "step 7", 7);
    header.set_incarnation(created.incarnation());
    EXPECT_EQ(ReasonOf(server_.client().Step(spec, header, GradientOf(spec, 7)).status()),
              v1::ERROR_REASON_INCARNATION_MISMATCH);
    model = kept;
    StepBoth(spec, 5, 6, &model);
    EXPECT_TRUE(ArraysOf(spec) == model.arrays());
  }
}

TEST_F(DurabilityTest, SetOfCheckpointsThatLostNoStepIsAsItWas) {
  const v1::ParameterSetSpec spec = Checkpoints(SmallSpec(), 4);
  MakeSet(spec);
  SequentialModel model(spec);
  StepToCheckpoint(spec, &model);
  const SetState before = StateOf(spec);

  server_.KillAndStart();

  EXPECT_TRUE(StateOf(spec).arrays == before.arrays);
  EXPECT_EQ(StateOf(spec).arrays.step, 5);
}

TEST_F(DurabilityTest, AStartThatFindsItsAddressTakenChangesNothing) {
  const v1::ParameterSetSpec spec = Checkpoints(SmallSpec(), 1000);
  const uint64_t incarnation = MakeSet(spec).incarnation();
  SequentialModel model(spec);
  StepBoth(spec, 0, 3, &model);
  EXPECT_EQ(server_.End(SIGTERM), 0);
  {
    const ServerProcess other;
    std::vector<std::string> flags = server_.flags();
    flags.push_back(absl::StrCat("--listen=", other.address()));
    ServerProcess refused(flags);
    EXPECT_TRUE(refused.addresses().empty());
    EXPECT_THAT(refused.program().standard_error().AwaitEnd(), testing::HasSubstr("cannot listen on"));
  }
  server_.Start();
  EXPECT_EQ(Describe(spec.name()).incarnation(), incarnation);
  EXPECT_FALSE(Describe(spec.name()).has_restored_from());
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, AStartThatIsRefusedSaysWhatToDo) {
  MakeSet(EveryStep(SmallSpec()));
  EXPECT_EQ(server_.End(SIGKILL), 128 + SIGKILL);
  std::filesystem::rename(server_.directory() + "/fence", server_.directory() + "/moved");
  {
    ServerProcess refused(server_.flags());
    EXPECT_TRUE(refused.addresses().empty());
    EXPECT_THAT(refused.program().standard_error().AwaitEnd(),
                testing::ContainsRegex("fence is missing: .*restore a backup, or start with --accept_data_loss"));
  }
  std::filesystem::rename(server_.directory() + "/moved", server_.directory() + "/fence");
  server_.Start();
  for (const std::string flag : {"--durability=every_step", "--accept_data_loss", "--checkpoint_rate=1MiB"}) {
    ServerProcess refused({flag});
    EXPECT_TRUE(refused.addresses().empty());
    EXPECT_THAT(refused.program().standard_error().AwaitEnd(), testing::HasSubstr(": expected a --data_dir with it"));
  }
}

TEST_F(DurabilityTest, CleanStopLosesNothing) {
  const std::vector<v1::ParameterSetSpec> specs = {
      Checkpoints(SmallSpec("small"), 1000), Checkpoints(Amsgrad(LargeSpec("large")), 1000),
      EveryStep(Nesterov(SmallSpec("kept"))), EveryStep(LargeSpec("large-and-kept"))};
  std::vector<SequentialModel> models(specs.begin(), specs.end());
  std::vector<SetState> before;
  for (size_t i = 0; i < specs.size(); ++i) {
    MakeSet(specs[i]);
    StepBoth(specs[i], 0, 3, &models[i]);
    before.push_back(StateOf(specs[i]));
  }

  EXPECT_EQ(server_.End(SIGTERM), 0);
  server_.Start();

  for (size_t i = 0; i < specs.size(); ++i) {
    const SetState after = StateOf(specs[i]);
    EXPECT_TRUE(after.arrays == models[i].arrays()) << specs[i].name();
    EXPECT_EQ(after.description.ShortDebugString(), before[i].description.ShortDebugString());
    StepBoth(specs[i], 3, 4, &models[i]);
    EXPECT_TRUE(ArraysOf(specs[i]) == models[i].arrays());
  }
}

class CutOffTest : public DurabilityTest {
 protected:
  CutOffTest() : DurabilityTest({"--drain_timeout=100ms"}) {}
};

TEST_F(CutOffTest, StepThatADrainCutsOffLeavesNothingBehind) {
  const v1::ParameterSetSpec spec = EveryStep(LargeSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 2, &model);
  const SetState before = StateOf(spec);
  StepStream stream(server_.client().stub());
  std::vector<v1::StepRequest> half =
      StepMessages(StepHeader(spec.name(), "half", 2), Chunks(spec, GradientOf(spec, 2), 65536));
  half.pop_back();
  ASSERT_TRUE(stream.Send(half));
  ASSERT_TRUE(server_.client().Reaches(spec.name(), "half", v1::STEP_STATE_IN_FLIGHT));

  EXPECT_EQ(server_.End(SIGTERM), kCutOffExitCode);
  EXPECT_FALSE(stream.Finish().ok());
  server_.Start();

  EXPECT_EQ(StateOf(spec).description.ShortDebugString(), before.description.ShortDebugString());
  EXPECT_EQ(server_.client().GetStepResult(spec.name(), "half")->state(), v1::STEP_STATE_UNKNOWN);
  StepBoth(spec, 2, 3, &model);
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST_F(DurabilityTest, SecondServerOfADirectoryIsRefusedAndTheFirstGoesOn) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  MakeSet(spec);
  ServerProcess second(server_.flags());
  EXPECT_THAT(second.addresses(), testing::IsEmpty());
  EXPECT_EQ(second.program().Wait(), 1);
  EXPECT_THAT(second.program().standard_error().AwaitEnd(),
              HasSubstr(absl::StrCat("is locked by process ", server_.process().program().pid())));
  SequentialModel model(spec);
  StepBoth(spec, 0, 1, &model);
}

TEST_F(DurabilityTest, ServerThatIsTooSmallForASetsCheckpointsDoesNotStart) {
  MakeSet(EveryStep(LargeSpec()));
  server_.End(SIGKILL);
  for (const char* const budget : {"--read_bytes=100KiB", "--state_bytes=100KiB"}) {
    std::vector<std::string> flags = server_.flags();
    flags.push_back(budget);
    ServerProcess second(flags);
    EXPECT_THAT(second.addresses(), testing::IsEmpty());
    EXPECT_EQ(second.program().Wait(), 1);
    const std::string said = second.program().standard_error().AwaitEnd();
    EXPECT_THAT(said, HasSubstr(absl::StrCat("set `", LargeSpec().name(), "`: ")));
    EXPECT_THAT(said, testing::Not(HasSubstr("POISONED"))) << "nothing is wrong with it";
  }
  server_.Start();
  SequentialModel model(LargeSpec());
  StepBoth(EveryStep(LargeSpec()), 0, 1, &model);
}

// The create alone: nothing has changed.
TEST_F(DurabilityTest, CreateForWhichThereIsNoFileIsRefusedAndTheOthersGoOn) {
  // They ask for a pipe to find out whether memory is there, and end the process if there is none.
  if (kFewer > 1) GTEST_SKIP() << "sanitizers need files of their own";
  const v1::ParameterSetSpec spec = EveryStep(LargeSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 1, &model);
  const pid_t server = server_.process().program().pid();
  rlimit before;
  ASSERT_EQ(prlimit(server, RLIMIT_NOFILE, nullptr, &before), 0);
  // None beyond those that are open.
  const rlimit none = {3, before.rlim_max};
  ASSERT_EQ(prlimit(server, RLIMIT_NOFILE, &none, nullptr), 0);
  v1::ParameterSetSpec other = spec;
  other.set_name("other");
  const absl::Status refused = server_.client().Create(other).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_BUDGET_EXHAUSTED);
  EXPECT_THAT(refused.message(), HasSubstr("ulimit -n"));
  StepBoth(spec, 1, 2, &model);
  ASSERT_EQ(prlimit(server, RLIMIT_NOFILE, &before, nullptr), 0);
  EXPECT_TRUE(server_.client().Create(other).ok());
}

TEST_F(DurabilityTest, CheckpointThatNoFileMayBecomeAsLargeAsIsRefusedAndTheServerLivesOn) {
  const v1::ParameterSetSpec spec = Checkpoints(LargeSpec(), 1000);
  MakeSet(spec);
  const pid_t server = server_.process().program().pid();
  rlimit before;
  ASSERT_EQ(prlimit(server, RLIMIT_FSIZE, nullptr, &before), 0);
  const rlimit small = {1 << 20, before.rlim_max};
  ASSERT_EQ(prlimit(server, RLIMIT_FSIZE, &small, nullptr), 0);
  v1::CheckpointRequest request;
  request.set_set(spec.name());
  const absl::Status refused = server_.client().Call(&v1::OptimizerService::Stub::Checkpoint, request).status();
  EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_DISK_EXHAUSTED);
  ASSERT_EQ(prlimit(server, RLIMIT_FSIZE, &before, nullptr), 0);
  EXPECT_TRUE(server_.client().Call(&v1::OptimizerService::Stub::Checkpoint, request).ok());
}

// As a quota would have it: no more of the catalog's log, for which it is SQLite that writes.
TEST_F(DurabilityTest, StepForWhichTheCatalogMayNotGrowIsRefusedUntilItMay) {
  const v1::ParameterSetSpec spec = EveryStep(SmallSpec());
  MakeSet(spec);
  SequentialModel model(spec);
  StepBoth(spec, 0, 1, &model);
  const pid_t server = server_.process().program().pid();
  rlimit before;
  ASSERT_EQ(prlimit(server, RLIMIT_FSIZE, nullptr, &before), 0);
  const rlimit small = {128 << 10, before.rlim_max};
  ASSERT_EQ(prlimit(server, RLIMIT_FSIZE, &small, nullptr), 0);
  int64_t step = 1;
  absl::Status refused;
  while (refused.ok()) {
    ASSERT_LT(step, 1000);
    refused = Step(spec, step).status();
    if (!refused.ok()) break;
    model.Apply(GradientOf(spec, step));
    ++step;
  }
  EXPECT_EQ(ReasonOf(refused), v1::ERROR_REASON_DISK_EXHAUSTED) << refused;
  ASSERT_EQ(prlimit(server, RLIMIT_FSIZE, &before, nullptr), 0);
  int32_t attempt = 1;
  ASSERT_TRUE(TestClient::Until([&] { return Step(spec, step, ++attempt).ok(); }));
  model.Apply(GradientOf(spec, step));
  server_.KillAndStart();
  EXPECT_TRUE(ArraysOf(spec) == model.arrays());
}

TEST(DataDirectoryTest, SetThatIsToOutliveAServerWithoutOneIsRefused) {
  ServerProcess server;
  TestClient client(server.address());
  for (const v1::ParameterSetSpec& spec : {EveryStep(SmallSpec()), Checkpoints(SmallSpec(), 1)}) {
    const absl::Status status = client.Create(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_NO_DATA_DIRECTORY);
  }
  v1::ParameterSetSpec nothing = SmallSpec();
  nothing.mutable_durability()->mutable_nothing();
  EXPECT_TRUE(client.Create(nothing).ok());
}

TEST(DataDirectoryTest, DefaultThatNeedsOneIsRefusedWithout) {
  ServerProcess server({"--durability=every_step"});
  EXPECT_EQ(server.program().Wait(), 1);
  EXPECT_THAT(server.program().standard_error().AwaitEnd(), HasSubstr("--durability: expected a --data_dir"));
}

}  // namespace
}  // namespace adamant::e2e
