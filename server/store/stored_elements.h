// How what a change brings lies on disk: the blocks that it has, whole, and then its rows, without gaps.
#ifndef ADAMANT_SERVER_STORE_STORED_ELEMENTS_H_
#define ADAMANT_SERVER_STORE_STORED_ELEMENTS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/journal.h"
#include "server/store/aligned_buffer.h"

namespace adamant::store {

// Elements as pieces of memory, in the order in which they lie on disk. Not thread-safe. What it was made of outlives
// it.
class ElementPieces {
 public:
  // For elements that are to be written: rows are copied together here.
  static ElementPieces ToWrite(const core::BroughtElements& brought);
  // For elements that are to be read: into the blocks, and by Scatter into the rows.
  static ElementPieces ToRead(const core::BroughtElements& brought);

  // In a file: each is whole sectors. The memory of a block takes whole pages.
  absl::Span<const absl::Span<const std::byte>> written() const { return written_; }
  absl::Span<const absl::Span<std::byte>> read() const { return read_; }
  int64_t sector_bytes() const { return sector_bytes_; }

  // Without what fills them up to whole sectors.
  int64_t bytes() const { return bytes_; }
  std::string Join() const;
  // Puts what Join has made back. False if it is of another size.
  bool Split(absl::string_view joined);

  // Leaves out the end of the rows, so that the rest takes at most so many bytes, in whole sectors, and returns the
  // memory that has it. Leaves out nothing where all fits, and where the blocks alone do not: they do in what all of
  // the set takes.
  absl::Span<std::byte> Cut(int64_t most_sector_bytes);

  // Once all has been read: puts the rows where they belong.
  void Scatter();

 private:
  explicit ElementPieces(const core::BroughtElements& brought);

  const core::BroughtElements brought_;
  std::vector<int64_t> sizes_;  // of each piece, in bytes, without what fills it up
  std::vector<absl::Span<std::byte>> read_;
  std::vector<absl::Span<const std::byte>> written_;
  AlignedBuffer rows_;
  int64_t bytes_ = 0;
  int64_t sector_bytes_ = 0;
};

// The most bytes, in whole sectors, that blocks of a set of so many elements take.
int64_t SectorBytesOf(int64_t flat_size);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_STORED_ELEMENTS_H_
