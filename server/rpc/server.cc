#include "server/rpc/server.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "proto/wire/tensor_message.h"
#include "server/core/backend/cpu_backend.h"
#include "server/core/backend/cuda_backend.h"
#include "server/core/base/clock.h"
#include "server/core/base/compute_pool.h"
#include "server/core/memory/block.h"
#include "server/core/memory/budget.h"
#include "server/core/registry.h"
#include "server/log.h"
#include "server/rpc/acceptor.h"
#include "server/rpc/call_table.h"
#include "server/rpc/health.h"
#include "server/rpc/live_calls.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/optimizer_service.h"
#include "server/rpc/waiting_room.h"

namespace adamant::rpc {
namespace {

// Calls on one connection.
constexpr int kMaxCallsAConnection = 100;

// Clients may look for us as often as every 10 s, with or without calls; this leaves room for pings that come early.
constexpr int kMinPingIntervalMs = 5000;

// What gRPC takes of metadata, in bytes. A call above the limit of our own (kMaxMetadataBytes) ends alone; one above
// this limit ends its connection, with all calls on it.
constexpr int kMostMetadataBytes = 128 << 10;

// A message of a megabyte is one frame, to clients that cut as the server lets them. The guard reads no further than a
// little beyond a frame: with frames of 16 KiB, the least, a large step takes 1.04 times as long.
constexpr int kMaxFrameBytes = 1 << 20;

// What gRPC takes above the largest message, so that one that is a little too large is refused with what to do instead.
constexpr int kMessageHeadroomBytes = 64 << 10;

// What gRPC may hold for a call with a place: the largest message, what HTTP/2 takes beside it, and its own state.
constexpr int64_t kMessageInGrpcBytes = wire::kMaxMessageBytes + kMessageHeadroomBytes + kWaitingCallBytes;

// Calls that move no tensors, by kind, at the same time. Most hold their place only until their request is whole, and
// others wait so long. Until then they hold 4.4 MiB each, which is part of what the program itself takes.
constexpr int kMaxCreations = 2;
constexpr int kMaxPages = 3;
constexpr int kMaxSmallCalls = 3;
// Those that are idle take less: there are places for some sixty.
constexpr int kMaxSetWatches = 2;
// How often sets that have not stepped for a while are asked whether they want a checkpoint, and the journal whether it
// works.
constexpr absl::Duration kJournalTick = absl::Seconds(1);
constexpr int kMaxHealthChecks = 2;
constexpr int kMaxHealthWatches = 1;
constexpr int kMaxReflections = 2;
// Health checks wait for nothing but health checks.
constexpr int kMaxWaitingHealthChecks = 100;

// Places for calls of a kind that take so many bytes.
struct Places {
  Places(absl::string_view name, int64_t bytes, absl::Duration request_time, WaitingRoom* waiting,
         const core::Budget* inflight, core::Clock* clock, PatienceTerms terms)
      : budget(name, bytes, clock), calls({&budget, waiting, inflight, clock, request_time}, terms) {}

  core::Budget budget;
  OpenCalls calls;
};

// As long as a slow client needs that has no time to lose.
absl::Duration LargeRequestTime(const PatienceTerms& terms) {
  return std::max(kGrace, terms.AtMinRate(wire::kMaxMessageBytes));
}

ServiceLimits Limits(const ServerOptions& options) {
  return {.max_streams = options.max_streams,
          .max_waiting_calls = options.max_waiting_calls,
          .max_connections = options.max_connections,
          .max_calls_per_connection = kMaxCallsAConnection,
          .max_metadata_bytes = kMaxMetadataBytes,
          .patience = options.patience,
          .min_rate = options.min_rate,
          .think_time = options.think_time,
          .admission_wait = options.admission_wait};
}

// Calls that may be open or wait, but for watches that are idle.
int64_t MostCalls(const ServerOptions& options) {
  constexpr int kControlCalls = kMaxCreations + kMaxPages + kMaxSmallCalls + kMaxSetWatches + kMaxHealthChecks +
                                kMaxHealthWatches + kMaxReflections;
  return options.max_streams + kControlCalls + kMaxWaitingHealthChecks + options.max_waiting_calls;
}

void Warn(absl::string_view line) { Log(LogLevel::kWarning, line); }

// What sets live on beside the processor, and the memory of the host that they copy from and to.
struct Devices {
  // Each pool keeps what was in use in it at one time. So that both together do not keep twice what is paid for, the
  // host's gives up what lies idle in it when this one grows; this one's is registered, and stays.
  Devices(std::vector<std::unique_ptr<core::Backend>> backends, const std::function<void()>& release_free_memory,
          core::BlockPool* host_pool, core::ComputePool* compute)
      : registrar(core::NewCudaRegistrar(&Warn)),
        pool(
            [release_free_memory, host_pool] {
              host_pool->GiveUpIdle();
              release_free_memory();
            },
            registrar.get()),
        backends(std::move(backends)),
        lender(std::make_unique<core::Lender>(&pool, compute)) {}

  const std::unique_ptr<core::MemoryRegistrar> registrar;
  core::BlockPool pool;
  const std::vector<std::unique_ptr<core::Backend>> backends;
  std::unique_ptr<core::Lender> lender;
};

}  // namespace

// In the order in which each needs those before it.
struct Server::Parts {
  Parts(const ServerOptions& options, std::unique_ptr<core::Clock> steady_clock,
        std::vector<std::unique_ptr<core::Backend>> backends, size_t default_device)
      : terms{options.patience, options.min_rate, options.think_time},
        clock(std::move(steady_clock)),
        state("state", options.state_bytes, clock.get()),
        inflight("inflight", options.inflight_bytes, clock.get()),
        read("read", options.read_bytes, clock.get()),
        pool(options.release_free_memory),
        backend(*options.kernels),
        devices(backends.empty()
                    ? nullptr
                    : std::make_unique<Devices>(std::move(backends), options.release_free_memory, &pool, &compute)),
        registry(std::make_unique<core::Registry>(AllDevices(options), default_device)),
        waiting("waiting", options.max_waiting_calls, clock.get()),
        waiting_health_checks("waiting health checks", kMaxWaitingHealthChecks, clock.get()),
        streams("streams", options.max_streams * kStreamBytes, LargeRequestTime(terms), &waiting, &inflight,
                clock.get(), terms),
        creations("creations", kMaxCreations * kStreamBytes, LargeRequestTime(terms), &waiting, &inflight, clock.get(),
                  terms),
        pages("pages", kMaxPages * kStreamBytes, kGrace, &waiting, &inflight, clock.get(), terms),
        small("small calls", kMaxSmallCalls * kStreamBytes, kGrace, &waiting, &inflight, clock.get(), terms),
        set_watches("set watches", kMaxSetWatches * kStreamBytes, kGrace, &waiting, &inflight, clock.get(), terms),
        health_checks("health checks", kMaxHealthChecks * kStreamBytes, kGrace, &waiting_health_checks, &inflight,
                      clock.get(), terms),
        health_watches("health watches", kMaxHealthWatches * kStreamBytes + options.max_waiting_calls * kIdleCallBytes,
                       kGrace, &waiting, &inflight, clock.get(), terms),
        reflections("reflections", kMaxReflections * kStreamBytes, kGrace, &waiting, &inflight, clock.get(), terms),
        optimizer_service({registry.get(), &compute, &creation, AllBudgets(), Limits(options)}),
        call_table(registry.get(), &optimizer_service,
                   {&streams.calls, &creations.calls, &pages.calls, &small.calls, &set_watches.calls,
                    &health_checks.calls, &health_watches.calls, &reflections.calls}),
        compute(options.compute_threads),
        lender(&pool, &compute),
        creation(1) {}
  ~Parts() {
    // Before the pool that it hands loans to.
    if (devices != nullptr) devices->lender.reset();
  }

  // What sets can be created on, the processor first.
  std::vector<core::Resources> AllDevices(const ServerOptions& options) {
    const core::Resources host = {
        clock.get(), &state, &inflight, &read, &lender, &compute, &backend, options.admission_wait, options.journal};
    std::vector<core::Resources> all = {host};
    if (devices != nullptr) {
      for (const std::unique_ptr<core::Backend>& device : devices->backends) {
        all.push_back(host);
        all.back().lender = devices->lender.get();
        all.back().backend = device.get();
      }
    }
    return all;
  }

  std::vector<const core::Budget*> AllBudgets() const {
    std::vector<const core::Budget*> all = {&state, &inflight, &read, &streams.budget, &waiting.budget()};
    for (const core::Resources& resources : registry->devices()) {
      if (resources.backend->budget() != nullptr) all.push_back(resources.backend->budget());
    }
    return all;
  }

  const PatienceTerms terms;
  std::unique_ptr<core::Clock> clock;
  core::Budget state;
  core::Budget inflight;
  core::Budget read;
  core::BlockPool pool;
  core::CpuBackend backend;
  std::unique_ptr<Devices> devices;  // null: there are none
  std::unique_ptr<core::Registry> registry;
  WaitingRoom waiting;
  WaitingRoom waiting_health_checks;
  Places streams;
  Places creations;
  Places pages;
  Places small;
  Places set_watches;
  Places health_checks;
  Places health_watches;
  Places reflections;
  OptimizerService optimizer_service;
  CallTable call_table;
  // Last, so that their threads start when everything that they may use is there, and are gone before any of it is: as
  // that of `devices`, which nobody borrows from before or after.
  core::ComputePool compute;
  core::Lender lender;
  core::ComputePool creation;

  const std::array<Places*, 8> all_places = {&streams,     &creations,     &pages,          &small,
                                             &set_watches, &health_checks, &health_watches, &reflections};
};

// What is done now and then for the journal's sake. Shared with the clock's callback.
struct Server::JournalTimer {
  core::Clock* clock;
  core::Registry* registry;
  OpenCalls* health_watches;
  core::Mutex mutex;
  bool stopped ABSL_GUARDED_BY(mutex) = false;
  bool has_failed ABSL_GUARDED_BY(mutex) = false;
};

void Server::AttendToJournal(const std::shared_ptr<JournalTimer>& timer) {
  // Under the mutex: whoever stops it waits for the end of this.
  core::MutexLock lock(&timer->mutex);
  if (timer->stopped) return;
  timer->registry->CheckpointInTime();
  if (!timer->has_failed && !timer->registry->CheckJournal().ok()) {
    timer->has_failed = true;
    timer->health_watches->TellNews();
  }
  timer->clock->Schedule(kJournalTick, [timer] { AttendToJournal(timer); });
}

Server::Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  std::unique_ptr<core::Clock> clock = core::NewSteadyClock();
  std::vector<std::unique_ptr<core::Backend>> devices = core::OpenCudaDevices(
      {.clock = clock.get(), .host_kernels = options.kernels, .device_bytes = options.device_bytes, .warn = &Warn});
  std::vector<std::string> names = {"cpu"};
  for (const std::unique_ptr<core::Backend>& device : devices) {
    const v1::Device about = device->Describe();
    names.push_back(about.name());
    Log(LogLevel::kInfo,
        absl::StrCat(about.name(), ": ", about.description(), ", compute capability ", about.compute_capability(), ", ",
                     device->budget()->capacity() >> 20, " MiB for sets"));
  }
  const auto default_device = absl::c_find(names, options.default_device);
  if (default_device == names.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no device ", options.default_device, ", but ", absl::StrJoin(names, ", ")));
  }
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Server> server(new Server);
  server->parts_ =
      std::make_unique<Parts>(options, std::move(clock), std::move(devices), default_device - names.begin());
  server->finish_ = options.finish;
  if (absl::Status status = options.restore(server->parts_->registry.get()); !status.ok()) {
    server->parts_->registry->Clear();
    return status;
  }

  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&server->parts_->call_table);
  builder.SetMaxReceiveMessageSize(wire::kMaxMessageBytes + kMessageHeadroomBytes);
  builder.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  // A compressed message is inflated whole before its size is looked at: 0.3 MB of one became 300.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsAConnection);
  // With the probe an upload does not wait for a round trip a MiB, but a stream that nobody reads holds 12 MB instead
  // of 0.1: of calls that wait, 2.1 GB where 1.2 are allowed.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kMaxFrameBytes);
  // Peers that are gone are found out by the system: see acceptor.cc.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, std::numeric_limits<int>::max());
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMostMetadataBytes);
  // A message that is too large is refused only when it is whole. This ends its call before: 60 of 512 MiB, at a quota
  // of 900 MiB, held 1.3 GiB. It is as much as gRPC may hold for all calls that are open or wait: with less, it would
  // break the connections of those who wait.
  grpc::ResourceQuota quota("adamant-server");
  int64_t quota_bytes =
      server->parts_->waiting.budget().capacity() + server->parts_->waiting_health_checks.budget().capacity();
  for (const Places* places : server->parts_->all_places) {
    quota_bytes += places->budget.capacity() / kStreamBytes * kMessageInGrpcBytes;
  }
  quota.Resize(static_cast<size_t>(quota_bytes));
  builder.SetResourceQuota(quota);

  absl::StatusOr<std::unique_ptr<Acceptor>> acceptor =
      Acceptor::Listen(options.addresses, options.max_connections, options.trusted);
  absl::Status status = acceptor.status();
  if (status.ok()) status = options.begin_changes();
  if (!status.ok()) {
    server->parts_->registry->Clear();
    return status;
  }
  if (options.journal != nullptr) {
    server->timer_ = std::make_shared<JournalTimer>();
    server->timer_->clock = server->parts_->clock.get();
    server->timer_->registry = server->parts_->registry.get();
    server->timer_->health_watches = &server->parts_->health_watches.calls;
    AttendToJournal(server->timer_);
  }
  // gRPC owns what it is handed.
  const std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor> connections =
      builder.experimental().AddExternalConnectionAcceptor(
          grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, grpc::InsecureServerCredentials());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) return absl::UnavailableError("gRPC could not start");
  server->acceptor_ = *std::move(acceptor);
  server->addresses_ = server->acceptor_->addresses();
  server->acceptor_->Start(
      [connections](int listener, int fd) {
        grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
        connection.listener_fd = listener;
        connection.fd = fd;
        connections->HandleNewConnection(&connection);
      },
      [most_calls = MostCalls(options)] { return LiveCall::Count() - most_calls; });
  return server;
}

Server::~Server() {
  if (timer_ != nullptr) {
    core::MutexLock lock(&timer_->mutex);
    timer_->stopped = true;
  }
  acceptor_.reset();
  server_.reset();
  // gRPC may still hold slices of replies, and through them memory, grants and sets.
  parts_->registry.reset();
  for (core::Budget* budget : {&parts_->state, &parts_->inflight, &parts_->read}) budget->AwaitUnused();
  for (Places* places : parts_->all_places) places->budget.AwaitUnused();
}

int Server::Drain(absl::Duration timeout) {
  const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
  for (Places* places : parts_->all_places) places->calls.Drain();
  parts_->registry->EndRounds(DrainingError());
  // What comes to gRPC after its own shutdown ends CANCELLED, which no client retries. So it has to wait: until the
  // calls are over, new ones are refused here.
  int cut_off = 0;
  for (Places* places : parts_->all_places) cut_off += places->calls.AwaitNone(deadline);
  finish_(parts_->registry.get(), absl::FromChrono(deadline - std::chrono::steady_clock::now()));
  acceptor_.reset();
  server_->Shutdown(std::chrono::system_clock::now());
  return cut_off;
}

}  // namespace adamant::rpc
