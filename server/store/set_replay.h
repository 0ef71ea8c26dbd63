// Brings a set back from what is put down of it: its last base, and all changes after that.
#ifndef ADAMANT_SERVER_STORE_SET_REPLAY_H_
#define ADAMANT_SERVER_STORE_SET_REPLAY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/restoration.h"
#include "server/store/catalog.h"
#include "server/store/set_records.h"
#include "server/store/store.h"

namespace adamant::store {

struct ReplayedSet {
  StoredRecord base;                               // that it began with
  int64_t base_number = 0;                         // of that record
  std::unique_ptr<core::Restoration> restoration;  // of what it is now
  std::vector<KeptRecord> kept;
  v1::WriteHeader write;      // that made the incarnation; without an id if it had none
  v1::ParameterSetSpec spec;  // with the tensors and groups that it has now
  int64_t steps = 0;          // that were made again
};

// Makes all again on the device of `resources`. Changes nothing on disk. Errors: DATA_LOSS (DAMAGED) where something is
// missing, damaged, or does not lead to what it led to; RESOURCE_EXHAUSTED where the memory budgets have no room;
// what the system says.
absl::StatusOr<ReplayedSet> ReplaySet(const StoreParts& parts, const StoredSet& stored, const Records& records,
                                      const core::Resources& resources,
                                      absl::FunctionRef<void(const ReplayedStep&)> observe);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_SET_REPLAY_H_
