// grpc.health.v1.Health: whether the server serves, as a whole or its one service. Like all other calls, and not by
// gRPC's own service: that reads requests before anybody is asked, and 1,000 half-sent ones held 4.3 GiB.
#ifndef ADAMANT_SERVER_RPC_HEALTH_H_
#define ADAMANT_SERVER_RPC_HEALTH_H_

#include "absl/status/statusor.h"
#include "grpc/health/v1/health.pb.h"
#include "server/core/base/mutex.h"
#include "server/core/registry.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// The answer to Check of a server that serves, or, unless it is `whole`, does not: what is to outlive it does not any
// more, and it should be restarted. When it drains, no call gets as far. Errors: NOT_FOUND for another
// service; as Parse. Thread-safe.
absl::StatusOr<grpc::ByteBuffer> CheckHealth(const grpc::ByteBuffer& request, bool whole);

// Watch: says whether the server serves, says so again when it does not any more, as at its drain, and ends then.
class HealthWatchCall final : public Call {
 public:
  HealthWatchCall(const core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context)
      : Call(open_calls, context, CallShape::kStream), registry_(registry) {}

  void OnNews() override { Tell(); }

 private:
  void OnMessage(const grpc::ByteBuffer& buffer) override;
  void OnWritten() override;
  void OnDrain() override;

  // Tells the client what it does not know yet, or ends the call if there is nothing more to come. Not while it is
  // being told something: there is more to tell when that is written, perhaps.
  void Tell();

  const core::Registry* const registry_;

  core::Mutex mutex_;
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;
  bool known_ ABSL_GUARDED_BY(mutex_) = false;  // whether it watches what there is
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::health::v1::HealthCheckResponse::ServingStatus told_ ABSL_GUARDED_BY(mutex_) =
      grpc::health::v1::HealthCheckResponse::UNKNOWN;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_HEALTH_H_
