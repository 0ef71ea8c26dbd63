#include "proto/wire/tensor_cutter.h"

#include <algorithm>

namespace adamant::wire {

TensorCutter::TensorCutter(absl::Span<const int64_t> sizes, v1::Slot slot, ChunkForm form, v1::Dtype dtype)
    : sizes_(sizes), slot_(slot), form_(form), dtype_(dtype), missing_tensor_(sizes.size()) {
  PassOverEmpty();
}

bool TensorCutter::done() const { return tensor_ == sizes_.size(); }

void TensorCutter::SetAvailable(size_t tensor, int64_t offset) {
  missing_tensor_ = tensor;
  missing_offset_ = offset;
}

void TensorCutter::Fill(int64_t limit, Source source, TensorMessageBuilder* builder) {
  const int64_t element_bytes = ElementBytes(dtype_);
  while (!done() && builder->chunks() < kMaxChunks) {
    const int64_t available =
        tensor_ == missing_tensor_ ? missing_offset_ : (tensor_ < missing_tensor_ ? sizes_[tensor_] : 0);
    if (offset_ >= available) return;
    const int32_t tensor = static_cast<int32_t>(tensor_);
    const int64_t room = limit - builder->size();
    int64_t count = std::min(available - offset_, std::max<int64_t>(room, 0) / element_bytes);
    // What does not fit with the chunk's own bytes, in whole elements. A chunk of fewer elements has no more of its
    // own.
    const int64_t excess = TensorMessageBuilder::ChunkBytes(tensor, offset_, slot_, count, dtype_) - room;
    if (excess > 0) count -= (excess + element_bytes - 1) / element_bytes;
    if (count <= 0) {
      if (builder->chunks() > 0) return;
      count = 1;
    }
    builder->BeginChunk(tensor, offset_, slot_, form_, count, dtype_);
    if (!source(tensor, offset_, offset_ + count, builder)) return;
    offset_ += count;
    if (offset_ == sizes_[tensor_]) {
      ++tensor_;
      offset_ = 0;
      PassOverEmpty();
    }
  }
}

void TensorCutter::PassOverEmpty() {
  while (!done() && sizes_[tensor_] == 0) ++tensor_;
}

int64_t RowsThatFit(absl::Span<const int64_t> rows, int64_t width, v1::Dtype dtype, const TensorMessageBuilder& builder,
                    int64_t limit) {
  if (builder.chunks() == kMaxChunks) return 0;
  int64_t room = limit - builder.size() - TensorMessageBuilder::kMostRowsChunkBytes;
  int64_t count = 0;
  for (const int64_t row : rows) {
    room -= TensorMessageBuilder::RowBytes(row) + width * ElementBytes(dtype);
    if (room < 0) break;
    ++count;
  }
  return count == 0 && builder.chunks() == 0 ? 1 : count;
}

}  // namespace adamant::wire
