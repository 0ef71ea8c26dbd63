// A disk that a power cut can be tried on: it knows in which order it was written and flushed, and goes back to where
// it was.
#ifndef ADAMANT_TESTS_POWER_DISK_H_
#define ADAMANT_TESTS_POWER_DISK_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/base/mutex.h"

namespace adamant::power {

// What a disk was told: to write `bytes` at `offset`, or, without any, to have all that was written before survive.
struct DiskEvent {
  bool is_flush() const { return bytes.empty(); }

  int64_t offset = 0;
  std::string bytes = {};
};

// Zeros at first, and no more memory than was written. Thread-safe.
class Disk {
 public:
  // `size` is a multiple of kPageBytes.
  explicit Disk(int64_t size);

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
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  using Contents = std::unique_ptr<char, Free>;

  void CopyChanged(const Contents& from, const Contents& to) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t size_;
  mutable core::Mutex mutex_;
  const Contents contents_ ABSL_PT_GUARDED_BY(mutex_);
  const Contents kept_ ABSL_PT_GUARDED_BY(mutex_);
  std::vector<bool> is_changed_ ABSL_GUARDED_BY(mutex_);  // by page, since the last Keep or Restore
  std::vector<int64_t> changed_ ABSL_GUARDED_BY(mutex_);
  std::vector<DiskEvent> log_ ABSL_GUARDED_BY(mutex_);
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
