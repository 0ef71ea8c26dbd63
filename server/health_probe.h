// Asks a server whether it serves: for container health checks, without a program of their own.
#ifndef ADAMANT_SERVER_HEALTH_PROBE_H_
#define ADAMANT_SERVER_HEALTH_PROBE_H_

#include <string>

#include "absl/status/status.h"

namespace adamant {

// OK if the server at `target` answers the standard health check (grpc.health.v1, overall) with SERVING within 5
// seconds.
absl::Status ProbeHealth(const std::string& target);

}  // namespace adamant

#endif  // ADAMANT_SERVER_HEALTH_PROBE_H_
