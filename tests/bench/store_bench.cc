// What it costs to make a record last: an append and a sync as the system does them, a commit of the catalog, and
// commits of many writers at the same time through the commit thread.
//   store_bench [FOLDER]   a folder on the disk to be measured, which is there; the default is the one for temporary
//   files
// Prints medians and rates, and their ratios, which are what can be compared between machines: all are of one run.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"
#include "server/store/catalog.h"
#include "server/store/commit_thread.h"
#include "server/store/file_system.h"

namespace adamant::store {
namespace {

using Clock = std::chrono::steady_clock;

// A record of a step of 65 parameters.
constexpr size_t kGradientBytes = 260;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "store_bench: " << status << "\n";
  std::exit(1);
}

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// The median of as many calls, in microseconds, after a tenth of them to warm up.
double MedianMicroseconds(int count, const std::function<void(int)>& call) {
  std::vector<double> took;
  for (int i = 0; i < count + count / 10; ++i) {
    const Clock::time_point begin = Clock::now();
    call(i);
    if (i >= count / 10) took.push_back(Seconds(Clock::now() - begin) * 1e6);
  }
  std::nth_element(took.begin(), took.begin() + count / 2, took.end());
  return took[count / 2];
}

StoredRecord Record(int64_t step) {
  StoredRecord record;
  record.set_step(step);
  record.mutable_committed()->mutable_gradient()->set_here(std::string(kGradientBytes, 'g'));
  return record;
}

double RawMicroseconds(const std::string& folder, int count) {
  const std::unique_ptr<File> file = *PosixFileSystem()->Create(folder + "/raw", FileSystem::Access::kBuffered);
  const std::string text = Record(1).SerializeAsString();
  return MedianMicroseconds(count, [&](int i) {
    Check(file->Write(i * static_cast<int64_t>(text.size()),
                      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size())));
    Check(file->Sync());
  });
}

std::unique_ptr<Catalog> NewCatalog(const std::string& folder, int sets) {
  Check(PosixFileSystem()->MakeDirectory(folder));
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open(PosixFileSystem(), folder, false);
  Check(catalog.status());
  Check((*catalog)->Begin());
  for (int i = 0; i < sets; ++i) Check((*catalog)->AddSet({}).status());
  Check((*catalog)->Commit());
  return *std::move(catalog);
}

double CommitMicroseconds(const std::string& folder, int count) {
  const std::unique_ptr<Catalog> catalog = NewCatalog(folder + "/one", 1);
  return MedianMicroseconds(count, [&](int i) {
    Check(catalog->Begin());
    Check(catalog->AddRecord(1, i + 1, Record(i + 1)));
    Check(catalog->Commit());
  });
}

// Of writers of which each has a set of its own, and waits for each of its records before it asks for the next.
double RecordsPerSecond(const std::string& folder, int writers, double seconds) {
  // Outlive those who tell of commits.
  struct Waiter {
    core::Mutex mutex;
    core::CondVar changed;
    bool done ABSL_GUARDED_BY(mutex) = false;
  };
  std::vector<Waiter> waiters(writers);
  core::ComputePool executor(2);
  CommitThread thread(NewCatalog(absl::StrCat(folder, "/", writers), writers), &executor);
  std::atomic<int64_t> records = 0;
  const Clock::time_point begin = Clock::now();
  std::vector<std::thread> threads;
  for (int set = 1; set <= writers; ++set) {
    threads.emplace_back([&, set] {
      Waiter& waiter = waiters[set - 1];
      for (int64_t number = 1; Seconds(Clock::now() - begin) < seconds; ++number) {
        thread.Commit([set, number](Catalog* catalog) { return catalog->AddRecord(set, number, Record(number)); },
                      [&waiter](absl::Status status) {
                        Check(status);
                        core::MutexLock lock(&waiter.mutex);
                        waiter.done = true;
                        waiter.changed.NotifyOne();
                      });
        core::MutexLock lock(&waiter.mutex);
        while (!waiter.done) waiter.changed.Wait(&waiter.mutex);
        waiter.done = false;
        ++records;
      }
    });
  }
  for (std::thread& writer : threads) writer.join();
  return static_cast<double>(records) / Seconds(Clock::now() - begin);
}

void Main(const std::string& parent) {
  const bool is_small = std::getenv("ADAMANT_BENCH_SMALL") != nullptr;
  const int count = is_small ? 20 : 3000;
  const double seconds = is_small ? 0.05 : 2;
  std::string folder = parent + "/store-bench-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) Check(absl::InternalError("no folder can be made in " + parent));

  const double raw = RawMicroseconds(folder, count);
  const double commit = CommitMicroseconds(folder, count);
  std::cout << absl::StrFormat("append and sync, median    %8.1f us\n", raw)
            << absl::StrFormat("commit of the catalog      %8.1f us   ratio commit / append %.2f\n", commit,
                               commit / raw);
  double one = 0;
  for (const int writers : {1, 16, 64}) {
    const double rate = RecordsPerSecond(folder, writers, seconds);
    if (writers == 1) one = rate;
    std::cout << absl::StrFormat("%2d writers               %10.0f records/s   ratio to one %.1f\n", writers, rate,
                                 rate / one);
  }
  Check(PosixFileSystem()->RemoveAll(folder));
}

}  // namespace
}  // namespace adamant::store

int main(int argc, char** argv) {
  adamant::store::Main(argc > 1 ? argv[1] : std::filesystem::temp_directory_path().string());
}
