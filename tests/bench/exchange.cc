// Both sides of the exchange.
#include "tests/bench/exchange.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tests/bench/float_array.h"

namespace adamant::bench {
namespace {

constexpr char kMethod[] = "/adamant.bench.Exchange";
// How many bytes a call sends each way in every round.
constexpr char kBytesKey[] = "adamant-bench-bytes";

// A message of `bytes`: refers to them.
grpc::ByteBuffer Message(absl::Span<const char> bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE);
  return grpc::ByteBuffer(&slice, 1);
}

// The bytes of `message`, moved out of it. None if they are more than `room`.
std::optional<std::vector<grpc::Slice>> TakeSlices(grpc::ByteBuffer* message, size_t room) {
  std::vector<grpc::Slice> slices;
  if (message->Length() > room || !message->Dump(&slices).ok()) return std::nullopt;
  message->Clear();
  return slices;
}

void Gather(const std::vector<grpc::Slice>& slices, char* sink) {
  for (const grpc::Slice& slice : slices) {
    std::memcpy(sink, slice.begin(), slice.size());
    sink += slice.size();
  }
}

// One read is outstanding at any time, and at most one write. With `overlap` a message may be copied while the next one
// arrives, on another thread.
class Reactor : public grpc::ServerGenericBidiReactor {
 public:
  Reactor(int64_t floats, const ExchangeSettings& settings)
      : message_bytes_(settings.message_bytes), overlap_(settings.overlap), source_(floats, 1.0f), sink_(floats, 0.0f) {
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(grpc::Status::OK);
    const size_t begin = received_ % size();
    const size_t length = incoming_.Length();
    const auto slices = TakeSlices(&incoming_, size() - begin);
    if (!slices) return End({grpc::StatusCode::INVALID_ARGUMENT, "more bytes than announced"});
    received_ += length;
    if (overlap_) StartRead(&incoming_);
    Gather(*slices, sink_.bytes() + begin);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      copied_ += length;
      Write();
    }
    if (!overlap_) StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(grpc::Status::CANCELLED);
    std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    Write();
  }

  void OnDone() override { delete this; }

 private:
  size_t size() const { return source_.size() * sizeof(float); }

  // Starts the next write of the rounds that have been received whole. Requires: mutex_ is held.
  void Write() {
    if (ended_ || writing_ || sent_ == copied_ / size() * size()) return;
    const size_t begin = sent_ % size();
    const size_t length = std::min(message_bytes_, size() - begin);
    outgoing_ = Message({source_.bytes() + begin, length});
    sent_ += length;
    writing_ = true;
    StartWrite(&outgoing_);
  }

  void End(const grpc::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!std::exchange(ended_, true)) Finish(status);
  }

  const size_t message_bytes_;
  const bool overlap_;
  FloatArray source_;
  FloatArray sink_;
  // Of the read that is outstanding, or has just ended. Counts are of bytes since the call began.
  grpc::ByteBuffer incoming_;
  size_t received_ = 0;

  std::mutex mutex_;
  // Guarded by mutex_.
  grpc::ByteBuffer outgoing_;
  size_t copied_ = 0;
  size_t sent_ = 0;
  bool writing_ = false;
  bool ended_ = false;
};

// Ends a call that announces nothing sensible.
class Refusal : public grpc::ServerGenericBidiReactor {
 public:
  Refusal() { Finish({grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat(kBytesKey, " is missing or wrong")}); }
  void OnDone() override { delete this; }
};

// What is set at an end, which is called "server" or "client".
ChannelSettings SettingsOf(const ExchangeSettings& settings, absl::string_view end) {
  ChannelSettings values;
  if (!settings.probe.empty()) {
    values.emplace_back(GRPC_ARG_HTTP2_BDP_PROBE, settings.probe == "on" || settings.probe == end);
  }
  if (settings.frame_bytes > 0) values.emplace_back(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, settings.frame_bytes);
  if (settings.lookahead_bytes > 0) {
    values.emplace_back(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, settings.lookahead_bytes);
  }
  if (settings.read_chunk_bytes > 0) {
    values.emplace_back(GRPC_ARG_TCP_READ_CHUNK_SIZE, settings.read_chunk_bytes);
    values.emplace_back(GRPC_ARG_TCP_MIN_READ_CHUNK_SIZE, settings.read_chunk_bytes);
    values.emplace_back(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, settings.read_chunk_bytes);
  }
  return values;
}

}  // namespace

ChannelSettings ServerChannelSettings(const ExchangeSettings& settings) {
  ChannelSettings values = SettingsOf(settings, "server");
  // As the server has it.
  values.emplace_back(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  values.emplace_back(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
  return values;
}

void AddClientSettings(const ExchangeSettings& settings, grpc::ChannelArguments* arguments) {
  for (const auto& [name, value] : SettingsOf(settings, "client")) arguments->SetInt(name, value);
}

grpc::ServerGenericBidiReactor* ExchangeService::CreateReactor(grpc::GenericCallbackServerContext* context) {
  const auto found = context->client_metadata().find(kBytesKey);
  int64_t bytes = 0;
  if (found == context->client_metadata().end() ||
      !absl::SimpleAtoi(absl::string_view(found->second.data(), found->second.size()), &bytes) || bytes <= 0) {
    return new Refusal;
  }
  return new Reactor(bytes / static_cast<int64_t>(sizeof(float)), settings_);
}

ExchangeCall::ExchangeCall(std::shared_ptr<grpc::Channel> channel, absl::Span<const char> source, absl::Span<char> sink,
                           const ExchangeSettings& settings)
    : message_bytes_(settings.message_bytes), overlap_(settings.overlap), source_(source), sink_(sink), stub_(channel) {
  context_.AddMetadata(kBytesKey, absl::StrCat(source.size()));
  call_ = stub_.PrepareCall(&context_, kMethod, &queue_);
  call_->StartCall(reinterpret_cast<void*>(kStart));
  while (!started_ && !broken_) Poll();
  if (!broken_) Read();
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

void ExchangeCall::Read() { call_->Read(&incoming_, reinterpret_cast<void*>(kRead)); }

void ExchangeCall::Write() {
  const grpc::ByteBuffer message = Message(source_.subspan(sent_, message_bytes_));
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
    case kRead: {
      const size_t length = incoming_.Length();
      const auto slices = TakeSlices(&incoming_, sink_.size() - received_);
      broken_ = !slices;
      if (broken_) return;
      if (overlap_) Read();
      Gather(*slices, sink_.data() + received_);
      received_ += length;
      if (!overlap_) Read();
      break;
    }
    case kWrite:
      writing_ = false;
      if (sent_ < source_.size()) Write();
      break;
  }
}

}  // namespace adamant::bench
