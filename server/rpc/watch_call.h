// WatchParameterSet: what happens to a set, as it happens.
#ifndef ADAMANT_SERVER_RPC_WATCH_CALL_H_
#define ADAMANT_SERVER_RPC_WATCH_CALL_H_

#include <memory>
#include <optional>

#include "adamant/v1/service.pb.h"
#include "server/core/base/mutex.h"
#include "server/core/registry.h"
#include "server/core/set/watch.h"
#include "server/rpc/call.h"

namespace adamant::rpc {

// What a watcher is charged while nothing is being sent to it, in bytes: the call, and the events that lie ready.
inline constexpr int64_t kIdleWatchBytes = int64_t{96} << 10;

// One watch: reads one message, and writes any number, each when there is something to say.
class WatchCall final : public Call {
 public:
  WatchCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context)
      : Call(open_calls, context, CallShape::kStream), registry_(registry) {}

 private:
  void OnMessage(const grpc::ByteBuffer& buffer) override;
  void OnWritten() override;
  void OnOver() override;

  absl::Status Begin(const grpc::ByteBuffer& buffer);
  // There is an event, and the call was idle.
  void OnEvent();
  void Send(const v1::WatchParameterSetResponse& event);
  std::shared_ptr<core::Watch> watch() const;

  core::Registry* const registry_;

  // Of the handlers, which run one at a time.
  bool deleted_ = false;  // the last event was sent

  mutable core::Mutex mutex_;
  std::shared_ptr<core::Watch> watch_ ABSL_GUARDED_BY(mutex_);  // null before it begins, and when it is over
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_WATCH_CALL_H_
