// A connection for tests of programs that use the client: no server, every answer the test's.
//
//   auto connection = std::make_shared<adamant::mocks::MockConnection>();
//   EXPECT_CALL(*connection, GetParameterSet).WillOnce(Return(response));
//   adamant::Client client(connection);
#ifndef ADAMANT_MOCKS_MOCK_CONNECTION_H_
#define ADAMANT_MOCKS_MOCK_CONNECTION_H_

#include <gmock/gmock.h>

#include <memory>
#include <optional>

#include "adamant/connection.h"

namespace adamant::mocks {

class MockConnection : public Connection {
 public:
  MOCK_METHOD(absl::StatusOr<v1::CreateParameterSetResponse>, CreateParameterSet,
              (const v1::CreateParameterSetRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::GetParameterSetResponse>, GetParameterSet, (const v1::GetParameterSetRequest& request),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::ListParameterSetsResponse>, ListParameterSets,
              (const v1::ListParameterSetsRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::ListTensorsResponse>, ListTensors, (const v1::ListTensorsRequest& request),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::DeleteParameterSetResponse>, DeleteParameterSet,
              (const v1::DeleteParameterSetRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::AddTensorsResponse>, AddTensors, (const v1::AddTensorsRequest&), (override));
  MOCK_METHOD(absl::StatusOr<v1::UpdateParameterGroupResponse>, UpdateParameterGroup,
              (const v1::UpdateParameterGroupRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::UpdateParameterSetResponse>, UpdateParameterSet,
              (const v1::UpdateParameterSetRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::CheckpointResponse>, Checkpoint, (const v1::CheckpointRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::ListCheckpointsResponse>, ListCheckpoints, (const v1::ListCheckpointsRequest& request),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::RestoreCheckpointResponse>, RestoreCheckpoint,
              (const v1::RestoreCheckpointRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::ForkResponse>, Fork, (const v1::ForkRequest& request), (override));
  MOCK_METHOD(absl::StatusOr<v1::GetStepResultResponse>, GetStepResult, (const v1::GetStepResultRequest& request),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::GetServerInfoResponse>, GetServerInfo, (const v1::GetServerInfoRequest& request),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::StepResult>, Step, (const StepCall& call), (override));
  MOCK_METHOD(absl::StatusOr<v1::WriteTensorsResponse>, Write, (const WriteCall& call), (override));
  MOCK_METHOD(absl::StatusOr<v1::ReadHeader>, Read, (const ReadCall& call), (override));
  MOCK_METHOD(absl::StatusOr<std::unique_ptr<EventStream>>, Watch, (const v1::WatchParameterSetRequest& request),
              (override));
};

class MockEventStream : public EventStream {
 public:
  MOCK_METHOD(absl::StatusOr<std::optional<v1::WatchParameterSetResponse>>, Next, (), (override));
  MOCK_METHOD(void, Cancel, (), (override));
};

}  // namespace adamant::mocks

#endif  // ADAMANT_MOCKS_MOCK_CONNECTION_H_
