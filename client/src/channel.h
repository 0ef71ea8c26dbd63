// The channel of a client: what HTTP/2 is told, and why.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_SRC_CHANNEL_H_
#define ADAMANT_CLIENT_SRC_CHANNEL_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <memory>
#include <string>

#include "adamant/options.h"

namespace adamant {

// The arguments of a channel to `target` with these options: those that the caller's hook sets, and ours.
grpc::ChannelArguments MakeChannelArguments(const std::string& target, const ClientOptions& options);

// A channel to `target` with those arguments. Connects when its first call needs it.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, const ClientOptions& options);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_CHANNEL_H_
