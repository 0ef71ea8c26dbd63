// WriteTensors and WriteTensorsOnce: parameters, or the whole state, in.
#ifndef ADAMANT_SERVER_RPC_WRITE_CALL_H_
#define ADAMANT_SERVER_RPC_WRITE_CALL_H_

#include <memory>

#include "absl/types/optional.h"
#include "adamant/v1/service.pb.h"
#include "proto/wire/tensor_message.h"
#include "server/core/mutex.h"
#include "server/core/registry.h"
#include "server/core/write_attempt.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// One write: reads its messages, and writes one.
class WriteCall final : public Call, public core::WriteListener {
 public:
  WriteCall(core::Registry* registry, OpenCalls* open_calls, grpc::CallbackServerContext* context, CallShape shape);

 private:
  void OnOpen() override;
  void OnMessage(grpc::ByteBuffer buffer) override;
  void OnHalfClose() override;
  void OnWritten() override;
  void OnOver() override;

  void OnAdmitted() override;
  void OnOutcome(absl::StatusOr<v1::WriteTensorsResponse> response) override;

  absl::Status Begin(wire::TensorMessage message);
  void Take(core::WriteAttempt* attempt, wire::TensorMessage message);

  core::Registry* const registry_;
  const CallShape shape_;

  core::Mutex write_mutex_;
  std::shared_ptr<core::WriteAttempt> attempt_ ABSL_GUARDED_BY(write_mutex_);
  // The first message, until the write is admitted.
  absl::optional<wire::TensorMessage> message_ ABSL_GUARDED_BY(write_mutex_);
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_WRITE_CALL_H_
