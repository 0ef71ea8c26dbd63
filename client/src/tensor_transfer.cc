// Cutting and placing of chunks.
#include "client/src/tensor_transfer.h"

#include <algorithm>
#include <utility>

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
                absl::Span<const RowsGradient> rows, v1::Dtype dtype, int64_t message_bytes) {
  int64_t size = static_cast<int64_t>(header.ByteSizeLong()) + kMessageOverheadBytes;
  size_t chunks = 0;
  for (const WriteCall::Source& source : sources) {
    for (absl::Span<const float> tensor : source.tensors) {
      if (tensor.empty()) continue;
      size += static_cast<int64_t>(tensor.size()) * wire::ElementBytes(dtype) + kChunkOverheadBytes;
      ++chunks;
    }
  }
  for (const RowsGradient& gradient : rows) {
    size += static_cast<int64_t>(gradient.values.size()) * wire::ElementBytes(dtype) + kChunkOverheadBytes;
    for (const int64_t row : gradient.rows) size += TensorMessageBuilder::RowBytes(row);
    ++chunks;
  }
  return size <= message_bytes && chunks <= wire::kMaxChunks;
}

// Adds elements to a chunk that has begun.
void Add(absl::Span<const float> elements, v1::Dtype dtype, TensorMessageBuilder* message) {
  const auto count = static_cast<int64_t>(elements.size());
  if (Is16Bit(dtype)) {
    Narrow(dtype, elements.data(), count, message->AddNarrowed(count));
  } else {
    message->AddElements(elements.data(), count);
  }
}

// What the slices of one message refer to.
struct MessageHold {
  std::shared_ptr<const void> callers;         // memory
  std::vector<std::unique_ptr<float[]>> read;  // what was read for this message
};

// Reads the next `to.size()` elements of a chunk.
void Read(wire::TensorMessage::Chunk* chunk, absl::Span<float> to) {
  const auto count = static_cast<int64_t>(to.size());
  if (!Is16Bit(chunk->dtype())) {
    chunk->Read(to.data(), count);
    return;
  }
  float* next = to.data();
  chunk->Visit(count, [&](const uint8_t* bytes, int64_t n) {
    Widen(chunk->dtype(), bytes, n, next);
    next += n;
  });
}

// Of a row that is to be written soon, the beginning.
constexpr size_t kRowsAhead = 8;
void PrefetchRow(absl::Span<float> tensor, int64_t begin, int64_t width) {
  constexpr int64_t kLineElements = 16;
  const int64_t end = std::min({begin + width, begin + 16 * kLineElements, static_cast<int64_t>(tensor.size())});
  for (int64_t i = begin; i < end; i += kLineElements) __builtin_prefetch(tensor.data() + i, /*rw=*/1);
}

std::vector<int64_t> Sizes(ConstTensors tensors) {
  std::vector<int64_t> sizes;
  sizes.reserve(tensors.size());
  for (absl::Span<const float> tensor : tensors) sizes.push_back(static_cast<int64_t>(tensor.size()));
  return sizes;
}

}  // namespace

absl::Status SendTensors(const google::protobuf::MessageLite& header, absl::Span<const WriteCall::Source> sources,
                         absl::Span<const RowsGradient> rows, v1::Dtype dtype, int64_t message_bytes,
                         std::shared_ptr<const void> hold, ByteStream* stream, const Progress& progress,
                         const ElementReader& read) {
  int64_t total = 0;
  if (progress) {
    for (const WriteCall::Source& source : sources) total += CountElements(source.tensors);
  }
  int64_t added = 0;
  const auto send = [&](TensorMessageBuilder* message) {
    absl::Status status = stream->Write(message->Finish());
    if (status.ok() && progress && added > 0) progress(added, total);
    return status;
  };
  std::shared_ptr<MessageHold> message_hold;
  const auto begin_message = [&] {
    if (!read) return TensorMessageBuilder(hold);
    message_hold = std::make_shared<MessageHold>(MessageHold{.callers = hold, .read = {}});
    return TensorMessageBuilder(message_hold);
  };
  TensorMessageBuilder builder = begin_message();
  builder.SetHeader(header);
  if (!FitIntoOne(header, sources, rows, dtype, message_bytes)) {
    absl::Status status = send(&builder);
    if (!status.ok()) return status;
    builder = begin_message();
  }
  const int64_t limit = message_bytes - kMessageOverheadBytes;
  for (const WriteCall::Source& source : sources) {
    const std::vector<int64_t> sizes = Sizes(source.tensors);
    TensorCutter cutter(sizes, source.slot, wire::ChunkForm::kData, dtype);
    absl::Status status;
    const auto add = [&](int32_t tensor, int64_t begin, int64_t end, TensorMessageBuilder* message) {
      if (read) {
        auto& elements = message_hold->read.emplace_back(std::make_unique_for_overwrite<float[]>(end - begin));
        const absl::Span<float> to = absl::MakeSpan(elements.get(), end - begin);
        status = read(source.slot, tensor, begin, to);
        if (!status.ok()) return false;
        Add(to, dtype, message);
      } else {
        Add(source.tensors[tensor].subspan(begin, end - begin), dtype, message);
      }
      added += end - begin;
      return true;
    };
    while (true) {
      cutter.Fill(limit, add, &builder);
      if (!status.ok()) return status;
      if (cutter.done()) break;
      status = send(&builder);
      if (!status.ok()) return status;
      builder = begin_message();
    }
  }
  for (const RowsGradient& gradient : rows) {
    const size_t width = gradient.rows.empty() ? 0 : gradient.values.size() / gradient.rows.size();
    for (size_t first = 0; first < gradient.rows.size();) {
      const absl::Span<const int64_t> left = gradient.rows.subspan(first);
      const auto count =
          static_cast<size_t>(wire::RowsThatFit(left, static_cast<int64_t>(width), dtype, builder, limit));
      if (count == 0) {
        absl::Status status = send(&builder);
        if (!status.ok()) return status;
        builder = begin_message();
        continue;
      }
      builder.BeginRows(gradient.tensor, left.first(count), wire::ChunkForm::kData, static_cast<int64_t>(count * width),
                        dtype);
      Add(gradient.values.subspan(first * width, count * width), dtype, &builder);
      first += count;
    }
  }
  builder.SetLast();
  return send(&builder);
}

TensorReceiver::TensorReceiver(absl::Span<const ReadCall::Target> targets) : targets_(targets) {
  for (const ReadCall::Target& target : targets) received_.emplace_back(target.tensors.size());
}

TensorReceiver::TensorReceiver(const ReadCall::Target& parameters, absl::Span<const RowsGradient> rows)
    : TensorReceiver({&parameters, 1}) {
  for (const RowsGradient& gradient : rows) {
    Rows expected = {.width = 0, .expected = {gradient.rows.begin(), gradient.rows.end()}, .received = 0};
    if (!gradient.values.empty()) {
      expected.width = static_cast<int64_t>(gradient.values.size() / gradient.rows.size());
      std::sort(expected.expected.begin(), expected.expected.end());
      expected.expected.erase(std::unique(expected.expected.begin(), expected.expected.end()), expected.expected.end());
    } else {
      // Rows without elements do not come.
      expected.expected.clear();
    }
    rows_.emplace(gradient.tensor, std::move(expected));
  }
}

absl::Status TensorReceiver::TakeRows(wire::TensorMessage::Chunk* chunk) {
  const auto found = rows_.find(chunk->tensor());
  if (found == rows_.end()) {
    return absl::InternalError(absl::StrCat("the server sent rows of tensor ", chunk->tensor(), ", which came whole"));
  }
  Rows& rows = found->second;
  const absl::Span<float> tensor = targets_[0].tensors[chunk->tensor()];
  if (chunk->row_count() > static_cast<int64_t>(rows.expected.size() - rows.received) ||
      chunk->count() != chunk->row_count() * rows.width) {
    return absl::InternalError(absl::StrCat("the server sent ", chunk->row_count(), " rows and ", chunk->count(),
                                            " elements of tensor ", chunk->tensor(), ", of which it had ",
                                            rows.expected.size(), " rows"));
  }
  for (int64_t i = 0; i < chunk->row_count(); ++i) {
    // Rows are far from each other, and none of their places is likely to be in cache.
    const size_t ahead = rows.received + kRowsAhead;
    if (ahead < rows.expected.size()) PrefetchRow(tensor, rows.expected[ahead] * rows.width, rows.width);
    int64_t row;
    chunk->ReadRows(&row, 1);
    if (row != rows.expected[rows.received]) {
      return absl::InternalError(absl::StrCat("the server sent row ", row, " of tensor ", chunk->tensor(),
                                              " where row ", rows.expected[rows.received], " was due"));
    }
    if ((row + 1) * rows.width > static_cast<int64_t>(tensor.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the span for tensor ", chunk->tensor(), ": ",
          ExpectedGot(absl::StrCat("at least ", (row + 1) * rows.width, " elements"), absl::StrCat(tensor.size()))));
    }
    Read(chunk, tensor.subspan(row * rows.width, rows.width));
    ++rows.received;
  }
  return absl::OkStatus();
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
    if (chunk.row_count() > 0) {
      absl::Status status = TakeRows(&chunk);
      if (!status.ok()) return status;
      continue;
    }
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
    Read(&chunk, tensor.subspan(received, chunk.count()));
    received += chunk.count();
    taken_ += chunk.count();
  }
  return absl::OkStatus();
}

absl::Status TensorReceiver::Finish(bool without_rows) const {
  for (const auto& [tensor, rows] : rows_) {
    if (without_rows || rows.received == rows.expected.size()) continue;
    return absl::InternalError(
        absl::StrCat("the server sent ", rows.received, " of ", rows.expected.size(), " rows of tensor ", tensor));
  }
  for (size_t target = 0; target < targets_.size(); ++target) {
    for (size_t tensor = 0; tensor < received_[target].size(); ++tensor) {
      if (rows_.contains(static_cast<int32_t>(tensor))) continue;
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
