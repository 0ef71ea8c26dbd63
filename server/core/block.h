// The memory that tensors live in: blocks of 65,536 floats, counted by reference and used again.
//
// One rule covers all state: a block that somebody else holds is never written.
#ifndef ADAMANT_SERVER_CORE_BLOCK_H_
#define ADAMANT_SERVER_CORE_BLOCK_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/mutex.h"

namespace adamant::core {

// Elements of a block; the last block of a set is as long as needed.
inline constexpr int64_t kBlockElements = 65536;

class BlockPool;

// A run of floats, aligned to 64 bytes. Made by BlockPool only.
struct Block;

// A reference to a block, or to none. Copying counts, as std::shared_ptr does: thread-safe between distinct references,
// thread-compatible on one.
class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(const BlockRef& other);
  BlockRef(BlockRef&& other) noexcept;
  BlockRef& operator=(BlockRef other) noexcept;
  ~BlockRef();

  explicit operator bool() const { return block_ != nullptr; }
  // Elements.
  int64_t size() const;
  const float* data() const;
  // Requires: unique(), or that all other holders know.
  float* mutable_data() const;
  // Whether this is the only reference. If so, all that former holders did has happened before.
  bool unique() const;

 private:
  friend class BlockPool;
  explicit BlockRef(Block* block) : block_(block) {}

  Block* block_ = nullptr;
};

// The blocks of one array of a set, in order: element i is in block i / kBlockElements.
using BlockList = std::vector<BlockRef>;

// Thread-safe. Outlives its blocks.
//
// Full blocks that nobody refers to any more are kept, mapped and populated, for the next taker, so that a step that
// runs meets no page fault. They need no charge: the pool never holds more than was once in use, and paid for, at the
// same time. A block is mapped only where none is idle; shorter blocks, which come from the allocator and go back to
// it, drive memory out of idle ones where both together would be more.
class BlockPool {
 public:
  // `release_free_memory` has the allocator give what it keeps back to the system. It is called before blocks are
  // mapped: what short blocks left there would be held a second time. Thread-safe, and without effect on anything else.
  explicit BlockPool(std::function<void()> release_free_memory = [] {});
  // Requires: no reference is left.
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Blocks for `elements` elements, a multiple of 16: full ones, and one shorter at the end if they do not come out
  // even. Their content is arbitrary. Error: RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED) if the system has no memory; then
  // nothing was taken.
  absl::StatusOr<BlockList> Take(int64_t elements);

  // Full blocks that wait for a taker and have their memory.
  int64_t idle_blocks() const;

 private:
  friend class BlockRef;
  struct Extent {
    void* address;
    size_t bytes;
    std::unique_ptr<Block[]> blocks;
  };

  // The first reference to a block that nobody refers to.
  static BlockRef Refer(Block* block);
  // Takes back a block whose last reference is gone.
  void Return(Block* block);
  // `count` consecutive full blocks in a new extent.
  absl::StatusOr<Block*> Map(int64_t count);
  // One shorter block.
  absl::StatusOr<Block*> Allocate(int64_t elements);
  // Counts `bytes` more as held, and takes memory out of idle blocks as far as that is more than ever was in use.
  void MakeRoom(int64_t bytes);

  const std::function<void()> release_free_memory_;

  // Bytes of all blocks that have memory, in use or idle; and the most that there was for use. Atomic, so that a small
  // step, which takes short blocks, meets no lock that other sets use.
  std::atomic<int64_t> held_ = 0;
  std::atomic<int64_t> peak_ = 0;

  mutable Mutex mutex_;
  std::vector<Block*> idle_ ABSL_GUARDED_BY(mutex_);  // last in, first out; the first `emptied_` have no memory
  size_t emptied_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Extent> extents_ ABSL_GUARDED_BY(mutex_);
  int64_t mapped_ ABSL_GUARDED_BY(mutex_) = 0;  // full blocks in all extents
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BLOCK_H_
