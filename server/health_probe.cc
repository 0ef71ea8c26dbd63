#include "server/health_probe.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "proto/wire/status.h"

namespace adamant {

namespace health = ::grpc::health::v1;

absl::Status ProbeHealth(const std::string& target) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  context.set_wait_for_ready(true);
  health::HealthCheckResponse response;
  const grpc::Status status = health::Health::NewStub(grpc::CreateChannel(target, grpc::InsecureChannelCredentials()))
                                  ->Check(&context, health::HealthCheckRequest(), &response);
  if (!status.ok()) return wire::FromGrpcStatus(status);
  if (response.status() != health::HealthCheckResponse::SERVING) {
    return absl::UnavailableError(absl::StrCat(target, " does not serve"));
  }
  return absl::OkStatus();
}

}  // namespace adamant
