#include "server/rpc/read_call.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "proto/wire/tensor_message_builder.h"
#include "server/core/set/parameter_set.h"

namespace adamant::rpc {
namespace {

// What the slices of one message refer to.
struct MessageHold {
  std::shared_ptr<const core::Reading> reading;
  std::unique_ptr<float[]> copies;  // of what the reading does not hold
};

// How many elements of each slot are to be read, with what lies between tensors where all are.
int64_t ElementsOf(const v1::ReadTensorsRequest& request, const core::ParameterSet& set) {
  const core::Schema& schema = set.schema();
  if (request.tensors().empty()) return schema.flat_size();
  const auto tensors = static_cast<int32_t>(schema.tensors().size());
  int64_t elements = 0;
  for (const int32_t tensor : request.tensors()) {
    if (tensor >= 0 && tensor < tensors) elements += schema.sizes()[tensor];
  }
  return std::min(elements, schema.flat_size());
}

}  // namespace

ReadCall::ReadCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context)
    : Call(open_calls, context, CallShape::kStream), registry_(registry) {}

void ReadCall::OnMessage(const grpc::ByteBuffer& buffer) {
  if (absl::Status status = Begin(buffer); !status.ok()) End(status);
}

absl::Status ReadCall::Begin(const grpc::ByteBuffer& buffer) {
  v1::ReadTensorsRequest request;
  absl::Status status = Parse(buffer, &request);
  NameSet(request.set());
  if (!status.ok()) return status;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = registry_->Find(request.set(), "set");
  if (!set.ok()) return set.status();
  form_ = request.as_values() ? wire::ChunkForm::kValues : wire::ChunkForm::kData;
  BeginOperation(
      {.bytes = (request.slots_size() + 1) * ElementsOf(request, *(*set)) * static_cast<int64_t>(sizeof(float))});
  (*set)->BeginRead(request,
                    [self = std::static_pointer_cast<ReadCall>(shared_from_this())](
                        absl::StatusOr<std::unique_ptr<core::Reading>> reading) { self->Begun(std::move(reading)); });
  return absl::OkStatus();
}

void ReadCall::Begun(absl::StatusOr<std::unique_ptr<core::Reading>> reading) {
  if (!reading.ok()) {
    End(reading.status());
    return;
  }
  reading_ = *std::move(reading);
  WriteNext();
}

void ReadCall::WriteNext() {
  auto hold = std::make_shared<MessageHold>();
  hold->reading = reading_;
  wire::TensorMessageBuilder builder(hold);
  if (!std::exchange(header_sent_, true)) builder.SetHeader(reading_->header());

  const core::Schema& schema = reading_->schema();
  const std::vector<v1::Slot>& slots = reading_->slots();
  absl::Status status;
  constexpr int64_t kMostElements = wire::kMessageBytes / static_cast<int64_t>(sizeof(float));
  if (!reading_->holds()) hold->copies = std::make_unique_for_overwrite<float[]>(kMostElements);
  float* copied = hold->copies.get();
  const auto source = [&](int32_t tensor, int64_t begin, int64_t end, wire::TensorMessageBuilder* to) {
    const int64_t base = schema.tensors()[tensor].begin;
    if (reading_->holds()) {
      reading_->Visit(slots[slot_], base + begin, base + end,
                      [to](const float* elements, int64_t count) { to->AddElements(elements, count); });
      return true;
    }
    status = reading_->Copy(slots[slot_], base + begin, base + end, copied);
    if (!status.ok()) return false;
    to->AddElements(copied, end - begin);
    copied += end - begin;
    return true;
  };
  while (status.ok() && slot_ < slots.size() && builder.size() < wire::kMessageBytes) {
    if (!cutter_.has_value()) cutter_.emplace(reading_->sizes(), slots[slot_], form_);
    cutter_->Fill(wire::kMessageBytes, source, &builder);
    if (!status.ok() || !cutter_->done()) break;
    cutter_.reset();
    ++slot_;
  }
  if (!status.ok()) {
    End(status);
    return;
  }
  if (slot_ == slots.size()) reading_.reset();  // its memory returns when gRPC has let go of it
  Write(builder.Finish());
}

void ReadCall::OnWritten() {
  if (reading_ != nullptr) {
    WriteNext();
  } else {
    End(absl::OkStatus());
  }
}

}  // namespace adamant::rpc
