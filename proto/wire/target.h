// What a channel has to know of where it goes: for every program that opens one.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_PROTO_WIRE_TARGET_H_
#define ADAMANT_PROTO_WIRE_TARGET_H_

#include <grpcpp/support/channel_arguments.h>

#include "absl/strings/string_view.h"

namespace adamant::wire {

// Whether `target`, in any form that gRPC takes, says by itself that it is on this machine: a Unix socket, localhost,
// or addresses of 127.0.0.0/8, ::1, 0.0.0.0 and ::, all of them if there are several. Resolves no names.
bool IsLocalTarget(absl::string_view target);

// What the arguments of every channel to `target` begin with. gRPC goes through the proxy that the environment names
// (grpc_proxy, https_proxy, http_proxy) unless no_proxy lists the target; a local target it reaches directly in any
// case, for the proxy would look for it on a machine of its own.
grpc::ChannelArguments ArgumentsForTarget(absl::string_view target);

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_TARGET_H_
