// What each call of the client asks of its connection: also how a program's own tests would use the mock.
#include "adamant/client.h"

#include <memory>
#include <optional>
#include <vector>

#include "adamant/error.h"
#include "adamant/mocks/mock_connection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"

namespace adamant {
namespace {

using ::testing::ElementsAre;
using ::testing::Property;
using ::testing::Return;

class ClientTest : public ::testing::Test {
 protected:
  const std::shared_ptr<::testing::StrictMock<mocks::MockConnection>> connection_ =
      std::make_shared<::testing::StrictMock<mocks::MockConnection>>();
  Client client_{connection_};
  std::vector<float> elements_ = {1, 2, 3};
  const std::vector<absl::Span<const float>> const_spans_ = {elements_};
  const std::vector<absl::Span<float>> mutable_spans_ = {absl::MakeSpan(elements_)};
};

TEST_F(ClientTest, CreateSendsTheSpecification) {
  v1::ParameterSetSpec spec;
  spec.set_name("mlp");
  EXPECT_CALL(*connection_, CreateParameterSet).WillOnce([](const v1::CreateParameterSetRequest& request) {
    EXPECT_EQ(request.spec().name(), "mlp");
    EXPECT_EQ(request.if_exists(), v1::IF_EXISTS_USE_IF_SAME_SPEC);
    v1::CreateParameterSetResponse response;
    response.set_created(true);
    return response;
  });
  const auto response = client_.CreateParameterSet(spec, v1::IF_EXISTS_USE_IF_SAME_SPEC);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(response->created());
}

TEST_F(ClientTest, ErrorComesWithItsReason) {
  EXPECT_CALL(*connection_, GetParameterSet)
      .WillOnce(Return(Error(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND, "no set mlp")));
  const absl::Status status = client_.GetParameterSet("mlp").status();
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_SET_NOT_FOUND);
  EXPECT_EQ(GetRetryDelay(status), std::nullopt);
}

TEST_F(ClientTest, ListsAllSetsPageByPageAndOverEmptyOnes) {
  v1::ListParameterSetsResponse first;
  first.add_parameter_sets()->set_name("a/1");
  first.set_next_page_token("more");
  v1::ListParameterSetsResponse empty;
  empty.set_next_page_token("yet more");
  v1::ListParameterSetsResponse last;
  last.add_parameter_sets()->set_name("a/2");
  EXPECT_CALL(*connection_, ListParameterSets(Property(&v1::ListParameterSetsRequest::page_token, "")))
      .WillOnce(Return(first));
  EXPECT_CALL(*connection_, ListParameterSets(Property(&v1::ListParameterSetsRequest::page_token, "more")))
      .WillOnce(Return(empty));
  EXPECT_CALL(*connection_, ListParameterSets(Property(&v1::ListParameterSetsRequest::page_token, "yet more")))
      .WillOnce(Return(last));

  const absl::StatusOr<std::vector<v1::ParameterSet>> sets = client_.ListAllParameterSets("a/");

  ASSERT_TRUE(sets.ok()) << sets.status();
  EXPECT_THAT(*sets, ElementsAre(Property(&v1::ParameterSet::name, "a/1"), Property(&v1::ParameterSet::name, "a/2")));
}

TEST_F(ClientTest, DeleteNamesTheIncarnation) {
  EXPECT_CALL(*connection_, DeleteParameterSet).WillOnce([](const v1::DeleteParameterSetRequest& request) {
    EXPECT_EQ(request.name(), "mlp");
    EXPECT_EQ(request.incarnation(), 7);
    return v1::DeleteParameterSetResponse();
  });
  EXPECT_TRUE(client_.DeleteParameterSet("mlp", 7).ok());
}

TEST_F(ClientTest, AddTensorsBringsTensorsAndTheirGroups) {
  v1::TensorSpec tensor;
  tensor.set_name("head");
  v1::ParameterGroup group;
  group.set_name("new");
  EXPECT_CALL(*connection_, AddTensors).WillOnce([](const v1::AddTensorsRequest& request) {
    EXPECT_EQ(request.set(), "mlp");
    EXPECT_EQ(request.tensors(0).name(), "head");
    EXPECT_EQ(request.groups(0).name(), "new");
    v1::AddTensorsResponse response;
    response.mutable_parameter_set()->set_tensor_count(5);
    return response;
  });
  EXPECT_EQ(client_.AddTensors("mlp", {tensor}, {group})->tensor_count(), 5);
}

TEST_F(ClientTest, UpdateOfAGroupNamesItsFieldsAndWhatItDemands) {
  v1::ParameterGroup group;
  group.set_name("slow");
  group.set_learning_rate(0.5);
  EXPECT_CALL(*connection_, UpdateParameterGroup).WillOnce([](const v1::UpdateParameterGroupRequest& request) {
    EXPECT_EQ(request.set(), "mlp");
    EXPECT_EQ(request.group().name(), "slow");
    EXPECT_EQ(request.group().learning_rate(), 0.5);
    EXPECT_THAT(request.update_mask().paths(), ElementsAre("learning_rate", "frozen"));
    EXPECT_EQ(request.incarnation(), 7);
    EXPECT_EQ(request.config_revision(), 3);
    v1::UpdateParameterGroupResponse response;
    response.mutable_parameter_set()->set_config_revision(4);
    return response;
  });

  const absl::StatusOr<v1::ParameterSet> set =
      client_.UpdateParameterGroup("mlp", group, {"learning_rate", "frozen"}, {.incarnation = 7, .config_revision = 3});

  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->config_revision(), 4);
}

TEST_F(ClientTest, UpdateOfASetDemandsNothingUnlessItIsTold) {
  v1::ParameterSetSpec values;
  values.set_name("mlp");
  values.mutable_clipping()->set_max_norm(1);
  EXPECT_CALL(*connection_, UpdateParameterSet).WillOnce([](const v1::UpdateParameterSetRequest& request) {
    EXPECT_EQ(request.spec().name(), "mlp");
    EXPECT_EQ(request.spec().clipping().max_norm(), 1);
    EXPECT_THAT(request.update_mask().paths(), ElementsAre("clipping"));
    EXPECT_FALSE(request.has_incarnation());
    EXPECT_FALSE(request.has_config_revision());
    return v1::UpdateParameterSetResponse();
  });
  EXPECT_TRUE(client_.UpdateParameterSet(values, {"clipping"}).ok());
}

TEST_F(ClientTest, CheckpointNamesTheSetAndGivesWhatWasMade) {
  EXPECT_CALL(*connection_, Checkpoint).WillOnce([](const v1::CheckpointRequest& request) {
    EXPECT_EQ(request.set(), "mlp");
    EXPECT_EQ(request.incarnation(), 7);
    v1::CheckpointResponse response;
    response.mutable_checkpoint()->set_step(3);
    return response;
  });
  EXPECT_EQ(client_.Checkpoint("mlp", 7)->step(), 3);
}

TEST_F(ClientTest, ListsCheckpointsInTheServersOrder) {
  EXPECT_CALL(*connection_, ListCheckpoints(Property(&v1::ListCheckpointsRequest::set, "mlp")))
      .WillOnce([](const v1::ListCheckpointsRequest&) {
        v1::ListCheckpointsResponse response;
        response.add_checkpoints()->set_step(9);
        response.add_checkpoints()->set_step(3);
        return response;
      });
  EXPECT_THAT(*client_.ListCheckpoints("mlp"),
              ElementsAre(Property(&v1::Checkpoint::step, 9), Property(&v1::Checkpoint::step, 3)));
}

TEST_F(ClientTest, RestoreNamesTheCheckpointByItsState) {
  v1::Checkpoint checkpoint;
  checkpoint.set_incarnation(5);
  checkpoint.set_step(3);
  EXPECT_CALL(*connection_, RestoreCheckpoint).WillOnce([](const v1::RestoreCheckpointRequest& request) {
    EXPECT_EQ(request.set(), "mlp");
    EXPECT_EQ(request.incarnation(), 7);
    EXPECT_EQ(request.checkpoint_incarnation(), 5);
    EXPECT_EQ(request.checkpoint_step(), 3);
    v1::RestoreCheckpointResponse response;
    response.mutable_parameter_set()->set_step(3);
    return response;
  });
  EXPECT_EQ(client_.RestoreCheckpoint("mlp", checkpoint, 7)->step(), 3);
}

TEST_F(ClientTest, ForkNamesBothSetsAndWhatTheNewOneIsToDifferIn) {
  v1::Durability durability;
  durability.mutable_every_step()->set_journal_steps(4);
  EXPECT_CALL(*connection_, Fork).WillOnce([](const v1::ForkRequest& request) {
    EXPECT_EQ(request.set(), "mlp");
    EXPECT_EQ(request.name(), "copy");
    EXPECT_EQ(request.incarnation(), 7);
    EXPECT_EQ(request.device(), "cuda:1");
    EXPECT_EQ(request.durability().every_step().journal_steps(), 4);
    v1::ForkResponse response;
    response.mutable_parameter_set()->set_name("copy");
    return response;
  });
  EXPECT_EQ(client_.Fork("mlp", "copy", {.incarnation = 7, .device = "cuda:1", .durability = durability})->name(),
            "copy");
}

TEST_F(ClientTest, ForkDemandsNothingUnlessItIsTold) {
  EXPECT_CALL(*connection_, Fork).WillOnce([](const v1::ForkRequest& request) {
    EXPECT_FALSE(request.has_incarnation());
    EXPECT_EQ(request.device(), "");
    EXPECT_FALSE(request.has_durability());
    return v1::ForkResponse();
  });
  EXPECT_TRUE(client_.Fork("mlp", "copy").ok());
}

TEST_F(ClientTest, WatchNamesTheSetAndGivesItsEvents) {
  EXPECT_CALL(*connection_, Watch).WillOnce([](const v1::WatchParameterSetRequest& request) {
    EXPECT_EQ(request.name(), "mlp");
    auto events = std::make_unique<::testing::StrictMock<mocks::MockEventStream>>();
    EXPECT_CALL(*events, Next).WillOnce(Return(std::nullopt));
    return events;
  });
  const absl::StatusOr<std::unique_ptr<EventStream>> events = client_.Watch("mlp");
  ASSERT_TRUE(events.ok()) << events.status();
  EXPECT_EQ((*events)->Next()->has_value(), false);
}

TEST_F(ClientTest, GetStepResultNamesTheRequest) {
  EXPECT_CALL(*connection_, GetStepResult).WillOnce([](const v1::GetStepResultRequest& request) {
    EXPECT_EQ(request.set(), "mlp");
    EXPECT_EQ(request.request_id(), "mine");
    return v1::GetStepResultResponse();
  });
  EXPECT_TRUE(client_.GetStepResult("mlp", "mine").ok());
}

TEST_F(ClientTest, WriteParametersReplacesOneSlot) {
  EXPECT_CALL(*connection_, Write).WillOnce([this](const WriteCall& call) {
    EXPECT_EQ(call.header.set(), "mlp");
    EXPECT_EQ(call.header.mode(), v1::WRITE_MODE_PARAMETERS);
    EXPECT_EQ(call.header.incarnation(), 7);
    EXPECT_EQ(call.header.request_id(), "mine");
    EXPECT_FALSE(call.header.has_step());
    EXPECT_EQ(call.sources.size(), 1);
    EXPECT_EQ(call.sources[0].slot, v1::SLOT_PARAMETER);
    EXPECT_EQ(call.sources[0].tensors[0].data(), elements_.data());
    return v1::WriteTensorsResponse();
  });
  EXPECT_TRUE(client_.WriteParameters("mlp", const_spans_, {.incarnation = 7, .request_id = "mine"}).ok());
}

TEST_F(ClientTest, WriteOfSomeTensorsNamesThemAndSendsNoOthers) {
  const std::vector<absl::Span<const float>> spans = {elements_, {}, elements_};
  EXPECT_CALL(*connection_, Write).WillOnce([this](const WriteCall& call) {
    EXPECT_THAT(call.header.tensors(), ElementsAre(2));
    EXPECT_EQ(call.sources[0].tensors.size(), 3);
    EXPECT_TRUE(call.sources[0].tensors[0].empty());
    EXPECT_EQ(call.sources[0].tensors[2].data(), elements_.data());
    return v1::WriteTensorsResponse();
  });
  EXPECT_TRUE(client_.WriteParameters("mlp", spans, {.tensors = {2}}).ok());
  EXPECT_EQ(client_.WriteParameters("mlp", spans, {.tensors = {3}}).status(),
            absl::InvalidArgumentError("tensors: expected indices of spans, below 3, got 3"));
}

TEST_F(ClientTest, StateHasTheArraysThatAreGiven) {
  const std::vector<int64_t> counts = {3};
  EXPECT_CALL(*connection_, Write).WillOnce([](const WriteCall& call) {
    EXPECT_THAT(call.header.update_counts(), ElementsAre(3));
    EXPECT_EQ(call.sources.size(), 2);
    EXPECT_EQ(call.sources[1].slot, v1::SLOT_MOMENTUM_BUFFER);
    return v1::WriteTensorsResponse();
  });
  EXPECT_CALL(*connection_, Read).WillOnce([](const ReadCall& call) {
    EXPECT_EQ(call.targets.size(), 4);
    EXPECT_EQ(call.targets[3].slot, v1::SLOT_MAX_EXP_AVG_SQ);
    return v1::ReadHeader();
  });
  const ConstState sgd = {
      .step = 4, .update_counts = counts, .parameters = const_spans_, .momentum_buffer = const_spans_};
  const MutableState amsgrad = {.parameters = mutable_spans_,
                                .exp_avg = mutable_spans_,
                                .exp_avg_sq = mutable_spans_,
                                .max_exp_avg_sq = mutable_spans_};
  EXPECT_TRUE(client_.WriteState("mlp", sgd).ok());
  EXPECT_TRUE(client_.ReadState("mlp", amsgrad).ok());
}

TEST(OptimizerSlotsTest, AreThoseOfAllGroups) {
  v1::ParameterSet set;
  set.add_groups()->mutable_sgd();
  EXPECT_THAT(OptimizerSlots(set), ElementsAre());
  set.add_groups()->mutable_sgd()->set_momentum(0.9);
  EXPECT_THAT(OptimizerSlots(set), ElementsAre(v1::SLOT_MOMENTUM_BUFFER));
  set.add_groups()->mutable_adam();
  EXPECT_THAT(OptimizerSlots(set), ElementsAre(v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ, v1::SLOT_MOMENTUM_BUFFER));
  set.add_groups()->mutable_adam()->set_amsgrad(true);
  EXPECT_THAT(OptimizerSlots(set),
              ElementsAre(v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ, v1::SLOT_MAX_EXP_AVG_SQ, v1::SLOT_MOMENTUM_BUFFER));
}

TEST_F(ClientTest, WriteStateReplacesEverySlotAndTheStep) {
  EXPECT_CALL(*connection_, Write).WillOnce([](const WriteCall& call) {
    EXPECT_EQ(call.header.mode(), v1::WRITE_MODE_FULL);
    EXPECT_EQ(call.header.step(), 40);
    EXPECT_FALSE(call.header.has_incarnation());
    EXPECT_EQ(call.sources.size(), 3);
    EXPECT_EQ(call.sources[1].slot, v1::SLOT_EXP_AVG);
    EXPECT_EQ(call.sources[2].slot, v1::SLOT_EXP_AVG_SQ);
    return v1::WriteTensorsResponse();
  });
  const ConstState state = {
      .step = 40, .parameters = const_spans_, .exp_avg = const_spans_, .exp_avg_sq = const_spans_};
  EXPECT_TRUE(client_.WriteState("mlp", state).ok());
}

TEST_F(ClientTest, ReadParametersPassesItsOptionsOn) {
  EXPECT_CALL(*connection_, Read).WillOnce([this](const ReadCall& call) {
    EXPECT_EQ(call.request.set(), "mlp");
    EXPECT_EQ(call.request.incarnation(), 7);
    EXPECT_EQ(call.request.if_newer_than_step(), 3);
    EXPECT_TRUE(call.request.may_abort());
    EXPECT_EQ(call.targets.size(), 1);
    EXPECT_EQ(call.targets[0].tensors[0].data(), elements_.data());
    return v1::ReadHeader();
  });
  EXPECT_TRUE(
      client_.ReadParameters("mlp", mutable_spans_, {.incarnation = 7, .if_newer_than_step = 3, .may_abort = true})
          .ok());
}

TEST_F(ClientTest, ReadParametersOfSomeTensorsAsksForThoseAlone) {
  const std::vector<absl::Span<float>> spans(3, absl::MakeSpan(elements_));
  EXPECT_CALL(*connection_, Read).WillOnce([](const ReadCall& call) {
    EXPECT_THAT(call.request.tensors(), ElementsAre(1));
    EXPECT_EQ(call.targets[0].tensors.size(), 3);
    EXPECT_TRUE(call.targets[0].tensors[0].empty());
    EXPECT_EQ(call.targets[0].tensors[1].size(), 3);
    EXPECT_TRUE(call.targets[0].tensors[2].empty());
    call.progress(3, 3);
    return v1::ReadHeader();
  });
  bool told = false;
  EXPECT_TRUE(
      client_.ReadParameters("mlp", spans, {.tensors = {1}, .progress = [&](int64_t, int64_t) { told = true; }}).ok());
  EXPECT_TRUE(told);
  EXPECT_EQ(client_.ReadParameters("mlp", spans, {.tensors = {3}}).status(),
            absl::InvalidArgumentError("tensors: expected indices of spans, below 3, got 3"));
}

TEST_F(ClientTest, ReadStateAsksForEverySlot) {
  EXPECT_CALL(*connection_, Read).WillOnce([](const ReadCall& call) {
    EXPECT_FALSE(call.request.has_incarnation());
    EXPECT_FALSE(call.request.has_if_newer_than_step());
    EXPECT_EQ(call.targets.size(), 3);
    EXPECT_EQ(call.targets[1].slot, v1::SLOT_EXP_AVG);
    EXPECT_EQ(call.targets[2].slot, v1::SLOT_EXP_AVG_SQ);
    return v1::ReadHeader();
  });
  const MutableState state = {.parameters = mutable_spans_, .exp_avg = mutable_spans_, .exp_avg_sq = mutable_spans_};
  EXPECT_TRUE(client_.ReadState("mlp", state).ok());
}

TEST_F(ClientTest, CopiesShareTheConnection) {
  EXPECT_CALL(*connection_, GetServerInfo).Times(2).WillRepeatedly(Return(v1::GetServerInfoResponse()));
  Client copy = client_;
  EXPECT_TRUE(copy.GetServerInfo().ok());
  EXPECT_TRUE(client_.GetServerInfo().ok());
}

TEST(ConnectTest, RefusesOptionsOutOfRange) {
  EXPECT_EQ(Client::Connect("localhost:1", {.step_timeout = absl::ZeroDuration()}).status(),
            absl::InvalidArgumentError("step_timeout is out of its range"));
}

}  // namespace
}  // namespace adamant
