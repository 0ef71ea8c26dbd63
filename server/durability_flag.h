// --durability: what is kept of sets whose specification does not say.
#ifndef ADAMANT_SERVER_DURABILITY_FLAG_H_
#define ADAMANT_SERVER_DURABILITY_FLAG_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant {

// What `text` asks for: `nothing`; `every_step`, or `every_step:N` with N steps journaled at most; `checkpoints:N`,
// every so many steps, `checkpoints:T`, every so much time, such as 60s or 5m, or `checkpoints:N,T`. Ranges are not
// looked at. INVALID_ARGUMENT for any other text, with what is expected.
absl::StatusOr<v1::Durability> ParseDurability(absl::string_view text);

}  // namespace adamant

#endif  // ADAMANT_SERVER_DURABILITY_FLAG_H_
