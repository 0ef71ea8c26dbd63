// The state machine of one call: operations begin in the functions below and complete in Poll, nowhere else.
#include "client/src/grpc_byte_stream.h"

#include <grpc/support/time.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/attempts.h"
#include "proto/wire/status.h"

namespace adamant {
namespace {

gpr_timespec FromNow(absl::Duration delay) {
  if (delay == absl::InfiniteDuration()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(absl::ToInt64Nanoseconds(delay), GPR_TIMESPAN));
}

}  // namespace

GrpcByteStream::GrpcByteStream(grpc::GenericStub* stub, const std::string& method, std::function<bool()> interrupted)
    : interrupted_(std::move(interrupted)),
      context_(std::make_unique<grpc::ClientContext>()),
      call_(stub->PrepareCall(context_.get(), method, &queue_)),
      deadline_(gpr_inf_future(GPR_CLOCK_MONOTONIC)) {
  call_->StartCall(Begin(kStart));
}

GrpcByteStream::~GrpcByteStream() {
  GrpcByteStream::Close();
  queue_.Shutdown();
  while (Poll(gpr_inf_future(GPR_CLOCK_MONOTONIC))) {
  }
}

void GrpcByteStream::SetTimeout(absl::Duration timeout) {
  timeout_ = timeout;
  deadline_ = FromNow(timeout);
}

absl::Status GrpcByteStream::Write(grpc::ByteBuffer message) {
  Wait([this] {
    // The server may answer before it has everything, if it knows the step already. Neither may then wait for the other
    // to read.
    if (!messages_.empty() && !outstanding_[kRead] && !broken_) StartRead();
    return broken_ || (!outstanding_[kStart] && !outstanding_[kWrite]);
  });
  if (!broken_) {
    call_->Write(message, Begin(kWrite));
    return absl::OkStatus();
  }
  absl::Status status = End();
  return status.ok() ? absl::UnavailableError("the server ended the call before all was sent") : status;
}

absl::Status GrpcByteStream::WritesDone() {
  Wait([this] { return broken_ || (!outstanding_[kStart] && !outstanding_[kWrite]); });
  // A call that has ended by now may have ended well: the reader will tell.
  if (!broken_) call_->WritesDone(Begin(kWrite));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<grpc::ByteBuffer>> GrpcByteStream::Read() {
  Wait([this] { return !messages_.empty() || (broken_ && !outstanding_[kRead]); });
  if (!messages_.empty()) {
    std::optional<grpc::ByteBuffer> message = std::move(messages_.front());
    messages_.pop_front();
    if (messages_.empty() && !outstanding_[kRead] && !broken_) StartRead();
    return message;
  }
  absl::Status status = End();
  if (!status.ok()) return status;
  return std::optional<grpc::ByteBuffer>();
}

void GrpcByteStream::Cancel() { context_->TryCancel(); }

void GrpcByteStream::Close() {
  if (context_ == nullptr) return;
  context_->TryCancel();
  End().IgnoreError();
  call_.reset();
  context_.reset();
}

void GrpcByteStream::DriveUntil(absl::FunctionRef<bool()> done) {
  // What is waited for is no operation of the call, so nothing wakes this thread up: it looks again and again.
  while (!done()) Poll(FromNow(absl::Milliseconds(1)));
}

bool GrpcByteStream::alive() {
  while (Poll(gpr_inf_past(GPR_CLOCK_MONOTONIC))) {
  }
  return !broken_ && given_up_.ok();
}

void* GrpcByteStream::Begin(Operation operation) {
  outstanding_[operation] = true;
  return reinterpret_cast<void*>(static_cast<uintptr_t>(operation));
}

bool GrpcByteStream::Poll(gpr_timespec deadline) {
  void* tag;
  bool ok;
  if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) return false;
  const auto operation = static_cast<Operation>(reinterpret_cast<uintptr_t>(tag));
  outstanding_[operation] = false;
  if (operation == kFinish) {
    finished_ = true;
  } else if (!ok) {
    broken_ = true;
  } else if (operation == kStart) {
    StartRead();
  } else if (operation == kRead) {
    messages_.push_back(std::move(incoming_));
  }
  return true;
}

void GrpcByteStream::Wait(absl::FunctionRef<bool()> done) {
  while (!done()) {
    if (!given_up_.ok()) {
      Poll(gpr_inf_future(GPR_CLOCK_MONOTONIC));
      continue;
    }
    if (Poll(interrupted_ ? gpr_time_min(deadline_, FromNow(kInterruptInterval)) : deadline_)) continue;
    if (gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), deadline_) >= 0) {
      given_up_ = absl::DeadlineExceededError(absl::StrCat("no answer within ", absl::FormatDuration(timeout_)));
    } else if (interrupted_ && interrupted_()) {
      given_up_ = absl::CancelledError("interrupted");
    } else {
      continue;
    }
    context_->TryCancel();
  }
}

void GrpcByteStream::StartRead() {
  incoming_.Clear();
  call_->Read(&incoming_, Begin(kRead));
}

absl::Status GrpcByteStream::End() {
  if (!finished_ && !outstanding_[kFinish]) {
    // A status is delivered only behind the messages that came before it.
    Wait([this] {
      if (!messages_.empty() && !outstanding_[kRead]) {
        messages_.clear();
        StartRead();
      }
      return broken_ && !outstanding_[kStart] && !outstanding_[kRead] && !outstanding_[kWrite];
    });
    call_->Finish(&status_, Begin(kFinish));
  }
  Wait([this] { return finished_; });
  return given_up_.ok() ? wire::FromGrpcStatus(status_) : given_up_;
}

}  // namespace adamant
