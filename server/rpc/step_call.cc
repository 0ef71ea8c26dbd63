#include "server/rpc/step_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::rpc {
namespace {

absl::Status UnexpectedMessage(absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNEXPECTED_MESSAGE, message);
}

}  // namespace

StepCall::StepCall(core::Registry* registry, OpenCalls* open_calls, grpc::CallbackServerContext* context,
                   CallShape shape)
    : Call(open_calls, context), registry_(registry), shape_(shape) {}

void StepCall::OnOpen() {
  // Of a unary call the whole is one operation; a stream may stay idle between two steps for as long as it likes.
  if (shape_ == CallShape::kOnce) BeginOperation(wire::kMaxMessageBytes);
  Read();
}

void StepCall::OnMessage(grpc::ByteBuffer buffer) {
  absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(buffer);
  buffer.Clear();
  if (!message.ok()) {
    End(message.status());
    return;
  }
  std::shared_ptr<core::StepAttempt> attempt;
  {
    core::MutexLock lock(&step_mutex_);
    attempt = attempt_;
  }
  if (attempt == nullptr) {
    if (absl::Status status = Begin(*std::move(message)); !status.ok()) End(status);
  } else if (message->has_header()) {
    End(UnexpectedMessage("a header before the last message of the step"));
  } else {
    Take(attempt.get(), *std::move(message));
  }
}

void StepCall::OnHalfClose() {
  bool idle;
  {
    core::MutexLock lock(&step_mutex_);
    idle = state_ == State::kIdle;
  }
  if (shape_ == CallShape::kOnce) {
    End(UnexpectedMessage("the call has no message"));
  } else {
    End(idle ? absl::OkStatus() : UnexpectedMessage("the stream ended before the last message of the step"));
  }
}

absl::Status StepCall::Begin(wire::TensorMessage message) {
  if (!message.has_header()) return UnexpectedMessage("the first message of a step has no header");
  v1::StepHeader header;
  if (absl::Status status = message.ParseHeader(&header); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = FindSet(header.set());
  if (!set.ok()) return set.status();
  const int64_t array_bytes = (*set)->schema().flat_size() * static_cast<int64_t>(sizeof(float));
  if (shape_ == CallShape::kOnce && array_bytes > core::kSmallStepBytes) {
    v1::ErrorDetail detail;
    detail.set_reason(v1::ERROR_REASON_TOO_LARGE);
    detail.set_set(header.set());
    return Error(absl::StatusCode::kFailedPrecondition,
                 absl::StrCat(header.set(), ": the reply takes ", array_bytes, " bytes, and StepOnce sends at most ",
                              core::kSmallStepBytes, "; use Step"),
                 detail);
  }
  if (shape_ == CallShape::kStream) BeginOperation(2 * array_bytes);
  form_.reset();
  std::shared_ptr<core::StepAttempt> attempt =
      (*set)->NewStep(header, std::static_pointer_cast<StepCall>(shared_from_this()));
  {
    core::MutexLock lock(&step_mutex_);
    if (ended()) return absl::OkStatus();
    state_ = State::kAdmitting;
    attempt_ = attempt;
    message_ = std::move(message);
  }
  attempt->Start();
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<core::ParameterSet>> StepCall::FindSet(const std::string& name) {
  // The registry's mutex is shared by all sets, and most streams are for one.
  std::shared_ptr<core::ParameterSet> set = set_.lock();
  if (set != nullptr && set->name() == name && !set->deleted()) return set;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> found = registry_->Find(name, "header.set");
  if (found.ok()) set_ = *found;
  return found;
}

void StepCall::OnAdmitted() {
  std::shared_ptr<core::StepAttempt> attempt;
  absl::optional<wire::TensorMessage> message;
  {
    core::MutexLock lock(&step_mutex_);
    if (attempt_ == nullptr) return;
    state_ = State::kArriving;
    attempt = attempt_;
    message = std::exchange(message_, absl::nullopt);
  }
  Take(attempt.get(), *std::move(message));
}

void StepCall::Take(core::StepAttempt* attempt, wire::TensorMessage message) {
  for (wire::TensorMessage::Chunk& chunk : message.chunks()) {
    if (!form_.has_value()) form_ = chunk.form();
    absl::Status status = attempt->Add(chunk.slot(), chunk.tensor(), chunk.offset(), chunk.count(),
                                       [&chunk](float* to, int64_t n) { chunk.Read(to, n); });
    if (!status.ok()) {
      End(status);
      return;
    }
  }
  if (!message.last() && shape_ == CallShape::kStream) {
    Read();
    return;
  }
  {
    core::MutexLock lock(&step_mutex_);
    state_ = State::kTurn;
  }
  if (absl::Status status = attempt->Complete(); !status.ok()) End(status);
}

void StepCall::OnOutcome(absl::StatusOr<core::StepReply> reply) {
  if (!reply.ok()) {
    End(reply.status());
    return;
  }
  {
    core::MutexLock lock(&step_mutex_);
    state_ = State::kReplying;
    attempt_.reset();
  }
  reply_ = std::make_shared<const core::StepReply>(*std::move(reply));
  cutter_.emplace(reply_->schema->sizes(), v1::SLOT_UNSPECIFIED, form_.value_or(wire::ChunkForm::kData));
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
  // One message for a unary call: Begin saw to it that everything fits.
  cutter_->Fill(shape_ == CallShape::kOnce ? wire::kMaxMessageBytes : wire::kMessageBytes, source, &builder);
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
  if (shape_ == CallShape::kOnce) {
    End(absl::OkStatus());
    return;
  }
  {
    core::MutexLock lock(&step_mutex_);
    state_ = State::kIdle;
  }
  EndOperation();
  Read();
}

void StepCall::OnOver() {
  std::shared_ptr<core::StepAttempt> attempt;
  absl::optional<wire::TensorMessage> message;
  {
    core::MutexLock lock(&step_mutex_);
    attempt = std::exchange(attempt_, nullptr);
    message = std::exchange(message_, absl::nullopt);
  }
  if (attempt != nullptr) attempt->Cancel();
}

}  // namespace adamant::rpc
