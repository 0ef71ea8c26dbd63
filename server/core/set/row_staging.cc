#include "server/core/set/row_staging.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

// What a set could have by no means, in elements or bytes.
constexpr int64_t kTooMany = int64_t{1} << 60;

// Elements of a tensor's row. Requires: it has an extent.
int64_t WidthOf(const Schema::Tensor& tensor) {
  int64_t width = 1;
  for (size_t i = 1; i < tensor.shape.size(); ++i) width *= tensor.shape[i];
  return width;
}

// `tensor 3 (`embedding`)`.
std::string NameOf(int32_t tensor, const Schema& schema) {
  return absl::StrCat("tensor ", tensor, " (", Quoted(schema.tensors()[tensor].name), ")");
}

absl::Status ChunkError(v1::ErrorReason reason, int32_t tensor, int64_t offset, absl::string_view message,
                        absl::string_view field = "") {
  v1::ErrorDetail detail;
  detail.set_reason(reason);
  detail.set_tensor(tensor);
  detail.set_offset(offset);
  detail.set_field(std::string(field));
  return Error(absl::StatusCode::kInvalidArgument, message, detail);
}

}  // namespace

absl::Status TakeOutSparse(const Schema& schema, const v1::StepHeader& header, std::vector<bool>* brought) {
  int32_t before = -1;
  for (int i = 0; i < header.sparse_size(); ++i) {
    const std::string field = absl::StrCat("header.sparse[", i, "]");
    const int32_t tensor = header.sparse(i).tensor();
    if (tensor <= before) {
      return InvalidField(absl::StrCat(field, ".tensor"),
                          before < 0 ? "0 or more" : absl::StrCat("more than ", before, ", the one before"),
                          absl::StrCat(tensor));
    }
    before = tensor;
    if (static_cast<size_t>(tensor) >= brought->size() || !(*brought)[tensor]) {
      return InvalidField(absl::StrCat(field, ".tensor"), "a tensor that the step brings", absl::StrCat(tensor));
    }
    const Schema::Tensor& place = schema.tensors()[tensor];
    if (place.shape.empty() || WidthOf(place) > kMaxRowElements) {
      return InvalidField(absl::StrCat(field, ".tensor"),
                          absl::StrCat("a tensor that has rows, of at most ", kMaxRowElements, " elements"),
                          place.shape.empty() ? absl::StrCat(NameOf(tensor, schema), ", a scalar")
                                              : absl::StrCat(NameOf(tensor, schema), ", of ", WidthOf(place)));
    }
    if (header.sparse(i).rows() < 0) {
      return InvalidField(absl::StrCat(field, ".rows"), "0 or more", absl::StrCat(header.sparse(i).rows()));
    }
    (*brought)[tensor] = false;
  }
  return absl::OkStatus();
}

RowStaging::Size RowStaging::SizeOf(const Schema& schema, const Announced& announced) {
  Size size = {.elements = 0, .bytes = 0};
  for (const v1::SparseRows& one : announced) {
    const int64_t width = WidthOf(schema.tensors()[one.tensor()]);
    // The product of a width of at most 2^19 and this is no more than 2^61.
    const int64_t rows = std::min(one.rows(), int64_t{1} << 42);
    size.elements = std::min(kTooMany, size.elements + rows * width);
    size.bytes = std::min(kTooMany, size.bytes + static_cast<int64_t>(sizeof(RowWork::Tensor) + sizeof(Arrival)) +
                                        rows * static_cast<int64_t>(sizeof(RowWork::Row)));
  }
  // What blocks are for.
  size.elements = (size.elements + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  return size;
}

RowStaging::RowStaging(const Schema& schema, const Announced& announced, BlockList values,
                       const kernels::KernelTable& kernels)
    : schema_(schema), kernels_(kernels), work_(std::make_unique<RowWork>()) {
  work_->values = std::move(values);
  work_->tensors.reserve(announced.size());
  arrivals_.reserve(announced.size());
  size_t rows = 0;
  int64_t elements = 0;
  for (const v1::SparseRows& one : announced) {
    const Schema::Tensor& tensor = schema.tensors()[one.tensor()];
    const int64_t width = WidthOf(tensor);
    const size_t end = rows + one.rows();
    work_->tensors.push_back({.tensor = one.tensor(),
                              .begin = tensor.begin,
                              .width = width,
                              .values = elements,
                              .first = rows,
                              .end = end,
                              .recipe = 0});
    arrivals_.push_back({.extent = tensor.shape[0], .announced = one.rows(), .received = 0});
    rows = end;
    elements += one.rows() * width;
  }
  work_->rows.resize(rows);
}

const RowWork::Tensor* RowStaging::Find(int32_t tensor) const {
  const auto found = absl::c_lower_bound(
      work_->tensors, tensor, [](const RowWork::Tensor& one, int32_t sought) { return one.tensor < sought; });
  return found != work_->tensors.end() && found->tensor == tensor ? &*found : nullptr;
}

absl::Status RowStaging::Add(int32_t tensor, int64_t offset, int64_t row_count, RowSource rows, int64_t count,
                             ChunkSource copy) {
  const RowWork::Tensor* const place = Find(tensor);
  Arrival& arrival = ArrivalOf(place);
  const auto name = [&] { return NameOf(tensor, schema_); };
  if (offset != 0 || count != row_count * place->width || (row_count == 0 && arrival.announced > 0)) {
    return ChunkError(
        v1::ERROR_REASON_MALFORMED_CHUNK, tensor, offset,
        ExpectedGot(absl::StrCat("`rows` of ", name(), ", no `offset`, and ", place->width, " elements for each row"),
                    absl::StrCat(row_count, " rows, the offset ", offset, ", and ", count, " elements")));
  }
  if (row_count > arrival.announced - arrival.received) {
    return ChunkError(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, tensor, offset,
                      ExpectedGot(absl::StrCat("the ", arrival.announced, " rows of ", name(), " that are announced"),
                                  absl::StrCat(arrival.received + row_count)));
  }
  for (int64_t i = 0; i < row_count; ++i) {
    int64_t index;
    rows(&index, 1);
    if (index < 0 || index >= arrival.extent) {
      return ChunkError(v1::ERROR_REASON_CHUNK_OUT_OF_RANGE, tensor, offset,
                        ExpectedGot(absl::StrCat("rows in [0, ", arrival.extent, ") of ", name()), absl::StrCat(index)),
                        absl::StrCat("rows[", i, "]"));
    }
    const int64_t at = arrival.received + i;
    work_->rows[place->first + at] = {.index = index, .place = at};
  }
  const int64_t begin = place->values + arrival.received * place->width;
  ForEachRun(begin, begin + count, [&](int64_t block, int64_t run_begin, int64_t run_end) {
    copy(work_->values[block].mutable_data() + run_begin, run_end - run_begin);
  });
  arrival.received += row_count;
  return absl::OkStatus();
}

absl::Status RowStaging::CheckComplete() const {
  for (size_t i = 0; i < arrivals_.size(); ++i) {
    const Arrival& arrival = arrivals_[i];
    if (arrival.received == arrival.announced) continue;
    const int tensor = work_->tensors[i].tensor;
    return ChunkError(v1::ERROR_REASON_INCOMPLETE, tensor, 0,
                      ExpectedGot(absl::StrCat("the ", arrival.announced, " rows of ", NameOf(tensor, schema_),
                                               " that are announced"),
                                  absl::StrCat(arrival.received)));
  }
  return absl::OkStatus();
}

void RowStaging::Sum() {
  std::vector<RowWork::Row>& rows = work_->rows;
  size_t kept = 0;
  for (RowWork::Tensor& tensor : work_->tensors) {
    const auto first = rows.begin() + static_cast<int64_t>(tensor.first);
    const auto end = rows.begin() + static_cast<int64_t>(tensor.end);
    std::sort(first, end, [](const RowWork::Row& a, const RowWork::Row& b) {
      return a.index != b.index ? a.index < b.index : a.place < b.place;
    });
    tensor.first = kept;
    for (auto row = first; row != end; ++row) {
      if (kept == tensor.first || rows[kept - 1].index != row->index) {
        rows[kept++] = *row;
        continue;
      }
      // To the one that came first.
      int64_t from = tensor.values + row->place * tensor.width;
      const int64_t to = tensor.values + rows[kept - 1].place * tensor.width;
      ForEachRun(RowWork::Place{&tensor, to, to + tensor.width, from},
                 [&](int64_t block, int64_t begin, int64_t from_block, int64_t from_begin, int64_t count) {
                   kernels_.fold(1, work_->values[from_block].data() + from_begin,
                                 work_->values[block].mutable_data() + begin, count, /*first=*/false);
                 });
    }
    tensor.end = kept;
  }
  rows.resize(kept);
}

bool RowStaging::Restore(absl::Span<const int64_t> counts, absl::Span<const RowWork::Row> rows) {
  if (counts.size() != arrivals_.size()) return false;
  size_t first = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    RowWork::Tensor& tensor = work_->tensors[i];
    if (counts[i] < 0 || static_cast<uint64_t>(counts[i]) > rows.size() - first) return false;
    tensor.first = first;
    tensor.end = first + counts[i];
    int64_t before = -1;
    for (size_t row = tensor.first; row < tensor.end; ++row) {
      if (rows[row].index <= before || rows[row].index >= arrivals_[i].extent) return false;
      if (rows[row].place < 0 || rows[row].place >= arrivals_[i].announced) return false;
      before = rows[row].index;
    }
    first = tensor.end;
  }
  if (first != rows.size()) return false;
  work_->rows.assign(rows.begin(), rows.end());
  return true;
}

kernels::GradientStats RowStaging::Measure(const RowWork::Place& place) const {
  const BlockList& values = work_->values;
  kernels::GradientStats row;
  for (int64_t begin = 0; begin < place.end - place.begin; begin += kernels::kNormLeaf) {
    const int64_t size = std::min(kernels::kNormLeaf, place.end - place.begin - begin);
    const int64_t first = place.values + begin;
    kernels::GradientStats leaf;
    if (first / kBlockElements == (first + size - 1) / kBlockElements) {
      leaf = kernels_.measure(values[first / kBlockElements].data() + first % kBlockElements, size);
    } else {
      float elements[kernels::kNormLeaf];
      CopyRuns(values, first, first + size, elements);
      leaf = kernels_.measure(elements, size);
    }
    row.sum_of_squares += leaf.sum_of_squares;
    row.max_magnitude_bits = std::max(row.max_magnitude_bits, leaf.max_magnitude_bits);
  }
  return row;
}

void RowStaging::AddTo(kernels::GradientStats* stats) const {
  work_->ForEachRow(0, work_->rows.size(), [&](const RowWork::Place& place) {
    const kernels::GradientStats row = Measure(place);
    stats->sum_of_squares += row.sum_of_squares;
    stats->max_magnitude_bits = std::max(stats->max_magnitude_bits, row.max_magnitude_bits);
  });
}

std::optional<GradientPlace> RowStaging::FindNotBelow(double limit) const {
  // A NaN is not below anything.
  const auto below = [limit](float x) { return std::fabs(static_cast<double>(x)) < limit; };
  std::optional<GradientPlace> found;
  work_->ForEachRow(0, work_->rows.size(), [&](const RowWork::Place& place) {
    if (found.has_value()) return;
    ForEachRun(place.values, place.values + place.end - place.begin, [&](int64_t block, int64_t begin, int64_t end) {
      if (found.has_value()) return;
      const float* const data = work_->values[block].data();
      const float* const bad = std::find_if_not(data + begin, data + end, below);
      if (bad == data + end) return;
      const int64_t in_row = block * kBlockElements + (bad - data) - place.values;
      found = {place.tensor->tensor, place.begin - place.tensor->begin + in_row};
    });
  });
  return found;
}

std::vector<int> RowStaging::Tensors() const {
  std::vector<int> tensors;
  for (const RowWork::Tensor& tensor : work_->tensors) tensors.push_back(tensor.tensor);
  return tensors;
}

void FillIn(const Snapshot& parameters, RowWork* work) {
  work->ForEachRow(0, work->rows.size(), [&](const RowWork::Place& place) {
    ForEachRun(place, [&](int64_t block, int64_t begin, int64_t values_block, int64_t values_begin, int64_t count) {
      std::copy_n(parameters.blocks()[block].data() + begin, count,
                  work->values[values_block].mutable_data() + values_begin);
    });
  });
}

}  // namespace adamant::core
