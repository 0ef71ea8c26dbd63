#include "server/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "proto/wire/tensor_message.h"
#include "server/core/block.h"
#include "server/core/budget.h"
#include "server/core/clock.h"
#include "server/core/compute_pool.h"
#include "server/core/cpu_backend.h"
#include "server/core/registry.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/optimizer_service.h"
#include "server/rpc/tensor_service.h"

namespace adamant::rpc {
namespace {

// Calls on one connection.
constexpr int kMaxCallsAConnection = 100;

bool IsUnixAddress(absl::string_view address) { return absl::StartsWith(address, "unix:"); }

// gRPC takes a port modulo 65,536, and adds one of its choice where there is none.
absl::Status CheckAddress(absl::string_view address) {
  const size_t colon = address.rfind(':');
  int port;
  const bool has_port = colon != address.npos && absl::SimpleAtoi(address.substr(colon + 1), &port);
  if (IsUnixAddress(address) || (has_port && port >= 0 && port <= 65535)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cannot listen on ", address, ": expected HOST:PORT, with a port in [0, 65535], or unix:PATH"));
}

}  // namespace

// In the order in which each needs those before it.
struct Server::Parts {
  explicit Parts(const ServerOptions& options)
      : clock(core::NewSteadyClock()),
        state("state", options.state_bytes, clock.get()),
        inflight("inflight", options.inflight_bytes, clock.get()),
        read("read", options.read_bytes, clock.get()),
        streams("streams", options.max_streams * kStreamBytes, clock.get()),
        backend(*options.kernels),
        compute(options.compute_threads),
        creation(1),
        registry(std::make_unique<core::Registry>(
            core::Resources{clock.get(), &state, &inflight, &read, &pool, &compute, &backend, options.admission_wait})),
        open_calls(&streams, clock.get(), {options.patience, options.min_rate}),
        optimizer_service({registry.get(),
                           &compute,
                           &creation,
                           &backend,
                           &open_calls,
                           {&state, &inflight, &read, &streams},
                           options.max_streams}),
        tensor_service(registry.get(), &open_calls) {}

  std::unique_ptr<core::Clock> clock;
  core::Budget state;
  core::Budget inflight;
  core::Budget read;
  core::Budget streams;
  core::BlockPool pool;
  core::CpuBackend backend;
  core::ComputePool compute;
  core::ComputePool creation;
  std::unique_ptr<core::Registry> registry;
  OpenCalls open_calls;
  OptimizerService optimizer_service;
  TensorService tensor_service;
};

Server::Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Server> server(new Server);
  server->parts_ = std::make_unique<Parts>(options);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.RegisterService(&server->parts_->optimizer_service);
  builder.RegisterCallbackGenericService(&server->parts_->tensor_service);
  builder.SetMaxReceiveMessageSize(wire::kMaxMessageBytes);
  builder.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsAConnection);
  // Two servers on one port would each have half of the sets.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // With the probe a large step takes 1.4 times as long, and a stream that nobody reads holds 12 MB instead of 0.1.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  // What gRPC reads whole before it asks anybody: the requests of the methods that move no tensors.
  grpc::ResourceQuota quota("adamant-server");
  quota.Resize(static_cast<size_t>(options.max_streams) * kStreamBytes);
  builder.SetResourceQuota(quota);
  // Reflection is the only service that needs threads of its own.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);

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
  server->server_->GetHealthCheckService()->SetServingStatus(v1::OptimizerService::service_full_name(), true);
  return server;
}

Server::~Server() {
  server_.reset();
  // gRPC may still hold slices of replies, and through them memory, grants and sets.
  parts_->registry.reset();
  for (core::Budget* budget : {&parts_->state, &parts_->inflight, &parts_->read, &parts_->streams}) {
    budget->AwaitUnused();
  }
}

void Server::Drain(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  server_->GetHealthCheckService()->SetServingStatus(false);
  parts_->open_calls.Drain();
  // What comes to gRPC after its own shutdown ends CANCELLED, which no client retries. So it has to wait: until the
  // calls are over, new ones are refused here.
  parts_->open_calls.AwaitNone(std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout));
  server_->Shutdown(absl::ToChronoTime(deadline));
}

}  // namespace adamant::rpc
