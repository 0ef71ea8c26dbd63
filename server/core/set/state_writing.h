// Whole states that the server writes itself.
#ifndef ADAMANT_SERVER_CORE_SET_STATE_WRITING_H_
#define ADAMANT_SERVER_CORE_SET_STATE_WRITING_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

struct SetRep;

// What a full write makes of a set.
struct WrittenState {
  int64_t step;
  std::vector<int64_t> update_counts;  // by tensor; empty: each has had `step`
  uint64_t incarnation = 0;            // 0: one that is drawn
  // What the set is to be before, as WriteHeader demands it.
  std::optional<uint64_t> former_incarnation = std::nullopt;
  std::optional<uint64_t> schema_fingerprint = std::nullopt;
};

// Puts elements where they belong: of one tensor of a slot ascending, and in the end all of them.
using PutElements = absl::FunctionRef<absl::Status(v1::Slot slot, int tensor, int64_t offset, absl::Span<const float>)>;
// Has PutElements called for all of these slots.
using LoadElements =
    absl::AnyInvocable<absl::Status(const Schema& schema, absl::Span<const v1::Slot> slots, PutElements put)>;

// Writes a whole state that a set was in, as a client's full write does, with what that does to a set when it breaks
// off: on the caller's thread, which waits for turns. Errors: as of a write, and what `load` returns.
absl::Status WriteState(const std::shared_ptr<SetRep>& set, const WrittenState& state, LoadElements load);

// Waits until those who have a turn of the set now, and have asked for one, have ended it.
void AwaitTurn(const SetRep& set);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_STATE_WRITING_H_
