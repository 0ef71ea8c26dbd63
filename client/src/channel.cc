// Channel arguments.
#include "client/src/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "proto/wire/target.h"
#include "proto/wire/tensor_message.h"

namespace adamant {
namespace {

// Room for what gRPC counts into a message besides the message.
constexpr int kMessageHeadroomBytes = 64 << 10;
// How much of a reply may be under way on a stream. 2 to 8 MiB are alike on one machine; a link with delay needs it.
constexpr int kLookaheadBytes = 4 << 20;
// A ping every so often while a call is open, if nothing else has come: a network that is lost without a word is found
// out within the sum of the two. The timeout is also the socket's TCP_USER_TIMEOUT, and so bounds for how long a peer
// that takes nothing can hold a gradient's memory. It has to leave room for gRPC's own poller, which reads a ping's
// answer every five seconds where a trainer that computes has its call open and does not wait for it.
constexpr int kKeepaliveTimeMs = 15 * 1000;
constexpr int kKeepaliveTimeoutMs = 15 * 1000;
// One try to connect, by gRPC's default 20 seconds. A try that begins while the network is down waits for TCP to send
// its packet again, after 1, 3, 7 and 15 seconds; a new one sends at once.
constexpr int kConnectTryMs = 2 * 1000;

}  // namespace

grpc::ChannelArguments MakeChannelArguments(const std::string& target, const ClientOptions& options) {
  grpc::ChannelArguments arguments = wire::ArgumentsForTarget(target);
  // gRPC takes the first of two values of an argument: the caller's.
  if (options.channel_arguments) options.channel_arguments(&arguments);
  // With the probe, replies may be under way as fast as the link carries them. Without it gRPC's window for a
  // connection is 64 KiB between two messages, so that each begins with a round trip: where threads take long to wake
  // up, a step of 1 Mi parameters took 1.1 times as long, and with 1 ms of round trip one of 64 Mi 1.2 times.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kLookaheadBytes);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(wire::kMaxMessageBytes) + kMessageHeadroomBytes);
  arguments.SetMaxSendMessageSize(static_cast<int>(wire::kMaxMessageBytes) + kMessageHeadroomBytes);
  // Attempts are repeated here, by what they mean. gRPC's own retries would keep messages, and with them the caller's
  // memory, until they can be sure.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // A connection for each client, not one for all clients of a process.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTryMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // By default two pings without data between them are all.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return arguments;
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, const ClientOptions& options) {
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), MakeChannelArguments(target, options));
}

}  // namespace adamant
