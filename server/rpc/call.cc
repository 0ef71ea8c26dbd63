#include "server/rpc/call.h"

#include <grpc/grpc.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <string>
#include <utility>

#include "proto/error/error.h"
#include "proto/wire/status.h"
#include "proto/wire/tensor_message.h"

namespace adamant::rpc {

Call::Call(OpenCalls* open_calls, grpc::CallbackServerContext* context) : open_calls_(open_calls), context_(context) {}

void Call::Open() {
  self_ = shared_from_this();
  Enter();  // so that a drain does not finish the call before it has its grant
  absl::StatusOr<core::Grant> grant = open_calls_->Enter(this);
  if (grant.ok()) {
    grant_ = *std::move(grant);
    OnOpen();
  } else {
    End(grant.status());
  }
  Leave();
}

void Call::OnOpen() {
  BeginOperation(wire::kMaxMessageBytes);
  Read();
}

void Call::OnHalfClose() {
  End(Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNEXPECTED_MESSAGE, "the call has no message"));
}

void Call::DrainIfIdle() {
  {
    core::MutexLock lock(&mutex_);
    if (!idle_) return;
  }
  OnDrain();
}

void Call::CheckPatience() {
  {
    core::MutexLock lock(&mutex_);
    if (!allowance_.has_value() || !waiting_since_.has_value()) return;
    // One message at most is outstanding. Who is silent for longer than it may take has used up the whole call's time.
    const absl::Duration limit = std::min(*allowance_, open_calls_->terms().For(wire::kMaxMessageBytes));
    if (open_calls_->clock()->Now() - *waiting_since_ <= limit) return;
  }
  End(Error(absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED,
            "the client neither sent nor took data for longer than a call may"));
}

void Call::Read() {
  if (!Enter()) return;
  {
    core::MutexLock lock(&mutex_);
    StartWaiting();
  }
  StartRead(&incoming_);
  Leave();
}

void Call::Write(const grpc::ByteBuffer& message) {
  if (!Enter()) return;
  outgoing_ = message;
  {
    core::MutexLock lock(&mutex_);
    writing_ = true;
    StartWaiting();
  }
  StartWrite(&outgoing_);
  Leave();
}

void Call::End(const absl::Status& status) {
  bool cut_off;
  {
    core::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    end_ = WithSet(set_name_, status);
    ++entered_;
    cut_off = writing_;
  }
  // Trailers wait for the data before them, and a client that does not read would keep both here for good.
  if (cut_off) {
    grpc_call_cancel_with_status(context_->c_call(), static_cast<grpc_status_code>(status.code()),
                                 std::string(status.message()).c_str(), nullptr);
  }
  OnOver();
  Leave();
}

void Call::BeginOperation(int64_t bytes) {
  core::MutexLock lock(&mutex_);
  idle_ = false;
  allowance_ = open_calls_->terms().For(bytes);
}

void Call::EndOperation(absl::optional<int64_t> bytes) {
  {
    core::MutexLock lock(&mutex_);
    idle_ = true;
    set_name_.clear();
    allowance_.reset();
    if (bytes.has_value()) allowance_ = open_calls_->terms().For(*bytes);
  }
  if (open_calls_->draining()) OnDrain();
}

void Call::NameSet(absl::string_view name) {
  core::MutexLock lock(&mutex_);
  set_name_ = std::string(name);
}

bool Call::ended() const {
  core::MutexLock lock(&mutex_);
  return end_.has_value();
}

void Call::OnReadDone(bool ok) {
  if (!Enter()) return;
  {
    core::MutexLock lock(&mutex_);
    StopWaiting();
  }
  if (ok) {
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    OnMessage(message);
  } else {
    OnHalfClose();
  }
  Leave();
}

void Call::OnWriteDone(bool ok) {
  bool over;
  {
    core::MutexLock lock(&mutex_);
    writing_ = false;
    StopWaiting();
    ++entered_;
    over = end_.has_value();
  }
  outgoing_.Clear();
  if (!over && ok) OnWritten();
  if (!over && !ok) End(absl::CancelledError("the client is gone"));
  Leave();
}

void Call::OnCancel() { End(absl::CancelledError("the client cancelled the call")); }

void Call::OnDone() {
  open_calls_->Leave(this);
  self_.reset();
}

bool Call::Enter() {
  core::MutexLock lock(&mutex_);
  if (end_.has_value()) return false;
  ++entered_;
  return true;
}

void Call::Leave() {
  absl::Status status;
  {
    core::MutexLock lock(&mutex_);
    if (--entered_ > 0 || !end_.has_value() || writing_ || finished_) return;
    finished_ = true;
    status = *end_;
  }
  grant_ = core::Grant();
  Finish(wire::ToGrpcStatus(status));
}

void Call::StartWaiting() {
  if (allowance_.has_value()) waiting_since_ = open_calls_->clock()->Now();
}

void Call::StopWaiting() {
  if (allowance_.has_value() && waiting_since_.has_value()) {
    *allowance_ -= open_calls_->clock()->Now() - *waiting_since_;
  }
  waiting_since_.reset();
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status Parse(const grpc::ByteBuffer& buffer, google::protobuf::Message* message) {
  grpc::ByteBuffer bytes = buffer;  // the slices, not what is in them
  grpc::ProtoBufferReader reader(&bytes);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader)) {
    message->Clear();
    return wire::MalformedMessage(message->GetDescriptor()->full_name());
  }
  if (std::string field = wire::FindUnknownField(*message); !field.empty()) return wire::UnknownField(field);
  return absl::OkStatus();
}

}  // namespace adamant::rpc
