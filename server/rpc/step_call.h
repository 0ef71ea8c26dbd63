// Step and StepOnce: gradients in, parameters out.
#ifndef ADAMANT_SERVER_RPC_STEP_CALL_H_
#define ADAMANT_SERVER_RPC_STEP_CALL_H_

#include <memory>
#include <string>

#include "absl/types/optional.h"
#include "adamant/v1/step.pb.h"
#include "proto/wire/tensor_cutter.h"
#include "proto/wire/tensor_message.h"
#include "server/core/parameter_set.h"
#include "server/core/registry.h"
#include "server/core/step_attempt.h"
#include "server/rpc/upload_call.h"

namespace adamant::rpc {

// One call, any number of steps, one after the other: reads one, lets it take its turn, writes its reply.
class StepCall final : public UploadCall<core::StepAttempt, core::StepReply> {
 public:
  StepCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context,
           CallShape shape);

 private:
  void OnOpen() override;
  absl::StatusOr<std::shared_ptr<core::StepAttempt>> NewAttempt(const v1::StepHeader& header) override;
  absl::Status EndBetweenUploads() const override { return absl::OkStatus(); }
  void OnReply(core::StepReply reply) override;
  void OnWritten() override;

  absl::StatusOr<std::shared_ptr<core::ParameterSet>> FindSet(const std::string& name);
  void WriteNext();

  core::Registry* const registry_;

  // Of the handlers, which run one at a time.
  // That the last step was for. Weak: a stream may be idle for long, and would keep a deleted set's memory.
  std::weak_ptr<core::ParameterSet> set_;
  std::shared_ptr<const core::StepReply> reply_;
  absl::optional<wire::TensorCutter> cutter_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_STEP_CALL_H_
