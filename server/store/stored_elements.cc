#include "server/store/stored_elements.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "server/core/memory/block.h"
#include "server/store/file_system.h"

namespace adamant::store {
namespace {

int64_t InSectors(int64_t bytes) { return (bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes; }

// Calls `visit(values, bytes)` for each run of memory that has rows, in order.
void ForEachRowRun(const core::RowWork& rows, absl::FunctionRef<void(float* values, int64_t elements)> visit) {
  rows.ForEachRow(0, rows.rows.size(), [&](const core::RowWork::Place& place) {
    core::ForEachRun(place.values, place.values + place.end - place.begin,
                     [&](int64_t block, int64_t begin, int64_t end) {
                       core::BlockRef values = rows.values[block];
                       visit(values.mutable_data() + begin, end - begin);
                     });
  });
}

}  // namespace

int64_t SectorBytesOf(int64_t flat_size) {
  const int64_t whole = flat_size / core::kBlockElements;
  const int64_t rest = flat_size % core::kBlockElements;
  const auto bytes = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(float)); };
  return whole * bytes(core::kBlockElements) + InSectors(bytes(rest));
}

ElementPieces::ElementPieces(const core::BroughtElements& brought) : brought_(brought) {
  const auto add = [this](std::byte* data, int64_t bytes) {
    sizes_.push_back(bytes);
    read_.push_back({data, static_cast<size_t>(InSectors(bytes))});
    written_.push_back(read_.back());
    bytes_ += bytes;
    sector_bytes_ += InSectors(bytes);
  };
  for (const int64_t index : brought.selected) {
    core::BlockRef block = (*brought.blocks)[index];
    add(reinterpret_cast<std::byte*>(block.mutable_data()), block.size() * static_cast<int64_t>(sizeof(float)));
  }
  if (brought.rows == nullptr || brought.rows->rows.empty()) return;
  int64_t elements = 0;
  ForEachRowRun(*brought.rows, [&](float* /*values*/, int64_t count) { elements += count; });
  rows_ = AlignedBuffer(elements * static_cast<int64_t>(sizeof(float)));
  if (elements > 0) add(rows_.data(), elements * static_cast<int64_t>(sizeof(float)));
}

ElementPieces ElementPieces::ToWrite(const core::BroughtElements& brought) {
  ElementPieces pieces(brought);
  if (pieces.rows_.size() > 0) {
    auto* to = reinterpret_cast<float*>(pieces.rows_.data());
    ForEachRowRun(*brought.rows, [&](const float* values, int64_t count) { to = std::copy_n(values, count, to); });
  }
  return pieces;
}

ElementPieces ElementPieces::ToRead(const core::BroughtElements& brought) { return ElementPieces(brought); }

std::string ElementPieces::Join() const {
  std::string joined;
  joined.reserve(static_cast<size_t>(bytes_));
  for (size_t i = 0; i < sizes_.size(); ++i) {
    joined.append(reinterpret_cast<const char*>(written_[i].data()), static_cast<size_t>(sizes_[i]));
  }
  return joined;
}

bool ElementPieces::Split(absl::string_view joined) {
  if (static_cast<int64_t>(joined.size()) != bytes_) return false;
  for (size_t i = 0; i < sizes_.size(); ++i) {
    std::memcpy(read_[i].data(), joined.data(), static_cast<size_t>(sizes_[i]));
    joined.remove_prefix(static_cast<size_t>(sizes_[i]));
  }
  return true;
}

absl::Span<std::byte> ElementPieces::Cut(int64_t most_sector_bytes) {
  // The rows are the last piece.
  const int64_t blocks_bytes = sector_bytes_ - (rows_.size() > 0 ? InSectors(sizes_.back()) : 0);
  // Blocks alone are too many for what a record says that is not this step's.
  if (sector_bytes_ <= most_sector_bytes || blocks_bytes > most_sector_bytes) return {};
  const int64_t begin = most_sector_bytes - blocks_bytes;
  const absl::Span<std::byte> rows(rows_.data(), static_cast<size_t>(sizes_.back()));
  const absl::Span<std::byte> cut = rows.subspan(static_cast<size_t>(begin));
  sizes_.back() = begin;
  read_.back() = rows.first(static_cast<size_t>(begin));
  written_.back() = read_.back();
  bytes_ -= static_cast<int64_t>(cut.size());
  sector_bytes_ = most_sector_bytes;
  return cut;
}

void ElementPieces::Scatter() {
  if (rows_.size() == 0) return;
  const auto* from = reinterpret_cast<const float*>(rows_.data());
  ForEachRowRun(*brought_.rows, [&](float* values, int64_t count) {
    std::copy_n(from, count, values);
    from += count;
  });
}

}  // namespace adamant::store
