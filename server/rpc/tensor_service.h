// The methods that move tensors, by name: Step, StepOnce, WriteTensors, WriteTensorsOnce and ReadTensors.
#ifndef ADAMANT_SERVER_RPC_TENSOR_SERVICE_H_
#define ADAMANT_SERVER_RPC_TENSOR_SERVICE_H_

#include <grpcpp/generic/async_generic_service.h>

#include "server/core/registry.h"
#include "server/rpc/open_calls.h"

namespace adamant::rpc {

// Gets every call that no registered method takes. Thread-safe.
class TensorService final : public grpc::CallbackGenericService {
 public:
  // Both outlive the service.
  TensorService(core::Registry* registry, OpenCalls* open_calls) : registry_(registry), open_calls_(open_calls) {}

  // UNIMPLEMENTED for a method that is none of these.
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  core::Registry* const registry_;
  OpenCalls* const open_calls_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_TENSOR_SERVICE_H_
