// Blocks, and where their memory comes from: extents mapped from the system for full ones, the allocator for the rest.
#include "server/core/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

// Linux 5.14; the C library's headers may be older.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace adamant::core {

// Lies apart from the elements, so that these fill whole pages.
struct Block {
  std::atomic<int64_t> references{0};
  int64_t size = 0;  // elements
  float* data = nullptr;
  BlockPool* pool = nullptr;
};

namespace {

constexpr int64_t kBlockBytes = kBlockElements * sizeof(float);
constexpr size_t kHugePage = size_t{2} << 20;
constexpr std::align_val_t kDataAlignment{64};

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

// Memory from the system, populated, or null with errno set. What holds huge pages begins at one.
void* MapMemory(size_t bytes) {
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* const mapped = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  std::byte* address = static_cast<std::byte*>(mapped);
  if (slack > 0) {
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(mapped) % kHugePage) % kHugePage;
    address += before;
    if (before > 0) munmap(mapped, before);
    if (slack > before) munmap(address + bytes, slack - before);
    madvise(address, bytes, MADV_HUGEPAGE);
  }
  if (!Populate(address, bytes)) {
    const int error = errno;
    munmap(address, bytes);
    errno = error;
    return nullptr;
  }
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

bool BlockRef::unique() const { return block_->references.load(std::memory_order_acquire) == 1; }

BlockPool::BlockPool(std::function<void()> release_free_memory)
    : release_free_memory_(std::move(release_free_memory)) {}

BlockPool::~BlockPool() {
  for (const Extent& extent : extents_) munmap(extent.address, extent.bytes);
}

absl::StatusOr<BlockList> BlockPool::Take(int64_t elements) {
  const int64_t full = elements / kBlockElements;
  const int64_t rest = elements % kBlockElements;

  std::vector<Block*> taken;
  int64_t empty = 0;  // of those taken, the first so many
  if (full > 0) {
    MutexLock lock(&mutex_);
    // The block that came last is the likeliest to be in cache.
    const int64_t found = std::min<int64_t>(full, idle_.size());
    taken.assign(idle_.end() - found, idle_.end());
    idle_.resize(idle_.size() - found);
    if (emptied_ > idle_.size()) {
      empty = static_cast<int64_t>(emptied_ - idle_.size());
      emptied_ = idle_.size();
      held_ += empty * kBlockBytes;
      peak_ = std::max(peak_.load(), held_.load());
    }
  }
  for (int64_t i = 0; i < empty; ++i) {
    if (Populate(taken[i]->data, kBlockBytes)) continue;
    const int error = errno;
    MutexLock lock(&mutex_);
    idle_.insert(idle_.begin(), taken.begin() + i, taken.begin() + empty);
    emptied_ += empty - i;
    held_ -= (empty - i) * kBlockBytes;
    idle_.insert(idle_.end(), taken.begin(), taken.begin() + i);
    idle_.insert(idle_.end(), taken.begin() + empty, taken.end());
    return OutOfMemory(kBlockBytes, std::strerror(error));
  }
  // From here on the list gives back what was taken if the rest cannot be had.
  BlockList list;
  for (Block* block : taken) list.push_back(Refer(block));

  const int64_t lacking = full - static_cast<int64_t>(list.size());
  if (lacking > 0) {
    absl::StatusOr<Block*> mapped = Map(lacking);
    if (!mapped.ok()) return mapped.status();
    list.reserve(full + 1);
    for (int64_t i = 0; i < lacking; ++i) list.push_back(Refer(*mapped + i));
  }
  if (rest > 0) {
    absl::StatusOr<Block*> allocated = Allocate(rest);
    if (!allocated.ok()) return allocated.status();
    list.push_back(Refer(*allocated));
  }
  return list;
}

int64_t BlockPool::idle_blocks() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(idle_.size() - emptied_);
}

BlockRef BlockPool::Refer(Block* block) {
  block->references.store(1, std::memory_order_relaxed);
  return BlockRef(block);
}

void BlockPool::Return(Block* block) {
  if (block->size < kBlockElements) {
    held_ -= block->size * static_cast<int64_t>(sizeof(float));
    ::operator delete(block->data, kDataAlignment);
    delete block;
    return;
  }
  MutexLock lock(&mutex_);
  idle_.push_back(block);
}

absl::StatusOr<Block*> BlockPool::Map(int64_t count) {
  release_free_memory_();
  const size_t bytes = count * kBlockBytes;
  void* const address = MapMemory(bytes);
  if (address == nullptr) return OutOfMemory(bytes, std::strerror(errno));
  auto blocks = std::make_unique<Block[]>(count);
  for (int64_t i = 0; i < count; ++i) {
    blocks[i].size = kBlockElements;
    blocks[i].data = static_cast<float*>(address) + i * kBlockElements;
    blocks[i].pool = this;
  }
  Block* const first = blocks.get();
  MutexLock lock(&mutex_);
  extents_.push_back({address, bytes, std::move(blocks)});
  // So that Return, which a commit calls, does not allocate. Doubled, so that many small extents cost no more than one.
  mapped_ += count;
  held_ += static_cast<int64_t>(bytes);
  peak_ = std::max(peak_.load(), held_.load());
  if (idle_.capacity() < static_cast<size_t>(mapped_)) idle_.reserve(std::max<size_t>(mapped_, 2 * idle_.capacity()));
  return first;
}

absl::StatusOr<Block*> BlockPool::Allocate(int64_t elements) {
  const size_t bytes = elements * sizeof(float);
  MakeRoom(static_cast<int64_t>(bytes));
  void* const data = ::operator new(bytes, kDataAlignment, std::nothrow);
  if (data == nullptr) {
    held_ -= static_cast<int64_t>(bytes);
    return OutOfMemory(bytes, "the allocator has none");
  }
  Block* const block = new Block;
  block->size = elements;
  block->data = static_cast<float*>(data);
  block->pool = this;
  return block;
}

void BlockPool::MakeRoom(int64_t bytes) {
  if (held_.fetch_add(bytes) + bytes <= peak_.load()) return;
  MutexLock lock(&mutex_);
  for (; held_.load() > peak_.load() && emptied_ < idle_.size(); ++emptied_) {
    madvise(idle_[emptied_]->data, kBlockBytes, MADV_DONTNEED);
    held_ -= kBlockBytes;
  }
  peak_ = std::max(peak_.load(), held_.load());
}

}  // namespace adamant::core
