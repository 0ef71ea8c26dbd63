#include "tests/e2e/surviving_client.h"

#include <gtest/gtest.h>

#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"

namespace adamant::e2e {

bool IsRefusedByDisk(const absl::Status& status) {
  return absl::IsResourceExhausted(status) && ReasonOf(status) == v1::ERROR_REASON_DISK_EXHAUSTED &&
         GetRetryDelay(status).has_value();
}

v1::ParameterSetSpec SurvivingSpec(int number) {
  const std::string name = absl::StrCat("set-", number);
  v1::ParameterSetSpec spec = SmallSpec(name);
  if (number % 3 == 1) {
    spec.mutable_tensors(0)->set_shape(0, 4096);
    spec.mutable_tensors(0)->set_shape(1, 1);
  }
  if (number % 4 == 3) spec = LargeSpec(name);
  if (number % 2 == 1) spec.set_max_staleness(64);
  for (v1::ParameterGroup& group : *spec.mutable_groups()) {
    if (number % 3 == 2) group.mutable_sgd()->set_momentum(0.9);
    if (number % 4 == 0 && !group.has_sgd()) group.mutable_adam()->set_amsgrad(true);
  }
  spec.mutable_durability()->mutable_every_step()->set_journal_steps(2 + number);
  return spec;
}

void SurvivingClient::Begin(TestClient* client) {
  const absl::StatusOr<v1::CreateParameterSetResponse> created = client->Create(spec_);
  ASSERT_TRUE(created.ok()) << created.status();
  incarnation_ = created->parameter_set().incarnation();
}

void SurvivingClient::Run() {
  Walk();
  // A client that has failed lets the others go.
  if (testing::Test::HasFailure()) meeting_->Stop();
}

void SurvivingClient::CheckSet(TestClient* client) {
  const absl::StatusOr<SetState> state = client->ReadState(spec_);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_TRUE(state->arrays == model_.arrays()) << spec_.name() << " at step " << model_.arrays().step;
  EXPECT_EQ(state->description.step(), model_.arrays().step);
  EXPECT_EQ(state->description.incarnation(), incarnation_);
  EXPECT_EQ(state->description.statistics().applied(), model_.arrays().step);
  EXPECT_FALSE(state->description.has_restored_from());
}

void SurvivingClient::Walk() {
  std::optional<Meeting::Server> server = meeting_->AwaitAfter(0);
  while (server.has_value()) {
    TestClient client(server->address);
    // What was sent to the server before is known here, or was never heard of.
    if (RunOn(&client) == End::kOver) return;
    server = meeting_->AwaitAfter(server->life);
  }
}

SurvivingClient::End SurvivingClient::RunOn(TestClient* client) {
  while (true) {
    StepStream stream(client->stub());
    const End end = RunOn(client, &stream);
    if (end != End::kRefused) return end;
  }
}

SurvivingClient::End SurvivingClient::RunOn(TestClient* client, StepStream* stream) {
  while (under_way_ || !meeting_->stopped()) {
    if (!under_way_) Prepare();
    // Every other retry asks before it sends the gradient again.
    if (attempt_ > 0 && random_() % 2 == 0) {
      const absl::StatusOr<v1::GetStepResultResponse> known = client->GetStepResult(spec_.name(), header_.request_id());
      if (!known.ok()) return Broken(known.status());
      if (known->state() == v1::STEP_STATE_COMMITTED) {
        ++tally_->resolved;
        if (!Take(known->result())) return End::kOver;
        continue;
      }
      EXPECT_EQ(known->state(), v1::STEP_STATE_UNKNOWN);
    }
    header_.set_attempt(++attempt_);
    if (!stream->Send(StepMessages(header_, Only(Chunks(spec_, gradient_, 65521), Brought())))) {
      return Broken(stream->Finish());
    }
    std::vector<int64_t> sizes = TensorSizes(spec_);
    const std::vector<int32_t> brought = Brought();
    for (int32_t i = 0; i < static_cast<int32_t>(sizes.size()); ++i) {
      if (!absl::c_linear_search(brought, i)) sizes[i] = 0;
    }
    const absl::StatusOr<StepReply> reply = stream->ReadReply(sizes);
    if (!reply.ok()) return Broken(reply.status());
    if (reply->result.replayed()) ++tally_->replayed;
    if (reply->result.replayed() && attempt_ == 1) ADD_FAILURE() << "a first attempt was replayed";
    if (!Take(reply->result)) return End::kOver;
    if (!SameBits(reply->parameters, Parameters(sizes))) {
      ADD_FAILURE() << spec_.name() << ": other bits at step " << model_.arrays().step;
      return End::kOver;
    }
    EXPECT_EQ(reply->result.durable_step(), reply->result.step());
    meeting_->CountReply();
  }
  return End::kOver;
}

void SurvivingClient::Prepare() {
  const int64_t step = model_.arrays().step;
  gradient_ = Gradient(model_.parameter_count(), random_());
  header_ = StepHeader(spec_.name(), absl::StrCat("step ", step));
  header_.set_incarnation(incarnation_);
  if (spec_.max_staleness() > 0) {
    // Two of the same would both be applied.
    header_.set_base_step(step);
  } else {
    header_.set_expected_step(step);
  }
  if (random_() % 4 == 0) header_.add_tensors(static_cast<int32_t>(random_() % spec_.tensors_size()));
  attempt_ = 0;
  under_way_ = true;
}

std::vector<int32_t> SurvivingClient::Brought() const {
  std::vector<int32_t> brought;
  for (int32_t i = 0; i < spec_.tensors_size(); ++i) {
    if (model_.IsBrought(i, header_)) brought.push_back(i);
  }
  return brought;
}

Values SurvivingClient::Parameters(const std::vector<int64_t>& sizes) const {
  Values brought;
  auto next = model_.arrays().parameters.begin();
  const std::vector<int64_t> all = TensorSizes(spec_);
  for (size_t i = 0; i < all.size(); ++i) {
    brought.insert(brought.end(), next, next + sizes[i]);
    next += all[i];
  }
  return brought;
}

bool SurvivingClient::Take(const v1::StepResult& result) {
  EXPECT_EQ(result.grad_norm(), model_.GradNorm(gradient_, header_));
  model_.Apply(gradient_, header_);
  under_way_ = false;
  ++tally_->steps;
  EXPECT_EQ(result.outcome(), v1::STEP_OUTCOME_APPLIED);
  EXPECT_EQ(result.step(), model_.arrays().step) << spec_.name();
  EXPECT_EQ(result.incarnation(), incarnation_);
  EXPECT_EQ(result.staleness(), 0);
  return !testing::Test::HasFailure();
}

SurvivingClient::End SurvivingClient::Broken(const absl::Status& status) {
  if (disk_may_be_full_ && IsRefusedByDisk(status)) {
    ++tally_->refused;
    meeting_->CountRefusal();
    return End::kRefused;
  }
  ++tally_->broken;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << spec_.name() << ": " << status;
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_UNSPECIFIED) << spec_.name() << ": " << status;
  return testing::Test::HasFailure() ? End::kOver : End::kServer;
}

}  // namespace adamant::e2e
