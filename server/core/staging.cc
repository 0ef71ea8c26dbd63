// Accounts for chunks, copies them into blocks, and measures blocks as they fill up.
#include "server/core/staging.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

absl::Status ChunkError(v1::ErrorReason reason, int32_t tensor, int64_t offset, absl::string_view message) {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_tensor(tensor);
  detail.set_offset(offset);
  return Error(absl::StatusCode::kInvalidArgument, message, detail);
}

}  // namespace

Coverage::Coverage(std::shared_ptr<const Schema> schema)
    : schema_(std::move(schema)), received_(schema_->tensors().size(), 0), missing_(schema_->parameter_count()) {}

absl::StatusOr<int64_t> Coverage::Advance(int32_t tensor, int64_t offset, int64_t count) {
  const auto tensors = schema_->tensors();
  if (tensor < 0 || static_cast<size_t>(tensor) >= tensors.size()) {
    return ChunkError(v1::ERROR_REASON_UNKNOWN_TENSOR, tensor, offset,
                      absl::StrCat("chunk of tensor ", tensor, " of a set of ", tensors.size(), " tensors"));
  }
  const Schema::Tensor& place = tensors[tensor];
  if (count < 1) {
    return ChunkError(v1::ERROR_REASON_MALFORMED_CHUNK, tensor, offset,
                      absl::StrCat("chunk of tensor ", tensor, " (`", place.name, "`) without elements"));
  }
  if (offset < 0 || offset > place.size() || count > place.size() - offset) {
    return ChunkError(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, tensor, offset,
                      absl::StrCat("chunk of ", count, " elements from offset ", offset, " of tensor ", tensor, " (`",
                                   place.name, "`), which has ", place.size()));
  }
  if (offset != received_[tensor]) {
    return ChunkError(v1::ERROR_REASON_CHUNK_OUT_OF_ORDER, tensor, offset,
                      absl::StrCat("chunk from offset ", offset, " of tensor ", tensor, " (`", place.name,
                                   "`); expected one from offset ", received_[tensor]));
  }
  received_[tensor] += count;
  missing_ -= count;
  return place.begin + offset;
}

absl::Status Coverage::CheckComplete() const {
  if (missing_ == 0) return absl::OkStatus();
  const auto tensors = schema_->tensors();
  int32_t tensor = 0;
  while (received_[tensor] == tensors[tensor].size()) ++tensor;
  return ChunkError(
      v1::ERROR_REASON_INCOMPLETE, tensor, received_[tensor],
      absl::StrCat(missing_, " elements are missing, the first at offset ", received_[tensor], " of tensor ", tensor,
                   " (`", tensors[tensor].name, "`), which has ", tensors[tensor].size()));
}

Staging::Staging(std::shared_ptr<const Schema> schema, BlockList blocks, kernels::MeasureFunction measure)
    : schema_(std::move(schema)),
      measure_(measure),
      blocks_(std::move(blocks)),
      coverage_(schema_),
      missing_(blocks_.size(), 0),
      stats_(measure_ != nullptr ? blocks_.size() : 0) {
  const auto tensors = schema_->tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    ForEachRun(tensors[i].begin, tensors[i].end,
               [this](int64_t block, int64_t begin, int64_t end) { missing_[block] += end - begin; });
    const int64_t next = i + 1 < tensors.size() ? tensors[i + 1].begin : schema_->flat_size();
    ForEachRun(tensors[i].end, next, [this](int64_t block, int64_t begin, int64_t end) {
      std::fill(blocks_[block].mutable_data() + begin, blocks_[block].mutable_data() + end, 0.0f);
    });
  }
}

absl::Status Staging::Add(int32_t tensor, int64_t offset, int64_t count, ChunkSource copy) {
  const absl::StatusOr<int64_t> first = coverage_.Advance(tensor, offset, count);
  if (!first.ok()) return first.status();
  ForEachRun(*first, *first + count, [&](int64_t block, int64_t begin, int64_t end) {
    const BlockRef& target = blocks_[block];
    copy(target.mutable_data() + begin, end - begin);
    missing_[block] -= end - begin;
    if (missing_[block] == 0 && measure_ != nullptr) stats_[block] = measure_(target.data(), target.size());
  });
  return absl::OkStatus();
}

kernels::GradientStats Staging::Stats() const {
  kernels::GradientStats total;
  for (const kernels::GradientStats& block : stats_) {
    total.sum_of_squares += block.sum_of_squares;
    total.max_magnitude_bits = std::max(total.max_magnitude_bits, block.max_magnitude_bits);
  }
  return total;
}

absl::optional<Staging::Place> Staging::FindNotBelow(float limit) const {
  // A NaN is not below anything.
  const auto below = [limit](float x) { return std::fabs(x) < limit; };
  absl::optional<Place> found;
  const auto tensors = schema_->tensors();
  for (size_t i = 0; i < tensors.size() && !found.has_value(); ++i) {
    ForEachRun(tensors[i].begin, tensors[i].end, [&](int64_t block, int64_t begin, int64_t end) {
      if (found.has_value()) return;
      // Blocks that were measured need a look only if they have what is sought.
      if (measure_ != nullptr && below(std::bit_cast<float>(stats_[block].max_magnitude_bits))) return;
      const float* data = blocks_[block].data();
      const float* bad = std::find_if_not(data + begin, data + end, below);
      if (bad == data + end) return;
      const int64_t flat = block * kBlockElements + (bad - data);
      found = Place{static_cast<int>(i), flat - tensors[i].begin};
    });
  }
  return found;
}

void ForEachRun(int64_t begin, int64_t end, absl::FunctionRef<void(int64_t block, int64_t begin, int64_t end)> visit) {
  while (begin < end) {
    const int64_t block = begin / kBlockElements;
    const int64_t start = block * kBlockElements;
    const int64_t stop = std::min(end, start + kBlockElements);
    visit(block, begin - start, stop - start);
    begin = stop;
  }
}

}  // namespace adamant::core
