#include "tests/power/disk.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"

namespace adamant::power {

struct Disk::Counts {
  pthread_mutex_t mutex;
  int64_t log_bytes = 0;
  int64_t events = 0;
};

class Disk::Lock {
 public:
  explicit Lock(Counts* counts) : counts_(counts) { pthread_mutex_lock(&counts_->mutex); }
  ~Lock() { pthread_mutex_unlock(&counts_->mutex); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Counts* const counts_;
};

namespace {

// Takes no memory for what is never written.
char* Share(int64_t bytes) {
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, /*fd=*/-1, /*offset=*/0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<char*>(memory);
}

struct EventHeader {
  int64_t offset;
  int64_t bytes;
};

}  // namespace

Disk::Disk(int64_t size)
    : size_(size),
      counts_(new (Share(sizeof(Counts))) Counts),
      contents_(Share(size)),
      kept_(Share(size)),
      is_changed_(Share(size / kPageBytes)),
      log_(Share(kLogBytes)) {
  pthread_mutexattr_t shared;
  pthread_mutexattr_init(&shared);
  pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&counts_->mutex, &shared);
  pthread_mutexattr_destroy(&shared);
}

Disk::~Disk() {
  munmap(counts_, sizeof(Counts));
  munmap(contents_, size_);
  munmap(kept_, size_);
  munmap(is_changed_, size_ / kPageBytes);
  munmap(log_, kLogBytes);
}

void Disk::Read(int64_t offset, absl::Span<char> bytes) const {
  Lock lock(counts_);
  std::memcpy(bytes.data(), contents_ + offset, bytes.size());
}

void Disk::Write(int64_t offset, absl::string_view bytes) {
  if (bytes.empty()) return;
  Lock lock(counts_);
  const auto size = static_cast<int64_t>(bytes.size());
  std::memcpy(contents_ + offset, bytes.data(), bytes.size());
  const int64_t first = offset / kPageBytes;
  std::fill(is_changed_ + first, is_changed_ + (offset + size - 1) / kPageBytes + 1, 1);
  Append(offset, bytes);
}

void Disk::Flush() {
  Lock lock(counts_);
  Append(0, "");
}

void Disk::Append(int64_t offset, absl::string_view bytes) {
  const EventHeader header = {.offset = offset, .bytes = static_cast<int64_t>(bytes.size())};
  if (counts_->log_bytes + static_cast<int64_t>(sizeof header) + header.bytes > kLogBytes) std::abort();
  std::memcpy(log_ + counts_->log_bytes, &header, sizeof header);
  counts_->log_bytes += sizeof header;
  std::copy(bytes.begin(), bytes.end(), log_ + counts_->log_bytes);
  counts_->log_bytes += header.bytes;
  ++counts_->events;
}

int64_t Disk::position() const {
  Lock lock(counts_);
  return counts_->events;
}

std::vector<DiskEvent> Disk::TakeLog() {
  Lock lock(counts_);
  std::vector<DiskEvent> events;
  for (int64_t at = 0; at < counts_->log_bytes;) {
    EventHeader header;
    std::memcpy(&header, log_ + at, sizeof header);
    at += sizeof header;
    events.push_back({.offset = header.offset, .bytes = std::string(log_ + at, header.bytes)});
    at += header.bytes;
  }
  ClearLog();
  return events;
}

void Disk::ClearLog() {
  // Gives the memory back.
  if (madvise(log_, (counts_->log_bytes + kPageBytes - 1) / kPageBytes * kPageBytes, MADV_REMOVE) != 0) std::abort();
  counts_->log_bytes = 0;
  counts_->events = 0;
}

void Disk::Keep() {
  Lock lock(counts_);
  CopyChanged(contents_, kept_);
  ClearLog();
}

void Disk::Restore() {
  Lock lock(counts_);
  CopyChanged(kept_, contents_);
}

void Disk::CopyChanged(const char* from, char* to) {
  for (int64_t page = 0; page < size_ / kPageBytes; ++page) {
    if (is_changed_[page] == 0) continue;
    std::memcpy(to + page * kPageBytes, from + page * kPageBytes, kPageBytes);
    is_changed_[page] = 0;
  }
}

Outage CutPower(absl::Span<const DiskEvent> events, int64_t sector_bytes, std::mt19937_64* random) {
  size_t flushed = events.size();
  while (flushed > 0 && !events[flushed - 1].is_flush()) --flushed;
  const absl::Span<const DiskEvent> open = events.subspan(flushed);
  int64_t sectors = 0;
  for (const DiskEvent& write : open) sectors += static_cast<int64_t>(write.bytes.size()) / sector_bytes;
  Outage outage = {.flushed = static_cast<int64_t>(flushed), .kept = {}, .description = ""};
  if (open.empty()) {
    outage.description = "nothing unflushed";
    return outage;
  }

  // Whether write number `write` keeps its sector that is number `sector` of all.
  using Keeps = absl::FunctionRef<bool(int64_t write, int64_t sector)>;
  const auto keep = [&](absl::string_view what, Keeps keeps) {
    int64_t sector = 0;
    int64_t survived = 0;
    for (size_t i = 0; i < open.size(); ++i) {
      const auto size = static_cast<int64_t>(open[i].bytes.size());
      for (int64_t at = 0; at < size; at += sector_bytes, ++sector) {
        if (!keeps(static_cast<int64_t>(i), sector)) continue;
        ++survived;
        outage.kept.push_back({.offset = open[i].offset + at, .bytes = open[i].bytes.substr(at, sector_bytes)});
      }
    }
    outage.description =
        absl::StrCat(what, ": ", survived, " of ", sectors, " sectors of ", open.size(), " unflushed writes kept");
  };
  const auto chosen_write = static_cast<int64_t>((*random)() % open.size());
  const auto chosen_sector = static_cast<int64_t>((*random)() % std::max<int64_t>(sectors, 1));
  switch ((*random)() % 10) {
    case 0:
      keep("none", [](int64_t, int64_t) { return false; });
      break;
    case 1:
      keep("all", [](int64_t, int64_t) { return true; });
      break;
    case 2:
      keep("the first", [&](int64_t, int64_t sector) { return sector < chosen_sector; });
      break;
    case 3:
      keep("the last", [&](int64_t, int64_t sector) { return sector >= chosen_sector; });
      break;
    case 4:
    case 5:
      keep("all but a write", [&](int64_t write, int64_t) { return write != chosen_write; });
      break;
    case 6:
      keep("all but a sector", [&](int64_t, int64_t sector) { return sector != chosen_sector; });
      break;
    case 7:
      keep("one write", [&](int64_t write, int64_t) { return write == chosen_write; });
      break;
    case 8: {
      std::vector<bool> whole(open.size());
      std::generate(whole.begin(), whole.end(), [&] { return (*random)() % 2 == 0; });
      keep("some writes", [&](int64_t write, int64_t) { return whole[write]; });
      break;
    }
    default:
      keep("some sectors", [&](int64_t, int64_t) { return (*random)() % 2 == 0; });
  }
  return outage;
}

}  // namespace adamant::power
