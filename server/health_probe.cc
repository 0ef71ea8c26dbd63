#include "server/health_probe.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>

#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "proto/wire/status.h"
#include "proto/wire/target.h"

namespace adamant {

namespace health = ::grpc::health::v1;

namespace {

constexpr std::chrono::milliseconds kTimeout(1800);

}  // namespace

absl::Status ProbeHealth(const std::string& target) {
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), wire::ArgumentsForTarget(target));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  health::HealthCheckResponse response;
  absl::Status status =
      wire::FromGrpcStatus(health::Health::NewStub(channel)->Check(&context, health::HealthCheckRequest(), &response));
  if (absl::IsDeadlineExceeded(status)) {
    const bool connected = channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
    status = absl::DeadlineExceededError(
        absl::StrCat("timed out: no ", connected ? "answer" : "gRPC connection", " within ", kTimeout.count(), " ms"));
  }
  if (status.ok() && response.status() != health::HealthCheckResponse::SERVING) {
    status = absl::UnavailableError(health::HealthCheckResponse::ServingStatus_Name(response.status()));
  }
  if (status.ok()) return status;
  const std::string reason = absl::StrReplaceAll(status.message(), {{"\n", " "}, {"\r", " "}});
  return absl::Status(status.code(), absl::StrCat("asked ", target, " for grpc.health.v1.Health/Check: ", reason));
}

}  // namespace adamant
