// The C++ client library against the real server, over connections that break.
#include <adamant/client.h>
#include <adamant/error.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/src/formats.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"
#include "tests/e2e/cutting_proxy.h"
#include "tests/e2e/name_server.h"
#include "tests/e2e/server_process.h"
#include "tests/wire/bound_socket.h"
#include "tests/wire/proxy_environment.h"

// Debian's c-ares 1.18 leaks ten bytes for each resolver that has a name server of its own, as those of these tests
// have.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libcares.so"; }

namespace adamant::e2e {
namespace {

using core::Arrays;
using core::Gradient;
using core::LargeSpec;
using core::SameBits;
using core::SequentialModel;
using core::SmallSpec;
using core::Values;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

// gRPC polls idle channels every five seconds, whoever waits for them: that would hide that nobody else does.
[[maybe_unused]] const int kNoBackupPoller = setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "0", 1);

// 12 MB a direction, in a dozen messages; tensors begin and end inside of messages and blocks.
v1::ParameterSetSpec HugeSpec() {
  v1::ParameterSetSpec spec = SmallSpec("huge");
  spec.mutable_tensors(0)->clear_shape();
  spec.mutable_tensors(0)->add_shape(2500003);
  spec.mutable_tensors(2)->clear_shape();
  spec.mutable_tensors(2)->add_shape(500001);
  return spec;
}

// `values` as one span a tensor.
template <typename Element>
std::vector<absl::Span<Element>> Split(const v1::ParameterSetSpec& spec, absl::Span<Element> values) {
  std::vector<absl::Span<Element>> spans;
  for (const v1::TensorSpec& tensor : spec.tensors()) {
    int64_t size = 1;
    for (const int64_t extent : tensor.shape()) size *= extent;
    spans.push_back(values.first(size));
    values.remove_prefix(size);
  }
  return spans;
}

std::vector<absl::Span<const float>> Split(const v1::ParameterSetSpec& spec, const Values& values) {
  return Split<const float>(spec, absl::MakeConstSpan(values));
}

std::vector<absl::Span<float>> SplitMutable(const v1::ParameterSetSpec& spec, Values* values) {
  return Split<float>(spec, absl::MakeSpan(*values));
}

// A client that retries for as long as a test may take, and never waits between two attempts.
absl::StatusOr<Client> ConnectImpatiently(const std::string& target) {
  ClientOptions options;
  options.retry.max_attempts = std::numeric_limits<int>::max();
  options.retry.total_timeout = absl::Minutes(1);
  options.sleep = [](absl::Duration) {};
  return Client::Connect(target, options);
}

absl::StatusOr<Arrays> ReadAll(Client* client, const v1::ParameterSetSpec& spec) {
  Arrays arrays = SequentialModel(spec).arrays();
  const auto split = [&spec](Values* values) {
    return values->empty() ? std::vector<absl::Span<float>>() : SplitMutable(spec, values);
  };
  const auto parameters = split(&arrays.parameters);
  const auto exp_avg = split(&arrays.exp_avg);
  const auto exp_avg_sq = split(&arrays.exp_avg_sq);
  const auto max_exp_avg_sq = split(&arrays.max_exp_avg_sq);
  const auto momentum_buffer = split(&arrays.momentum_buffer);
  const absl::StatusOr<v1::ReadHeader> header = client->ReadState(spec.name(), {.parameters = parameters,
                                                                                .exp_avg = exp_avg,
                                                                                .exp_avg_sq = exp_avg_sq,
                                                                                .max_exp_avg_sq = max_exp_avg_sq,
                                                                                .momentum_buffer = momentum_buffer});
  if (!header.ok()) return header.status();
  arrays.step = header->step();
  arrays.update_counts.assign(header->update_counts().begin(), header->update_counts().end());
  return arrays;
}

// The same as a header, as far as it decides what becomes of the set.
v1::StepHeader HeaderOf(const StepOptions& options) {
  v1::StepHeader header;
  header.mutable_tensors()->Add(options.tensors.begin(), options.tensors.end());
  header.mutable_overrides()->Add(options.overrides.begin(), options.overrides.end());
  header.set_grad_scale(options.grad_scale);
  return header;
}

Values Rounded(v1::Dtype dtype, Values values) {
  Round(dtype, absl::MakeSpan(values));
  return values;
}

// A trainer's view of a set: what it steps, and what must come of it.
class Trainer {
 public:
  // A set of its own, at zero.
  Trainer(Client client, const v1::ParameterSetSpec& spec)
      : client_(std::move(client)), spec_(spec), model_(spec), parameters_(model_.parameter_count()) {
    const auto created = client_.CreateParameterSet(spec_, v1::IF_EXISTS_USE_IF_SAME_SPEC);
    EXPECT_TRUE(created.ok()) << created.status();
    absl::StatusOr<StepStream> stream = client_.OpenStepStream(spec_.name());
    EXPECT_TRUE(stream.ok()) << stream.status();
    if (stream.ok()) stream_.emplace(*std::move(stream));
  }

  absl::StatusOr<v1::StepResult> Step() {
    const Values gradient = Gradient(model_.parameter_count(), ++seed_);
    absl::StatusOr<v1::StepResult> result =
        stream_->Step(Split(spec_, gradient), SplitMutable(spec_, &parameters_), options_);
    if (result.ok()) model_.Apply(Rounded(options_.gradient_dtype, gradient), HeaderOf(options_));
    return result;
  }

  // Whether a step is applied, and brings what it must.
  void ExpectStep() {
    const absl::StatusOr<v1::StepResult> result = Step();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->outcome(), v1::STEP_OUTCOME_APPLIED);
    EXPECT_EQ(result->step(), model_.arrays().step);
    EXPECT_EQ(result->parameters_step(), model_.arrays().step);
    EXPECT_TRUE(SameBits(parameters_, Rounded(options_.reply_dtype, model_.arrays().parameters)));
  }

  void ExpectSameState() {
    const absl::StatusOr<Arrays> arrays = ReadAll(&client_, spec_);
    ASSERT_TRUE(arrays.ok()) << arrays.status();
    EXPECT_TRUE(*arrays == model_.arrays());
  }

  StepStream& stream() { return *stream_; }
  SequentialModel& model() { return model_; }
  Values& parameters() { return parameters_; }
  // Those of the steps to come.
  StepOptions& options() { return options_; }

 private:
  Client client_;
  const v1::ParameterSetSpec spec_;
  SequentialModel model_;
  Values parameters_;
  StepOptions options_;
  uint64_t seed_ = 0;
  std::optional<StepStream> stream_;
};

TEST(ClientTest, CreatesWritesStepsReadsRestoresAndDeletes) {
  ServerProcess server;
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  const v1::ParameterSetSpec spec = LargeSpec("model", v1::INITIALIZATION_WRITTEN);
  SequentialModel model(spec);
  ASSERT_TRUE(client->CreateParameterSet(spec).ok());
  const Values first = Gradient(model.parameter_count(), 7);
  model.mutable_arrays()->parameters = first;
  const auto written = client->WriteParameters(spec.name(), Split(spec, first));
  ASSERT_TRUE(written.ok()) << written.status();

  absl::StatusOr<StepStream> stream = client->OpenStepStream(spec.name());
  ASSERT_TRUE(stream.ok()) << stream.status();
  Values parameters(model.parameter_count());
  const auto step = [&](uint64_t seed) {
    const Values gradient = Gradient(model.parameter_count(), seed);
    const auto result = stream->Step(Split(spec, gradient), SplitMutable(spec, &parameters));
    ASSERT_TRUE(result.ok()) << result.status();
    model.Apply(gradient);
    EXPECT_TRUE(SameBits(parameters, model.arrays().parameters));
    EXPECT_EQ(result->grad_norm(), model.Norm(gradient));
  };
  step(1);
  step(2);
  const absl::StatusOr<Arrays> saved = ReadAll(&*client, spec);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_TRUE(*saved == model.arrays());
  step(3);

  // Back to what was saved, and the same step once more gives the same bits.
  const Arrays after = model.arrays();
  const auto saved_parameters = Split(spec, saved->parameters);
  const auto saved_exp_avg = Split(spec, saved->exp_avg);
  const auto saved_exp_avg_sq = Split(spec, saved->exp_avg_sq);
  const auto restored = client->WriteState(
      spec.name(),
      {.step = saved->step, .parameters = saved_parameters, .exp_avg = saved_exp_avg, .exp_avg_sq = saved_exp_avg_sq});
  ASSERT_TRUE(restored.ok()) << restored.status();
  *model.mutable_arrays() = *saved;
  EXPECT_TRUE(stream->Refresh(SplitMutable(spec, &parameters)).ok());
  EXPECT_TRUE(SameBits(parameters, saved->parameters));
  step(3);
  EXPECT_TRUE(model.arrays() == after);

  EXPECT_TRUE(client->DeleteParameterSet(spec.name(), stream->incarnation()).ok());
  EXPECT_EQ(client->GetParameterSet(spec.name()).status().code(), absl::StatusCode::kNotFound);
}

TEST(ClientTest, StepsOfManyMessagesHaveTheBitsOfTheScalarKernel) {
  ServerProcess server;
  Trainer trainer(*Client::Connect(server.address()), HugeSpec());
  for (int i = 0; i < 5; ++i) trainer.ExpectStep();
  trainer.ExpectSameState();
}

// SmallSpec with Adam, its largest v and decoupled decay for the weights, and SGD with momentum for the biases.
v1::ParameterSetSpec MixedSpec(const v1::ParameterSetSpec& small = SmallSpec("mixed")) {
  v1::ParameterSetSpec spec = small;
  v1::Adam* adam = spec.mutable_groups(0)->mutable_adam();
  adam->set_amsgrad(true);
  adam->set_decoupled_weight_decay(true);
  adam->set_weight_decay(0.1);
  spec.mutable_groups(1)->mutable_sgd()->set_momentum(0.9);
  return spec;
}

TEST(ClientTest, StepsWithEveryOptionDoWhatTheySay) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = MixedSpec();
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  Trainer trainer(*client, spec);
  trainer.ExpectStep();
  v1::GroupOverride override;
  override.set_group("fast");
  override.set_learning_rate(0.5);
  trainer.options().overrides = {override};
  trainer.ExpectStep();
  trainer.options().grad_scale = 128;
  trainer.ExpectStep();
  trainer.options().tensors = {0, 3};
  trainer.options().metrics = {{"loss", 0.25}};
  trainer.ExpectStep();
  trainer.options() = {};
  trainer.ExpectStep();
  trainer.ExpectSameState();
  EXPECT_EQ(client->GetParameterSet(spec.name())->statistics().last_metrics().at("loss"), 0.25);

  const Values gradient = Gradient(trainer.model().parameter_count(), 9);
  const auto result = trainer.stream().Step(Split(spec, gradient), {}, {.omit_parameters = true});
  ASSERT_TRUE(result.ok()) << result.status();
  trainer.model().Apply(gradient);
  trainer.ExpectStep();
  trainer.ExpectSameState();
}

TEST(ClientTest, StateOfEverySlotAndCountIsRestoredBitForBit) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = MixedSpec();
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(client->CreateParameterSet(spec).ok());
  EXPECT_THAT(
      OptimizerSlots(*client->GetParameterSet(spec.name())),
      testing::ElementsAre(v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ, v1::SLOT_MAX_EXP_AVG_SQ, v1::SLOT_MOMENTUM_BUFFER));
  Trainer trainer(*client, spec);
  trainer.ExpectStep();
  trainer.options().tensors = {1, 2};
  trainer.ExpectStep();
  const absl::StatusOr<Arrays> saved = ReadAll(&*client, spec);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_THAT(saved->update_counts, testing::ElementsAre(1, 2, 2, 1));
  trainer.ExpectStep();

  const auto parameters = Split(spec, saved->parameters);
  const auto exp_avg = Split(spec, saved->exp_avg);
  const auto exp_avg_sq = Split(spec, saved->exp_avg_sq);
  const auto max_exp_avg_sq = Split(spec, saved->max_exp_avg_sq);
  const auto momentum_buffer = Split(spec, saved->momentum_buffer);
  const auto restored = client->WriteState(spec.name(), {.step = saved->step,
                                                         .update_counts = saved->update_counts,
                                                         .parameters = parameters,
                                                         .exp_avg = exp_avg,
                                                         .exp_avg_sq = exp_avg_sq,
                                                         .max_exp_avg_sq = max_exp_avg_sq,
                                                         .momentum_buffer = momentum_buffer});

  ASSERT_TRUE(restored.ok()) << restored.status();
  *trainer.model().mutable_arrays() = *saved;
  trainer.ExpectSameState();
  ASSERT_TRUE(trainer.stream().Refresh(SplitMutable(spec, &trainer.parameters())).ok());
  trainer.options() = {};
  trainer.ExpectStep();
  trainer.ExpectSameState();
}

TEST(ClientTest, StepsOfSixteenBitsRoundGradientAndReplyAndNothingElse) {
  ServerProcess server;
  for (const v1::Dtype dtype : {v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
    Trainer trainer(*Client::Connect(server.address()), LargeSpec(absl::StrCat("large", dtype)));
    trainer.options().gradient_dtype = dtype;
    for (int i = 0; i < 2; ++i) trainer.ExpectStep();
    trainer.options().reply_dtype = dtype;
    for (int i = 0; i < 2; ++i) trainer.ExpectStep();
    trainer.options().gradient_dtype = v1::DTYPE_FLOAT32;
    trainer.ExpectStep();
    trainer.ExpectSameState();
  }
}

TEST(ClientTest, WriteOfSomeTensorsLeavesTheOthers) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = SmallSpec();
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  Trainer trainer(*client, spec);
  trainer.ExpectStep();
  const Values values = Gradient(trainer.model().parameter_count(), 5);
  const auto written = client->WriteParameters(spec.name(), Split(spec, values), {.tensors = {1}});
  ASSERT_TRUE(written.ok()) << written.status();
  Values* parameters = &trainer.model().mutable_arrays()->parameters;
  std::copy(values.begin() + 32, values.begin() + 48, parameters->begin() + 32);
  trainer.ExpectSameState();
}

TEST(ClientTest, GroupsFreezeAndThawUnderAStreamThatStepsOn) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = SmallSpec();
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  Trainer trainer(*client, spec);
  trainer.ExpectStep();
  for (const bool frozen : {true, false, true}) {
    v1::ParameterGroup group;
    group.set_name("slow");
    group.set_frozen(frozen);
    group.set_learning_rate(frozen ? 0.25 : 0.5);
    const auto set = client->UpdateParameterGroup(spec.name(), group, {"frozen", "learning_rate"});
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->groups(0).frozen(), frozen);
    trainer.model().mutable_spec()->mutable_groups(0)->set_frozen(frozen);
    trainer.model().mutable_spec()->mutable_groups(0)->set_learning_rate(group.learning_rate());
    for (int i = 0; i < 2; ++i) trainer.ExpectStep();
  }
  trainer.ExpectSameState();
}

TEST(ClientTest, UpdateOfWhatSomebodyElseHasChangedIsAborted) {
  ServerProcess server;
  v1::ParameterSetSpec spec = SmallSpec();
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  const auto created = client->CreateParameterSet(spec);
  ASSERT_TRUE(created.ok()) << created.status();
  spec.mutable_clipping()->set_max_norm(1);
  const UpdateOptions options = {.incarnation = created->parameter_set().incarnation(),
                                 .config_revision = created->parameter_set().config_revision()};
  const auto set = client->UpdateParameterSet(spec, {"clipping"}, options);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->clipping().max_norm(), 1);
  EXPECT_EQ(GetErrorDetail(client->UpdateParameterSet(spec, {"clipping"}, options).status()).reason(),
            v1::ERROR_REASON_CONFIG_CHANGED);
}

TEST(ClientTest, AsynchronousStepsCountWhileTheyAreNotTooFarBehind) {
  ServerProcess server;
  v1::ParameterSetSpec spec = SmallSpec();
  spec.set_max_staleness(1);
  Trainer slow(*Client::Connect(server.address()), spec);
  Trainer fast(*Client::Connect(server.address()), spec);
  fast.options().asynchronous = slow.options().asynchronous = true;
  fast.ExpectStep();
  *slow.model().mutable_arrays() = fast.model().arrays();
  const auto behind = slow.Step();
  ASSERT_TRUE(behind.ok()) << behind.status();
  EXPECT_EQ(behind->outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(behind->staleness(), 1);
  EXPECT_TRUE(SameBits(slow.parameters(), slow.model().arrays().parameters));
  EXPECT_EQ(slow.stream().step(), 2);

  *fast.model().mutable_arrays() = slow.model().arrays();
  for (int i = 0; i < 2; ++i) fast.ExpectStep();
  const Values gradient = Gradient(slow.model().parameter_count(), 1);
  const auto stale = slow.stream().Step(Split(spec, gradient), SplitMutable(spec, &slow.parameters()), slow.options());
  ASSERT_TRUE(stale.ok()) << stale.status();
  EXPECT_EQ(stale->outcome(), v1::STEP_OUTCOME_REFUSED_STALE);
  EXPECT_EQ(slow.stream().step(), 4);
  EXPECT_TRUE(SameBits(slow.parameters(), fast.model().arrays().parameters));
  *slow.model().mutable_arrays() = fast.model().arrays();
  slow.ExpectStep();
  slow.ExpectSameState();
}

TEST(WatchTest, TellsWhatHappensToASetUntilItIsDeleted) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = SmallSpec();
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ(client->Watch(spec.name()).status().code(), absl::StatusCode::kNotFound);
  Trainer trainer(*client, spec);
  absl::StatusOr<std::unique_ptr<EventStream>> events = client->Watch(spec.name());
  ASSERT_TRUE(events.ok()) << events.status();
  const auto next = [&] {
    absl::StatusOr<std::optional<v1::WatchParameterSetResponse>> event = (*events)->Next();
    EXPECT_TRUE(event.ok()) << event.status();
    return event.ok() && event->has_value() ? **event : v1::WatchParameterSetResponse();
  };
  EXPECT_EQ(next().current().name(), spec.name());
  trainer.options().metrics = {{"loss", 0.5}};
  trainer.ExpectStep();
  const v1::WatchParameterSetResponse committed = next();
  EXPECT_EQ(committed.step(), 1);
  EXPECT_EQ(committed.committed().metrics().at("loss"), 0.5);
  v1::ParameterGroup group;
  group.set_learning_rate(0.5);
  ASSERT_TRUE(client->UpdateParameterGroup(spec.name(), group, {"learning_rate"}).ok());
  EXPECT_EQ(next().config_changed().groups(0).learning_rate(), 0.5);
  ASSERT_TRUE(client->DeleteParameterSet(spec.name(), trainer.stream().incarnation()).ok());
  EXPECT_TRUE(next().has_deleted());
  const auto end = (*events)->Next();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
}

TEST(WatchTest, AWatcherThatWaitsIsCancelledByAnotherThread) {
  ServerProcess server;
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE(client->CreateParameterSet(SmallSpec()).ok());
  absl::StatusOr<std::unique_ptr<EventStream>> events = client->Watch(SmallSpec().name());
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_TRUE((*events)->Next().ok());
  absl::Status end;
  std::thread watcher([&] { end = (*events)->Next().status(); });
  (*events)->Cancel();
  watcher.join();
  EXPECT_EQ(end.code(), absl::StatusCode::kCancelled) << end;
  EXPECT_FALSE((*events)->Next().ok());
}

TEST(WatchTest, ALostServerEndsTheWatch) {
  ServerProcess server;
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE(client->CreateParameterSet(SmallSpec()).ok());
  absl::StatusOr<std::unique_ptr<EventStream>> events = client->Watch(SmallSpec().name());
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_TRUE((*events)->Next().ok());
  server.program().Signal(SIGKILL);
  EXPECT_EQ((*events)->Next().status().code(), absl::StatusCode::kUnavailable);
}

TEST(ClientTest, TensorsWithoutElementsTakeEmptySpans) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = core::WithEmptyTensors(LargeSpec());
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  Trainer trainer(*client, spec);
  for (int i = 0; i < 2; ++i) trainer.ExpectStep();
  trainer.ExpectSameState();
  const Values values = Gradient(trainer.model().parameter_count(), 3);
  ASSERT_TRUE(client->WriteParameters(spec.name(), Split(spec, values)).ok());
  trainer.model().mutable_arrays()->parameters = values;
  trainer.ExpectSameState();
}

// More tensors than a message may have chunks, and as small as they come: messages are cut by the number of chunks,
// too.
TEST(ClientTest, StepsReadsAndWritesASetOfManyTensors) {
  ServerProcess server;
  v1::ParameterSetSpec spec = SmallSpec();
  spec.clear_tensors();
  for (int i = 0; i < 65536; ++i) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat("model.layers.47.mlp.experts.", i));
    tensor->set_group(i % 3 == 0 ? "fast" : "slow");
  }
  absl::StatusOr<Client> client = Client::Connect(server.address());
  ASSERT_TRUE(client.ok()) << client.status();
  Trainer trainer(*client, spec);
  EXPECT_EQ(trainer.stream().tensors().size(), 65536u);
  for (int i = 0; i < 2; ++i) trainer.ExpectStep();
  trainer.ExpectSameState();

  const Arrays& arrays = trainer.model().arrays();
  const auto parameters = Split(spec, arrays.parameters);
  const auto exp_avg = Split(spec, arrays.exp_avg);
  const auto exp_avg_sq = Split(spec, arrays.exp_avg_sq);
  const auto written = client->WriteState(
      spec.name(), {.step = 9, .parameters = parameters, .exp_avg = exp_avg, .exp_avg_sq = exp_avg_sq});
  ASSERT_TRUE(written.ok()) << written.status();
  trainer.model().mutable_arrays()->step = 9;
  trainer.ExpectSameState();
}

TEST(ClientTest, GradientThatIsNotFiniteIsSkippedAndBringsTheParametersAsTheyAre) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = SmallSpec();
  Trainer trainer(*Client::Connect(server.address()), spec);
  trainer.ExpectStep();
  Values gradient = Gradient(trainer.model().parameter_count(), 1);
  gradient[40] = std::numeric_limits<float>::infinity();
  const auto result = trainer.stream().Step(Split(spec, gradient), SplitMutable(spec, &trainer.parameters()));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome(), v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
  EXPECT_EQ(result->non_finite_tensor(), 1);
  EXPECT_EQ(result->non_finite_offset(), 8);
  EXPECT_TRUE(SameBits(trainer.parameters(), trainer.model().arrays().parameters));
  trainer.ExpectStep();
}

TEST(ClientTest, StreamThatAnotherOneOvertookRefreshesAndGoesOn) {
  ServerProcess server;
  const v1::ParameterSetSpec spec = SmallSpec();
  Trainer slow(*Client::Connect(server.address()), spec);
  Trainer fast(*Client::Connect(server.address()), spec);
  fast.ExpectStep();
  const absl::Status overtaken = slow.Step().status();
  EXPECT_EQ(overtaken.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(GetErrorDetail(overtaken).reason(), v1::ERROR_REASON_STEP_MISMATCH) << overtaken;
  ASSERT_TRUE(slow.stream().Refresh(SplitMutable(spec, &slow.parameters())).ok());
  *slow.model().mutable_arrays() = fast.model().arrays();
  EXPECT_TRUE(SameBits(slow.parameters(), fast.model().arrays().parameters));
  slow.ExpectStep();
}

TEST(ClientTest, ServerThatWasRestartedHasLostTheSetAndSaysSo) {
  const std::string path = absl::StrCat("unix:", testing::TempDir(), "adamant-restart-", getpid());
  auto server = std::make_unique<ServerProcess>(std::vector<std::string>{absl::StrCat("--listen=", path)});
  Trainer trainer(*ConnectImpatiently(path), SmallSpec());
  trainer.ExpectStep();
  server->program().Signal(SIGKILL);
  server->program().Wait();
  server = std::make_unique<ServerProcess>(std::vector<std::string>{absl::StrCat("--listen=", path)});
  ASSERT_EQ(server->addresses().size(), 1u);
  const absl::Status lost = trainer.Step().status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GetErrorDetail(lost).reason(), v1::ERROR_REASON_SET_NOT_FOUND) << lost;
}

TEST(ClientTest, ServerThatIsGoneIsAnErrorWithinTheTimeThatIsAllowed) {
  ServerProcess server;
  ClientOptions options;
  options.retry.total_timeout = absl::Seconds(1);
  Trainer trainer(*Client::Connect(server.address(), options), SmallSpec());
  trainer.ExpectStep();
  server.program().Signal(SIGKILL);
  server.program().Wait();
  EXPECT_EQ(trainer.Step().status().code(), absl::StatusCode::kUnavailable);
}

// Calls that begin before there is a connection, on a thread of their own. They have two attempts each, for the first
// may find out that an earlier connection is gone, and so get through only over a connection that they have waited for.
class PatientCall {
 public:
  explicit PatientCall(const std::string& target) : client_(Client::Connect(target, Options())) {
    EXPECT_TRUE(client_.ok()) << client_.status();
    Start();
  }
  ~PatientCall() {
    if (thread_.joinable()) thread_.join();
  }

  // One more, after Result.
  void Start() {
    {
      core::MutexLock lock(&mutex_);
      reason_.reset();
    }
    thread_ = std::thread([this] {
      result_ = client_->GetServerInfo().status();
      Tell(absl::OkStatus());
    });
  }
  // Returns when the call waits, and why: OK if it has not waited and is over.
  absl::Status AwaitWait() {
    core::MutexLock lock(&mutex_);
    while (!reason_.has_value()) told_.Wait(&mutex_);
    return *reason_;
  }
  absl::Status Result() {
    thread_.join();
    return result_;
  }

 private:
  ClientOptions Options() {
    ClientOptions options;
    options.retry.max_attempts = 2;
    options.on_wait = [this](const absl::Status& reason) { Tell(reason); };
    return options;
  }

  void Tell(const absl::Status& reason) {
    core::MutexLock lock(&mutex_);
    if (!reason_.has_value()) reason_ = reason;
    told_.NotifyAll();
  }

  core::Mutex mutex_;
  core::CondVar told_;
  std::optional<absl::Status> reason_ ABSL_GUARDED_BY(mutex_);
  absl::StatusOr<Client> client_;
  absl::Status result_;
  std::thread thread_;
};

std::string PortOf(const std::string& address) { return address.substr(address.rfind(':') + 1); }

TEST(WaitingClientTest, GetsThroughToAServerThatStartsAfterIt) {
  BoundSocket port;
  PatientCall call(port.address());
  const absl::Status reason = call.AwaitWait();
  EXPECT_EQ(reason.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(reason.message()), AllOf(HasSubstr(port.address()), HasSubstr("Connection refused")));
  port.LetGo();
  ServerProcess server({absl::StrCat("--listen=", port.address())});
  EXPECT_EQ(call.Result(), absl::OkStatus());
}

TEST(WaitingClientTest, GetsThroughToAUnixSocketThatAppearsLater) {
  const std::string path = absl::StrCat("unix:", testing::TempDir(), "adamant-later-", getpid());
  PatientCall call(path);
  EXPECT_THAT(std::string(call.AwaitWait().message()), HasSubstr(path));
  ServerProcess server({absl::StrCat("--listen=", path)});
  EXPECT_EQ(call.Result(), absl::OkStatus());
}

TEST(WaitingClientTest, GetsThroughToAServerThatWasRestarted) {
  for (const int signal : {SIGTERM, SIGKILL}) {
    auto server = std::make_unique<ServerProcess>();
    const std::string address = server->address();
    PatientCall call(address);
    ASSERT_EQ(call.Result(), absl::OkStatus());
    server->program().Signal(signal);
    server->program().Wait();
    call.Start();
    EXPECT_EQ(call.AwaitWait().code(), absl::StatusCode::kUnavailable);
    server = std::make_unique<ServerProcess>(std::vector<std::string>{absl::StrCat("--listen=", address)});
    EXPECT_EQ(call.Result(), absl::OkStatus());
  }
}

TEST(WaitingClientTest, GetsThroughANetworkThatCutsAndRefusesForAWhile) {
  ServerProcess server;
  CuttingProxy proxy(server.address());
  PatientCall call(proxy.address());
  ASSERT_EQ(call.Result(), absl::OkStatus());
  for (int i = 0; i < 3; ++i) {
    proxy.GoDown();
    call.Start();
    EXPECT_EQ(call.AwaitWait().code(), absl::StatusCode::kUnavailable);
    proxy.ComeUp();
    ASSERT_EQ(call.Result(), absl::OkStatus());
  }
}

// gRPC's own back-off would have waited for longer, by the eighth, than the call does.
constexpr int kFailures = 8;

TEST(WaitingClientTest, GetsThroughWhereConnectionsBreakAtOnceForAWhile) {
  ServerProcess server;
  CuttingProxy proxy(server.address());
  proxy.BreakNext(kFailures);
  PatientCall call(proxy.address());
  EXPECT_EQ(call.Result(), absl::OkStatus());
  EXPECT_EQ(proxy.LeftToBreak(), 0);
}

TEST(WaitingClientTest, GetsThroughToANameThatResolvesLater) {
  ServerProcess server;
  std::deque<std::string> answers(kFailures, "");
  answers.push_back("127.0.0.1");
  NameServer names(answers);
  PatientCall call(names.TargetWithPort(PortOf(server.address())));
  EXPECT_THAT(std::string(call.AwaitWait().message()), HasSubstr("DNS resolution failed for server.adamant.test"));
  EXPECT_EQ(call.Result(), absl::OkStatus());
  EXPECT_EQ(names.LeftToAnswer(), 0);
}

TEST(WaitingClientTest, GetsThroughToAServerThatMovesToAnotherAddress) {
  ServerProcess server;
  NameServer names({"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"});
  PatientCall call(names.TargetWithPort(PortOf(server.address())));
  EXPECT_THAT(std::string(call.AwaitWait().message()), HasSubstr("127.0.0.2"));
  EXPECT_EQ(call.Result(), absl::OkStatus());
}

TEST(ProxyTest, ClientReachesItsOwnMachineWithoutTheProxyOfTheEnvironment) {
  ServerProcess server;
  const BoundSocket dead_proxy;
  const ProxyEnvironment environment(dead_proxy.address());
  const std::string port = PortOf(server.address());
  for (const char* host : {"127.0.0.1", "localhost", "dns:///localhost", "ipv4:127.0.0.1"}) {
    EXPECT_EQ(Client::Connect(absl::StrCat(host, ":", port))->GetServerInfo().status(), absl::OkStatus()) << host;
  }
}

TEST(ProxyTest, ClientReachesOtherMachinesThroughTheProxyOfTheEnvironment) {
  BoundSocket proxy;
  proxy.Listen();
  const ProxyEnvironment environment(proxy.address());
  ClientOptions options;
  options.connect_timeout = absl::Seconds(1);
  EXPECT_FALSE(Client::Connect("elsewhere.test:50051", options)->GetServerInfo().ok());
  EXPECT_THAT(proxy.Received(), StartsWith("CONNECT elsewhere.test:50051 "));
}

struct CutCase {
  const char* name;
  CuttingProxy::Direction direction;
};

class CutTest : public testing::TestWithParam<CutCase> {
 protected:
  // Cuts a step of `trainer` behind each of `positions`.
  void StepThroughCuts(const v1::ParameterSetSpec& spec, const std::vector<int64_t>& positions,
                       const StepOptions& options = {}) {
    ServerProcess server;
    CuttingProxy proxy(server.address());
    Trainer trainer(*ConnectImpatiently(proxy.address()), spec);
    trainer.options() = options;
    int happened = 0;
    for (const int64_t bytes : positions) {
      proxy.CutAfter(GetParam().direction, bytes);
      trainer.ExpectStep();
      if (testing::Test::HasFailure()) {
        std::cout << "the cut was behind byte " << bytes << "\n";
        return;
      }
      happened += !proxy.Disarm();
    }
    EXPECT_GT(happened, static_cast<int>(positions.size()) / 2) << "the positions lie behind the step's end";
    // Directly, and so without what the proxy may do.
    trainer.ExpectSameState();
    const absl::StatusOr<v1::ParameterSet> set = Client::Connect(server.address())->GetParameterSet(spec.name());
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->step(), static_cast<int64_t>(positions.size()));
  }
};

INSTANTIATE_TEST_SUITE_P(Each, CutTest,
                         testing::Values(CutCase{"Up", CuttingProxy::Direction::kUp},
                                         CutCase{"Down", CuttingProxy::Direction::kDown}),
                         [](const auto& info) { return info.param.name; });

TEST_P(CutTest, SmallStepIsAppliedOnceWhereverTheConnectionBreaks) {
  std::vector<int64_t> positions;
  for (int64_t bytes = 0; bytes < 300; bytes += 5) positions.push_back(bytes);
  StepThroughCuts(SmallSpec(), positions);
}

TEST_P(CutTest, StepOfSomeTensorsInSixteenBitsIsAppliedOnceWhereverTheConnectionBreaks) {
  std::vector<int64_t> positions;
  for (int64_t bytes = 0; bytes < 200; bytes += 10) positions.push_back(bytes);
  const StepOptions options = {
      .tensors = {0, 2}, .grad_scale = 0.5, .gradient_dtype = v1::DTYPE_BFLOAT16, .reply_dtype = v1::DTYPE_FLOAT16};
  StepThroughCuts(SmallSpec(), positions, options);
}

TEST_P(CutTest, LargeStepIsAppliedOnceWhereverTheConnectionBreaks) {
  std::vector<int64_t> positions = {0, 1, 9, 100, 1000, 10000, 65536};
  for (int64_t bytes = 100000; bytes < 1300000; bytes += 100000) positions.push_back(bytes);
  StepThroughCuts(LargeSpec(), positions);
}

}  // namespace
}  // namespace adamant::e2e
