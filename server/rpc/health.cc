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
  known_ = IsKnown(watch.service());
  const auto status = whole_ ? health::HealthCheckResponse::SERVING : health::HealthCheckResponse::NOT_SERVING;
  Write(Response(known_ ? status : health::HealthCheckResponse::SERVICE_UNKNOWN));
}

void HealthWatchCall::OnWritten() {
  if (draining_) {
    End(DrainingError());
  } else {
    EndOperation();
  }
}

void HealthWatchCall::OnDrain() {
  // The end of an operation and the drain may both find that it is time.
  if (draining_.exchange(true)) return;
  if (!known_) {
    End(DrainingError());
    return;
  }
  BeginOperation({.bytes = 0});
  Write(Response(health::HealthCheckResponse::NOT_SERVING));
}

}  // namespace adamant::rpc
