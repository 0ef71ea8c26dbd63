#include "tests/power/disk.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"

namespace adamant::power {

// calloc takes no memory for what is never written.
Disk::Disk(int64_t size)
    : size_(size),
      contents_(static_cast<char*>(std::calloc(size, 1))),
      kept_(static_cast<char*>(std::calloc(size, 1))),
      is_changed_(size / kPageBytes) {}

void Disk::Read(int64_t offset, absl::Span<char> bytes) const {
  core::MutexLock lock(&mutex_);
  std::memcpy(bytes.data(), contents_.get() + offset, bytes.size());
}

void Disk::Write(int64_t offset, absl::string_view bytes) {
  core::MutexLock lock(&mutex_);
  if (bytes.empty()) return;
  const auto size = static_cast<int64_t>(bytes.size());
  std::memcpy(contents_.get() + offset, bytes.data(), bytes.size());
  for (int64_t page = offset / kPageBytes; page <= (offset + size - 1) / kPageBytes; ++page) {
    if (!is_changed_[page]) changed_.push_back(page);
    is_changed_[page] = true;
  }
  log_.push_back({.offset = offset, .bytes = std::string(bytes)});
}

void Disk::Flush() {
  core::MutexLock lock(&mutex_);
  log_.push_back({});
}

int64_t Disk::position() const {
  core::MutexLock lock(&mutex_);
  return static_cast<int64_t>(log_.size());
}

std::vector<DiskEvent> Disk::TakeLog() {
  core::MutexLock lock(&mutex_);
  return std::exchange(log_, {});
}

void Disk::Keep() {
  core::MutexLock lock(&mutex_);
  CopyChanged(contents_, kept_);
  log_.clear();
}

void Disk::Restore() {
  core::MutexLock lock(&mutex_);
  CopyChanged(kept_, contents_);
}

void Disk::CopyChanged(const Contents& from, const Contents& to) {
  for (const int64_t page : changed_) {
    std::memcpy(to.get() + page * kPageBytes, from.get() + page * kPageBytes, kPageBytes);
    is_changed_[page] = false;
  }
  changed_.clear();
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
