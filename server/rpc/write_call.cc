#include "server/rpc/write_call.h"

#include "server/core/set/parameter_set.h"

namespace adamant::rpc {

WriteCall::WriteCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context,
                     CallShape shape)
    : UploadCall("write",
                 shape == CallShape::kOnce ? v1::WriteTensorsOnceRequest::descriptor()->full_name()
                                           : v1::WriteTensorsRequest::descriptor()->full_name(),
                 open_calls, context, shape),
      registry_(registry) {}

absl::StatusOr<std::shared_ptr<core::WriteAttempt>> WriteCall::NewAttempt(const v1::WriteHeader& header) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = registry_->Find(header.set(), "header.set");
  if (!set.ok()) return set.status();
  const int64_t arrays = header.mode() == v1::WRITE_MODE_FULL ? 3 : 1;
  const int64_t array_bytes = (*set)->schema().flat_size() * static_cast<int64_t>(sizeof(float));
  BeginOperation({.bytes = arrays * array_bytes,
                  // Nobody can use the set while a full write is under way.
                  .may_think = shape() == CallShape::kStream && header.mode() != v1::WRITE_MODE_FULL,
                  .holds_memory = array_bytes > core::kSmallStepBytes});
  return (*set)->NewWrite(header, std::static_pointer_cast<WriteCall>(shared_from_this()));
}

// WriteTensorsOnceResponse has the same fields.
void WriteCall::OnReply(v1::WriteTensorsResponse response) { Write(Serialize(response)); }

void WriteCall::OnWritten() { End(absl::OkStatus()); }

}  // namespace adamant::rpc
