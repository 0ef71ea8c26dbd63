#include "server/rpc/watch_call.h"

#include <utility>

#include "server/core/set/parameter_set.h"

namespace adamant::rpc {

void WatchCall::OnMessage(const grpc::ByteBuffer& buffer) {
  if (absl::Status status = Begin(buffer); !status.ok()) End(status);
}

absl::Status WatchCall::Begin(const grpc::ByteBuffer& buffer) {
  v1::WatchParameterSetRequest request;
  absl::Status status = Parse(buffer, &request);
  NameSet(request.name());
  if (!status.ok()) return status;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = registry_->Find(request.name());
  if (!set.ok()) return set.status();
  ShrinkCharge(kIdleWatchBytes);
  // Weak: the set knows its watches only as long as their calls go on.
  absl::StatusOr<std::shared_ptr<core::Watch>> watch =
      (*set)->BeginWatch([call = std::weak_ptr<Call>(shared_from_this())] {
        if (const std::shared_ptr<Call> alive = call.lock(); alive != nullptr) {
          static_cast<WatchCall*>(alive.get())->OnEvent();
        }
      });
  if (!watch.ok()) return watch.status();
  {
    core::MutexLock lock(&mutex_);
    if (ended()) return absl::OkStatus();
    watch_ = *watch;
  }
  Send(*(*watch)->Next());
  return absl::OkStatus();
}

void WatchCall::OnEvent() {
  const std::shared_ptr<core::Watch> watch = this->watch();
  if (watch == nullptr || !Enter()) return;
  // One that was lost to a newer one has left that in its place.
  if (const std::optional<v1::WatchParameterSetResponse> event = watch->Next(); event.has_value()) {
    BeginOperation({.bytes = static_cast<int64_t>(event->ByteSizeLong())});
    Send(*event);
  }
  Leave();
}

void WatchCall::Send(const v1::WatchParameterSetResponse& event) {
  deleted_ = event.has_deleted();
  Write(Serialize(event));
}

void WatchCall::OnWritten() {
  const std::shared_ptr<core::Watch> watch = this->watch();
  if (deleted_) {
    End(absl::OkStatus());
    return;
  }
  if (watch == nullptr) return;
  // Idle first: once there is nothing more, OnEvent may come at any time.
  EndOperation();
  OnEvent();
}

void WatchCall::OnOver() {
  core::MutexLock lock(&mutex_);
  watch_.reset();
}

std::shared_ptr<core::Watch> WatchCall::watch() const {
  core::MutexLock lock(&mutex_);
  return watch_;
}

}  // namespace adamant::rpc
