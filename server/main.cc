// adamant-server: holds parameter sets, applies gradients.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <future>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "client/command_line/byte_count.h"
#include "client/command_line/command_line.h"
#include "client/command_line/durability_flag.h"
#include "kernels/dispatch.h"
#include "server/health_probe.h"
#include "server/log.h"
#include "server/memory.h"
#include "server/processors.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/server.h"
#include "server/rpc/trusted_networks.h"
#include "server/store/store.h"
#include "server/version.h"

ABSL_FLAG(std::vector<std::string>, listen, {"0.0.0.0:50051"},
          "addresses to serve on, separated by commas: HOST:PORT (port 0: one that is free) or unix:PATH");
ABSL_FLAG(std::optional<adamant::ByteCount>, state_bytes, std::nullopt,
          "memory for parameters and moments, 12 bytes a parameter; default 1/2 of what there is");
ABSL_FLAG(std::optional<adamant::ByteCount>, inflight_bytes, std::nullopt,
          "memory for steps and writes under way, 4 bytes a parameter; default 3/16 of what there is");
ABSL_FLAG(std::optional<adamant::ByteCount>, read_bytes, std::nullopt,
          "memory for snapshots that readers hold, 4 to 12 bytes a parameter; default 3/16 of what there is");
ABSL_FLAG(
    std::optional<int>, max_streams, std::nullopt,
    "calls that move tensors at the same time, 5.5 MiB each; default 1/16 of the memory, at most 256, or more of it "
    "where that is less than 16 of them");
ABSL_FLAG(std::optional<int>, max_connections, std::nullopt,
          "connections at the same time; default one for each MiB of memory. Never more than the limit of open files, "
          "less 64, allows");
ABSL_FLAG(std::vector<std::string>, trusted, {},
          "addresses and prefixes, separated by commas, whose connections are not guarded: 10.1.2.3, 10.0.0.0/8 or "
          "fd00::/8. Unix sockets never are");
ABSL_FLAG(int, compute_threads, 0,
          "threads that large steps are computed on; 0: one for each processor that this process may use");
ABSL_FLAG(std::string, default_device, "cpu", "where sets live that name no device: cpu or cuda:N");
ABSL_FLAG(std::optional<adamant::ByteCount>, device_bytes, std::nullopt,
          "memory of each CUDA device for sets, 12 bytes a parameter; default 15/16 of what is free at the start");
ABSL_FLAG(std::string, isa, "", "instruction set of the kernels: scalar, avx2 or avx512; empty: the best there is");
ABSL_FLAG(absl::Duration, admission_wait, absl::Seconds(1), "how long a step waits for memory before it is refused");
ABSL_FLAG(absl::Duration, patience, absl::Seconds(30),
          "how long a message or a reply may be under way, beside the time that its bytes take at --min_rate; and how "
          "long a client may be silent while others wait for what its call holds");
ABSL_FLAG(
    absl::Duration, think_time, absl::Minutes(10),
    "how long a client may be silent between the messages of a step or write while nobody waits for what it holds");
ABSL_FLAG(adamant::ByteCount, min_rate, {256 * 1024}, "bytes a second that a client must send or take");
ABSL_FLAG(std::string, data_dir, "", "folder for sets that outlive the process; empty: none does");
ABSL_FLAG(
    std::string, durability, "nothing",
    "what is kept of sets that do not say: nothing; every_step, or every_step:K with K in [2, 1024] steps between "
    "two checkpoints at most, 1,024 of sets of at most 1,024 parameters; checkpoints:N,T after so many steps, so "
    "much time, at least 1s, or both. Needs --data_dir");
ABSL_FLAG(bool, accept_data_loss, false,
          "start although --data_dir has lost something, or does not say what a set is: with what there is, other "
          "incarnations, and without the sets that nothing is known of, see docs/durability.md");
ABSL_FLAG(adamant::ByteCount, checkpoint_rate, {0},
          "bytes a second that checkpoints may write; 0: as many as the disk takes");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(8), "how long calls may run on after SIGTERM, SIGINT or SIGHUP");
ABSL_FLAG(adamant::LogLevel, log_level, adamant::LogLevel::kInfo, "debug, info, warning or error");
ABSL_FLAG(std::string, probe, "", "HOST:PORT or unix:PATH: ask the server there whether it serves, and exit 0 if so");

namespace adamant {
namespace {

// Calls were cut off when the server ended.
constexpr int kCutOffExitCode = 3;
// How long after --drain_timeout the process is gone in any case: Docker kills 10 s after its signal.
constexpr absl::Duration kCutOffTime = absl::Seconds(1);
// For how long another signal is the first one once more.
constexpr absl::Duration kSameSignalTime = absl::Milliseconds(300);
// How long the last lines of the log may take.
constexpr absl::Duration kLastLinesTime = absl::Milliseconds(300);

// File descriptors that are left to others than connections; a quarter of them where there are few.
constexpr int64_t kSpareFiles = 64;
// Without any connection some 16 are open.
constexpr int64_t kLeastFiles = 48;
// Threads of the server's own, and of gRPC's beside two for each processor.
constexpr int kOtherThreads = 16;

// gRPC's own lines, in our form. What it calls an error is an event of a connection.
void LogGrpc(gpr_log_func_args* args) { Log(LogLevel::kDebug, absl::StrCat("grpc: ", args->message)); }

// Raises this process's limit of open files to the highest that it may have. Returns the limit.
int64_t RaiseFileLimit() {
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  getrlimit(RLIMIT_NOFILE, &files);
  return static_cast<int64_t>(std::min<rlim_t>(files.rlim_cur, std::numeric_limits<int>::max()));
}

std::optional<int64_t> Bytes(const std::optional<ByteCount>& flag) {
  return flag.has_value() ? std::optional(flag->bytes) : std::nullopt;
}

absl::StatusOr<rpc::ServerOptions> OptionsFromFlags() {
  rpc::ServerOptions options;
  options.addresses = absl::GetFlag(FLAGS_listen);
  if (options.addresses.empty()) return absl::InvalidArgumentError("--listen: expected an address");

  const std::string isa = absl::GetFlag(FLAGS_isa);
  options.kernels = isa.empty() ? &kernels::BestKernels() : kernels::FindKernels(isa.c_str());
  if (options.kernels == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("--isa=", isa, ": this machine, or this build, does not have it"));
  }
  options.compute_threads = absl::GetFlag(FLAGS_compute_threads);
  if (options.compute_threads == 0) options.compute_threads = UsableProcessors();
  if (options.compute_threads < 0 || options.compute_threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("--compute_threads: expected [0, 1024], got ", options.compute_threads));
  }
  options.default_device = absl::GetFlag(FLAGS_default_device);
  if (const std::optional<int64_t> bytes = Bytes(absl::GetFlag(FLAGS_device_bytes)); bytes.has_value()) {
    if (*bytes < 1) return absl::InvalidArgumentError(absl::StrCat("--device_bytes: expected 1 or more, got ", *bytes));
    options.device_bytes = *bytes;
  }
  options.admission_wait = absl::GetFlag(FLAGS_admission_wait);
  options.patience = absl::GetFlag(FLAGS_patience);
  options.think_time = absl::GetFlag(FLAGS_think_time);
  options.release_free_memory = &ReleaseFreeMemory;
  options.min_rate = static_cast<double>(absl::GetFlag(FLAGS_min_rate).bytes);
  const struct {
    const char* flag;
    absl::Duration value;
    bool may_be_zero;
  } times[] = {{"patience", options.patience, false},
               {"think_time", options.think_time, false},
               {"admission_wait", options.admission_wait, true},
               {"drain_timeout", absl::GetFlag(FLAGS_drain_timeout), true}};
  for (const auto& time : times) {
    if (time.value > absl::ZeroDuration() && time.value <= absl::Hours(24)) continue;
    if (time.value == absl::ZeroDuration() && time.may_be_zero) continue;
    return absl::InvalidArgumentError(absl::StrCat("--", time.flag, ": expected a time ",
                                                   time.may_be_zero ? "in [0s, 24h]" : "in (0s, 24h]", ", got ",
                                                   absl::FormatDuration(time.value)));
  }
  if (options.min_rate <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--min_rate: expected 1 or more, got ", absl::GetFlag(FLAGS_min_rate).bytes));
  }

  absl::StatusOr<int64_t> memory = UsableMemory();
  if (!memory.ok()) return memory.status();
  absl::StatusOr<MemoryShares> shares =
      DivideMemory(*memory, rpc::kStreamBytes,
                   {Bytes(absl::GetFlag(FLAGS_state_bytes)), Bytes(absl::GetFlag(FLAGS_inflight_bytes)),
                    Bytes(absl::GetFlag(FLAGS_read_bytes)), absl::GetFlag(FLAGS_max_streams)});
  if (!shares.ok()) return shares.status();
  options.state_bytes = shares->state;
  options.inflight_bytes = shares->inflight;
  options.read_bytes = shares->read;
  options.max_streams = shares->max_streams;
  options.max_waiting_calls = MaxWaitingCalls(*memory);
  const int64_t connections =
      absl::GetFlag(FLAGS_max_connections).value_or(static_cast<int>(std::min<int64_t>(*memory >> 20, 1 << 20)));
  if (connections < 1) {
    return absl::InvalidArgumentError(absl::StrCat("--max_connections: expected 1 or more, got ", connections));
  }
  absl::StatusOr<rpc::TrustedNetworks> trusted = rpc::TrustedNetworks::Parse(absl::GetFlag(FLAGS_trusted));
  if (!trusted.ok()) return absl::InvalidArgumentError(absl::StrCat("--trusted: ", trusted.status().message()));
  options.trusted = *std::move(trusted);
  const int64_t files = RaiseFileLimit();
  if (files < kLeastFiles) {
    return absl::InvalidArgumentError(
        absl::StrCat("this process may open ", files, " files (ulimit -n), and needs at least ", kLeastFiles));
  }
  options.max_connections = static_cast<int>(std::min(connections, files - std::min(kSpareFiles, files / 4)));
  return options;
}

// The store of --data_dir; null without one.
absl::StatusOr<std::unique_ptr<store::Store>> OpenStore() {
  const absl::StatusOr<v1::Durability> durability = ParseDurability(absl::GetFlag(FLAGS_durability));
  if (!durability.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--durability: ", durability.status().message()));
  }
  std::string directory = absl::GetFlag(FLAGS_data_dir);
  if (directory.empty()) {
    const char* const useless = !durability->has_nothing()                       ? "--durability"
                                : absl::GetFlag(FLAGS_accept_data_loss)          ? "--accept_data_loss"
                                : absl::GetFlag(FLAGS_checkpoint_rate).bytes > 0 ? "--checkpoint_rate"
                                                                                 : nullptr;
    if (useless != nullptr) return absl::InvalidArgumentError(absl::StrCat(useless, ": expected a --data_dir with it"));
    return nullptr;
  }
  // Of the working directory's, which may change.
  std::error_code error;
  directory = std::filesystem::absolute(directory, error).lexically_normal().string();
  store::StoreOptions options;
  options.directory = directory;
  options.default_durability = *durability;
  options.accept_data_loss = absl::GetFlag(FLAGS_accept_data_loss);
  options.checkpoint_bytes_per_second = absl::GetFlag(FLAGS_checkpoint_rate).bytes;
  if (options.checkpoint_bytes_per_second < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--checkpoint_rate: expected 0 or more, got ", options.checkpoint_bytes_per_second));
  }
  options.log = [](absl::string_view line) { Log(LogLevel::kInfo, line); };
  options.warn = [](absl::string_view line) { Log(LogLevel::kWarning, line); };
  absl::StatusOr<std::unique_ptr<store::Store>> opened = store::Store::Open(store::PosixFileSystem(), options);
  if (!opened.ok()) {
    return absl::Status(opened.status().code(), absl::StrCat("--data_dir: ", opened.status().message()));
  }
  if (absl::Status status = (*opened)->Resolve(nullptr, "durability").status(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--durability: ", status.message()));
  }
  return opened;
}

// What is said of a start that failed.
std::string WithWayOut(const absl::Status& status) {
  const bool is_loss = absl::IsDataLoss(status) && !absl::GetFlag(FLAGS_accept_data_loss);
  return absl::StrCat(status.message(), is_loss ? "; restore a backup, or start with --accept_data_loss: see "
                                                  "docs/durability.md#damage"
                                                : "");
}

// Says so where sets take so many of the files that this process may open that fewer connections find one than may be.
void WarnOfFewFiles(int max_connections) {
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  std::error_code error;
  const std::filesystem::directory_iterator opened("/proc/self/fd", error);
  const auto left = static_cast<int64_t>(files.rlim_cur) - std::distance(begin(opened), end(opened));
  if (error || left >= max_connections) return;
  Log(LogLevel::kWarning, absl::StrCat("only ", left, " more files can be opened, and there may be ", max_connections,
                                       " connections: raise ulimit -n"));
}

// A standard stream that is closed would be the next file that is opened, and a client get the log.
void OpenStandardStreams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (fcntl(fd, F_GETFD) != -1) continue;
    [[maybe_unused]] const int opened = open("/dev/null", O_RDWR);
  }
}

// The signals that end the server, but for those that whoever started it wants ignored, as nohup does.
sigset_t EndingSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    struct sigaction action;
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) sigaddset(&signals, signal);
  }
  return signals;
}

// Waits for one of `signals`, at most until `deadline`. Returns it, or 0. A process that was stopped and goes on waits
// on.
int AwaitSignal(const sigset_t& signals, std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    const absl::Duration rest = absl::FromChrono(deadline - std::chrono::steady_clock::now());
    const timespec wait = absl::ToTimespec(std::max(absl::ZeroDuration(), rest));
    const int signal = sigtimedwait(&signals, nullptr, &wait);
    if (signal > 0) return signal;
    if (errno != EINTR) return 0;
  }
}

// Takes the signals that end the server: the first one is for whoever waits for the future. From then on the process
// ends at the next one, or when `drain_timeout` and kCutOffTime are over, whatever still runs. The thread for this is
// made now: later the making of one could have to wait for a large set's memory, 8 s for 7 GB.
std::future<int> TakeSignals(const sigset_t& signals, absl::Duration drain_timeout) {
  std::promise<int> first;
  std::future<int> future = first.get_future();
  std::thread([signals, drain_timeout, first = std::move(first)]() mutable {
    int signal = 0;
    sigwait(&signals, &signal);
    first.set_value(signal);
    const auto begin = std::chrono::steady_clock::now();
    // Some send their signal twice, as timeout(1) does: to the process and to its group.
    while (AwaitSignal(signals, begin + absl::ToChronoNanoseconds(kSameSignalTime)) != 0) continue;
    signal = AwaitSignal(signals, begin + absl::ToChronoNanoseconds(drain_timeout + kCutOffTime));
    Log(LogLevel::kWarning, signal > 0 ? "a second signal: ended at once, with all that was under way"
                                       : "drain timeout: ended, with all that was under way");
    FlushLog(kLastLinesTime);
    _exit(kCutOffExitCode);
  }).detach();
  return future;
}

int Fail(absl::string_view message) {
  std::cerr << "adamant-server: " << message << "\n";
  return 1;
}

int Main(const std::vector<char*>& arguments) {
  if (arguments.size() > 1) return Fail(absl::StrCat("unexpected argument ", arguments[1]));
  SetLogLevel(absl::GetFlag(FLAGS_log_level));
  gpr_set_log_function(&LogGrpc);
  if (absl::GetFlag(FLAGS_log_level) == LogLevel::kDebug) gpr_set_log_verbosity(GPR_LOG_SEVERITY_DEBUG);
  // It would write a line for every text from a client that is not UTF-8.
  google::protobuf::SetLogHandler(nullptr);
  if (std::string target = absl::GetFlag(FLAGS_probe); !target.empty()) {
    absl::Status status = ProbeHealth(target);
    return status.ok() ? 0 : Fail(status.message());
  }

  // A reader of the log that is gone is no reason to end.
  signal(SIGPIPE, SIG_IGN);
  // Nor is a file that may not grow: what would write to it hears so.
  signal(SIGXFSZ, SIG_IGN);
  OpenStandardStreams();
  // Blocked before any thread starts, so that only the waits below see them.
  const sigset_t signals = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  absl::StatusOr<rpc::ServerOptions> options = OptionsFromFlags();
  if (!options.ok()) return Fail(options.status().message());
  const int threads = options->compute_threads + 2 * UsableProcessors() + kOtherThreads;
  if (absl::Status status = CheckThreads(threads); !status.ok()) return Fail(status.message());
  // Never undone: whoever is the last to let go of gRPC waits for its pollers, which has taken 10 seconds, and Docker
  // kills after that.
  grpc_init();
  const absl::Duration drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  std::future<int> signal = TakeSignals(signals, drain_timeout);
  absl::StatusOr<std::unique_ptr<store::Store>> opened = OpenStore();
  if (!opened.ok()) return Fail(WithWayOut(opened.status()));
  if (store::Store* const kept = opened->get(); kept != nullptr) {
    options->journal = kept;
    options->restore = [kept](core::Registry* registry) { return kept->Restore(registry); };
    options->begin_changes = [kept] { return kept->BeginChanges(); };
    options->finish = [kept](core::Registry* registry, absl::Duration rest) { kept->Finish(registry, rest); };
  }
  absl::StatusOr<std::unique_ptr<rpc::Server>> server = rpc::Server::Start(*options);
  if (!server.ok()) return Fail(WithWayOut(server.status()));
  for (const std::string& address : (*server)->addresses()) std::cout << "listening on " << address << std::endl;
  WarnOfFewFiles(options->max_connections);
  Log(LogLevel::kInfo,
      absl::StrCat("adamant-server ", kVersion, " started: kernels ", options->kernels->name, ", ",
                   options->compute_threads, " threads, state ", options->state_bytes >> 20, " MiB, inflight ",
                   options->inflight_bytes >> 20, " MiB, read ", options->read_bytes >> 20, " MiB, ",
                   options->max_streams, " streams",
                   (*opened) == nullptr ? ""
                                        : absl::StrCat(", data in ", absl::GetFlag(FLAGS_data_dir), ", sets keep ",
                                                       absl::GetFlag(FLAGS_durability), " by default")));

  Log(LogLevel::kInfo, absl::StrCat("SIG", sigabbrev_np(signal.get()), ": draining"));
  const int cut_off = (*server)->Drain(drain_timeout);
  if (cut_off > 0) Log(LogLevel::kWarning, absl::StrCat("drain timeout: ", cut_off, " calls were cut off"));
  server->reset();
  Log(LogLevel::kInfo, "stopped");
  FlushLog(kLastLinesTime);
  return cut_off > 0 ? kCutOffExitCode : 0;
}

}  // namespace
}  // namespace adamant

int main(int argc, char** argv) {
  return adamant::Main(adamant::ParseCommandLine(
      argc, argv, "serves adamant.v1.OptimizerService: holds parameter sets, applies gradients.", __FILE__));
}
