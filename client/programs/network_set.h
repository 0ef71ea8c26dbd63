// A network whose parameters are a set on a server.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_PROGRAMS_NETWORK_SET_H_
#define ADAMANT_CLIENT_PROGRAMS_NETWORK_SET_H_

#include <adamant/client.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/programs/mlp.h"

namespace adamant::programs {

// A set of this name for the network's parameters, which a client writes first, in one group.
v1::ParameterSetSpec NetworkSpec(const std::string& name, const Mlp& mlp, const v1::ParameterGroup& group);

// One span a tensor of the network, of the array that holds them one after the other.
std::vector<absl::Span<const float>> SplitByTensor(const Mlp& mlp, absl::Span<const float> all);
std::vector<absl::Span<float>> SplitByTensor(const Mlp& mlp, absl::Span<float> all);

// A name below `prefix` that no other set has: sets of other trainers are none of ours.
std::string UniqueSetName(absl::string_view prefix);

// Deletes the set of this name, whatever its incarnation.
absl::Status DeleteSet(const std::string& name, Client& client);

// `status` with a word on what failed in front of its message.
absl::Status Annotate(const absl::Status& status, absl::string_view what);

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_NETWORK_SET_H_
