// WriteTensors and WriteTensorsOnce: parameters, or the whole state, in.
#ifndef ADAMANT_SERVER_RPC_WRITE_CALL_H_
#define ADAMANT_SERVER_RPC_WRITE_CALL_H_

#include <memory>

#include "adamant/v1/service.pb.h"
#include "proto/wire/tensor_message.h"
#include "server/core/registry.h"
#include "server/core/set/write_attempt.h"
#include "server/rpc/upload_call.h"

namespace adamant::rpc {

// One write: reads its messages, and writes one.
class WriteCall final : public UploadCall<core::WriteAttempt, v1::WriteTensorsResponse> {
 public:
  WriteCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context,
            CallShape shape);

 private:
  absl::StatusOr<std::shared_ptr<core::WriteAttempt>> NewAttempt(const v1::WriteHeader& header) override;
  absl::Status EndBetweenUploads() const override { return EndedEarly(); }
  void OnReply(v1::WriteTensorsResponse response) override;
  void OnWritten() override;

  core::Registry* const registry_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_WRITE_CALL_H_
