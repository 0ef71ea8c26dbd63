// ReadTensors: parameters, or the whole state, out.
#ifndef ADAMANT_SERVER_RPC_READ_CALL_H_
#define ADAMANT_SERVER_RPC_READ_CALL_H_

#include <memory>
#include <optional>

#include "adamant/v1/service.pb.h"
#include "proto/wire/tensor_cutter.h"
#include "proto/wire/tensor_message.h"
#include "server/core/registry.h"
#include "server/core/set/reading.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// One read: reads one message, and writes any number.
class ReadCall final : public Call {
 public:
  ReadCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context);

 private:
  void OnMessage(const grpc::ByteBuffer& buffer) override;
  void OnWritten() override;

  absl::Status Begin(const grpc::ByteBuffer& buffer);
  void Begun(absl::StatusOr<std::unique_ptr<core::Reading>> reading);
  void WriteNext();

  core::Registry* const registry_;

  // Of the handlers, which run one at a time.
  wire::ChunkForm form_ = wire::ChunkForm::kData;
  std::shared_ptr<const core::Reading> reading_;
  bool header_sent_ = false;
  size_t slot_ = 0;                           // that is being sent
  std::optional<wire::TensorCutter> cutter_;  // of that slot; none before it begins
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_READ_CALL_H_
