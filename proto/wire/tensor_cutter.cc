#include "proto/wire/tensor_cutter.h"

#include <algorithm>

namespace adamant::wire {

TensorCutter::TensorCutter(absl::Span<const int64_t> sizes, v1::Slot slot, ChunkForm form)
    : sizes_(sizes), slot_(slot), form_(form) {}

bool TensorCutter::done() const { return tensor_ == sizes_.size(); }

void TensorCutter::Fill(int64_t limit, Source source, TensorMessageBuilder* builder) {
  for (bool first = true; !done(); first = false) {
    const int32_t tensor = static_cast<int32_t>(tensor_);
    const int64_t room = limit - builder->size();
    int64_t count = std::min(sizes_[tensor_] - offset_, room / kElementBytes);
    while (count > 0 && TensorMessageBuilder::ChunkBytes(tensor, offset_, slot_, form_, count) > room) --count;
    if (count <= 0) {
      if (!first) return;
      count = 1;
    }
    builder->BeginChunk(tensor, offset_, slot_, form_, count);
    if (!source(tensor, offset_, offset_ + count, builder)) return;
    offset_ += count;
    if (offset_ == sizes_[tensor_]) {
      ++tensor_;
      offset_ = 0;
    }
  }
}

}  // namespace adamant::wire
