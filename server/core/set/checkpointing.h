// When a set's journal is given the set's whole state.
#ifndef ADAMANT_SERVER_CORE_SET_CHECKPOINTING_H_
#define ADAMANT_SERVER_CORE_SET_CHECKPOINTING_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/base/then.h"
#include "server/core/journal.h"

namespace adamant::core {

struct SetRep;

// Thread-safe: free functions. The set's mutex is not held.

// Begins a checkpoint of the set if its journal wants one. Returns at once: it reads the state in a turn of its own.
void CheckpointInTime(const std::shared_ptr<SetRep>& set);

// Makes a checkpoint of the set, as it is in a turn that is taken for that, and tells `done` when it is on disk.
// Errors: what stands against a read of the whole set, and what the journal says. Requires: the set has a journal.
void BeginCheckpoint(std::shared_ptr<SetRep> set, Then<absl::Status> done);

// For whoever has the set's turn, and keeps it: room in the journal, which had none, once a checkpoint has taken the
// place of what is put down there. Errors: the same.
void MakeRoom(std::shared_ptr<SetRep> set, Then<absl::StatusOr<std::unique_ptr<SetJournal::Room>>> done);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_CHECKPOINTING_H_
