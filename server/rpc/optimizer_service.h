// The methods that move no tensors: decode, call, convert.
#ifndef ADAMANT_SERVER_RPC_OPTIMIZER_SERVICE_H_
#define ADAMANT_SERVER_RPC_OPTIMIZER_SERVICE_H_

#include <vector>

#include "adamant/v1/service.grpc.pb.h"
#include "server/core/backend.h"
#include "server/core/budget.h"
#include "server/core/compute_pool.h"
#include "server/core/registry.h"
#include "server/rpc/open_calls.h"

namespace adamant::rpc {

// The generated service with its callback methods, and with the methods of TensorService left to that.
using OptimizerServiceBase = v1::OptimizerService::WithGenericMethod_Step<
    v1::OptimizerService::WithGenericMethod_StepOnce<v1::OptimizerService::WithGenericMethod_WriteTensors<
        v1::OptimizerService::WithGenericMethod_WriteTensorsOnce<v1::OptimizerService::WithGenericMethod_ReadTensors<
            v1::OptimizerService::WithCallbackMethod_CreateParameterSet<
                v1::OptimizerService::WithCallbackMethod_GetParameterSet<
                    v1::OptimizerService::WithCallbackMethod_ListParameterSets<
                        v1::OptimizerService::WithCallbackMethod_ListTensors<
                            v1::OptimizerService::WithCallbackMethod_DeleteParameterSet<
                                v1::OptimizerService::WithCallbackMethod_GetStepResult<
                                    v1::OptimizerService::WithCallbackMethod_GetServerInfo<
                                        v1::OptimizerService::Service>>>>>>>>>>>>;

// Thread-safe.
class OptimizerService final : public OptimizerServiceBase {
 public:
  // What it shows and calls; all of it outlives the service.
  struct Parts {
    core::Registry* registry;
    core::ComputePool* compute;
    core::ComputePool* creation;  // one thread that makes the sets, one after the other
    core::Backend* backend;
    OpenCalls* open_calls;
    std::vector<const core::Budget*> budgets;
    int max_streams;
  };

  explicit OptimizerService(Parts parts);

  grpc::ServerUnaryReactor* CreateParameterSet(grpc::CallbackServerContext* context,
                                               const v1::CreateParameterSetRequest* request,
                                               v1::CreateParameterSetResponse* response) override;
  grpc::ServerUnaryReactor* GetParameterSet(grpc::CallbackServerContext* context,
                                            const v1::GetParameterSetRequest* request,
                                            v1::GetParameterSetResponse* response) override;
  grpc::ServerUnaryReactor* ListParameterSets(grpc::CallbackServerContext* context,
                                              const v1::ListParameterSetsRequest* request,
                                              v1::ListParameterSetsResponse* response) override;
  grpc::ServerUnaryReactor* ListTensors(grpc::CallbackServerContext* context, const v1::ListTensorsRequest* request,
                                        v1::ListTensorsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteParameterSet(grpc::CallbackServerContext* context,
                                               const v1::DeleteParameterSetRequest* request,
                                               v1::DeleteParameterSetResponse* response) override;
  grpc::ServerUnaryReactor* GetStepResult(grpc::CallbackServerContext* context, const v1::GetStepResultRequest* request,
                                          v1::GetStepResultResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

 private:
  // UNAVAILABLE (DRAINING), or INVALID_ARGUMENT (UNKNOWN_FIELD): what this version does not know may be a condition.
  absl::Status CheckRequest(const google::protobuf::Message& request) const;
  // Answers a call with `response = call()`, or with its error.
  template <typename Response, typename Call>
  void Answer(grpc::ServerUnaryReactor* reactor, const google::protobuf::Message& request, Response* response,
              Call call) const;
  // The same at once, for a handler to return.
  template <typename Response, typename Call>
  grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const google::protobuf::Message& request,
                                  Response* response, Call call) const;

  const Parts parts_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_OPTIMIZER_SERVICE_H_
