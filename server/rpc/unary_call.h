// The calls that move no tensors: one message in, one message out.
#ifndef ADAMANT_SERVER_RPC_UNARY_CALL_H_
#define ADAMANT_SERVER_RPC_UNARY_CALL_H_

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

class UnaryCall final : public Call {
 public:
  // Takes the answer, or what is wrong, once and from any thread.
  using Done = absl::AnyInvocable<void(absl::StatusOr<grpc::ByteBuffer>)>;
  // Answers a request; calls `done` once, perhaps before it returns. Called once.
  using Handler = absl::AnyInvocable<void(const grpc::ByteBuffer& request, Done done)>;

  UnaryCall(Handler handler, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context);

 private:
  void OnMessage(const grpc::ByteBuffer& buffer) override;
  void OnWritten() override;

  Handler handler_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_UNARY_CALL_H_
