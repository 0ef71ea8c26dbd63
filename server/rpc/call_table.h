// Every method, by name, and what makes its calls.
#ifndef ADAMANT_SERVER_RPC_CALL_TABLE_H_
#define ADAMANT_SERVER_RPC_CALL_TABLE_H_

#include <grpcpp/generic/async_generic_service.h>

#include <memory>

#include "absl/strings/string_view.h"
#include "server/core/registry.h"
#include "server/rpc/call.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/optimizer_service.h"

namespace adamant::rpc {

// All that gRPC is told of. Thread-safe.
class CallTable final : public grpc::CallbackGenericService {
 public:
  // Kinds of calls have slots of their own: clients that fill the ones still get an answer from the others. Everything
  // outlives the table.
  struct Slots {
    OpenCalls* tensors;
    OpenCalls* unary;  // those that move no tensors
    OpenCalls* health_checks;
    OpenCalls* health_watches;
    OpenCalls* reflections;
  };
  CallTable(core::Registry* registry, OptimizerService* service, Slots slots)
      : registry_(registry), service_(service), slots_(slots) {}

  // UNIMPLEMENTED for a method that there is not.
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  // Null for a method that there is not.
  std::shared_ptr<Call> MakeCall(grpc::GenericCallbackServerContext* context);
  std::shared_ptr<Call> MakeOptimizerCall(absl::string_view method, grpc::GenericCallbackServerContext* context);
  std::shared_ptr<Call> MakeHealthCall(absl::string_view method, grpc::GenericCallbackServerContext* context);

  core::Registry* const registry_;
  OptimizerService* const service_;
  const Slots slots_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_CALL_TABLE_H_
