// Step and StepOnce: gradients in, parameters out.
#ifndef ADAMANT_SERVER_RPC_STEP_CALL_H_
#define ADAMANT_SERVER_RPC_STEP_CALL_H_

#include <memory>
#include <optional>
#include <string>

#include "adamant/v1/step.pb.h"
#include "proto/wire/tensor_cutter.h"
#include "proto/wire/tensor_message.h"
#include "proto/wire/tensor_message_builder.h"
#include "server/core/registry.h"
#include "server/core/set/parameter_set.h"
#include "server/core/set/step_attempt.h"
#include "server/rpc/upload_call.h"

namespace adamant::rpc {

// One call, any number of steps, one after the other: reads one, lets it take its turn, writes its reply. The reply of
// a large step begins while its later blocks are computed; what was sent of it counts only with the result, in its last
// message.
class StepCall final : public UploadCall<core::StepAttempt, core::StepReply> {
 public:
  StepCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context,
           CallShape shape);

 private:
  void OnOpen() override;
  absl::StatusOr<std::shared_ptr<core::StepAttempt>> NewAttempt(const v1::StepHeader& header) override;
  absl::Status EndBetweenUploads() const override { return absl::OkStatus(); }
  void OnComputed(const core::StepAttempt* attempt, const std::shared_ptr<const core::StepParameters>& parameters,
                  int64_t blocks) override;
  void OnReply(core::StepReply reply) override;
  void OnWritten() override;

  absl::StatusOr<std::shared_ptr<core::ParameterSet>> FindSet(const std::string& name);
  // Begins a reply with `parameters`, if it has not begun.
  void BeginReply(const std::shared_ptr<const core::StepParameters>& parameters)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(reply_mutex_);
  // Writes the reply's next message, if there is one to write and no other is under way.
  void WriteNext();
  // Tells the cutter what may be sent. Returns whether that makes a message: all, with the result; or what is computed,
  // if it is enough.
  bool FindAvailable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reply_mutex_);
  // Fills a message with what may be sent. For who has set `writing_`.
  void AddElements(const core::StepParameters& parameters, wire::TensorMessageBuilder* builder);
  // Adds chunks of the reply's rows to it, as many as it has room for. Returns whether those are the last. For the
  // same.
  bool AddRows(const core::StepParameters& parameters, wire::TensorMessageBuilder* builder);
  int64_t MessageLimit() const;

  core::Registry* const registry_;

  // Of the handlers, which run one at a time.
  // That the last step was for. Weak: a stream may be idle for long, and would keep a deleted set's memory.
  std::weak_ptr<core::ParameterSet> set_;

  core::Mutex reply_mutex_;
  // The step whose blocks may be sent as they are computed: until its outcome is known.
  const core::StepAttempt* computing_ ABSL_GUARDED_BY(reply_mutex_) = nullptr;
  // The reply under way.
  std::shared_ptr<const core::StepParameters> parameters_ ABSL_GUARDED_BY(reply_mutex_);
  int64_t computed_ ABSL_GUARDED_BY(reply_mutex_) = 0;                           // flat elements, from the first on
  v1::Dtype reply_dtype_ ABSL_GUARDED_BY(reply_mutex_) = v1::DTYPE_UNSPECIFIED;  // of the step under way
  std::optional<v1::StepResult> result_ ABSL_GUARDED_BY(reply_mutex_);
  bool writing_ ABSL_GUARDED_BY(reply_mutex_) = false;

  // Of the reply under way: of who has set `writing_`, or holds the mutex while nobody has.
  std::optional<wire::TensorCutter> cutter_;
  size_t next_row_ = 0;     // of `parameters_->rows`; sent when `cutter_` is done
  int64_t overflowed_ = 0;  // elements sent that are infinite for lack of room
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_STEP_CALL_H_
