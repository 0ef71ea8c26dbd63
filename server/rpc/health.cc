#include "server/rpc/health.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "adamant/v1/service.grpc.pb.h"
#include "grpc/health/v1/health.pb.h"

namespace adamant::rpc {
namespace {

namespace health = ::grpc::health::v1;

grpc::ByteBuffer Response(health::HealthCheckResponse::ServingStatus status) {
  health::HealthCheckResponse response;
  response.set_status(status);
  return Serialize(response);
}

bool IsKnown(const std::string& service) {
  return service.empty() || service == v1::OptimizerService::service_full_name();
}

}  // namespace

absl::StatusOr<grpc::ByteBuffer> CheckHealth(const grpc::ByteBuffer& request, bool whole) {
  health::HealthCheckRequest check;
  if (absl::Status status = Parse(request, &check); !status.ok()) return status;
  if (!IsKnown(check.service())) return absl::NotFoundError(absl::StrCat("no service ", check.service()));
  return Response(whole ? health::HealthCheckResponse::SERVING : health::HealthCheckResponse::NOT_SERVING);
}

void HealthWatchCall::OnMessage(const grpc::ByteBuffer& buffer) {
  health::HealthCheckRequest watch;
  if (absl::Status status = Parse(buffer, &watch); !status.ok()) {
    End(status);
    return;
  }
  ShrinkCharge(kIdleCallBytes);
  {
    core::MutexLock lock(&mutex_);
    begun_ = true;
    known_ = IsKnown(watch.service());
  }
  Tell();
}

void HealthWatchCall::OnWritten() {
  // First, since whoever finds that nothing is being written begins another operation.
  EndOperation();
  {
    core::MutexLock lock(&mutex_);
    writing_ = false;
  }
  Tell();
}

void HealthWatchCall::OnDrain() {
  {
    core::MutexLock lock(&mutex_);
    draining_ = true;
  }
  Tell();
}

void HealthWatchCall::Tell() {
  const bool works = registry_->CheckJournal().ok();
  bool is_over = false;
  health::HealthCheckResponse::ServingStatus now;
  {
    core::MutexLock lock(&mutex_);
    if (!begun_ || writing_) return;
    if (!known_) {
      now = health::HealthCheckResponse::SERVICE_UNKNOWN;
    } else {
      now = works && !draining_ ? health::HealthCheckResponse::SERVING : health::HealthCheckResponse::NOT_SERVING;
    }
    if (now != told_) {
      told_ = now;
      writing_ = true;
    } else if (draining_) {
      is_over = true;
    } else {
      return;
    }
  }
  if (is_over) {
    End(DrainingError());
    return;
  }
  BeginOperation({.bytes = 0});
  Write(Response(now));
}

}  // namespace adamant::rpc
