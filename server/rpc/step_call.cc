#include "server/rpc/step_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_message_builder.h"

namespace adamant::rpc {

StepCall::StepCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context,
                   CallShape shape)
    : UploadCall("step",
                 shape == CallShape::kOnce ? v1::StepOnceRequest::descriptor()->full_name()
                                           : v1::StepRequest::descriptor()->full_name(),
                 open_calls, context, shape),
      registry_(registry) {}

void StepCall::OnOpen() {
  // Of a unary call the whole is one operation; a stream may stay idle between two steps for as long as it likes.
  if (shape() == CallShape::kOnce) {
    BeginOperation({.bytes = wire::kMaxMessageBytes});
  } else {
    EndOperation();
  }
  Read();
}

absl::StatusOr<std::shared_ptr<core::StepAttempt>> StepCall::NewAttempt(const v1::StepHeader& header) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = FindSet(header.set());
  if (!set.ok()) return set.status();
  const int64_t array_bytes = (*set)->schema().flat_size() * static_cast<int64_t>(sizeof(float));
  if (shape() == CallShape::kOnce && array_bytes > core::kSmallStepBytes) {
    v1::ErrorDetail detail;
    detail.set_reason(v1::ERROR_REASON_TOO_LARGE);
    detail.set_set(header.set());
    return Error(absl::StatusCode::kFailedPrecondition,
                 absl::StrCat(header.set(), ": the reply takes ", array_bytes, " bytes, and StepOnce sends at most ",
                              core::kSmallStepBytes, "; use Step"),
                 detail);
  }
  if (shape() == CallShape::kStream) {
    BeginOperation({.bytes = 2 * array_bytes, .may_think = true, .holds_memory = array_bytes > core::kSmallStepBytes});
  }
  return (*set)->NewStep(header, std::static_pointer_cast<StepCall>(shared_from_this()));
}

absl::StatusOr<std::shared_ptr<core::ParameterSet>> StepCall::FindSet(const std::string& name) {
  // The registry's mutex is shared by all sets, and most streams are for one.
  std::shared_ptr<core::ParameterSet> set = set_.lock();
  if (set != nullptr && set->name() == name && !set->deleted()) return set;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> found = registry_->Find(name, "header.set");
  if (found.ok()) set_ = *found;
  return found;
}

void StepCall::OnReply(core::StepReply reply) {
  reply_ = std::make_shared<const core::StepReply>(std::move(reply));
  cutter_.emplace(reply_->schema->sizes(), v1::SLOT_UNSPECIFIED, form());
  WriteNext();
}

void StepCall::WriteNext() {
  wire::TensorMessageBuilder builder(reply_);
  const core::StepReply& reply = *reply_;
  const auto source = [&reply](int32_t tensor, int64_t begin, int64_t end, wire::TensorMessageBuilder* to) {
    const int64_t base = reply.schema->tensors()[tensor].begin;
    core::ForEachRun(base + begin, base + end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
      to->AddElements(reply.snapshot->blocks()[block].data() + run_begin, run_end - run_begin);
    });
    return true;
  };
  // One message for a unary call: NewAttempt saw to it that everything fits.
  cutter_->Fill(shape() == CallShape::kOnce ? wire::kMaxMessageBytes : wire::kMessageBytes, source, &builder);
  if (cutter_->done()) {
    builder.SetHeader(reply.result);
    reply_.reset();  // its memory returns when gRPC has let go of it
  }
  Write(builder.Finish());
}

void StepCall::OnWritten() {
  if (!cutter_->done()) {
    WriteNext();
    return;
  }
  if (shape() == CallShape::kOnce) {
    End(absl::OkStatus());
    return;
  }
  EndOperation();
  Read();
}

}  // namespace adamant::rpc
