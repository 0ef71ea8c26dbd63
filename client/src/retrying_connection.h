// The real connection: every call's attempts over a stub.
//
// Thread-safe.
#ifndef ADAMANT_CLIENT_SRC_RETRYING_CONNECTION_H_
#define ADAMANT_CLIENT_SRC_RETRYING_CONNECTION_H_

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "adamant/connection.h"
#include "adamant/options.h"
#include "client/src/attempts.h"
#include "client/src/stub.h"

namespace adamant {

class RetryingConnection : public Connection {
 public:
  // `options` are valid. What is empty in them is replaced by the real thing.
  RetryingConnection(std::unique_ptr<Stub> stub, const ClientOptions& options);

  absl::StatusOr<v1::CreateParameterSetResponse> CreateParameterSet(
      const v1::CreateParameterSetRequest& request) override;
  absl::StatusOr<v1::GetParameterSetResponse> GetParameterSet(const v1::GetParameterSetRequest& request) override;
  absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(const v1::ListParameterSetsRequest& request) override;
  absl::StatusOr<v1::ListTensorsResponse> ListTensors(const v1::ListTensorsRequest& request) override;
  absl::StatusOr<v1::DeleteParameterSetResponse> DeleteParameterSet(
      const v1::DeleteParameterSetRequest& request) override;
  absl::StatusOr<v1::AddTensorsResponse> AddTensors(const v1::AddTensorsRequest& request) override;
  absl::StatusOr<v1::UpdateParameterGroupResponse> UpdateParameterGroup(
      const v1::UpdateParameterGroupRequest& request) override;
  absl::StatusOr<v1::UpdateParameterSetResponse> UpdateParameterSet(
      const v1::UpdateParameterSetRequest& request) override;
  absl::StatusOr<v1::CheckpointResponse> Checkpoint(const v1::CheckpointRequest& request) override;
  absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const v1::ListCheckpointsRequest& request) override;
  absl::StatusOr<v1::RestoreCheckpointResponse> RestoreCheckpoint(const v1::RestoreCheckpointRequest& request) override;
  absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request) override;
  absl::StatusOr<v1::GetStepResultResponse> GetStepResult(const v1::GetStepResultRequest& request) override;
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const v1::GetServerInfoRequest& request) override;

  absl::StatusOr<v1::StepResult> Step(const StepCall& call) override;
  absl::StatusOr<v1::WriteTensorsResponse> Write(const WriteCall& call) override;
  absl::StatusOr<v1::ReadHeader> Read(const ReadCall& call) override;
  absl::StatusOr<std::unique_ptr<EventStream>> Watch(const v1::WatchParameterSetRequest& request) override;

 private:
  // Makes attempts, each over a connection, until one succeeds, or fails for good.
  template <typename Attempt>
  auto Repeat(Attempt attempt) -> decltype(attempt(std::declval<const Attempts&>()));
  // Waits until there is a connection. On error the call has waited for as long as it may.
  absl::Status AwaitConnection(const Attempts& attempts);

  // One attempt each, within the time that `attempts` leaves.
  absl::StatusOr<v1::StepResult> TryStep(const StepCall& call, const v1::StepHeader& header, const Attempts& attempts);
  // The two ways in which a step's attempt can go: the gradient is sent, or, the step being known to be committed with
  // `result`, only the parameters are read.
  absl::StatusOr<v1::StepResult> Exchange(const StepCall& call, const v1::StepHeader& header, const Attempts& attempts);
  absl::StatusOr<v1::StepResult> Fetch(const StepCall& call, v1::StepResult result, const Attempts& attempts);
  absl::StatusOr<v1::WriteTensorsResponse> TryWrite(const WriteCall& call, const v1::WriteHeader& header,
                                                    const Attempts& attempts);
  absl::StatusOr<v1::ReadHeader> TryRead(const ReadCall& call, const Attempts& attempts);
  absl::StatusOr<std::unique_ptr<EventStream>> TryWatch(const v1::WatchParameterSetRequest& request,
                                                        const Attempts& attempts);

  // The first of these, on the stream that it is given.
  absl::StatusOr<v1::StepResult> ExchangeOn(std::unique_ptr<ByteStream> stream, const StepCall& call,
                                            const v1::StepHeader& header, const Attempts& attempts);

  // A Step call that waits for its next step; null if there is none.
  std::unique_ptr<ByteStream> TakeIdleStepStream();
  void KeepStepStream(std::unique_ptr<ByteStream> stream);

  const std::unique_ptr<Stub> stub_;
  const ClientOptions options_;

  std::mutex mutex_;
  // Step calls between two steps: as many as steps were under way at the same time. Guarded by `mutex_`.
  std::vector<std::unique_ptr<ByteStream>> idle_;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_RETRYING_CONNECTION_H_
