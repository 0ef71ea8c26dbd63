#include "server/health_probe.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "proto/wire/status.h"

namespace adamant {

absl::Status ProbeHealth(const std::string& target) {
  // Debian's gRPC ships no health.proto. The request for the overall status is the empty message, and the answer
  // SERVING is field 1 (an enum) with value 1.
  static constexpr char kServing[] = {0x08, 0x01};
  const std::shared_ptr<grpc::Channel> channel = grpc::CreateChannel(target, grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  context.set_wait_for_ready(true);
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check", grpc::internal::RpcMethod::NORMAL_RPC,
                                         channel);
  grpc::Slice nothing;
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  const grpc::Status status = grpc::internal::BlockingUnaryCall(channel.get(), method, &context, request, &response);
  if (!status.ok()) return wire::FromGrpcStatus(status);
  grpc::Slice answer;
  if (!response.DumpToSingleSlice(&answer).ok() ||
      std::string(answer.begin(), answer.end()) != std::string(kServing, sizeof(kServing))) {
    return absl::UnavailableError(absl::StrCat(target, " does not serve"));
  }
  return absl::OkStatus();
}

}  // namespace adamant
