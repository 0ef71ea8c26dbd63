// Cutting and placing of chunks.
#include "client/src/tensor_transfer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/src/formats.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_cutter.h"
#include "proto/wire/tensor_message_builder.h"

namespace adamant {
namespace {

using wire::TensorCutter;
using wire::TensorMessageBuilder;

// Upper bounds of what a chunk takes besides its elements, and of what a message takes besides its chunks and header.
constexpr int64_t kChunkOverheadBytes = 48;
constexpr int64_t kMessageOverheadBytes = 16;

// Whether the header and all elements go into one message.
bool FitIntoOne(const google::protobuf::MessageLite& header, absl::Span<const WriteCall::Source> sources,
                v1::Dtype dtype, int64_t message_bytes) {
  int64_t size = static_cast<int64_t>(header.ByteSizeLong()) + kMessageOverheadBytes;
  size_t chunks = 0;
  for (const WriteCall::Source& source : sources) {
    for (absl::Span<const float> tensor : source.tensors) {
      if (tensor.empty()) continue;
      size += static_cast<int64_t>(tensor.size()) * wire::ElementBytes(dtype) + kChunkOverheadBytes;
      ++chunks;
    }
  }
  return size <= message_bytes && chunks <= wire::kMaxChunks;
}

std::vector<int64_t> Sizes(ConstTensors tensors) {
  std::vector<int64_t> sizes;
  sizes.reserve(tensors.size());
  for (absl::Span<const float> tensor : tensors) sizes.push_back(static_cast<int64_t>(tensor.size()));
  return sizes;
}

}  // namespace

absl::Status SendTensors(const google::protobuf::MessageLite& header, absl::Span<const WriteCall::Source> sources,
                         v1::Dtype dtype, int64_t message_bytes, std::shared_ptr<const void> hold, ByteStream* stream) {
  TensorMessageBuilder builder(hold);
  builder.SetHeader(header);
  if (!FitIntoOne(header, sources, dtype, message_bytes)) {
    absl::Status status = stream->Write(builder.Finish());
    if (!status.ok()) return status;
    builder = TensorMessageBuilder(hold);
  }
  const int64_t limit = message_bytes - kMessageOverheadBytes;
  for (const WriteCall::Source& source : sources) {
    const std::vector<int64_t> sizes = Sizes(source.tensors);
    TensorCutter cutter(sizes, source.slot, wire::ChunkForm::kData, dtype);
    const auto add = [&](int32_t tensor, int64_t begin, int64_t end, TensorMessageBuilder* message) {
      const float* const elements = source.tensors[tensor].data() + begin;
      if (Is16Bit(dtype)) {
        Narrow(dtype, elements, end - begin, message->AddNarrowed(end - begin));
      } else {
        message->AddElements(elements, end - begin);
      }
      return true;
    };
    while (true) {
      cutter.Fill(limit, add, &builder);
      if (cutter.done()) break;
      absl::Status status = stream->Write(builder.Finish());
      if (!status.ok()) return status;
      builder = TensorMessageBuilder(hold);
    }
  }
  builder.SetLast();
  return stream->Write(builder.Finish());
}

TensorReceiver::TensorReceiver(absl::Span<const ReadCall::Target> targets, bool pass_over_empty)
    : targets_(targets), pass_over_empty_(pass_over_empty) {
  for (const ReadCall::Target& target : targets) received_.emplace_back(target.tensors.size());
}

absl::Status TensorReceiver::Take(wire::TensorMessage* message) {
  for (wire::TensorMessage::Chunk& chunk : message->chunks()) {
    const v1::Slot slot = chunk.slot() == v1::SLOT_UNSPECIFIED ? v1::SLOT_PARAMETER : chunk.slot();
    const auto target =
        std::find_if(targets_.begin(), targets_.end(), [&](const ReadCall::Target& t) { return t.slot == slot; });
    if (target == targets_.end()) {
      return absl::InternalError(absl::StrCat("the server sent a slot that was not asked for: ", v1::Slot_Name(slot)));
    }
    if (chunk.tensor() < 0 || static_cast<size_t>(chunk.tensor()) >= target->tensors.size()) {
      return absl::InvalidArgumentError(
          ExpectedGot(absl::StrCat("a span for every tensor, ", chunk.tensor(), " among them"),
                      absl::StrCat("spans for ", target->tensors.size())));
    }
    if (pass_over_empty_ && target->tensors[chunk.tensor()].empty()) continue;
    int64_t& received = received_[target - targets_.begin()][chunk.tensor()];
    if (chunk.offset() != received) {
      return absl::InternalError(absl::StrCat("the server sent element ", chunk.offset(), " of tensor ", chunk.tensor(),
                                              " where element ", received, " was due"));
    }
    const absl::Span<float> tensor = target->tensors[chunk.tensor()];
    if (chunk.count() > static_cast<int64_t>(tensor.size()) - received) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the span for tensor ", chunk.tensor(), ": ",
          ExpectedGot(absl::StrCat("at least ", received + chunk.count(), " elements"), absl::StrCat(tensor.size()))));
    }
    if (Is16Bit(chunk.dtype())) {
      float* to = tensor.data() + received;
      chunk.Visit(chunk.count(), [&](const uint8_t* bytes, int64_t count) {
        Widen(chunk.dtype(), bytes, count, to);
        to += count;
      });
    } else {
      chunk.Read(tensor.data() + received, chunk.count());
    }
    received += chunk.count();
  }
  return absl::OkStatus();
}

absl::Status TensorReceiver::Finish() const {
  for (size_t target = 0; target < targets_.size(); ++target) {
    for (size_t tensor = 0; tensor < received_[target].size(); ++tensor) {
      const auto size = static_cast<int64_t>(targets_[target].tensors[tensor].size());
      if (received_[target][tensor] != size) {
        return absl::InvalidArgumentError(
            absl::StrCat("the span for tensor ", tensor, ": ",
                         ExpectedGot(absl::StrCat(received_[target][tensor], " elements"), absl::StrCat(size))));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace adamant
