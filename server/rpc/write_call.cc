#include "server/rpc/write_call.h"

#include <utility>

#include "proto/error/error.h"
#include "server/core/parameter_set.h"

namespace adamant::rpc {
namespace {

absl::Status UnexpectedMessage(absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNEXPECTED_MESSAGE, message);
}

}  // namespace

WriteCall::WriteCall(core::Registry* registry, OpenCalls* open_calls, grpc::CallbackServerContext* context,
                     CallShape shape)
    : Call(open_calls, context), registry_(registry), shape_(shape) {}

void WriteCall::OnOpen() {
  BeginOperation(wire::kMaxMessageBytes);
  Read();
}

void WriteCall::OnMessage(grpc::ByteBuffer buffer) {
  absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(buffer);
  buffer.Clear();
  if (!message.ok()) {
    End(message.status());
    return;
  }
  std::shared_ptr<core::WriteAttempt> attempt;
  {
    core::MutexLock lock(&write_mutex_);
    attempt = attempt_;
  }
  if (attempt == nullptr) {
    if (absl::Status status = Begin(*std::move(message)); !status.ok()) End(status);
  } else if (message->has_header()) {
    End(UnexpectedMessage("a header in a later message of the write"));
  } else {
    Take(attempt.get(), *std::move(message));
  }
}

void WriteCall::OnHalfClose() { End(UnexpectedMessage("the stream ended before the last message of the write")); }

absl::Status WriteCall::Begin(wire::TensorMessage message) {
  if (!message.has_header()) return UnexpectedMessage("the first message of a write has no header");
  v1::WriteHeader header;
  if (absl::Status status = message.ParseHeader(&header); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = registry_->Find(header.set(), "header.set");
  if (!set.ok()) return set.status();
  const int64_t arrays = header.mode() == v1::WRITE_MODE_FULL ? 3 : 1;
  BeginOperation(arrays * (*set)->schema().flat_size() * static_cast<int64_t>(sizeof(float)));
  std::shared_ptr<core::WriteAttempt> attempt =
      (*set)->NewWrite(header, std::static_pointer_cast<WriteCall>(shared_from_this()));
  {
    core::MutexLock lock(&write_mutex_);
    if (ended()) return absl::OkStatus();
    attempt_ = attempt;
    message_ = std::move(message);
  }
  attempt->Start();
  return absl::OkStatus();
}

void WriteCall::OnAdmitted() {
  std::shared_ptr<core::WriteAttempt> attempt;
  absl::optional<wire::TensorMessage> message;
  {
    core::MutexLock lock(&write_mutex_);
    if (attempt_ == nullptr) return;
    attempt = attempt_;
    message = std::exchange(message_, absl::nullopt);
  }
  Take(attempt.get(), *std::move(message));
}

void WriteCall::Take(core::WriteAttempt* attempt, wire::TensorMessage message) {
  for (wire::TensorMessage::Chunk& chunk : message.chunks()) {
    absl::Status status = attempt->Add(chunk.slot(), chunk.tensor(), chunk.offset(), chunk.count(),
                                       [&chunk](float* to, int64_t n) { chunk.Read(to, n); });
    if (!status.ok()) {
      End(status);
      return;
    }
  }
  if (!message.last() && shape_ == CallShape::kStream) {
    Read();
  } else if (absl::Status status = attempt->Complete(); !status.ok()) {
    End(status);
  }
}

void WriteCall::OnOutcome(absl::StatusOr<v1::WriteTensorsResponse> response) {
  if (!response.ok()) {
    End(response.status());
    return;
  }
  // WriteTensorsOnceResponse has the same fields.
  Write(Serialize(*response));
}

void WriteCall::OnWritten() { End(absl::OkStatus()); }

void WriteCall::OnOver() {
  std::shared_ptr<core::WriteAttempt> attempt;
  absl::optional<wire::TensorMessage> message;
  {
    core::MutexLock lock(&write_mutex_);
    attempt = std::exchange(attempt_, nullptr);
    message = std::exchange(message_, absl::nullopt);
  }
  if (attempt != nullptr) attempt->Cancel();
}

}  // namespace adamant::rpc
