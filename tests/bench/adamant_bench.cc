// adamant-bench: what a remote step costs, beside a raw exchange of the same bytes and the kernel alone.
//
//   adamant-bench step --params=67108864 --compare     a step; with --compare beside exchange, tcp and kernel
//   adamant-bench step --params=16777216 --dtype=bfloat16  steps of 16 bits both ways, interleaved with those of fp32
//   adamant-bench step --params=65536 --table_rows=1000000  steps of 1,024 random rows of 64 elements of such a table,
//                                                      interleaved with those of a tensor of no more
//   adamant-bench step --params=16777216 --durability=every_step  steps of a set of which each is kept, interleaved
//   with
//                                                      those of one of which nothing is
//   adamant-bench exchange --params=67108864           the raw exchange of a step's bytes; with --compare beside tcp
//   adamant-bench echo                                 a ping-pong of 300 bytes on one stream
//   adamant-bench tcp --params=67108864                the same bytes over plain sockets, without gRPC: the floor
//   adamant-bench settings --params=67108864           exchanges beside tcp, one for each setting that may matter
//
// Every pair of a server (or a peer of the exchange) and a worker that measures is two fresh processes: what one binary
// needs for the same exchange differs by half between processes, so that only ratios of rounds that were interleaved in
// one of them, and over several of them, say anything. Results go to stdout; errors to stderr, with exit code 1.
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/command_line/byte_count.h"
#include "client/command_line/command_line.h"
#include "client/command_line/durability_flag.h"
#include "proto/wire/tensor_message.h"
#include "tests/bench/child_process.h"
#include "tests/bench/exchange.h"
#include "tests/bench/samples.h"
#include "tests/bench/socket_exchange.h"
#include "tests/bench/worker.h"

ABSL_FLAG(int64_t, params, 1 << 20, "Parameters of the set; an exchange moves their bytes.");
ABSL_FLAG(
    std::string, dtype, "float32",
    "Step: bfloat16 or float16 interleaves steps of a set whose gradients and replies travel so; print the ratio.");
ABSL_FLAG(
    int64_t, table_rows, 0,
    "Step: interleave steps of random rows, of 64 elements each and --params in all, of a table of so many; print "
    "the ratio.");
ABSL_FLAG(std::string, durability, "",
          "Step: interleave steps of a set of which this is kept, as in the server's flag; print the ratio.");
ABSL_FLAG(std::string, data_dir, "",
          "Step: a folder on the disk where it is kept, by a server of its own. Empty: the one for temporary files.");
ABSL_FLAG(int64_t, tensors, 1, "Step: of how many tensors, all of one size, the set is.");
ABSL_FLAG(int32_t, steps, 0, "Rounds to count in each pair of processes. 0: by size, 10 to 2,000.");
ABSL_FLAG(int32_t, pairs, 0, "Pairs of fresh processes. 0: 5 with --compare and for settings, else 1.");
ABSL_FLAG(bool, compare, false,
          "Interleave a step with the exchange, tcp and the kernel alone, or an exchange or echo with tcp; print the "
          "ratios.");
ABSL_FLAG(bool, json, false, "Print one JSON object a line.");
ABSL_FLAG(std::string, target, "",
          "Step: a running server. Exchange and echo: a running peer. Tcp: a running tcp_peer. Empty: one of its own.");
ABSL_FLAG(std::string, transport, "tcp", "Of servers of its own: tcp or unix.");
ABSL_FLAG(std::string, server, "", "Path of adamant-server. Empty: beside this program.");
ABSL_FLAG(std::string, device, "",
          "Step: interleave steps of a set that lives there, such as cuda:0; print the ratio.");
ABSL_FLAG(std::string, allocator, ADAMANT_BENCH_ALLOCATOR,
          "Of the worker and of peers: tcmalloc, thresholds (glibc with raised thresholds), or glibc (as it comes).");
ABSL_FLAG(std::string, probe, "",
          "Exchange: which ends probe the bandwidth: on (both), off, server or client. Empty: as in a step.");
ABSL_FLAG(adamant::ByteCount, frame_bytes, {0},
          "Exchange: the largest HTTP/2 frame that an end takes, 16,384 to 16,777,215. 0: as in a step.");
ABSL_FLAG(adamant::ByteCount, lookahead_bytes, {0}, "Exchange: what may be under way on a stream. 0: as in a step.");
ABSL_FLAG(
    adamant::ByteCount, read_chunk_bytes, {0},
    "Exchange: what gRPC reads from a socket at a time if GRPC_EXPERIMENTS is -tcp_read_chunks. 0: as in a step.");
ABSL_FLAG(adamant::ByteCount, message_bytes, {adamant::wire::kMessageBytes},
          "Exchange: the size of messages, at most 4 MiB.");
ABSL_FLAG(bool, overlap, false, "Exchange: ask for the next message before the last one is copied.");
ABSL_FLAG(std::string, listen, "127.0.0.1:0", "Peer and tcp_peer: address to listen at.");
ABSL_FLAG(std::string, peer, "", "Worker: address of the peer.");
ABSL_FLAG(std::string, tcp_peer, "", "Worker: address of the tcp_peer.");

namespace adamant::bench {
namespace {

constexpr int64_t kEchoBytes = 300;
constexpr int64_t kMaxParams = int64_t{1} << 40;
// HTTP/2's own.
constexpr int kMinFrameBytes = 16384;
constexpr int kMaxFrameBytes = 16777215;
constexpr char kListening[] = "listening on ";

// A way to exchange, for the peer and the worker that do it: flags beside those of this process, gRPC's experiments
// (empty: those of this process's environment), and an allocator (empty: the flag's).
struct Variant {
  std::string name;
  std::vector<std::string> flags;
  std::string experiments;
  std::string allocator;
};

// Each differs in one thing from what the flags say.
const std::vector<Variant>& Variants() {
  static const auto& variants = *new std::vector<Variant>{
      {"as it is", {}, "", ""},
      {"probe off", {"--probe=off"}, "", ""},
      {"probe on", {"--probe=on"}, "", ""},
      {"probe at the server", {"--probe=server"}, "", ""},
      {"probe at the client", {"--probe=client"}, "", ""},
      {"frames of 16 KiB", {"--frame_bytes=16384"}, "", ""},
      {"look-ahead of 1 MiB", {"--lookahead_bytes=1048576"}, "", ""},
      {"look-ahead of 16 MiB", {"--lookahead_bytes=16777216"}, "", ""},
      {"messages of 256 KiB", {"--message_bytes=262144"}, "", ""},
      {"messages of 4 MiB", {"--message_bytes=4194304"}, "", ""},
      {"overlap", {"--overlap"}, "", ""},
      {"reads of 256 KiB", {"--read_chunk_bytes=262144"}, "-tcp_read_chunks", ""},
      {"tcp_frame_size_tuning", {}, "tcp_frame_size_tuning", ""},
      {"tcp_rcv_lowat", {}, "tcp_rcv_lowat", ""},
      {"peer_state_based_framing", {}, "peer_state_based_framing", ""},
      {"flow_control_fixes", {}, "flow_control_fixes", ""},
      {"glibc with thresholds", {}, "", "thresholds"},
      {"glibc as it comes", {}, "", "glibc"},
  };
  return variants;
}

int64_t ExchangeBytes(int64_t params) {
  // The message of a small step is its header more than its gradient.
  return std::max(params * static_cast<int64_t>(sizeof(float)), kEchoBytes);
}

int Steps() {
  if (absl::GetFlag(FLAGS_steps) > 0) return absl::GetFlag(FLAGS_steps);
  return static_cast<int>(std::clamp<int64_t>((1 << 28) / absl::GetFlag(FLAGS_params), 10, 2000));
}

int Pairs(bool compare) {
  if (absl::GetFlag(FLAGS_pairs) > 0) return absl::GetFlag(FLAGS_pairs);
  return compare ? 5 : 1;
}

ExchangeSettings Settings() {
  return {.probe = absl::GetFlag(FLAGS_probe),
          .frame_bytes = static_cast<int>(absl::GetFlag(FLAGS_frame_bytes).bytes),
          .lookahead_bytes = static_cast<int>(absl::GetFlag(FLAGS_lookahead_bytes).bytes),
          .read_chunk_bytes = static_cast<int>(absl::GetFlag(FLAGS_read_chunk_bytes).bytes),
          .message_bytes = static_cast<int>(absl::GetFlag(FLAGS_message_bytes).bytes),
          .overlap = absl::GetFlag(FLAGS_overlap)};
}

// The same, for a process that this one starts.
std::vector<std::string> SettingsFlags() {
  std::vector<std::string> flags;
  for (const absl::string_view name :
       {"probe", "frame_bytes", "lookahead_bytes", "read_chunk_bytes", "message_bytes", "overlap"}) {
    flags.push_back(absl::StrCat("--", name, "=", absl::FindCommandLineFlag(name)->CurrentValue()));
  }
  return flags;
}

// Nothing if there is no such type.
std::optional<v1::Dtype> Dtype() {
  const std::string dtype = absl::GetFlag(FLAGS_dtype);
  if (dtype == "float32") return v1::DTYPE_FLOAT32;
  if (dtype == "bfloat16") return v1::DTYPE_BFLOAT16;
  if (dtype == "float16") return v1::DTYPE_FLOAT16;
  return std::nullopt;
}

// Without a level if none is asked for.
absl::StatusOr<v1::Durability> Durability() {
  const std::string durability = absl::GetFlag(FLAGS_durability);
  return durability.empty() ? v1::Durability() : ParseDurability(durability);
}

bool Exchanges(const std::string& command) { return command == "exchange" || command == "echo"; }

absl::Status CheckFlags(const std::string& command) {
  const auto invalid = [](absl::string_view what) { return absl::InvalidArgumentError(what); };
  if (absl::GetFlag(FLAGS_params) < 1 || absl::GetFlag(FLAGS_params) > kMaxParams) {
    return invalid(absl::StrCat("--params must be in [1, ", kMaxParams, "]"));
  }
  if (!Dtype().has_value()) {
    return invalid(absl::StrCat("--dtype must be float32, bfloat16 or float16, got ", absl::GetFlag(FLAGS_dtype)));
  }
  if (command != "step" && command != "worker" && *Dtype() != v1::DTYPE_FLOAT32) {
    return invalid("--dtype is for steps");
  }
  if (absl::GetFlag(FLAGS_table_rows) < 0 ||
      (absl::GetFlag(FLAGS_table_rows) > 0 && absl::GetFlag(FLAGS_params) % kRowElements != 0)) {
    return invalid(
        absl::StrCat("--table_rows must not be negative, and needs --params of whole rows of ", kRowElements));
  }
  if (command != "step" && command != "worker" && absl::GetFlag(FLAGS_table_rows) > 0) {
    return invalid("--table_rows is for steps");
  }
  if (absl::GetFlag(FLAGS_tensors) < 1 || absl::GetFlag(FLAGS_params) % absl::GetFlag(FLAGS_tensors) != 0) {
    return invalid("--tensors must be at least 1, and --params a multiple of it");
  }
  if (absl::GetFlag(FLAGS_steps) < 0) return invalid("--steps must not be negative");
  if (absl::GetFlag(FLAGS_pairs) < 0) return invalid("--pairs must not be negative");
  const std::string transport = absl::GetFlag(FLAGS_transport);
  if (transport != "tcp" && transport != "unix") return invalid("--transport must be tcp or unix");
  const std::string allocator = absl::GetFlag(FLAGS_allocator);
  if (allocator != "tcmalloc" && allocator != "thresholds" && allocator != "glibc") {
    return invalid("--allocator must be tcmalloc, thresholds or glibc");
  }
  if (allocator == "tcmalloc" && std::string(ADAMANT_BENCH_TCMALLOC).empty()) {
    return invalid("--allocator=tcmalloc: this program was built where there is none");
  }
  const std::string probe = absl::GetFlag(FLAGS_probe);
  if (!probe.empty() && probe != "on" && probe != "off" && probe != "server" && probe != "client") {
    return invalid(absl::StrCat("--probe must be on, off, server or client, got ", probe));
  }
  const int64_t frame_bytes = absl::GetFlag(FLAGS_frame_bytes).bytes;
  if (frame_bytes != 0 && (frame_bytes < kMinFrameBytes || frame_bytes > kMaxFrameBytes)) {
    return invalid(
        absl::StrCat("--frame_bytes must be 0 or in [", kMinFrameBytes, ", ", kMaxFrameBytes, "], got ", frame_bytes));
  }
  const int64_t lookahead_bytes = absl::GetFlag(FLAGS_lookahead_bytes).bytes;
  if (lookahead_bytes < 0 || lookahead_bytes > std::numeric_limits<int>::max()) {
    return invalid(absl::StrCat("--lookahead_bytes must not be negative, nor 2GiB or more, got ", lookahead_bytes));
  }
  const int64_t read_chunk_bytes = absl::GetFlag(FLAGS_read_chunk_bytes).bytes;
  if (read_chunk_bytes < 0 || read_chunk_bytes > std::numeric_limits<int>::max()) {
    return invalid(absl::StrCat("--read_chunk_bytes must not be negative, nor 2GiB or more, got ", read_chunk_bytes));
  }
  const int64_t message_bytes = absl::GetFlag(FLAGS_message_bytes).bytes;
  if (message_bytes < 1 || message_bytes > wire::kMaxMessageBytes) {
    return invalid(absl::StrCat("--message_bytes must be in [1, ", wire::kMaxMessageBytes, "], got ", message_bytes));
  }
  if (absl::GetFlag(FLAGS_compare) &&
      ((command != "step" && !Exchanges(command)) || !absl::GetFlag(FLAGS_target).empty())) {
    return invalid("--compare is for steps, exchanges and echoes with a server or peer of this program's own");
  }
  if (command != "step" && command != "worker" && !absl::GetFlag(FLAGS_device).empty()) {
    return invalid("--device is for steps");
  }
  if (absl::Status status = Durability().status(); !status.ok()) {
    return invalid(absl::StrCat("--durability: ", status.message()));
  }
  if (command != "step" && command != "worker" && !absl::GetFlag(FLAGS_durability).empty()) {
    return invalid("--durability is for steps");
  }
  if (command == "settings" && !absl::GetFlag(FLAGS_target).empty()) {
    return invalid("settings starts a peer for each: it takes no --target");
  }
  return absl::OkStatus();
}

// The allocator is chosen for a process as it starts, which lets one binary show them all.
ChildProcess::Environment AllocatorEnvironment(const std::string& allocator) {
  if (allocator == "tcmalloc") return {{"LD_PRELOAD", ADAMANT_BENCH_TCMALLOC}};
  if (allocator == "thresholds") {
    return {{"GLIBC_TUNABLES",
             "glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432:"
             "glibc.malloc.top_pad=268435456"}};
  }
  return {};
}

std::string Allocator(const Variant& variant) {
  return variant.allocator.empty() ? absl::GetFlag(FLAGS_allocator) : variant.allocator;
}

std::string ThisProgram() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

absl::StatusOr<std::string> ServerProgram() {
  if (!absl::GetFlag(FLAGS_server).empty()) return absl::GetFlag(FLAGS_server);
  const std::filesystem::path folder = std::filesystem::path(ThisProgram()).parent_path();
  // Where it is installed, and where it is built.
  for (const auto& path : {folder / "adamant-server", folder / "../../server/adamant-server"}) {
    if (std::filesystem::exists(path)) return path.string();
  }
  return absl::NotFoundError("there is no adamant-server beside this program: use --server or --target");
}

std::string TemporaryFiles() { return std::filesystem::temp_directory_path().string(); }

// A folder that ends with this, and all that is in it.
class TemporaryFolder {
 public:
  static absl::StatusOr<TemporaryFolder> Make(const std::string& parent) {
    std::string path = absl::StrCat(parent, "/adamant-bench-XXXXXX");
    if (mkdtemp(path.data()) == nullptr) return absl::ErrnoToStatus(errno, path);
    return TemporaryFolder(std::move(path));
  }
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  TemporaryFolder& operator=(TemporaryFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}

  std::string path_;
};

// A server or peer of our own, and where it listens.
class Listener {
 public:
  static absl::StatusOr<std::unique_ptr<Listener>> Start(std::vector<std::string> arguments,
                                                         const ChildProcess::Environment& environment) {
    auto listener = std::unique_ptr<Listener>(new Listener);
    std::string address = "127.0.0.1:0";
    if (absl::GetFlag(FLAGS_transport) == "unix") {
      absl::StatusOr<TemporaryFolder> folder = TemporaryFolder::Make(TemporaryFiles());
      if (!folder.ok()) return folder.status();
      listener->folder_ = *std::move(folder);
      address = absl::StrCat("unix:", listener->folder_->path(), "/socket");
    }
    arguments.push_back(absl::StrCat("--listen=", address));
    absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(arguments, environment);
    if (!process.ok()) return process.status();
    listener->process_ = *std::move(process);
    const absl::StatusOr<std::string> line = listener->process_->ReadLine();
    if (!line.ok()) return line.status();
    if (!absl::StartsWith(*line, kListening)) {
      return absl::InternalError(absl::StrCat(arguments[0], " says '", *line, "'"));
    }
    listener->address_ = std::string(absl::StripPrefix(*line, kListening));
    return listener;
  }

  const std::string& address() const { return address_; }

 private:
  Listener() = default;

  // Outlives the process.
  std::optional<TemporaryFolder> folder_;
  std::unique_ptr<ChildProcess> process_;
  std::string address_;
};

std::vector<std::string> Joined(std::vector<std::string> first, const std::vector<std::string>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// Fresh processes, one round of measurement: of `command`, and with `compare` of what it is compared with.
absl::StatusOr<PairSamples> RunPair(const std::string& command, bool compare, const Variant& variant) {
  ChildProcess::Environment environment = AllocatorEnvironment(Allocator(variant));
  if (!variant.experiments.empty()) environment.emplace_back("GRPC_EXPERIMENTS", variant.experiments);
  std::vector<std::string> worker_arguments = {ThisProgram(),
                                               "worker",
                                               absl::StrCat("--params=", absl::GetFlag(FLAGS_params)),
                                               absl::StrCat("--steps=", Steps()),
                                               absl::StrCat("--tensors=", absl::GetFlag(FLAGS_tensors)),
                                               absl::StrCat("--table_rows=", absl::GetFlag(FLAGS_table_rows)),
                                               absl::StrCat("--device=", absl::GetFlag(FLAGS_device)),
                                               absl::StrCat("--dtype=", absl::GetFlag(FLAGS_dtype)),
                                               absl::StrCat("--durability=", absl::GetFlag(FLAGS_durability))};
  const std::vector<std::string> settings = Joined(SettingsFlags(), variant.flags);
  worker_arguments = Joined(std::move(worker_arguments), settings);

  // Outlives the server that it is for.
  std::optional<TemporaryFolder> data_directory;
  std::vector<std::unique_ptr<Listener>> listeners;
  // Tells the worker by `flag` where to find what is started so, unless --target says where it runs already.
  const auto listen = [&](absl::string_view flag, const std::vector<std::string>& arguments,
                          const ChildProcess::Environment& variables) -> absl::Status {
    std::string address = absl::GetFlag(FLAGS_target);
    if (address.empty()) {
      absl::StatusOr<std::unique_ptr<Listener>> started = Listener::Start(arguments, variables);
      if (!started.ok()) return started.status();
      address = (*started)->address();
      listeners.push_back(*std::move(started));
    }
    worker_arguments.push_back(absl::StrCat("--", flag, "=", address));
    return absl::OkStatus();
  };
  absl::Status listening;
  if (command == "step") {
    const absl::StatusOr<std::string> program = absl::GetFlag(FLAGS_target).empty() ? ServerProgram() : "";
    if (!program.ok()) return program.status();
    std::vector<std::string> server = {*program, "--log_level=warning"};
    if (!absl::GetFlag(FLAGS_durability).empty()) {
      const std::string parent = absl::GetFlag(FLAGS_data_dir);
      absl::StatusOr<TemporaryFolder> made = TemporaryFolder::Make(parent.empty() ? TemporaryFiles() : parent);
      if (!made.ok()) return made.status();
      data_directory = *std::move(made);
      server.push_back(absl::StrCat("--data_dir=", data_directory->path()));
    }
    listening.Update(listen("target", server, {}));
  }
  if (Exchanges(command) || compare) {
    listening.Update(listen("peer", Joined({ThisProgram(), "peer"}, settings), environment));
  }
  if (command == "tcp" || compare) listening.Update(listen("tcp_peer", {ThisProgram(), "tcp_peer"}, environment));
  if (!listening.ok()) return listening;

  const absl::StatusOr<std::unique_ptr<ChildProcess>> worker = ChildProcess::Start(worker_arguments, environment);
  if (!worker.ok()) return worker.status();
  PairSamples samples;
  for (const Part part : kParts) {
    const absl::StatusOr<std::string> line = (*worker)->ReadLine();
    if (!line.ok()) return line.status();
    absl::StatusOr<std::vector<double>> parsed = ParseSamplesLine(*line);
    if (!parsed.ok()) return parsed.status();
    if (!parsed->empty()) samples[part] = *std::move(parsed);
  }
  return samples;
}

// Runs a pair of each variant in turn, so that what else the machine does meets all of them alike. A result for each.
absl::StatusOr<std::vector<Result>> RunPairs(const std::string& command, bool compare,
                                             const std::vector<Variant>& variants, int rounds) {
  std::vector<std::vector<PairSamples>> pairs(variants.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < variants.size(); ++i) {
      absl::StatusOr<PairSamples> pair = RunPair(command, compare, variants[i]);
      if (!pair.ok()) return pair.status();
      pairs[i].push_back(*std::move(pair));
    }
  }
  std::vector<Result> results;
  for (size_t i = 0; i < variants.size(); ++i) {
    results.push_back(Summarize(pairs[i], {.name = variants[i].name,
                                           .params = absl::GetFlag(FLAGS_params),
                                           .transport = absl::GetFlag(FLAGS_transport),
                                           .allocator = Allocator(variants[i])}));
  }
  return results;
}

absl::Status Measure(const std::string& command) {
  const bool settings = command == "settings";
  const bool compare = settings || absl::GetFlag(FLAGS_compare);
  std::vector<Variant> variants = Variants();
  if (!settings) variants = {{command, {}, "", ""}};
  const absl::StatusOr<std::vector<Result>> results =
      RunPairs(settings ? "exchange" : command, compare, variants, Pairs(compare));
  if (!results.ok()) return results.status();
  if (absl::GetFlag(FLAGS_json)) {
    for (const Result& result : *results) std::cout << JsonLine(result) << std::endl;
  } else {
    std::cout << (settings ? Table(*results) : Text(results->front())) << std::endl;
  }
  return absl::OkStatus();
}

// What RunPair starts to measure: prints the times, a line for each part, empty for what is not measured.
absl::Status Work() {
  absl::StatusOr<PairSamples> samples = RunWorker({.server = absl::GetFlag(FLAGS_target),
                                                   .peer = absl::GetFlag(FLAGS_peer),
                                                   .tcp_peer = absl::GetFlag(FLAGS_tcp_peer),
                                                   .device = absl::GetFlag(FLAGS_device),
                                                   .dtype = *Dtype(),
                                                   .params = absl::GetFlag(FLAGS_params),
                                                   .tensors = absl::GetFlag(FLAGS_tensors),
                                                   .table_rows = absl::GetFlag(FLAGS_table_rows),
                                                   .durability = *Durability(),
                                                   .exchange_bytes = ExchangeBytes(absl::GetFlag(FLAGS_params)),
                                                   .settings = Settings(),
                                                   .steps = Steps()});
  if (!samples.ok()) return samples.status();
  for (const Part part : kParts) std::cout << SamplesLine((*samples)[part]) << std::endl;
  return absl::OkStatus();
}

// The peer of the raw exchange, until it is killed.
absl::Status Listen() {
  const std::string address = absl::GetFlag(FLAGS_listen);
  ExchangeService service(Settings());
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  for (const auto& [name, value] : ServerChannelSettings(Settings())) builder.AddChannelArgument(name, value);
  builder.SetMaxReceiveMessageSize(static_cast<int>(wire::kMaxMessageBytes));
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError(absl::StrCat("cannot listen at ", address));
  const bool unix_socket = absl::StartsWith(address, "unix:");
  std::cout << kListening << (unix_socket ? address : absl::StrCat(address.substr(0, address.rfind(':')), ":", port))
            << std::endl;
  server->Wait();
  return absl::OkStatus();
}

// The peer of the plain exchange, for one worker after the other, until it is killed.
absl::Status ListenPlainly() {
  const absl::StatusOr<std::unique_ptr<SocketPeer>> peer = SocketPeer::Listen(absl::GetFlag(FLAGS_listen));
  if (!peer.ok()) return peer.status();
  std::cout << kListening << (*peer)->address() << std::endl;
  for (;;) {
    const absl::StatusOr<std::unique_ptr<SocketConnection>> connection = (*peer)->Accept();
    if (!connection.ok()) return connection.status();
    if (absl::Status served = ServeRounds(connection->get()); !served.ok()) std::cerr << served.message() << std::endl;
  }
}

absl::Status Run(const std::vector<char*>& arguments) {
  const std::string command = arguments.size() == 2 ? arguments[1] : "";
  if (absl::Status flags = CheckFlags(command); !flags.ok()) return flags;
  if (command == "peer") return Listen();
  if (command == "tcp_peer") return ListenPlainly();
  if (command == "worker") return Work();
  if (command == "echo") absl::SetFlag(&FLAGS_params, kEchoBytes / static_cast<int64_t>(sizeof(float)));
  if (command == "step" || Exchanges(command) || command == "tcp" || command == "settings") return Measure(command);
  return absl::InvalidArgumentError(
      "say what to measure: step, exchange, echo, tcp or settings (or peer or tcp_peer, to serve exchanges)");
}

}  // namespace
}  // namespace adamant::bench

int main(int argc, char** argv) {
  const absl::Status status = adamant::bench::Run(adamant::ParseCommandLine(
      argc, argv,
      "measures steps at an Adamant server.\n"
      "  adamant-bench step --params=67108864 --compare     a step beside a raw exchange, tcp and the kernel alone\n"
      "  adamant-bench step --params=67108864 --device=cuda:0  a step there beside one on the processor\n"
      "  adamant-bench step --params=67108864 --dtype=bfloat16  a step of 16 bits both ways beside one of fp32\n"
      "  adamant-bench step --params=16777216 --durability=every_step  a step that is kept beside one that is not\n"
      "  adamant-bench exchange --params=67108864           the raw exchange of a step's bytes, over gRPC\n"
      "  adamant-bench echo                                 a ping-pong of 300 bytes on one stream\n"
      "  adamant-bench tcp --params=67108864                the same bytes over plain sockets: the floor\n"
      "  adamant-bench settings --params=67108864           what each setting is worth to the exchange, beside tcp",
      __FILE__));
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "adamant-bench: %s\n", status.message());
  return 1;
}
