// The methods that move no tensors: decode, call, convert.
#ifndef ADAMANT_SERVER_RPC_OPTIMIZER_SERVICE_H_
#define ADAMANT_SERVER_RPC_OPTIMIZER_SERVICE_H_

#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "adamant/v1/service.pb.h"
#include "server/core/base/compute_pool.h"
#include "server/core/memory/budget.h"
#include "server/core/registry.h"
#include "server/rpc/unary_call.h"

namespace adamant::rpc {

// What GetServerInfo says of the server's limits, beside those of the protocol. Units as in ServerLimits.
struct ServiceLimits {
  int max_streams;
  int max_waiting_calls;
  int max_connections;
  int max_calls_per_connection;
  int64_t max_metadata_bytes;
  absl::Duration patience;
  double min_rate;
  absl::Duration think_time;
  absl::Duration admission_wait;
};

// Thread-safe.
class OptimizerService {
 public:
  // What it shows and calls; all of it outlives the service.
  struct Parts {
    core::Registry* registry;
    core::ComputePool* compute;
    core::ComputePool* creation;  // one thread that makes sets, and has them grow, one after the other
    std::vector<const core::Budget*> budgets;
    ServiceLimits limits;
  };

  explicit OptimizerService(Parts parts);

  // What answers a call of `method`, such as `GetServerInfo`; null if it is none of these. The service outlives it.
  UnaryCall::Handler FindHandler(absl::string_view method);

 private:
  template <typename Response>
  using Answer = absl::AnyInvocable<void(absl::StatusOr<Response>)>;

  // A handler that decodes, calls `function`, and encodes.
  template <typename Request, typename Response>
  UnaryCall::Handler Handle(void (OptimizerService::*function)(const Request&, Answer<Response>));

  // `handler`, run on the thread that makes the sets.
  UnaryCall::Handler OnCreationThread(UnaryCall::Handler handler);

  void AddTensors(const v1::AddTensorsRequest& request, Answer<v1::AddTensorsResponse> answer);
  void CreateParameterSet(const v1::CreateParameterSetRequest& request, Answer<v1::CreateParameterSetResponse> answer);
  void GetParameterSet(const v1::GetParameterSetRequest& request, Answer<v1::GetParameterSetResponse> answer);
  void ListParameterSets(const v1::ListParameterSetsRequest& request, Answer<v1::ListParameterSetsResponse> answer);
  void ListTensors(const v1::ListTensorsRequest& request, Answer<v1::ListTensorsResponse> answer);
  void UpdateParameterGroup(const v1::UpdateParameterGroupRequest& request,
                            Answer<v1::UpdateParameterGroupResponse> answer);
  void UpdateParameterSet(const v1::UpdateParameterSetRequest& request, Answer<v1::UpdateParameterSetResponse> answer);
  void DeleteParameterSet(const v1::DeleteParameterSetRequest& request, Answer<v1::DeleteParameterSetResponse> answer);
  void Checkpoint(const v1::CheckpointRequest& request, Answer<v1::CheckpointResponse> answer);
  void ListCheckpoints(const v1::ListCheckpointsRequest& request, Answer<v1::ListCheckpointsResponse> answer);
  void RestoreCheckpoint(const v1::RestoreCheckpointRequest& request, Answer<v1::RestoreCheckpointResponse> answer);
  void Fork(const v1::ForkRequest& request, Answer<v1::ForkResponse> answer);
  void GetStepResult(const v1::GetStepResultRequest& request, Answer<v1::GetStepResultResponse> answer);
  void GetServerInfo(const v1::GetServerInfoRequest& request, Answer<v1::GetServerInfoResponse> answer);

  const Parts parts_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_OPTIMIZER_SERVICE_H_
