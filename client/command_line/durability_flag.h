// What is kept of a set, as text: `--durability` of the server, of `adamant create` and of the benchmark.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_COMMAND_LINE_DURABILITY_FLAG_H_
#define ADAMANT_CLIENT_COMMAND_LINE_DURABILITY_FLAG_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant {

// What `text` asks for: `nothing`; `every_step`, or `every_step:N` with N steps journaled at most; `checkpoints:N`,
// every so many steps, `checkpoints:T`, every so much time, such as 60s or 5m, or `checkpoints:N,T`. Ranges are not
// looked at. INVALID_ARGUMENT for any other text, with what is expected.
absl::StatusOr<v1::Durability> ParseDurability(absl::string_view text);

// The text that ParseDurability understands as `durability`. Without a level it is `nothing`.
std::string DurabilityText(const v1::Durability& durability);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_COMMAND_LINE_DURABILITY_FLAG_H_
