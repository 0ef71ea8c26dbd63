// Step and StepOnce: gradients in, parameters out.
#ifndef ADAMANT_SERVER_RPC_STEP_CALL_H_
#define ADAMANT_SERVER_RPC_STEP_CALL_H_

#include <memory>
#include <string>

#include "absl/types/optional.h"
#include "adamant/v1/step.pb.h"
#include "proto/wire/tensor_message.h"
#include "server/core/mutex.h"
#include "server/core/parameter_set.h"
#include "server/core/registry.h"
#include "server/core/step_attempt.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// One call, any number of steps, one after the other. A step goes through the states in order.
class StepCall final : public Call, public core::StepListener {
 public:
  StepCall(core::Registry* registry, OpenCalls* open_calls, grpc::CallbackServerContext* context, CallShape shape);

 private:
  enum class State {
    kIdle,       // reading: the first message of a step, or the end of the stream
    kAdmitting,  // the set decides; the first message waits in message_
    kArriving,   // reading: the rest of the step
    kTurn,       // the step is complete
    kReplying,   // writing
  };

  void OnOpen() override;
  void OnMessage(grpc::ByteBuffer buffer) override;
  void OnHalfClose() override;
  void OnWritten() override;
  void OnOver() override;

  void OnAdmitted() override;
  void OnOutcome(absl::StatusOr<core::StepReply> reply) override;

  absl::Status Begin(wire::TensorMessage message);
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> FindSet(const std::string& name);
  void Take(core::StepAttempt* attempt, wire::TensorMessage message);
  void WriteNext();

  core::Registry* const registry_;
  const CallShape shape_;

  // Of the handlers, which run one at a time.
  // That the last step was for. Weak: a stream may be idle for long, and would keep a deleted set's memory.
  std::weak_ptr<core::ParameterSet> set_;
  absl::optional<wire::ChunkForm> form_;  // of the step's first chunk
  std::shared_ptr<const core::StepReply> reply_;
  absl::optional<wire::TensorCutter> cutter_;

  core::Mutex step_mutex_;
  State state_ ABSL_GUARDED_BY(step_mutex_) = State::kIdle;
  std::shared_ptr<core::StepAttempt> attempt_ ABSL_GUARDED_BY(step_mutex_);
  absl::optional<wire::TensorMessage> message_ ABSL_GUARDED_BY(step_mutex_);
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_STEP_CALL_H_
