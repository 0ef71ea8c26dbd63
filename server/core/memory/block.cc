// Blocks, and where their memory comes from: extents of addresses, and the pages behind them.
#include "server/core/memory/block.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

// Linux 5.14; the C library's headers may be older.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace adamant::core {

// Lies apart from the elements, so that these fill whole pages. Never destroyed before its pool.
struct Block {
  std::atomic<int64_t> references{0};
  int64_t size = 0;  // elements
  float* data = nullptr;
  const void* piece = nullptr;  // where the memory begins that is registered together with it
  BlockPool* pool = nullptr;
  int pages = 0;
  uint32_t number = 0;
  // Of the stack that it is in, if any. Atomic, since whoever loses the race for the first block has read them.
  std::atomic<uint32_t> next{0};   // number of the block below, 0 if there is none
  std::atomic<uint32_t> depth{0};  // blocks from this one to the last
};

namespace {

constexpr int64_t kBlockBytes = kBlockElements * sizeof(float);
constexpr size_t kHugePage = size_t{2} << 20;
// Addresses for blocks that are not full are mapped in extents of about this size.
constexpr int64_t kShortExtentBytes = int64_t{2} << 20;

int64_t PageBytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

int PagesFor(int64_t elements) {
  return static_cast<int>((elements * static_cast<int64_t>(sizeof(float)) + PageBytes() - 1) / PageBytes());
}

int64_t BlocksFor(int64_t elements) { return (elements + kBlockElements - 1) / kBlockElements; }

// Elements of block `i` of a list for `elements`.
int64_t SizeInList(int64_t elements, int64_t i) { return std::min(kBlockElements, elements - i * kBlockElements); }

absl::Status OutOfMemory(size_t bytes, absl::string_view cause) {
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED,
                              absl::StrCat("the system has no memory for ", bytes, " bytes of blocks: ", cause)),
                        absl::Milliseconds(200));
}

// Memory is populated in pieces of this many bytes: one call holds the process's memory map, and all who need that wait
// (5.8 s for 7 GB in one piece, 0.3 s in these).
constexpr size_t kPopulateBytes = size_t{16} << 20;

// Has the system back memory, or returns false with errno set. An older kernel knows no such advice and does so on
// first touch.
bool Populate(void* address, size_t bytes) {
  std::byte* const begin = static_cast<std::byte*>(address);
  for (size_t done = 0; done < bytes; done += kPopulateBytes) {
    if (madvise(begin + done, std::min(kPopulateBytes, bytes - done), MADV_POPULATE_WRITE) != 0) return errno == EINVAL;
  }
  return true;
}

// Addresses from the system, of which the first `populated` bytes have memory, or null with errno set. What is
// populated and holds huge pages begins at one.
void* MapMemory(size_t bytes, size_t populated) {
  const size_t slack = populated >= kHugePage ? kHugePage : 0;
  void* const mapped =
      mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  std::byte* address = static_cast<std::byte*>(mapped);
  if (slack > 0) {
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(mapped) % kHugePage) % kHugePage;
    address += before;
    if (before > 0) munmap(mapped, before);
    if (slack > before) munmap(address + bytes, slack - before);
    madvise(address, bytes, MADV_HUGEPAGE);
  } else {
    madvise(address, bytes, MADV_NOHUGEPAGE);
  }
  if (!Populate(address, populated)) {
    const int error = errno;
    munmap(address, bytes);
    errno = error;
    return nullptr;
  }
  // The huge pages that there are stay. The system is not to make more: it would fill blocks that lost their memory.
  if (slack > 0) madvise(address, bytes, MADV_NOHUGEPAGE);
  return address;
}

}  // namespace

BlockRef::BlockRef(const BlockRef& other) : block_(other.block_) {
  // Whoever copies holds a reference, so nothing needs to be ordered.
  if (block_ != nullptr) block_->references.fetch_add(1, std::memory_order_relaxed);
}

BlockRef::BlockRef(BlockRef&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}

BlockRef& BlockRef::operator=(BlockRef other) noexcept {
  std::swap(block_, other.block_);
  return *this;
}

BlockRef::~BlockRef() {
  if (block_ == nullptr) return;
  if (block_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) block_->pool->Return(block_);
}

int64_t BlockRef::size() const { return block_->size; }

const float* BlockRef::data() const { return block_->data; }

float* BlockRef::mutable_data() const { return block_->data; }

bool BlockRef::Continues(const BlockRef& before) const {
  return block_->piece == before.block_->piece && data() == before.data() + before.size();
}

bool BlockRef::unique() const { return block_->references.load(std::memory_order_acquire) == 1; }

namespace {

// The first block of a stack, and how often it was another one before.
uint32_t NumberOf(uint64_t top) { return static_cast<uint32_t>(top); }
uint64_t Changed(uint64_t top, uint32_t number) { return ((top >> 32) + 1) << 32 | number; }

}  // namespace

void BlockPool::Stack::Push(const BlockPool& pool, Block* block) {
  uint64_t top = top_.load(std::memory_order_acquire);
  do {
    const uint32_t below = NumberOf(top);
    block->next.store(below, std::memory_order_relaxed);
    block->depth.store(below == 0 ? 1 : pool.At(below)->depth.load(std::memory_order_relaxed) + 1,
                       std::memory_order_relaxed);
  } while (!top_.compare_exchange_weak(top, Changed(top, block->number), std::memory_order_acq_rel,
                                       std::memory_order_acquire));
}

Block* BlockPool::Stack::Pop(const BlockPool& pool) {
  uint64_t top = top_.load(std::memory_order_acquire);
  while (NumberOf(top) != 0) {
    Block* const block = pool.At(NumberOf(top));
    const uint32_t below = block->next.load(std::memory_order_relaxed);
    if (top_.compare_exchange_weak(top, Changed(top, below), std::memory_order_acq_rel, std::memory_order_acquire)) {
      return block;
    }
  }
  return nullptr;
}

int64_t BlockPool::Stack::size(const BlockPool& pool) const {
  const uint32_t first = NumberOf(top_.load(std::memory_order_acquire));
  return first == 0 ? 0 : pool.At(first)->depth.load(std::memory_order_relaxed);
}

BlockPool::BlockPool(std::function<void()> release_free_memory, MemoryRegistrar* registrar)
    : release_free_memory_(std::move(release_free_memory)), registrar_(registrar) {}

BlockPool::~BlockPool() {
  for (void* const address : registered_) registrar_->Unregister(address);
  for (const Extent& extent : extents_) munmap(extent.address, extent.bytes);
  for (const std::atomic<Block*>& chunk : blocks_) delete[] chunk.load();
}

int64_t BlockPool::ChargedBytes(int64_t elements) {
  return elements / kBlockElements * kBlockBytes + PagesFor(elements % kBlockElements) * PageBytes();
}

absl::StatusOr<BlockList> BlockPool::Take(int64_t elements) { return TakeAll(elements, /*zeroed=*/false); }

absl::StatusOr<BlockList> BlockPool::TakeZeroed(int64_t elements) { return TakeAll(elements, /*zeroed=*/true); }

std::optional<BlockList> BlockPool::TakeIdle(int64_t elements) { return TakeAllIdle(elements, /*zeroed=*/false); }

std::optional<BlockList> BlockPool::TakeAllIdle(int64_t elements, bool zeroed) {
  // Not to take many only to return them.
  if (idle_blocks() < elements / kBlockElements) return std::nullopt;
  Use(ChargedBytes(elements));
  BlockList list(BlocksFor(elements));
  TakeWhatLiesIdle(elements, zeroed, &list);
  if (std::all_of(list.begin(), list.end(), [](const BlockRef& block) { return static_cast<bool>(block); })) {
    return list;
  }
  GiveUp(elements, list);
  return std::nullopt;
}

int64_t BlockPool::idle_blocks() const { return classes_[PagesFor(kBlockElements) - 1].idle.size(*this); }

BlockRef BlockPool::Refer(Block* block, int64_t elements) {
  block->size = elements;
  block->references.store(1, std::memory_order_relaxed);
  return BlockRef(block);
}

void BlockPool::Return(Block* block) {
  // In this order, and in the other one in those who take, so that what has memory is in use or idle at any time. After
  // the push the block may be another's already.
  const int64_t bytes = block->pages * PageBytes();
  ClassOf(block->pages).idle.Push(*this, block);
  used_ -= bytes;
}

Block* BlockPool::At(uint32_t number) const {
  return blocks_[std::bit_width(number)].load(std::memory_order_acquire) + (number - std::bit_floor(number));
}

void BlockPool::Use(int64_t bytes) {
  const int64_t used = used_.fetch_add(bytes) + bytes;
  int64_t peak = peak_.load();
  while (used > peak && !peak_.compare_exchange_weak(peak, used)) {
  }
}

void BlockPool::GiveUp(int64_t elements, const BlockList& list) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i]) used_ -= ChargedBytes(SizeInList(elements, i));
  }
}

void BlockPool::TakeWhatLiesIdle(int64_t elements, bool zeroed, BlockList* list) {
  // From the end, so that blocks that were returned in order are taken in order.
  for (int64_t i = static_cast<int64_t>(list->size()) - 1; i >= 0; --i) {
    if ((*list)[i]) continue;
    const int64_t size = SizeInList(elements, i);
    Block* const block = ClassOf(PagesFor(size)).idle.Pop(*this);
    if (block == nullptr) continue;
    (*list)[i] = Refer(block, size);
    if (zeroed) std::fill_n(block->data, size, 0.0f);
  }
}

absl::StatusOr<BlockList> BlockPool::TakeAll(int64_t elements, bool zeroed) {
  if (std::optional<BlockList> idle = TakeAllIdle(elements, zeroed); idle.has_value()) return *std::move(idle);
  Use(ChargedBytes(elements));
  BlockList list(BlocksFor(elements));
  // Fresh ones first: what lies idle stays there for others while the system finds pages.
  absl::Status status = FillUp(elements, /*but_for_idle=*/true, &list);
  if (status.ok()) {
    TakeWhatLiesIdle(elements, zeroed, &list);
    // Those that others took meanwhile.
    status = FillUp(elements, /*but_for_idle=*/false, &list);
  }
  if (status.ok()) return list;
  GiveUp(elements, list);
  return status;
}

absl::Status BlockPool::FillUp(int64_t elements, bool but_for_idle, BlockList* list) {
  std::vector<int64_t> lacking;  // indices in the list, ascending
  int64_t bytes = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(list->size()); ++i) {
    if ((*list)[i]) continue;
    const int64_t size = SizeInList(elements, i);
    // The first so many full ones; or the last, if it is the only one of its size.
    const int64_t before = size == kBlockElements ? i : 0;
    if (but_for_idle && before < ClassOf(PagesFor(size)).idle.size(*this)) continue;
    lacking.push_back(i);
    bytes += ChargedBytes(size);
  }
  if (lacking.empty()) return absl::OkStatus();
  held_ += bytes;
  // Full ones that lie idle beside full ones that lack are about to be taken.
  MakeRoom(/*full_blocks_last=*/SizeInList(elements, lacking.front()) == kBlockElements);
  if (unreleased_.fetch_add(bytes) + bytes >= kIdleBytes) {
    unreleased_ = 0;
    release_free_memory_();
  }

  const auto fill_last = [&](Block* block) {
    (*list)[lacking.back()] = Refer(block, SizeInList(elements, lacking.back()));
    lacking.pop_back();
    bytes -= block->pages * PageBytes();
  };
  absl::Status status;
  while (status.ok() && !lacking.empty()) {
    const int pages = PagesFor(SizeInList(elements, lacking.back()));
    if (Block* const block = ClassOf(pages).empty.Pop(*this); block != nullptr) {
      status = PopulateBlock(block);
      if (status.ok()) fill_last(block);
      continue;
    }
    // Full ones, which are all that lack now, in one piece.
    const bool full = pages == PagesFor(kBlockElements);
    const int64_t populated = full ? static_cast<int64_t>(lacking.size()) : 1;
    const int64_t count = full ? populated : std::max<int64_t>(1, kShortExtentBytes / (pages * PageBytes()));
    const absl::StatusOr<uint32_t> first = Map(pages, count, populated);
    status = first.status();
    for (int64_t i = populated - 1; status.ok() && i >= 0; --i) fill_last(At(*first + i));
  }
  // Nothing, unless some cannot be had.
  held_ -= bytes;
  return status;
}

absl::Status BlockPool::PopulateBlock(Block* block) {
  const size_t bytes = block->pages * PageBytes();
  if (Populate(block->data, bytes)) return absl::OkStatus();
  const int error = errno;
  Empty(block);
  return OutOfMemory(bytes, std::strerror(error));
}

void BlockPool::Empty(Block* block) {
  madvise(block->data, block->pages * PageBytes(), MADV_DONTNEED);
  ClassOf(block->pages).empty.Push(*this, block);
}

void BlockPool::MakeRoom(bool full_blocks_last) {
  const int full = PagesFor(kBlockElements);
  const bool full_stay = registrar_ != nullptr;
  // What stays does not count: no other block has to make room for it.
  const int64_t staying = full_stay ? idle_blocks() * kBlockBytes : 0;
  const auto empty_idle = [&](int pages) {
    while (held_ - staying > peak_ + kIdleBytes) {
      Block* const block = ClassOf(pages).idle.Pop(*this);
      if (block == nullptr) break;
      Empty(block);
      held_ -= pages * PageBytes();
    }
  };
  // The large ones first: they are the fewest, and steps that take them notice it least.
  if (!full_blocks_last && !full_stay) empty_idle(full);
  for (int pages = full - 1; pages > 0; --pages) empty_idle(pages);
  if (!full_stay) empty_idle(full);
}

void BlockPool::GiveUpIdle() {
  for (int pages = PagesFor(kBlockElements); pages > 0; --pages) {
    if (registrar_ != nullptr && pages == PagesFor(kBlockElements)) continue;
    while (Block* const block = ClassOf(pages).idle.Pop(*this)) {
      Empty(block);
      held_ -= pages * PageBytes();
    }
  }
}

void BlockPool::Register(void* address, size_t bytes) {
  for (size_t done = 0; done < bytes; done += kRegisteredBytes) {
    void* const piece = static_cast<std::byte*>(address) + done;
    if (!registrar_->Register(piece, std::min(kRegisteredBytes, bytes - done))) continue;
    MutexLock lock(&mutex_);
    registered_.push_back(piece);
  }
}

absl::StatusOr<uint32_t> BlockPool::Map(int pages, int64_t count, int64_t populated) {
  const int64_t block_bytes = pages * PageBytes();
  const size_t bytes = count * block_bytes;
  void* const address = MapMemory(bytes, populated * block_bytes);
  if (address == nullptr) return OutOfMemory(bytes, std::strerror(errno));
  uint32_t first;
  {
    MutexLock lock(&mutex_);
    if (count > std::numeric_limits<uint32_t>::max() - next_number_) {
      munmap(address, bytes);
      return OutOfMemory(bytes, "there are too many blocks");
    }
    extents_.push_back({address, bytes});
    first = next_number_;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t number = next_number_++;
      // A chunk begins with a power of two, and has as many blocks.
      if (std::has_single_bit(number)) blocks_[std::bit_width(number)] = new Block[number];
      Block* const block = At(number);
      std::byte* const begin = static_cast<std::byte*>(address) + i * block_bytes;
      block->data = reinterpret_cast<float*>(begin);
      block->piece = begin - (i * block_bytes) % static_cast<int64_t>(kRegisteredBytes);
      block->pool = this;
      block->pages = pages;
      block->number = number;
      if (i >= populated) ClassOf(pages).empty.Push(*this, block);
    }
  }
  // Nobody has the blocks yet.
  if (registrar_ != nullptr && pages == PagesFor(kBlockElements)) Register(address, bytes);
  return first;
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

void AppendTail(BlockList tail, BlockList* list) {
  if (!tail.empty() && !list->empty() && list->back().size() < kBlockElements) {
    std::copy_n(list->back().data(), list->back().size(), tail.front().mutable_data());
    list->pop_back();
  }
  std::move(tail.begin(), tail.end(), std::back_inserter(*list));
}

void CopyRuns(const BlockList& blocks, int64_t begin, int64_t end, float* to) {
  ForEachRun(begin, end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
    to = std::copy(blocks[block].data() + run_begin, blocks[block].data() + run_end, to);
  });
}

}  // namespace adamant::core
