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
  // Each kind of calls has places of its own: clients that fill the ones still get an answer from the others. What
  // decides the kind is what a request and its reply may hold. Everything outlives the table.
  struct Kinds {
    OpenCalls* tensors;
    OpenCalls* creations;  // large requests
    OpenCalls* pages;      // small requests, large replies
    OpenCalls* small;      // small requests, small replies
    OpenCalls* set_watches;
    OpenCalls* health_checks;
    OpenCalls* health_watches;
    OpenCalls* reflections;
  };
  CallTable(core::Registry* registry, OptimizerService* service, Kinds kinds)
      : registry_(registry), service_(service), kinds_(kinds) {}

  // UNIMPLEMENTED for a method that there is not.
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  // Null for a method that there is not.
  std::shared_ptr<Call> MakeCall(grpc::GenericCallbackServerContext* context);
  std::shared_ptr<Call> MakeOptimizerCall(absl::string_view method, grpc::GenericCallbackServerContext* context);
  // Of the methods of OptimizerService that move no tensors.
  OpenCalls* KindOf(absl::string_view method) const;
  std::shared_ptr<Call> MakeHealthCall(absl::string_view method, grpc::GenericCallbackServerContext* context);

  core::Registry* const registry_;
  OptimizerService* const service_;
  const Kinds kinds_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_CALL_TABLE_H_
