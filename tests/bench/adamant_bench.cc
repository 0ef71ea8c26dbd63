// adamant-bench: what a remote step costs, beside a raw exchange of the same bytes and the kernel alone.
//
//   adamant-bench step --params=67108864 --compare     a step; with --compare beside exchange and kernel
//   adamant-bench exchange --params=67108864           the raw exchange of a step's bytes
//   adamant-bench echo                                 a ping-pong of 300 bytes on one stream
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
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/command_line/command_line.h"
#include "proto/wire/tensor_message.h"
#include "tests/bench/child_process.h"
#include "tests/bench/exchange.h"
#include "tests/bench/samples.h"
#include "tests/bench/worker.h"

ABSL_FLAG(int64_t, params, 1 << 20, "Parameters of the set; an exchange moves their bytes.");
ABSL_FLAG(std::string, dtype, "float32", "Element type of gradients and replies.");
ABSL_FLAG(int32_t, steps, 0, "Rounds to count in each pair of processes. 0: by size, 10 to 2,000.");
ABSL_FLAG(int32_t, pairs, 0, "Pairs of fresh processes. 0: 5 with --compare, else 1.");
ABSL_FLAG(bool, compare, false, "Step: interleave with the exchange and the kernel alone, and print the ratio.");
ABSL_FLAG(bool, json, false, "Print one JSON object a line.");
ABSL_FLAG(std::string, target, "", "Step: a running server. Exchange and echo: a running peer. Empty: one of its own.");
ABSL_FLAG(std::string, transport, "tcp", "Of servers of its own: tcp or unix.");
ABSL_FLAG(std::string, server, "", "Path of adamant-server. Empty: beside this program.");
ABSL_FLAG(std::string, allocator, ADAMANT_BENCH_ALLOCATOR,
          "Of the worker and of peers: tcmalloc, thresholds (glibc with raised thresholds), or glibc (as it comes).");
ABSL_FLAG(std::string, listen, "127.0.0.1:0", "Peer: address to listen at.");
ABSL_FLAG(std::string, peer, "", "Worker: address of the peer.");

namespace adamant::bench {
namespace {

constexpr int64_t kEchoBytes = 300;
constexpr int64_t kMaxParams = int64_t{1} << 40;
constexpr char kListening[] = "listening on ";

int64_t ExchangeBytes(int64_t params) {
  // The message of a small step is its header more than its gradient.
  return std::max(params * static_cast<int64_t>(sizeof(float)), kEchoBytes);
}

int Steps() {
  if (absl::GetFlag(FLAGS_steps) > 0) return absl::GetFlag(FLAGS_steps);
  return static_cast<int>(std::clamp<int64_t>((1 << 28) / absl::GetFlag(FLAGS_params), 10, 2000));
}

int Pairs() {
  if (absl::GetFlag(FLAGS_pairs) > 0) return absl::GetFlag(FLAGS_pairs);
  return absl::GetFlag(FLAGS_compare) ? 5 : 1;
}

absl::Status CheckFlags(const std::string& command) {
  const auto invalid = [](absl::string_view what) { return absl::InvalidArgumentError(what); };
  if (absl::GetFlag(FLAGS_params) < 1 || absl::GetFlag(FLAGS_params) > kMaxParams) {
    return invalid(absl::StrCat("--params must be in [1, ", kMaxParams, "]"));
  }
  if (absl::GetFlag(FLAGS_dtype) != "float32") return invalid("--dtype must be float32");
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
  if (absl::GetFlag(FLAGS_compare) && (command != "step" || !absl::GetFlag(FLAGS_target).empty())) {
    return invalid("--compare is for steps at a server of this program's own");
  }
  return absl::OkStatus();
}

// The allocator is chosen for a process as it starts, which lets one binary show them all.
ChildProcess::Environment AllocatorEnvironment() {
  const std::string allocator = absl::GetFlag(FLAGS_allocator);
  if (allocator == "tcmalloc") return {{"LD_PRELOAD", ADAMANT_BENCH_TCMALLOC}};
  if (allocator == "thresholds") {
    return {{"GLIBC_TUNABLES",
             "glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432:"
             "glibc.malloc.top_pad=268435456"}};
  }
  return {};
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

// A server or peer of our own, and where it listens.
class Listener {
 public:
  static absl::StatusOr<std::unique_ptr<Listener>> Start(std::vector<std::string> arguments,
                                                         const ChildProcess::Environment& environment) {
    auto listener = std::unique_ptr<Listener>(new Listener);
    std::string address = "127.0.0.1:0";
    if (absl::GetFlag(FLAGS_transport) == "unix") {
      std::string folder = (std::filesystem::temp_directory_path() / "adamant-bench-XXXXXX").string();
      if (mkdtemp(folder.data()) == nullptr) return absl::ErrnoToStatus(errno, folder);
      listener->folder_ = folder;
      address = absl::StrCat("unix:", folder, "/socket");
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

  ~Listener() {
    process_.reset();
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }

  const std::string& address() const { return address_; }

 private:
  Listener() = default;

  std::unique_ptr<ChildProcess> process_;
  std::string address_;
  std::string folder_;
};

// Fresh processes, one round of measurement.
absl::StatusOr<PairSamples> RunPair(const std::string& command) {
  std::string server = command == "step" ? absl::GetFlag(FLAGS_target) : "";
  std::string peer = command == "step" ? "" : absl::GetFlag(FLAGS_target);
  std::unique_ptr<Listener> server_process;
  std::unique_ptr<Listener> peer_process;
  if (command == "step" && server.empty()) {
    const absl::StatusOr<std::string> program = ServerProgram();
    if (!program.ok()) return program.status();
    absl::StatusOr<std::unique_ptr<Listener>> started = Listener::Start({*program, "--log_level=warning"}, {});
    if (!started.ok()) return started.status();
    server_process = *std::move(started);
    server = server_process->address();
  }
  if (absl::GetFlag(FLAGS_compare) || (command != "step" && peer.empty())) {
    absl::StatusOr<std::unique_ptr<Listener>> started =
        Listener::Start({ThisProgram(), "peer"}, AllocatorEnvironment());
    if (!started.ok()) return started.status();
    peer_process = *std::move(started);
    peer = peer_process->address();
  }

  const absl::StatusOr<std::unique_ptr<ChildProcess>> worker =
      ChildProcess::Start({ThisProgram(), "worker", absl::StrCat("--target=", server), absl::StrCat("--peer=", peer),
                           absl::StrCat("--params=", absl::GetFlag(FLAGS_params)), absl::StrCat("--steps=", Steps())},
                          AllocatorEnvironment());
  if (!worker.ok()) return worker.status();
  PairSamples samples;
  for (std::vector<double>* part : {&samples.rounds, &samples.exchange, &samples.kernel}) {
    const absl::StatusOr<std::string> line = (*worker)->ReadLine();
    if (!line.ok()) return line.status();
    absl::StatusOr<std::vector<double>> parsed = ParseSamplesLine(*line);
    if (!parsed.ok()) return parsed.status();
    *part = *std::move(parsed);
  }
  return samples;
}

absl::Status Measure(const std::string& command) {
  std::vector<PairSamples> pairs;
  for (int i = 0; i < Pairs(); ++i) {
    absl::StatusOr<PairSamples> pair = RunPair(command);
    if (!pair.ok()) return pair.status();
    pairs.push_back(*std::move(pair));
  }
  const Result result = Summarize(pairs, {.name = command,
                                          .params = absl::GetFlag(FLAGS_params),
                                          .transport = absl::GetFlag(FLAGS_transport),
                                          .allocator = absl::GetFlag(FLAGS_allocator)});
  std::cout << (absl::GetFlag(FLAGS_json) ? JsonLine(result) : TextLine(result)) << std::endl;
  return absl::OkStatus();
}

// What RunPair starts to measure: prints the times, a line each.
absl::Status Work() {
  const absl::StatusOr<PairSamples> samples = RunWorker({.server = absl::GetFlag(FLAGS_target),
                                                         .peer = absl::GetFlag(FLAGS_peer),
                                                         .params = absl::GetFlag(FLAGS_params),
                                                         .exchange_bytes = ExchangeBytes(absl::GetFlag(FLAGS_params)),
                                                         .steps = Steps()});
  if (!samples.ok()) return samples.status();
  for (const std::vector<double>& part : {samples->rounds, samples->exchange, samples->kernel}) {
    std::cout << SamplesLine(part) << std::endl;
  }
  return absl::OkStatus();
}

// The peer of the raw exchange, until it is killed.
absl::Status Listen() {
  const std::string address = absl::GetFlag(FLAGS_listen);
  ExchangeService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.SetMaxReceiveMessageSize(static_cast<int>(wire::kMaxMessageBytes));
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError(absl::StrCat("cannot listen at ", address));
  const bool unix_socket = absl::StartsWith(address, "unix:");
  std::cout << kListening << (unix_socket ? address : absl::StrCat(address.substr(0, address.rfind(':')), ":", port))
            << std::endl;
  server->Wait();
  return absl::OkStatus();
}

absl::Status Run(const std::vector<char*>& arguments) {
  const std::string command = arguments.size() == 2 ? arguments[1] : "";
  if (absl::Status flags = CheckFlags(command); !flags.ok()) return flags;
  if (command == "peer") return Listen();
  if (command == "worker") return Work();
  if (command == "echo") absl::SetFlag(&FLAGS_params, kEchoBytes / static_cast<int64_t>(sizeof(float)));
  if (command == "step" || command == "exchange" || command == "echo") return Measure(command);
  return absl::InvalidArgumentError("say what to measure: step, exchange or echo (or peer, to serve exchanges)");
}

}  // namespace
}  // namespace adamant::bench

int main(int argc, char** argv) {
  const absl::Status status = adamant::bench::Run(adamant::ParseCommandLine(
      argc, argv,
      "measures steps at an Adamant server.\n"
      "  adamant-bench step --params=67108864 --compare     a step beside a raw exchange and the kernel alone\n"
      "  adamant-bench exchange --params=67108864           the raw exchange of a step's bytes\n"
      "  adamant-bench echo                                 a ping-pong of 300 bytes on one stream",
      __FILE__));
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "adamant-bench: %s\n", status.message());
  return 1;
}
