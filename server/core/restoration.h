// A set that comes back: from the state that a journal has of it, and the changes that were put down after that, which
// are made again by the code that made them first.
#ifndef ADAMANT_SERVER_CORE_RESTORATION_H_
#define ADAMANT_SERVER_CORE_RESTORATION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "server/core/backend/row_work.h"
#include "server/core/journal.h"
#include "server/core/set/parameter_set.h"
#include "server/core/set/resources.h"
#include "server/core/set/state_writing.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

// What a set is made of before anything is done again.
struct RestoredState {
  uint64_t incarnation;
  int64_t step = 0;
  bool uninitialized = false;                   // it awaits its first write
  std::vector<int64_t> update_counts;           // by tensor; empty: each has had `step`
  v1::ParameterSet configuration;               // as DescribeConfiguration says it
  v1::WriteHeader write;                        // that made the incarnation; without an id if it had none
  std::string last_digest;                      // the digest that the next one is chained to, if there is one
  std::vector<RememberedStep> remembered = {};  // the newest last
  v1::SetStatistics statistics;
  int64_t round = 1;
  absl::Time create_time;
};

// Which rows a step brought, of each tensor that its header announces rows of; and where they lie among the values.
struct RestoredRows {
  std::vector<int64_t> counts;  // by such tensor
  std::vector<RowWork::Row> rows;
};

// Not thread-safe, and not for a thread that others wait for. After an error the set is of no use. Errors: DATA_LOSS
// (DAMAGED) where what is to be done cannot be, or does not lead to what it led to; RESOURCE_EXHAUSTED where the memory
// budgets have no room for the set.
class Restoration {
 public:
  // Reads what is put down of a change into the blocks, which are nobody else's.
  using ReadElements = absl::FunctionRef<absl::Status(const BroughtElements& to)>;

  // Makes a set as `spec` says, with the tensors and groups that it has in this state, and in this state. Where `load`
  // is null all is zero.
  static absl::StatusOr<std::unique_ptr<Restoration>> Begin(const Resources& resources,
                                                            const v1::ParameterSetSpec& spec, RestoredState state,
                                                            LoadElements load);
  // Makes a set of which what is put down is damaged: POISONED, at the step and the incarnation that `state` says, and
  // a full write heals it.
  static absl::StatusOr<std::unique_ptr<Restoration>> BeginDamaged(const Resources& resources,
                                                                   const v1::ParameterSetSpec& spec,
                                                                   const RestoredState& state);
  Restoration(const Restoration&) = delete;
  Restoration& operator=(const Restoration&) = delete;

  std::shared_ptr<const Schema> schema() const;

  // A step that is part of the state: it is remembered, and no more.
  void Remember(const std::vector<v1::StepHeader>& headers, const v1::StepResult& result);
  // Change the set again. Steps come to the same result, from a state of the same digest, or are DATA_LOSS.
  absl::Status StepAgain(const StepRecord& record, const RestoredRows& rows, ReadElements read);
  absl::Status WriteAgain(const WriteRecord& record, ReadElements read);
  absl::Status ConfigureAgain(const v1::ParameterSet& configuration);
  absl::Status GrowAgain(const GrowthRecord& record);
  // From here on the set is of another incarnation, which no request has made: what was lost could have had its name.
  // Returns it.
  uint64_t RollBack();
  // The same again.
  void RollBackAgain(uint64_t incarnation);

  // The set, which goes on with this journal. Once, and nothing after it.
  std::shared_ptr<ParameterSet> Finish(std::unique_ptr<SetJournal> journal);
  // OK, or FAILED_PRECONDITION (TOO_LARGE) where the budget for reads is too small for a checkpoint of the set.
  absl::Status CheckHasRoomForCheckpoints() const;
  // As GetParameterSet would show it.
  v1::ParameterSet Describe() const;
  // The digest of the last step that has one, of this incarnation; empty if there is none.
  std::string last_digest() const;

 private:
  explicit Restoration(std::shared_ptr<SetRep> set) : set_(std::move(set)) {}

  const std::shared_ptr<SetRep> set_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_RESTORATION_H_
