// adamant-replay: makes all steps again that a data directory has, and says whether they lead to what they led to.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/command_line/command_line.h"
#include "kernels/dispatch.h"
#include "server/core/backend/cpu_backend.h"
#include "server/core/base/clock.h"
#include "server/core/base/compute_pool.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/memory/lender.h"
#include "server/core/set/resources.h"
#include "server/processors.h"
#include "server/store/file_system.h"
#include "server/store/store.h"

ABSL_FLAG(bool, steps, false, "prints a line for each step: the set's name, the step, and its digest, if it has one");
ABSL_FLAG(std::string, isa, "", "instruction set of the kernels: scalar, avx2 or avx512; empty: the best there is");

namespace adamant {
namespace {

int Fail(absl::string_view message) {
  std::cerr << "adamant-replay: " << message << "\n";
  return 1;
}

// A processor on which sets are made again, one after the other: with as much memory as it takes.
class Machine {
 public:
  explicit Machine(const kernels::KernelTable& kernels) : backend_(kernels) {}

  core::Resources resources() {
    return {.clock = clock_.get(),
            .state = &state_,
            .inflight = &inflight_,
            .read = &read_,
            .lender = &lender_,
            .compute = &compute_,
            .backend = &backend_,
            .admission_wait = absl::ZeroDuration()};
  }

 private:
  static constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max() / 4;

  const std::unique_ptr<core::Clock> clock_ = core::NewSteadyClock();
  core::Budget state_{"state", kNoLimit, clock_.get()};
  core::Budget inflight_{"inflight", kNoLimit, clock_.get()};
  core::Budget read_{"read", kNoLimit, clock_.get()};
  core::BlockPool pool_{[] {}};
  core::CpuBackend backend_;
  core::ComputePool compute_{UsableProcessors()};
  core::Lender lender_{&pool_, &compute_};
};

// A data directory to work in, which has copies of another one's catalog and fence, since opening a catalog writes to
// them, and the other one's sets. It ends with this.
class DirectoryCopy {
 public:
  static absl::StatusOr<DirectoryCopy> Make(const std::string& directory) {
    std::error_code error;
    if (!std::filesystem::exists(directory + "/catalog", error)) {
      return absl::NotFoundError(absl::StrCat(directory, " is no data directory: it has no catalog"));
    }
    std::string path = (std::filesystem::temp_directory_path(error) / "adamant-replay-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) return absl::ErrnoToStatus(errno, path);
    DirectoryCopy copy(path, open((directory + "/LOCK").c_str(), O_RDONLY | O_CLOEXEC));
    if (copy.lock_ >= 0 && flock(copy.lock_, LOCK_SH | LOCK_NB) < 0) {
      return absl::FailedPreconditionError(absl::StrCat(directory, " is used by a server"));
    }
    for (const char* const name : {"/catalog", "/catalog-wal", "/fence"}) {
      if (!std::filesystem::exists(directory + name, error)) continue;
      if (!std::filesystem::copy_file(directory + name, path + name, error)) {
        return absl::UnavailableError(absl::StrCat("copying ", directory, name, ": ", error.message()));
      }
      // What is copied of a copy that nobody may write to is to be written to.
      std::filesystem::permissions(path + name, std::filesystem::perms::owner_all, std::filesystem::perm_options::add,
                                   error);
    }
    std::filesystem::create_directory_symlink(directory + "/sets", path + "/sets", error);
    if (error) return absl::UnavailableError(absl::StrCat(path, "/sets: ", error.message()));
    return copy;
  }
  DirectoryCopy(DirectoryCopy&& other) noexcept
      : path_(std::exchange(other.path_, "")), lock_(std::exchange(other.lock_, -1)) {}
  DirectoryCopy& operator=(DirectoryCopy&&) = delete;
  ~DirectoryCopy() {
    std::error_code ignored;
    // Links are removed, not what they lead to.
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
    if (lock_ >= 0) close(lock_);
  }

  const std::string& path() const { return path_; }

 private:
  DirectoryCopy(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  std::string path_;
  int lock_;  // a file descriptor; -1: nobody has ever locked it
};

void Report(const store::SetReplay& replay) {
  if (absl::GetFlag(FLAGS_steps)) {
    for (const store::ReplayedStep& step : replay.steps) {
      std::cout << replay.set << " " << step.step;
      if (!step.digest.empty()) std::cout << " " << absl::BytesToHexString(step.digest);
      std::cout << "\n";
    }
  }
  if (!replay.status.ok()) {
    std::cout << replay.set << ": " << replay.status.message() << "\n";
    return;
  }
  const auto digests = absl::c_count_if(replay.steps, [](const auto& step) { return !step.digest.empty(); });
  const auto checked = absl::c_count_if(replay.steps, [](const auto& step) { return step.is_checked; });
  std::cout << replay.set << ": " << replay.steps.size() << " steps made again, from " << replay.base_step << " to "
            << replay.now.step() << "; " << digests << " digests, of which " << checked
            << " could be checked, and are those that were put down";
  // A digest is put down with the step after its own.
  if (!replay.last_digest.empty()) std::cout << "; the last one is " << absl::BytesToHexString(replay.last_digest);
  std::cout << "\n";
}

int Main(const std::vector<char*>& arguments) {
  if (arguments.size() != 2) return Fail("expected one argument, the data directory; see --help");
  const std::string isa = absl::GetFlag(FLAGS_isa);
  const kernels::KernelTable* const kernels = isa.empty() ? &kernels::BestKernels() : kernels::FindKernels(isa.c_str());
  if (kernels == nullptr) return Fail(absl::StrCat("--isa=", isa, ": this machine, or this build, does not have it"));
  store::StoreOptions options;
  std::error_code error;
  options.directory = std::filesystem::absolute(arguments[1], error).lexically_normal().string();
  absl::StatusOr<DirectoryCopy> copy = DirectoryCopy::Make(options.directory);
  if (!copy.ok()) return Fail(copy.status().message());
  options.directory = copy->path();
  options.warn = [](absl::string_view line) { std::cerr << "adamant-replay: " << line << "\n"; };
  Machine machine(*kernels);
  const absl::StatusOr<std::unique_ptr<store::Store>> store =
      store::Store::Open(store::PosixFileSystemToRead(), std::move(options));
  if (!store.ok()) return Fail(store.status().message());
  bool is_same = true;
  const absl::Status status = (*store)->Replay(machine.resources(), [&](const store::SetReplay& replay) {
    Report(replay);
    is_same = is_same && replay.status.ok();
  });
  if (!status.ok()) return Fail(status.message());
  return is_same ? 0 : 1;
}

}  // namespace
}  // namespace adamant

int main(int argc, char** argv) {
  return adamant::Main(adamant::ParseCommandLine(
      argc, argv,
      "makes all steps again that the data directory of a server that has stopped has, one behind the other, and "
      "checks "
      "each against what it led to the first time. Changes nothing there.\n\n  adamant-replay DIR",
      __FILE__));
}
