// Both sides of the exchange.
#include "tests/bench/exchange.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/wire/tensor_message.h"
#include "tests/bench/float_array.h"

namespace adamant::bench {
namespace {

constexpr char kMethod[] = "/adamant.bench.Exchange";
// How many bytes a call sends each way in every round.
constexpr char kBytesKey[] = "adamant-bench-bytes";

// The next message of `source`, from byte `begin` on: refers to it.
grpc::ByteBuffer Message(absl::Span<const char> source, size_t begin) {
  const absl::Span<const char> part = source.subspan(begin, wire::kMessageBytes);
  const grpc::Slice slice(part.data(), part.size(), grpc::Slice::STATIC_SLICE);
  return grpc::ByteBuffer(&slice, 1);
}

// Copies `message` to `sink` from byte `begin` on. Moves `begin` behind it. False if it does not fit.
bool Gather(const grpc::ByteBuffer& message, absl::Span<char> sink, size_t* begin) {
  std::vector<grpc::Slice> slices;
  if (message.Length() > sink.size() - *begin || !message.Dump(&slices).ok()) return false;
  for (const grpc::Slice& slice : slices) {
    std::memcpy(sink.data() + *begin, slice.begin(), slice.size());
    *begin += slice.size();
  }
  return true;
}

// Reads a round, then writes one: never both, so its members need no lock.
class Reactor : public grpc::ServerGenericBidiReactor {
 public:
  explicit Reactor(int64_t floats) : source_(floats, 1.0f), sink_(floats, 0.0f) { StartRead(&incoming_); }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    if (!Gather(incoming_, {sink_.bytes(), size()}, &received_)) {
      return Finish({grpc::StatusCode::INVALID_ARGUMENT, "more bytes than announced"});
    }
    if (received_ < size()) return StartRead(&incoming_);
    sent_ = 0;
    Write();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    if (sent_ < size()) return Write();
    received_ = 0;
    StartRead(&incoming_);
  }

  void OnDone() override { delete this; }

 private:
  size_t size() const { return source_.size() * sizeof(float); }

  void Write() {
    outgoing_ = Message({source_.bytes(), size()}, sent_);
    sent_ += outgoing_.Length();
    StartWrite(&outgoing_);
  }

  FloatArray source_;
  FloatArray sink_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  size_t received_ = 0;
  size_t sent_ = 0;
};

// Ends a call that announces nothing sensible.
class Refusal : public grpc::ServerGenericBidiReactor {
 public:
  Refusal() { Finish({grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat(kBytesKey, " is missing or wrong")}); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerGenericBidiReactor* ExchangeService::CreateReactor(grpc::GenericCallbackServerContext* context) {
  const auto found = context->client_metadata().find(kBytesKey);
  int64_t bytes = 0;
  if (found == context->client_metadata().end() ||
      !absl::SimpleAtoi(absl::string_view(found->second.data(), found->second.size()), &bytes) || bytes <= 0) {
    return new Refusal;
  }
  return new Reactor(bytes / static_cast<int64_t>(sizeof(float)));
}

ExchangeCall::ExchangeCall(std::shared_ptr<grpc::Channel> channel, absl::Span<const char> source, absl::Span<char> sink)
    : source_(source), sink_(sink), stub_(channel) {
  context_.AddMetadata(kBytesKey, absl::StrCat(source.size()));
  call_ = stub_.PrepareCall(&context_, kMethod, &queue_);
  call_->StartCall(reinterpret_cast<void*>(kStart));
  while (!started_ && !broken_) Poll();
}

ExchangeCall::~ExchangeCall() {
  context_.TryCancel();
  queue_.Shutdown();
  void* tag;
  bool ok;
  while (queue_.Next(&tag, &ok)) continue;
}

absl::Status ExchangeCall::Round() {
  sent_ = received_ = 0;
  if (!broken_) Write();
  while (!broken_ && (received_ < sink_.size() || writing_)) Poll();
  return broken_ ? absl::UnavailableError("the exchange broke off") : absl::OkStatus();
}

void ExchangeCall::Write() {
  const grpc::ByteBuffer message = Message(source_, sent_);
  sent_ += message.Length();
  writing_ = true;
  call_->Write(message, reinterpret_cast<void*>(kWrite));
}

void ExchangeCall::Poll() {
  void* tag;
  bool ok;
  if (!queue_.Next(&tag, &ok) || !ok) {
    broken_ = true;
    return;
  }
  switch (static_cast<Operation>(reinterpret_cast<intptr_t>(tag))) {
    case kStart:
      started_ = true;
      break;
    case kRead:
      broken_ = !Gather(incoming_, sink_, &received_);
      break;
    case kWrite:
      writing_ = false;
      if (sent_ < source_.size()) Write();
      return;
  }
  call_->Read(&incoming_, reinterpret_cast<void*>(kRead));
}

}  // namespace adamant::bench
