// grpc.health.v1.Health: whether the server serves, as a whole or its one service. Like all other calls, and not by
// gRPC's own service: that reads requests before anybody is asked, and 1,000 half-sent ones held 4.3 GiB.
#ifndef ADAMANT_SERVER_RPC_HEALTH_H_
#define ADAMANT_SERVER_RPC_HEALTH_H_

#include <atomic>

#include "absl/status/statusor.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// The answer to Check of a server that serves, or, unless it is `whole`, does not: what is to outlive it does not any
// more, and it should be restarted. When it drains, no call gets as far. Errors: NOT_FOUND for another
// service; as Parse. Thread-safe.
absl::StatusOr<grpc::ByteBuffer> CheckHealth(const grpc::ByteBuffer& request, bool whole);

// Watch: says whether the server serves, and at its drain that it serves no more.
class HealthWatchCall final : public Call {
 public:
  HealthWatchCall(OpenCalls* open_calls, grpc::GenericCallbackServerContext* context, bool whole)
      : Call(open_calls, context, CallShape::kStream), whole_(whole) {}

 private:
  void OnMessage(const grpc::ByteBuffer& buffer) override;
  void OnWritten() override;
  void OnDrain() override;

  const bool whole_;
  bool known_ = false;  // whether it watches what there is; constant once the call is idle
  std::atomic<bool> draining_ = false;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_HEALTH_H_
