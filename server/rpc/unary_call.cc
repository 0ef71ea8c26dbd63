#include "server/rpc/unary_call.h"

#include <grpcpp/support/slice.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#include "server/core/memory/budget.h"

namespace adamant::rpc {

namespace {

// The largest reply: a page of tensors or sets is 1 MiB and one entry.
constexpr int64_t kMaxReplyBytes = int64_t{3} << 19;

// `reply` with what pays for it and for its call, until gRPC has let go of it: a client that reads nothing may keep
// both there for long.
grpc::ByteBuffer Charged(const grpc::ByteBuffer& reply, core::Grant charge) {
  struct Held {
    grpc::Slice bytes;
    core::Grant charge;
  };
  auto* const held = new Held{{}, std::move(charge)};
  if (!reply.TrySingleSlice(&held->bytes).ok() && !reply.DumpToSingleSlice(&held->bytes).ok()) std::abort();
  const grpc::Slice slice(
      const_cast<uint8_t*>(held->bytes.begin()), held->bytes.size(),
      [](void* held) { delete static_cast<Held*>(held); }, held);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

UnaryCall::UnaryCall(Handler handler, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context)
    : Call(open_calls, context, CallShape::kOnce), handler_(std::move(handler)) {}

void UnaryCall::OnMessage(const grpc::ByteBuffer& buffer) {
  // It is not over before it is answered, even if its client is gone: the server is not taken down under a handler.
  if (!Enter()) return;
  // Its request is whole: what that may still grow to is for others, but for the reply.
  ShrinkCharge(static_cast<int64_t>(buffer.Length()) + kMaxReplyBytes);
  handler_(buffer,
           [self = std::static_pointer_cast<UnaryCall>(shared_from_this())](absl::StatusOr<grpc::ByteBuffer> response) {
             if (response.ok()) {
               const auto bytes = static_cast<int64_t>(response->Length()) + kIdleCallBytes;
               self->Write(Charged(*response, self->TakeCharge(bytes)));
             } else {
               self->End(response.status());
             }
             self->Leave();
           });
}

void UnaryCall::OnWritten() { End(absl::OkStatus()); }

}  // namespace adamant::rpc
