#include "server/rpc/unary_call.h"

#include <memory>
#include <utility>

namespace adamant::rpc {

UnaryCall::UnaryCall(Handler handler, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context)
    : Call(open_calls, context, CallShape::kOnce), handler_(std::move(handler)) {}

void UnaryCall::OnMessage(const grpc::ByteBuffer& buffer) {
  // It is not over before it is answered, even if its client is gone: the server is not taken down under a handler.
  if (!Enter()) return;
  // Its request is whole: what it may still grow to is for others.
  ShrinkCharge(static_cast<int64_t>(buffer.Length()));
  handler_(buffer,
           [self = std::static_pointer_cast<UnaryCall>(shared_from_this())](absl::StatusOr<grpc::ByteBuffer> response) {
             if (response.ok()) {
               self->Write(*std::move(response));
             } else {
               self->End(response.status());
             }
             self->Leave();
           });
}

void UnaryCall::OnWritten() { End(absl::OkStatus()); }

}  // namespace adamant::rpc
