// The memory that tensors live in: blocks of 65,536 floats, counted by reference and used again.
//
// One rule covers all state: a block that somebody else holds is never written.
#ifndef ADAMANT_SERVER_CORE_MEMORY_BLOCK_H_
#define ADAMANT_SERVER_CORE_MEMORY_BLOCK_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/core/base/mutex.h"

namespace adamant::core {

// Elements of a block; the last block of a list is as long as needed.
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
  // Whether this block's memory begins where that of `before`, a full block, ends, and both can be copied in one go:
  // they were mapped, and registered if their pool does that, in one piece.
  bool Continues(const BlockRef& before) const;
  // Whether this is the only reference. If so, all that former holders did has happened before.
  bool unique() const;

 private:
  friend class BlockPool;
  explicit BlockRef(Block* block) : block_(block) {}

  Block* block_ = nullptr;
};

// The blocks of one array of a set, in order: element i is in block i / kBlockElements.
using BlockList = std::vector<BlockRef>;

// Makes memory known to a device, which can then copy it without the processor's help. Thread-safe. The system must not
// take memory away that is registered: the device would go on with the old pages.
class MemoryRegistrar {
 public:
  virtual ~MemoryRegistrar() = default;
  // Registers memory that has its pages. Returns false if that cannot be; then the memory serves as it is.
  virtual bool Register(void* address, size_t bytes) = 0;
  // Requires: Register returned true for this address.
  virtual void Unregister(void* address) = 0;
};

// Thread-safe. Outlives its blocks.
//
// A block takes whole pages of memory, and blocks of each number of pages have addresses of their own. A block that
// nobody refers to any more keeps its memory for the next taker of as many pages, so that a step that runs meets no
// page fault; or it loses its memory, and keeps its addresses, when the pool would otherwise hold too much: whatever
// was taken and returned in whatever order, the pool holds at most as much memory as was in use, and hence paid for, at
// one time, and kIdleBytes more. So idle blocks need no charge. With a registrar the memory of full blocks is
// registered, and stays: the pool then holds at most as much more as was in use in full blocks at one time.
//
// What lies idle is taken, and returned, without a lock and without a call of the system.
class BlockPool {
 public:
  // Idle blocks of this many bytes may be held beyond what was ever in use at one time. It has room for two blocks of
  // each size but the full one: small sets of different sizes that step one after the other do not take each other's
  // memory away.
  static constexpr int64_t kIdleBytes = int64_t{16} << 20;

  // `release_free_memory` has the allocator give what it keeps back to the system. It is called before memory is
  // populated, once for each kIdleBytes: what deleted sets left in the allocator would be held a second time.
  // Thread-safe, and without effect on anything else.
  //
  // `registrar`, where there is one, outlives the pool.
  explicit BlockPool(
      std::function<void()> release_free_memory = [] {}, MemoryRegistrar* registrar = nullptr);
  // Requires: no reference is left.
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // The bytes of memory that blocks for `elements` elements take: whole pages. Who takes them has paid for so many
  // before, and goes on paying until they are returned.
  static int64_t ChargedBytes(int64_t elements);

  // Blocks for `elements` elements, a multiple of 16: full ones, and one shorter at the end if they do not come out
  // even. Their content is arbitrary. Where too few are idle, memory is mapped and populated by the calling thread.
  // Error: RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED) if the system has no memory; then nothing was taken.
  absl::StatusOr<BlockList> Take(int64_t elements);
  // The same, filled with zeros. Memory that comes from the system for this is not touched: it is zero.
  absl::StatusOr<BlockList> TakeZeroed(int64_t elements);
  // The same as Take, but only if all of them lie idle: it never maps or populates memory, calls the system or blocks.
  std::optional<BlockList> TakeIdle(int64_t elements);

  // Gives the memory of what lies idle back to the system, but for what is registered.
  void GiveUpIdle();

  // Bytes of all blocks that have memory, in use or idle.
  int64_t held_bytes() const { return held_.load(); }
  // Bytes of the blocks that somebody refers to, or is about to.
  int64_t used_bytes() const { return used_.load(); }
  // Full blocks that wait for a taker and have their memory.
  int64_t idle_blocks() const;

 private:
  friend class BlockRef;

  // Blocks that nobody refers to. Thread-safe, without a lock. Its blocks are linked by their numbers, so that the
  // first one's number is changed together with a count of changes: a block that was taken and came back in the
  // meantime is not mistaken for one that stayed.
  class Stack {
   public:
    void Push(const BlockPool& pool, Block* block);
    // Null if there is none.
    Block* Pop(const BlockPool& pool);
    int64_t size(const BlockPool& pool) const;

   private:
    std::atomic<uint64_t> top_ = 0;  // changes so far << 32 | number of the first block, 0 if there is none
  };

  // All blocks of one number of pages that nobody refers to.
  struct alignas(64) SizeClass {
    Stack idle;   // with their memory
    Stack empty;  // addresses only
  };

  struct Extent {
    void* address;
    size_t bytes;
  };

  // Memory is registered in pieces of at most this many bytes, so that each call is short.
  static constexpr size_t kRegisteredBytes = size_t{64} << 20;

  // A power of two, and how many blocks the first chunk of them has.
  static constexpr uint32_t kFirstNumber = 64;
  // Of a full block, where pages are the smallest that there are: 4 KiB.
  static constexpr int kMaxPages = kBlockElements * sizeof(float) / 4096;

  // The first reference to a block that nobody refers to, for `elements` of it.
  static BlockRef Refer(Block* block, int64_t elements);
  // Takes back a block whose last reference is gone.
  void Return(Block* block);
  // The block with a number.
  Block* At(uint32_t number) const;
  SizeClass& ClassOf(int pages) { return classes_[pages - 1]; }

  // Registers fresh memory.
  void Register(void* address, size_t bytes);
  // Counts `bytes` more as in use.
  void Use(int64_t bytes);
  // Counts what a list for `elements` has no blocks for as in use no more.
  void GiveUp(int64_t elements, const BlockList& list);
  // Fills empty references of a list for `elements` with what lies idle.
  void TakeWhatLiesIdle(int64_t elements, bool zeroed, BlockList* list);
  std::optional<BlockList> TakeAllIdle(int64_t elements, bool zeroed);
  absl::StatusOr<BlockList> TakeAll(int64_t elements, bool zeroed);
  // Fills empty references of a list for `elements` with blocks that have fresh memory, all zero; `but_for_idle` leaves
  // those empty for which blocks lie idle. After an error some are empty still.
  absl::Status FillUp(int64_t elements, bool but_for_idle, BlockList* list);
  // Gives a block of addresses only its memory. After an error it lies with the empty ones again.
  absl::Status PopulateBlock(Block* block);
  // Takes a block's memory away, and puts it to those that have none.
  void Empty(Block* block);
  // Takes memory out of idle blocks as long as too much is held.
  void MakeRoom(bool full_blocks_last);
  // The addresses of `count` new consecutive blocks of so many pages, of which the first `populated` have memory, and
  // the others are left to later takers. Returns the number of the first.
  absl::StatusOr<uint32_t> Map(int pages, int64_t count, int64_t populated);

  std::array<SizeClass, kMaxPages> classes_;  // first, so that their alignment costs nothing

  const std::function<void()> release_free_memory_;
  MemoryRegistrar* const registrar_;

  std::array<std::atomic<Block*>, 33> blocks_ = {};  // by the bits of their numbers: chunks of them, or null

  std::atomic<int64_t> used_ = 0;
  std::atomic<int64_t> peak_ = 0;  // of used_
  std::atomic<int64_t> held_ = 0;
  std::atomic<int64_t> unreleased_ = 0;  // bytes populated since the allocator gave back what it kept

  // Only for new addresses.
  Mutex mutex_;
  uint32_t next_number_ ABSL_GUARDED_BY(mutex_) = kFirstNumber;
  std::vector<Extent> extents_ ABSL_GUARDED_BY(mutex_);
  std::vector<void*> registered_ ABSL_GUARDED_BY(mutex_);
};

// Calls `visit(block, begin, end)` for each block's share of the flat range [begin, end), as ranges within the block.
void ForEachRun(int64_t begin, int64_t end, absl::FunctionRef<void(int64_t block, int64_t begin, int64_t end)> visit);

// Puts `tail`, zeroed blocks, behind those of `list`: the first one in place of the last of the list, whose elements it
// takes over, if that is short.
void AppendTail(BlockList tail, BlockList* list);

// Copies the elements [begin, end) of the flat space that `blocks` hold to `to`.
void CopyRuns(const BlockList& blocks, int64_t begin, int64_t end, float* to);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_MEMORY_BLOCK_H_
