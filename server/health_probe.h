// Asks a server whether it serves: for container health checks, without a program of their own.
#ifndef ADAMANT_SERVER_HEALTH_PROBE_H_
#define ADAMANT_SERVER_HEALTH_PROBE_H_

#include <string>

#include "absl/status/status.h"

namespace adamant {

// OK if the server at `target` answers the standard health check (grpc.health.v1, overall) with SERVING. Takes no
// longer than 1.8 seconds, so that a program that does nothing else ends within 2. The error's message is one line that
// says what was asked, and what came of it: that nobody listens there, that the name is unknown, that no answer came in
// time, or the answer.
absl::Status ProbeHealth(const std::string& target);

}  // namespace adamant

#endif  // ADAMANT_SERVER_HEALTH_PROBE_H_
