// Makes what one set comes back from: its checkpoints, of which the last one is its base in the catalog.
#ifndef ADAMANT_SERVER_STORE_SET_BASES_H_
#define ADAMANT_SERVER_STORE_SET_BASES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/base/mutex.h"
#include "server/core/base/then.h"
#include "server/core/journal.h"
#include "server/core/set/reading.h"
#include "server/store/catalog.h"
#include "server/store/change_rooms.h"
#include "server/store/checkpoint.h"
#include "server/store/checkpoint_keeper.h"
#include "server/store/set_folder.h"
#include "server/store/set_records.h"
#include "server/store/store.h"

namespace adamant::store {

// Thread-safe. Functions that are named as core::SetJournal's are what those do.
class SetBases : public std::enable_shared_from_this<SetBases> {
 public:
  // Looks at the checkpoints that there are in the folder of a set.
  static absl::StatusOr<std::unique_ptr<CheckpointKeeper>> OpenKeeper(const StoreParts& parts, const SetFolder& folder);

  // Of the set that has this name, and this number in the catalog.
  SetBases(const StoreParts& parts, int64_t number, std::string name, std::shared_ptr<SetFolder> folder,
           std::unique_ptr<CheckpointKeeper> checkpoints, std::shared_ptr<SetRecords> records,
           std::shared_ptr<ChangeRooms> rooms);

  void Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
                  core::Then<absl::Status> done);
  void CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                  absl::Span<const core::BlockList> slots, const v1::ParameterSet& set, core::Then<absl::Status> done);
  void AwaitCheckpoint(core::Then<absl::Status> done);
  // Whether one that is wanted may be begun: none is under way, and the disk has not just been too full for one. How
  // long that counts doubles each time, up to a minute. One that is asked for is tried at once.
  bool may_begin() const;
  uint64_t generation() const;
  // A checkpoint that is under way comes to nothing.
  void Abandon();

  std::vector<v1::Checkpoint> ListCheckpoints() const;
  absl::StatusOr<std::unique_ptr<core::StoredState>> OpenCheckpoint(uint64_t incarnation, int64_t step);

 private:
  // The thread that writes checkpoints of a set that is so large.
  core::ComputePool* ThreadFor(const core::Schema& schema) const;
  // Writes a checkpoint; on the thread that does that.
  absl::StatusOr<KeptCheckpoint> Write(const NewBase& base, ElementSource elements);
  // Makes a checkpoint that was written, if it was, the set's base.
  void CommitWritten(NewBase base, uint64_t generation, const absl::StatusOr<KeptCheckpoint>& written,
                     core::Then<absl::Status> done);
  // What has become of a checkpoint. Returns whether somebody is to be told.
  bool NoteOutcome(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The record of the base has this number in the catalog, which keeps records from `first` on; or it is not there.
  void Committed(const NewBase& base, const KeptCheckpoint& written, int64_t number, const StoredRecord& record,
                 int64_t first, const absl::Status& status);

  const StoreParts parts_;
  const int64_t number_;
  const std::string name_;
  const std::shared_ptr<SetFolder> folder_;
  const std::unique_ptr<CheckpointKeeper> checkpoints_;
  const std::shared_ptr<SetRecords> records_;
  const std::shared_ptr<ChangeRooms> rooms_;

  mutable core::Mutex mutex_;
  bool checkpointing_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<core::Then<absl::Status>> waiting_ ABSL_GUARDED_BY(mutex_);
  // Of the last checkpoint that the disk was too full for, if it was of the last one.
  absl::Duration retry_delay_ ABSL_GUARDED_BY(mutex_);
  absl::Duration retry_time_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();  // by the clock
  int64_t base_number_ ABSL_GUARDED_BY(mutex_) = 0;  // of the base's record, if it was made here
  // Advanced by each base, and by a write that is going to make one: what was read before may be of a state before it.
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_SET_BASES_H_
