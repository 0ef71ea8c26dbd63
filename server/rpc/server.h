// The server: everything put together, behind its addresses.
#ifndef ADAMANT_SERVER_RPC_SERVER_H_
#define ADAMANT_SERVER_RPC_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/dispatch.h"
#include "server/core/registry.h"
#include "server/rpc/trusted_networks.h"

namespace grpc {
class Server;
}

namespace adamant::rpc {

class Acceptor;

struct ServerOptions {
  // Each `HOST:PORT`, port 0 for one that is free, or `unix:PATH`.
  std::vector<std::string> addresses;
  // Budgets, in bytes.
  int64_t state_bytes;
  int64_t inflight_bytes;
  int64_t read_bytes;
  // Who needs no guard.
  TrustedNetworks trusted = {};
  // Calls that move tensors, at the same time.
  int max_streams;
  // Calls that may wait for a place.
  int max_waiting_calls = 1000;
  int max_connections = 1000;
  // Of the pool that kernels run on.
  int compute_threads;
  const kernels::KernelTable* kernels;
  absl::Duration admission_wait;
  absl::Duration patience;
  // In bytes a second.
  double min_rate;
  absl::Duration think_time = absl::Minutes(10);
  // Where sets live whose specification names no device.
  std::string default_device = "cpu";
  // What sets may take of each CUDA device's memory; 0: nearly all that is free.
  int64_t device_bytes = 0;
  // What makes sets outlive the process, and outlives the server; null: nothing does.
  core::Journal* journal = nullptr;
  // Brings back the sets that have. Called before anybody can reach the server, which does not start after an error.
  std::function<absl::Status(core::Registry* registry)> restore = [](core::Registry* /*registry*/) {
    return absl::OkStatus();
  };
  // Called when nothing else can keep the server from starting, before the first call. As `restore` otherwise.
  std::function<absl::Status()> begin_changes = [] { return absl::OkStatus(); };
  // Called when the last call is over, with the time that is left of the drain.
  std::function<void(core::Registry* registry, absl::Duration rest)> finish = [](core::Registry* /*registry*/,
                                                                                 absl::Duration /*rest*/) {};
  // As core::BlockPool has it.
  std::function<void()> release_free_memory = [] {};
};

// Thread-safe, but for its construction and destruction.
class Server {
 public:
  // Serves. Errors: INVALID_ARGUMENT or UNAVAILABLE, naming the address that could not be had; INVALID_ARGUMENT if
  // there is no such default device.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  // Requires: Drain has returned.
  ~Server();

  // Where it listens: as asked for, with the port that it got.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Ends the service: refuses new work at once, lets what was admitted end, cuts off at `timeout` what has not. Returns
  // when every call is over, and how many were cut off. Once.
  int Drain(absl::Duration timeout);

 private:
  struct Parts;
  struct JournalTimer;

  Server();

  std::vector<std::string> addresses_;
  // Looks for sets that want a checkpoint, and whether the journal works still; and again after a while.
  static void AttendToJournal(const std::shared_ptr<JournalTimer>& timer);

  std::function<void(core::Registry* registry, absl::Duration rest)> finish_;
  std::shared_ptr<JournalTimer> timer_;  // null where nothing is kept
  std::unique_ptr<Parts> parts_;
  std::unique_ptr<grpc::Server> server_;
  // Hands connections to what is above, and is gone before it.
  std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_SERVER_H_
