// A disk that a power cut can be tried on: it knows in which order it was written and flushed, and goes back to where
// it was.
#ifndef ADAMANT_TESTS_POWER_DISK_H_
#define ADAMANT_TESTS_POWER_DISK_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace adamant::power {

// What a disk was told: to write `bytes` at `offset`, or, without any, to have all that was written before survive.
struct DiskEvent {
  bool is_flush() const { return bytes.empty(); }

  int64_t offset = 0;
  std::string bytes = {};
};

// Zeros at first, and no more memory than was written. Thread-safe, and one disk for the process that made it and for
// those that it forks afterwards.
class Disk {
 public:
  // `size` is a multiple of kPageBytes.
  explicit Disk(int64_t size);
  ~Disk();
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  int64_t size() const { return size_; }

  // Ranges lie within the disk.
  void Read(int64_t offset, absl::Span<char> bytes) const;
  void Write(int64_t offset, absl::string_view bytes);
  void Flush();

  // How many events there have been since the last Keep or TakeLog, and those.
  int64_t position() const;
  std::vector<DiskEvent> TakeLog();

  // Takes what is there now for what Restore brings back.
  void Keep();
  void Restore();

 private:
  static constexpr int64_t kPageBytes = 4096;
  // Beyond that the process ends: it has room for some times what a test writes.
  static constexpr int64_t kLogBytes = int64_t{4} << 30;
  struct Counts;
  class Lock;

  // Each page that has changed since the last Keep or Restore.
  void CopyChanged(const char* from, char* to);
  void ClearLog();
  void Append(int64_t offset, absl::string_view bytes);

  const int64_t size_;
  // Memory that processes share.
  Counts* const counts_;
  char* const contents_;
  char* const kept_;
  char* const is_changed_;  // by page
  char* const log_;         // for each event its offset, its size, and its bytes
};

// What is on a disk after a power cut.
struct Outage {
  int64_t flushed;              // events before this one have survived, all of them
  std::vector<DiskEvent> kept;  // of those behind it, what has survived, in order
  std::string description;      // for whoever looks into a failure
};

// The power goes away when the disk has been told `events`. Whatever was written since the last flush may be there or
// not, sector by sector; what it is depends on `random`.
Outage CutPower(absl::Span<const DiskEvent> events, int64_t sector_bytes, std::mt19937_64* random);

}  // namespace adamant::power

#endif  // ADAMANT_TESTS_POWER_DISK_H_
