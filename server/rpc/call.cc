#include "server/rpc/call.h"

#include <grpc/grpc.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "proto/error/error.h"
#include "proto/wire/message_check.h"
#include "proto/wire/status.h"
#include "proto/wire/tensor_message.h"
#include "server/rpc/call_log.h"

namespace adamant::rpc {
namespace {

absl::Status TooLarge(absl::string_view what, int64_t bytes, int64_t most, absl::string_view advice) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_MESSAGE_TOO_LARGE,
               absl::StrCat(what, ": expected at most ", most, " bytes, got ", bytes, "; ", advice));
}

absl::Status PlaceWanted(absl::string_view message) {
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS, message),
                        absl::Milliseconds(100));
}

}  // namespace

Call::Call(OpenCalls* open_calls, grpc::GenericCallbackServerContext* context, CallShape shape)
    : open_calls_(open_calls), context_(context), shape_(shape) {}

void Call::Open() {
  self_ = shared_from_this();
  Enter();  // so that a drain does not finish the call before it has its place
  absl::Status status = CheckMetadata();
  if (status.ok()) status = open_calls_->Enter(self_);
  if (!status.ok()) End(status);
  Leave();
}

void Call::LetIn(core::Grant place) {
  if (!Enter()) return;
  charge_ = place.bytes();
  place_ = std::move(place);
  waiting_ = core::Grant();
  {
    core::MutexLock lock(&mutex_);
    phase_ = Phase::kBusy;
  }
  // Some clients send nothing before they have seen that the call was taken.
  if (shape_ == CallShape::kStream) StartSendInitialMetadata();
  OnOpen();
  // A drain that began meanwhile has not seen a call that waits for its first message.
  if (open_calls_->draining()) DrainIfIdle();
  Leave();
}

void Call::AwaitPlace(core::Grant waiting) { waiting_ = std::move(waiting); }

void Call::Refuse(const absl::Status& status) {
  {
    core::MutexLock lock(&mutex_);
    if (end_.has_value() || phase_ != Phase::kWaiting) return;
    end_ = status;
    ++entered_;
  }
  FinishEnd();
}

void Call::OnOpen() {
  BeginOperation({.bytes = wire::kMaxMessageBytes});
  Read();
}

void Call::OnHalfClose() {
  End(Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNEXPECTED_MESSAGE, "the call has no message"));
}

void Call::DrainIfIdle() {
  Phase phase;
  bool has_begun;
  {
    core::MutexLock lock(&mutex_);
    phase = phase_;
    has_begun = has_message_ || awaited_ != Awaited::kMessage;
  }
  if (phase == Phase::kWaiting || (phase == Phase::kBusy && !has_begun)) End(DrainingError());
  if (phase == Phase::kIdle) OnDrain();
}

Call::Standing Call::CheckPatience(const OpenCalls::Sweep& sweep) {
  Standing standing;
  standing.charge = charge_;
  std::optional<Overdue> overdue;
  bool stuck = false;
  {
    core::MutexLock lock(&mutex_);
    standing.holds_memory = holds_memory_;
    standing.idle = phase_ == Phase::kIdle;
    standing.leaving = end_.has_value() && (!writing_ || cut_off_);
    if (!end_.has_value() && !IsSilent()) return standing;
    if (!awaited_since_.has_value()) {
      awaited_since_ = sweep.now;
      return standing;
    }
    standing.silence = sweep.now - *awaited_since_;
    if (end_.has_value()) {
      stuck = IsStuck(sweep, standing.silence);
      if (writing_ && sweep.place_wanted && standing.silence > ReplyTime()) standing.gives_way = GivesWay::kWhenWanted;
    } else if (IsOverdue(sweep, standing.silence)) {
      overdue = DecideEnd(sweep, /*gives_way=*/false);
    } else {
      standing.gives_way = Judge(sweep, standing.silence);
    }
  }
  if (stuck) CutOff();
  if (overdue.has_value()) EndOverdue(*overdue);
  return standing;
}

void Call::GiveWay(const OpenCalls::Sweep& sweep) {
  std::optional<Overdue> overdue;
  bool writing;
  {
    core::MutexLock lock(&mutex_);
    if (!awaited_since_.has_value()) return;
    if (!end_.has_value()) {
      if (!IsSilent()) return;
      overdue = DecideEnd(sweep, /*gives_way=*/true);
    }
    writing = writing_;
  }
  if (overdue.has_value()) EndOverdue(*overdue);
  // The status would have to wait behind the reply.
  if (writing) CutOff();
}

bool Call::IsOverdue(const OpenCalls::Sweep& sweep, absl::Duration waited) {
  const PatienceTerms& terms = open_calls_->terms();
  if (phase_ == Phase::kIdle) return waited > idle_limit_;
  const absl::Duration one_message = terms.For(wire::kMaxMessageBytes);
  if (awaited_ == Awaited::kMessage && may_think_) {
    if (waited > std::max(terms.think_time, one_message)) return true;
    const bool wanted = sweep.place_wanted || (holds_memory_ && sweep.memory_wanted);
    if (wanted) allowance_ -= sweep.elapsed;
    return false;
  }
  // Who is silent for longer than one message may take has used up the whole operation's time.
  allowance_ -= sweep.elapsed;
  return allowance_ < absl::ZeroDuration() || waited > one_message;
}

Call::GivesWay Call::Judge(const OpenCalls::Sweep& sweep, absl::Duration waited) const {
  const PatienceTerms& terms = open_calls_->terms();
  const absl::Duration request_time = open_calls_->request_time();
  const auto judge = [waited](absl::Duration when_wanted, absl::Duration where_undeserved) {
    if (waited > when_wanted) return GivesWay::kWhenWanted;
    return waited > where_undeserved ? GivesWay::kWhereUndeserved : GivesWay::kNever;
  };
  if (awaited_ == Awaited::kMessage && may_think_) {
    const bool wanted = sweep.place_wanted || (holds_memory_ && sweep.memory_wanted);
    const bool used_up = allowance_ < absl::ZeroDuration() || waited > terms.For(wire::kMaxMessageBytes);
    if (wanted && used_up) return GivesWay::kWhenWanted;
  }
  if (!sweep.place_wanted) return GivesWay::kNever;
  if (phase_ == Phase::kIdle) {
    // Who may not stay idle for as long as it likes owes a request.
    return judge(idle_limit_ < absl::InfiniteDuration() ? std::min(request_time, terms.patience) : terms.patience,
                 kGrace);
  }
  if (awaited_ == Awaited::kWritten) return judge(ReplyTime(), std::min(ReplyTime(), request_time));
  if (has_message_) return GivesWay::kNever;
  return judge(request_time, std::min(request_time, kLargeRequestGrace));
}

bool Call::IsStuck(const OpenCalls::Sweep& sweep, absl::Duration waited) const {
  if (done_ || cut_off_) return false;
  const absl::Duration longest = open_calls_->terms().For(wire::kMaxMessageBytes);
  if (writing_) return waited > longest;
  // Otherwise it keeps nothing of its client's.
  if (!finished_ || (!reading_ && phase_ != Phase::kWaiting)) return false;
  if (gave_way_ || phase_ == Phase::kWaiting) return waited > kGrace;
  return waited > (sweep.place_wanted ? std::min(kLargeRequestGrace, longest) : longest);
}

Call::Overdue Call::DecideEnd(const OpenCalls::Sweep& sweep, bool gives_way) {
  const Overdue overdue = {phase_, awaited_, has_message_, sweep.now - *awaited_since_, gives_way};
  // No handler begins from here on; and none runs, since the client is waited for.
  end_.emplace();
  gave_way_ = gives_way;
  ++entered_;
  if (awaited_ == Awaited::kMessage) awaited_ = Awaited::kNothing;
  awaited_since_ = sweep.now;
  return overdue;
}

void Call::EndOverdue(const Overdue& overdue) {
  const std::string waited = absl::FormatDuration(absl::Trunc(overdue.waited, absl::Milliseconds(10)));
  absl::Status status;
  if (overdue.gives_way && overdue.phase == Phase::kIdle) {
    status = PlaceWanted(absl::StrCat("the call was idle for ", waited, ", and gave up its place to one that waits"));
  } else if (overdue.gives_way && overdue.awaited == Awaited::kWritten) {
    status = absl::UnavailableError(
        absl::StrCat("the reply was not taken for ", waited, ", and the call gave up its place to one that waits"));
  } else if (overdue.gives_way && !overdue.has_message) {
    status = PlaceWanted(absl::StrCat("the server waited ", waited, " for ", Expected().what,
                                      ", and the call gave up its place to one that waits"));
  } else {
    Expectation expected = {"its reply to be taken", {}};
    if (overdue.awaited == Awaited::kMessage) expected = Expected();
    expected.detail.set_reason(v1::ERROR_REASON_STALLED);
    status = Error(absl::StatusCode::kDeadlineExceeded,
                   absl::StrCat("the server waited ", waited, " for ", expected.what), expected.detail);
  }
  {
    core::MutexLock lock(&mutex_);
    end_ = WithSet(set_name_, status);
  }
  FinishEnd();
}

void Call::CutOff() {
  absl::Status status;
  grpc_call* call = nullptr;
  bool in_a_message;
  std::string description;
  core::Grant place;
  core::Grant waiting;
  {
    core::MutexLock lock(&mutex_);
    if (done_ || std::exchange(cut_off_, true)) return;
    status = *end_;
    in_a_message = writing_;
    if (finished_) {
      // gRPC lets go of what has come, but is not done with the call before the client takes what was sent before.
      place = std::move(place_);
      waiting = std::move(waiting_);
      charge_ = 0;
    }
    // gRPC's until OnDone, but for those who hold a reference.
    if (context_ != nullptr) {
      call = context_->c_call();
      grpc_call_ref(call);
    }
    description = Description();
  }
  if (in_a_message) LogCutOff(description);
  if (call == nullptr) return;
  // Trailers wait for the data before them, and a client that does not read would keep both here for good. Details do
  // not get through; and RESOURCE_EXHAUSTED without a delay is not retried.
  const bool worth_a_retry = GetRetryDelay(status).has_value();
  grpc_call_cancel_with_status(call,
                               worth_a_retry ? GRPC_STATUS_UNAVAILABLE : static_cast<grpc_status_code>(status.code()),
                               std::string(status.message()).c_str(), nullptr);
  grpc_call_unref(call);
}

void Call::Read() {
  if (!Enter()) return;
  Await(Awaited::kMessage, 0);
  StartRead(&incoming_);
  Leave();
}

void Call::Write(const grpc::ByteBuffer& message) {
  if (!Enter()) return;
  outgoing_ = message;
  Await(Awaited::kWritten, static_cast<int64_t>(message.Length()));
  StartWrite(&outgoing_);
  Leave();
}

void Call::Await(Awaited what, int64_t outgoing_bytes) {
  core::MutexLock lock(&mutex_);
  awaited_ = what;
  awaited_since_.reset();
  reading_ = what == Awaited::kMessage;
  writing_ = what == Awaited::kWritten;
  outgoing_bytes_ = outgoing_bytes;
}

void Call::End(const absl::Status& status) {
  {
    core::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    end_ = WithSet(set_name_, status);
    awaited_since_.reset();
    ++entered_;
  }
  FinishEnd();
}

void Call::FinishEnd() {
  absl::Status status;
  bool waits;
  {
    core::MutexLock lock(&mutex_);
    status = *end_;
    waits = phase_ == Phase::kWaiting;
  }
  if (waits) open_calls_->StopWaiting(this);
  if (!status.ok()) LogEnd([this] { return Description(); }, status);
  OnOver();
  Leave();
}

void Call::BeginOperation(const Operation& operation) {
  core::MutexLock lock(&mutex_);
  phase_ = Phase::kBusy;
  may_think_ = operation.may_think;
  holds_memory_ = operation.holds_memory;
  allowance_ = open_calls_->terms().For(operation.bytes);
}

void Call::EndOperation(std::optional<int64_t> bytes) {
  {
    core::MutexLock lock(&mutex_);
    phase_ = Phase::kIdle;
    holds_memory_ = false;
    awaited_since_.reset();
    idle_limit_ = bytes.has_value() ? open_calls_->terms().For(*bytes) : absl::InfiniteDuration();
    set_name_.clear();
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
  {
    // In one go: who looks at the call's patience finds either a client that is waited for or a handler that runs.
    core::MutexLock lock(&mutex_);
    reading_ = false;
    if (end_.has_value()) return;
    ++entered_;
    awaited_ = Awaited::kNothing;
    awaited_since_.reset();
    has_message_ = has_message_ || ok;
  }
  if (!ok) {
    OnHalfClose();
  } else if (incoming_.Length() > static_cast<size_t>(wire::kMaxMessageBytes)) {
    End(TooLarge("message", static_cast<int64_t>(incoming_.Length()), wire::kMaxMessageBytes,
                 "split tensors into chunks of at most 262,144 elements, a message or a few each"));
  } else {
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    OnMessage(message);
  }
  Leave();
}

void Call::OnWriteDone(bool ok) {
  bool over;
  {
    core::MutexLock lock(&mutex_);
    awaited_ = Awaited::kNothing;
    awaited_since_.reset();
    writing_ = false;
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
  {
    core::MutexLock lock(&mutex_);
    done_ = true;
    waiting_ = core::Grant();
    place_ = core::Grant();
  }
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
  core::Grant place;  // for the others, before the client hears of the end
  {
    core::MutexLock lock(&mutex_);
    if (--entered_ > 0 || !end_.has_value() || writing_ || finished_) return;
    finished_ = true;
    status = *end_;
    if (!reading_ && phase_ != Phase::kWaiting) {
      charge_ = 0;
      place = std::move(place_);
    }
  }
  place = core::Grant();
  Finish(wire::ToGrpcStatus(status));
}

absl::Status Call::CheckMetadata() const {
  if (context_ == nullptr) return absl::OkStatus();
  constexpr int64_t kEntryBytes = 32;
  int64_t bytes = 0;
  for (const auto& [key, value] : context_->client_metadata()) {
    bytes += static_cast<int64_t>(key.size() + value.size()) + kEntryBytes;
  }
  if (bytes <= kMaxMetadataBytes) return absl::OkStatus();
  return TooLarge("metadata of the call", bytes, kMaxMetadataBytes, "send less with it");
}

int64_t Call::MetadataCost() const {
  if (context_ == nullptr) return 0;
  // Measured, 900 entries of 35 bytes: 240 bytes each.
  constexpr int64_t kEntryCost = 256;
  int64_t bytes = 0;
  for (const auto& [key, value] : context_->client_metadata()) {
    bytes += static_cast<int64_t>(key.size() + value.size()) + kEntryCost;
  }
  return bytes;
}

std::string Call::Connection() const { return context_ == nullptr ? "" : context_->peer(); }

void Call::ShrinkCharge(int64_t bytes) {
  place_.ShrinkTo(bytes);
  charge_ = place_.bytes();
}

core::Grant Call::TakeCharge(int64_t bytes) {
  ShrinkCharge(bytes);
  return std::move(place_);
}

std::string Call::Description() const {
  return context_ == nullptr ? "a test's" : absl::StrCat(context_->method(), " from ", context_->peer());
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status Parse(const grpc::ByteBuffer& buffer, google::protobuf::Message* message, int64_t max_bytes) {
  const auto size = static_cast<int64_t>(buffer.Length());
  if (size > max_bytes) return TooLarge("request", size, max_bytes, "no request of this method needs more");
  // A small message is small once it is parsed, too.
  constexpr int64_t kSmallBytes = 4096;
  if (size > kSmallBytes) {
    if (absl::Status status = wire::CheckOnWire(buffer, message->GetDescriptor()); !status.ok()) return status;
  }
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
