#include "server/core/backend/row_work.h"

#include <algorithm>

#include "absl/algorithm/container.h"

namespace adamant::core {

RowWork::Range RowWork::RowsIn(int64_t block) const {
  // The first of the rows whose place is not before what is sought.
  const auto first_of = [this](auto is_before) {
    size_t low = 0;
    size_t high = rows.size();
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      bool before = false;
      ForEachRow(middle, middle + 1, [&](const Place& place) { before = is_before(place); });
      (before ? low : high) = before ? middle + 1 : middle;
    }
    return low;
  };
  const int64_t begin = block * kBlockElements;
  const int64_t end = begin + kBlockElements;
  return {first_of([begin](const Place& place) { return place.end <= begin; }),
          first_of([end](const Place& place) { return place.begin < end; })};
}

void RowWork::ForEachRow(size_t first, size_t end, absl::FunctionRef<void(const Place& place)> visit) const {
  // The tensor whose rows `first` is among.
  auto tensor = absl::c_upper_bound(tensors, first, [](size_t row, const Tensor& other) { return row < other.end; });
  for (size_t i = first; i < end; ++i) {
    while (i == tensor->end) ++tensor;
    const int64_t begin = tensor->begin + rows[i].index * tensor->width;
    visit({&*tensor, begin, begin + tensor->width, tensor->values + rows[i].place * tensor->width});
  }
}

void RowWork::ForEachBlock(absl::FunctionRef<void(int64_t block)> visit) const {
  int64_t next = 0;  // what is before it has been visited
  ForEachRow(0, rows.size(), [&](const Place& place) {
    if (place.begin == place.end) return;
    const int64_t last = (place.end - 1) / kBlockElements;
    for (int64_t block = std::max(next, place.begin / kBlockElements); block <= last; ++block) visit(block);
    next = std::max(next, last + 1);
  });
}

void ForEachRun(
    const RowWork::Place& place,
    absl::FunctionRef<void(int64_t block, int64_t begin, int64_t values_block, int64_t values_begin, int64_t count)>
        visit) {
  ForEachRun(place.begin, place.end, [&](int64_t block, int64_t begin, int64_t end) {
    const int64_t values = place.values + block * kBlockElements + begin - place.begin;
    ForEachRun(values, values + end - begin, [&](int64_t values_block, int64_t values_begin, int64_t values_end) {
      const int64_t count = values_end - values_begin;
      visit(block, begin, values_block, values_begin, count);
      begin += count;
    });
  });
}

}  // namespace adamant::core
