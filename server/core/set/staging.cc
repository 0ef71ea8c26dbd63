// Accounts for chunks, copies them into blocks, and measures blocks as they fill up.
#include "server/core/set/staging.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

// What is wrong with a chunk of a tensor.
v1::ErrorDetail ChunkDetail(v1::ErrorReason reason, int32_t tensor, int64_t offset) {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_tensor(tensor);
  detail.set_offset(offset);
  return detail;
}

// `tensor 3 (`bias`)`.
std::string NameOf(int32_t tensor, const Schema& schema) {
  return absl::StrCat("tensor ", tensor, " (", Quoted(schema.tensors()[tensor].name), ")");
}

// What to ask whoever sent so many bytes of data for so many elements: elements of another type than fp32, taken for
// fp32, add up to twice, half or a quarter as many.
absl::string_view AskForType(int64_t received, int64_t elements) {
  if (received <= 0 || elements <= 0) return "";
  if (received % 2 == 0 && received / 2 == elements) return "; is this float64?";
  if (elements % 2 == 0 && elements / 2 == received) return "; is this float16 or bfloat16?";
  if (elements % 4 == 0 && elements / 4 == received) return "; is this int8?";
  return "";
}

}  // namespace

Coverage::Coverage(std::shared_ptr<const TensorSelection> selection)
    : selection_(std::move(selection)),
      received_(selection_->sizes().size(), 0),
      missing_(selection_->parameter_count()) {}

absl::StatusOr<int64_t> Coverage::Advance(int32_t tensor, int64_t offset, int64_t count) {
  const Schema& schema = selection_->schema();
  const auto tensors = schema.tensors();
  if (tensor < 0 || static_cast<size_t>(tensor) >= tensors.size()) {
    v1::ErrorDetail detail = ChunkDetail(v1::ERROR_REASON_UNKNOWN_TENSOR, tensor, offset);
    detail.set_field("tensor");
    return Error(absl::StatusCode::kInvalidArgument,
                 ExpectedGot(absl::StrCat("one of the set's ", tensors.size(), " tensors, counted from 0"),
                             absl::StrCat(tensor)),
                 detail);
  }
  if (!selection_->has(tensor)) {
    v1::ErrorDetail detail = ChunkDetail(v1::ERROR_REASON_TENSOR_NOT_CARRIED, tensor, offset);
    detail.set_field("tensor");
    return Error(
        absl::StatusCode::kInvalidArgument,
        ExpectedGot("one of the tensors that the header names, or all that are not frozen", NameOf(tensor, schema)),
        detail);
  }
  const Schema::Tensor& place = tensors[tensor];
  if (count < 0 || (count == 0 && place.size() > 0)) {
    return Error(
        absl::StatusCode::kInvalidArgument,
        ExpectedGot(absl::StrCat("elements of ", NameOf(tensor, schema), ", which has ", place.size()), "none"),
        ChunkDetail(v1::ERROR_REASON_MALFORMED_CHUNK, tensor, offset));
  }
  const int64_t received = received_[tensor];
  if (offset < 0 || offset > place.size() || count > place.size() - offset) {
    v1::ErrorDetail detail = ChunkDetail(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, tensor, offset);
    detail.set_expected_offset(place.size());
    const int64_t in_all = count > 2 * place.size() ? 0 : received + count;
    return Error(
        absl::StatusCode::kInvalidArgument,
        absl::StrCat(ExpectedGot(absl::StrCat("elements in [0, ", place.size(), ") of ", NameOf(tensor, schema)),
                                 absl::StrCat(count, " from offset ", offset, " on")),
                     AskForType(in_all, place.size())),
        detail);
  }
  if (offset != received) {
    v1::ErrorDetail detail = ChunkDetail(v1::ERROR_REASON_CHUNK_OUT_OF_ORDER, tensor, offset);
    detail.set_field("offset");
    detail.set_expected_offset(received);
    return Error(absl::StatusCode::kInvalidArgument,
                 absl::StrCat(ExpectedGot(absl::StrCat(received, ", where ", NameOf(tensor, schema), " goes on"),
                                          absl::StrCat(offset)),
                              AskForType(received, offset)),
                 detail);
  }
  received_[tensor] += count;
  missing_ -= count;
  return place.begin + offset;
}

absl::Status Coverage::CheckComplete() const {
  if (missing_ == 0) return absl::OkStatus();
  const absl::Span<const int64_t> sizes = selection_->sizes();
  int32_t tensor = 0;
  while (received_[tensor] == sizes[tensor]) ++tensor;
  const int64_t received = received_[tensor];
  v1::ErrorDetail detail = ChunkDetail(v1::ERROR_REASON_INCOMPLETE, tensor, received);
  detail.set_expected_offset(received);
  return Error(absl::StatusCode::kInvalidArgument,
               absl::StrCat(ExpectedGot(absl::StrCat("all ", sizes[tensor], " elements of ",
                                                     NameOf(tensor, selection_->schema())),
                                        absl::StrCat(received)),
                            " (missing in all tensors: ", missing_, ")", AskForType(received, sizes[tensor])),
               detail);
}

Staging::Staging(std::shared_ptr<const TensorSelection> selection, BlockList blocks, kernels::MeasureFunction measure,
                 std::unique_ptr<RowStaging> rows)
    : selection_(std::move(selection)),
      measure_(measure),
      blocks_(std::move(blocks)),
      coverage_(selection_),
      rows_(std::move(rows)),
      missing_(selection_->blocks().size(), 0),
      stats_(measure_ != nullptr ? selection_->blocks().size() : 0) {
  const Schema& schema = selection_->schema();
  const auto tensors = schema.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool selected = selection_->has(static_cast<int>(i));
    if (selected) {
      ForEachRun(tensors[i].begin, tensors[i].end,
                 [this](int64_t block, int64_t begin, int64_t end) { missing_[PositionOf(block)] += end - begin; });
    }
    const int64_t next = i + 1 < tensors.size() ? tensors[i + 1].begin : schema.flat_size();
    Zero(selected ? tensors[i].end : tensors[i].begin, next);
  }
}

size_t Staging::PositionOf(int64_t block) const {
  const absl::Span<const int64_t> selected = selection_->blocks();
  if (selected.size() == blocks_.size()) return block;
  return absl::c_lower_bound(selected, block) - selected.begin();
}

void Staging::Zero(int64_t begin, int64_t end) {
  const absl::Span<const int64_t> selected = selection_->blocks();
  for (size_t i = PositionOf(begin / kBlockElements); i < selected.size(); ++i) {
    const int64_t start = selected[i] * kBlockElements;
    if (start >= end) return;
    float* const data = blocks_[selected[i]].mutable_data();
    std::fill(data + std::max(begin - start, int64_t{0}), data + std::min(end - start, kBlockElements), 0.0f);
  }
}

absl::Status Staging::Add(int32_t tensor, int64_t offset, int64_t count, ChunkSource copy) {
  if (rows_ != nullptr && rows_->Has(tensor)) {
    return rows_->Add(
        tensor, offset, /*row_count=*/0, [](int64_t*, int64_t) {}, count, copy);
  }
  const absl::StatusOr<int64_t> first = coverage_.Advance(tensor, offset, count);
  if (!first.ok()) return first.status();
  ForEachRun(*first, *first + count, [&](int64_t block, int64_t begin, int64_t end) {
    const BlockRef& target = blocks_[block];
    copy(target.mutable_data() + begin, end - begin);
    const size_t position = PositionOf(block);
    missing_[position] -= end - begin;
    if (missing_[position] > 0) return;
    if (measure_ != nullptr) stats_[position] = measure_(target.data(), target.size());
    if (complete_ != nullptr) complete_(position, target);
  });
  return absl::OkStatus();
}

absl::Status Staging::AddRows(int32_t tensor, int64_t offset, int64_t row_count, RowSource rows, int64_t count,
                              ChunkSource copy) {
  if (rows_ != nullptr && rows_->Has(tensor)) return rows_->Add(tensor, offset, row_count, rows, count, copy);
  return Error(absl::StatusCode::kInvalidArgument,
               ExpectedGot("no `rows` but of the tensors that the header's `sparse` names",
                           absl::StrCat(row_count, " of tensor ", tensor)),
               ChunkDetail(v1::ERROR_REASON_MALFORMED_CHUNK, tensor, offset));
}

absl::Status Staging::CheckComplete() const {
  absl::Status status = coverage_.CheckComplete();
  return status.ok() && rows_ != nullptr ? rows_->CheckComplete() : status;
}

kernels::GradientStats Staging::Stats() const {
  kernels::GradientStats total;
  for (const kernels::GradientStats& block : stats_) {
    total.sum_of_squares += block.sum_of_squares;
    total.max_magnitude_bits = std::max(total.max_magnitude_bits, block.max_magnitude_bits);
  }
  if (rows_ != nullptr) rows_->AddTo(&total);
  return total;
}

std::optional<Staging::Place> Staging::FindNotBelow(double limit) const {
  // A NaN is not below anything.
  const auto below = [limit](float x) { return std::fabs(static_cast<double>(x)) < limit; };
  std::optional<Place> found;
  const auto tensors = selection_->schema().tensors();
  for (size_t i = 0; i < tensors.size() && !found.has_value(); ++i) {
    if (!selection_->has(static_cast<int>(i))) continue;
    ForEachRun(tensors[i].begin, tensors[i].end, [&](int64_t block, int64_t begin, int64_t end) {
      if (found.has_value()) return;
      // Blocks that were measured need a look only if they have what is sought.
      if (measure_ != nullptr && below(std::bit_cast<float>(stats_[PositionOf(block)].max_magnitude_bits))) return;
      const float* data = blocks_[block].data();
      const float* bad = std::find_if_not(data + begin, data + end, below);
      if (bad == data + end) return;
      const int64_t flat = block * kBlockElements + (bad - data);
      found = Place{static_cast<int>(i), flat - tensors[i].begin};
    });
  }
  if (rows_ == nullptr) return found;
  const std::optional<Place> in_rows = rows_->FindNotBelow(limit);
  const bool is_lower = in_rows.has_value() && (!found.has_value() || in_rows->tensor < found->tensor);
  return is_lower ? in_rows : found;
}

}  // namespace adamant::core
