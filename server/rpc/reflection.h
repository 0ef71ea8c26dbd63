// grpc.reflection.v1.ServerReflection: what the server offers, for grpcurl and its kind. Like all other calls, and not
// by gRPC's own service: that has a thread for every call, and no bound to what their requests hold.
#ifndef ADAMANT_SERVER_RPC_REFLECTION_H_
#define ADAMANT_SERVER_RPC_REFLECTION_H_

#include "grpc/reflection/v1/reflection.pb.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// The answer to one request: from the definitions that are linked into this program. Thread-safe.
::grpc::reflection::v1::ServerReflectionResponse Reflect(
    const ::grpc::reflection::v1::ServerReflectionRequest& request);

// Answers one request after the other. A client that is silent between two for longer than its patience is ended.
class ReflectionCall final : public Call {
 public:
  ReflectionCall(OpenCalls* open_calls, grpc::GenericCallbackServerContext* context)
      : Call(open_calls, context, CallShape::kStream) {}

 private:
  void OnOpen() override;
  void OnMessage(const grpc::ByteBuffer& buffer) override;
  void OnHalfClose() override;
  void OnWritten() override;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_REFLECTION_H_
