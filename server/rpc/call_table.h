// Every method, by name, and what makes its calls.
#ifndef ADAMANT_SERVER_RPC_CALL_TABLE_H_
#define ADAMANT_SERVER_RPC_CALL_TABLE_H_

#include <grpcpp/generic/async_generic_service.h>

#include "adamant/v1/service.grpc.pb.h"
#include "server/core/registry.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/optimizer_service.h"

namespace adamant::rpc {

using RegisteredMethodsBase = v1::OptimizerService::WithRawCallbackMethod_Step<
    v1::OptimizerService::WithGenericMethod_CreateParameterSet<v1::OptimizerService::WithGenericMethod_GetParameterSet<
        v1::OptimizerService::WithGenericMethod_ListParameterSets<v1::OptimizerService::WithGenericMethod_ListTensors<
            v1::OptimizerService::WithGenericMethod_DeleteParameterSet<
                v1::OptimizerService::WithGenericMethod_WriteTensors<
                    v1::OptimizerService::WithGenericMethod_WriteTensorsOnce<
                        v1::OptimizerService::WithGenericMethod_ReadTensors<
                            v1::OptimizerService::WithGenericMethod_StepOnce<
                                v1::OptimizerService::WithGenericMethod_GetStepResult<
                                    v1::OptimizerService::WithGenericMethod_GetServerInfo<
                                        v1::OptimizerService::Service>>>>>>>>>>>>;

// What gRPC is told of: Step, whose messages it does not read ahead. For reflection it has to know of one method at
// least; all others come to the CallTable. Thread-safe.
class RegisteredMethods final : public RegisteredMethodsBase {
 public:
  // Both outlive this.
  RegisteredMethods(core::Registry* registry, OpenCalls* tensor_calls)
      : registry_(registry), tensor_calls_(tensor_calls) {}

  grpc::ServerGenericBidiReactor* Step(grpc::CallbackServerContext* context) override;

 private:
  core::Registry* const registry_;
  OpenCalls* const tensor_calls_;
};

// Every method but Step. Thread-safe.
class CallTable final : public grpc::CallbackGenericService {
 public:
  // The calls that move tensors, and the others, have slots of their own: clients that fill the ones still get an
  // answer from the others. Everything outlives the table.
  CallTable(core::Registry* registry, OptimizerService* service, OpenCalls* tensor_calls, OpenCalls* unary_calls)
      : registry_(registry), service_(service), tensor_calls_(tensor_calls), unary_calls_(unary_calls) {}

  // UNIMPLEMENTED for a method that there is not.
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  core::Registry* const registry_;
  OptimizerService* const service_;
  OpenCalls* const tensor_calls_;
  OpenCalls* const unary_calls_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_CALL_TABLE_H_
