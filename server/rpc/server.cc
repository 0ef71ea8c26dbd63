#include "server/rpc/server.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "proto/wire/tensor_message.h"
#include "server/core/block.h"
#include "server/core/budget.h"
#include "server/core/clock.h"
#include "server/core/compute_pool.h"
#include "server/core/cpu_backend.h"
#include "server/core/registry.h"
#include "server/rpc/call_table.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/optimizer_service.h"

namespace adamant::rpc {
namespace {

// Calls on one connection.
constexpr int kMaxCallsAConnection = 100;

constexpr int kKeepaliveTimeMs = 20000;
constexpr int kKeepaliveTimeoutMs = 20000;

// Calls that move no tensors, by kind, at the same time. Most hold their slot only until their request is whole. Until
// then they hold 4.4 MiB each, which is part of what the program itself takes.
constexpr int kMaxUnaryCalls = 20;
constexpr int kMaxHealthChecks = 4;
constexpr int kMaxHealthWatches = 4;
constexpr int kMaxReflections = 4;

bool IsUnixAddress(absl::string_view address) { return absl::StartsWith(address, "unix:"); }

// Whether somebody takes connections at the socket `path`.
bool IsServed(absl::string_view path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return false;
  path.copy(address.sun_path, path.size());
  const int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const bool served =
      connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 || errno == EAGAIN;
  close(connection);
  return served;
}

// gRPC takes a port modulo 65,536, and adds one of its choice where there is none; and it takes a socket away from the
// server that has it.
absl::Status CheckAddress(absl::string_view address) {
  if (absl::string_view path = address; absl::ConsumePrefix(&path, "unix:")) {
    absl::ConsumePrefix(&path, "//");
    if (path.empty()) return absl::InvalidArgumentError("cannot listen on unix:, expected unix:PATH");
    if (IsServed(path)) return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": it is in use"));
    return absl::OkStatus();
  }
  const size_t colon = address.rfind(':');
  int port;
  const bool has_port = colon != address.npos && absl::SimpleAtoi(address.substr(colon + 1), &port);
  if (has_port && port >= 0 && port <= 65535) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cannot listen on ", address, ": expected HOST:PORT, with a port in [0, 65535], or unix:PATH"));
}

// So many calls of a kind.
struct Slots {
  Slots(absl::string_view name, int count, core::Clock* clock, PatienceTerms terms)
      : budget(name, count * kStreamBytes, clock), calls(&budget, clock, terms) {}

  core::Budget budget;
  OpenCalls calls;
};

}  // namespace

// In the order in which each needs those before it.
struct Server::Parts {
  explicit Parts(const ServerOptions& options)
      : terms{options.patience, options.min_rate},
        clock(core::NewSteadyClock()),
        state("state", options.state_bytes, clock.get()),
        inflight("inflight", options.inflight_bytes, clock.get()),
        read("read", options.read_bytes, clock.get()),
        pool(options.release_free_memory),
        backend(*options.kernels),
        registry(std::make_unique<core::Registry>(
            core::Resources{clock.get(), &state, &inflight, &read, &pool, &compute, &backend, options.admission_wait})),
        streams("streams", options.max_streams, clock.get(), terms),
        unary("unary", kMaxUnaryCalls, clock.get(), terms),
        health_checks("health checks", kMaxHealthChecks, clock.get(), terms),
        health_watches("health watches", kMaxHealthWatches, clock.get(), terms),
        reflections("reflections", kMaxReflections, clock.get(), terms),
        optimizer_service({registry.get(),
                           &compute,
                           &creation,
                           &backend,
                           {&state, &inflight, &read, &streams.budget},
                           options.max_streams}),
        call_table(registry.get(), &optimizer_service,
                   {&streams.calls, &unary.calls, &health_checks.calls, &health_watches.calls, &reflections.calls}),
        compute(options.compute_threads),
        creation(1) {}

  const PatienceTerms terms;
  std::unique_ptr<core::Clock> clock;
  core::Budget state;
  core::Budget inflight;
  core::Budget read;
  core::BlockPool pool;
  core::CpuBackend backend;
  std::unique_ptr<core::Registry> registry;
  Slots streams;
  Slots unary;
  Slots health_checks;
  Slots health_watches;
  Slots reflections;
  OptimizerService optimizer_service;
  CallTable call_table;
  // Last, so that their threads start when everything that they may use is there, and are gone before any of it is.
  core::ComputePool compute;
  core::ComputePool creation;

  const std::array<Slots*, 5> all_slots = {&streams, &unary, &health_checks, &health_watches, &reflections};
};

Server::Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Server> server(new Server);
  server->parts_ = std::make_unique<Parts>(options);

  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&server->parts_->call_table);
  builder.SetMaxReceiveMessageSize(wire::kMaxMessageBytes);
  builder.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  // A compressed message is inflated whole before its size is looked at: 0.3 MB of one became 300.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsAConnection);
  // Two servers on one port would each have half of the sets.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // With the probe a large step takes 1.4 times as long, and a stream that nobody reads holds 12 MB instead of 0.1.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  // A peer that is gone without a word is found out in less than a minute, and what it holds comes back. Clients may
  // look for us as often.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kKeepaliveTimeMs / 2);
  // A message that is too large is refused only when it is whole. This ends its call before: 60 of 512 MiB, at a quota
  // of 900 MiB, held 1.3 GiB.
  grpc::ResourceQuota quota("adamant-server");
  quota.Resize(static_cast<size_t>(options.max_streams) * kStreamBytes);
  builder.SetResourceQuota(quota);

  std::vector<int> ports(options.addresses.size(), 0);
  for (size_t i = 0; i < options.addresses.size(); ++i) {
    if (absl::Status status = CheckAddress(options.addresses[i]); !status.ok()) return status;
    builder.AddListeningPort(options.addresses[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  server->server_ = builder.BuildAndStart();
  for (size_t i = 0; i < options.addresses.size(); ++i) {
    const std::string& address = options.addresses[i];
    if (ports[i] == 0) return absl::UnavailableError(absl::StrCat("cannot listen on ", address));
    server->addresses_.push_back(
        IsUnixAddress(address) ? address : absl::StrCat(address.substr(0, address.rfind(':') + 1), ports[i]));
  }
  if (server->server_ == nullptr) return absl::UnavailableError("gRPC could not start");
  return server;
}

Server::~Server() {
  server_.reset();
  // gRPC may still hold slices of replies, and through them memory, grants and sets.
  parts_->registry.reset();
  for (core::Budget* budget : {&parts_->state, &parts_->inflight, &parts_->read}) budget->AwaitUnused();
  for (Slots* slots : parts_->all_slots) slots->budget.AwaitUnused();
}

void Server::Drain(absl::Duration timeout) {
  const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
  for (Slots* slots : parts_->all_slots) slots->calls.Drain();
  // What comes to gRPC after its own shutdown ends CANCELLED, which no client retries. So it has to wait: until the
  // calls are over, new ones are refused here.
  for (Slots* slots : parts_->all_slots) slots->calls.AwaitNone(deadline);
  server_->Shutdown(std::chrono::system_clock::now());
}

}  // namespace adamant::rpc
