// What the catalog has of one set, as its journal remembers it: the base that the set would come back from, and the
// records behind it.
#ifndef ADAMANT_SERVER_STORE_SET_RECORDS_H_
#define ADAMANT_SERVER_STORE_SET_RECORDS_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "server/core/base/mutex.h"
#include "server/core/journal.h"
#include "server/core/spec/schema.h"
#include "server/store/catalog.h"
#include "server/store/checkpoint.h"
#include "server/store/element_files.h"

namespace adamant::store {

// What is remembered of a record that is in the catalog.
struct KeptRecord {
  int64_t number = 0;
  uint64_t incarnation = 0;
  int64_t step = 0;
  StoredRecord::KindCase kind = StoredRecord::KIND_NOT_SET;
  std::optional<ElementPlace> place = std::nullopt;
  bool is_replayed = true;  // it has its elements still
  std::shared_ptr<const v1::ParameterSet> configuration = nullptr;
  // Of a growth: how many tensors the set has after it, and the groups that came with them.
  int64_t tensors = 0;
  google::protobuf::RepeatedPtrField<v1::ParameterGroup> groups = {};
};

// A checkpoint that is to be the set's base.
struct NewBase {
  CheckpointInfo info;
  std::shared_ptr<const core::Schema> schema;
  std::vector<v1::Slot> slots;
  std::string last_digest;
  // Of a state that a write has made, in its turn.
  std::optional<v1::WriteHeader> write;
};

// Thread-safe.
class SetRecords {
 public:
  // The base is the record of this number. `write` made the set's incarnation, and `spec` has the tensors and groups
  // that it has by now, `schema` the tensors.
  SetRecords(StoredRecord base, int64_t base_number, std::vector<KeptRecord> kept,
             std::shared_ptr<const core::Schema> schema, v1::WriteHeader write, v1::ParameterSetSpec spec);

  StoredRecord base() const;
  std::shared_ptr<const core::Schema> schema() const;
  // Steps and writes that have their elements still, and the slots of those that have some.
  int64_t changes() const;
  std::vector<ElementPlace> places() const;

  // Whether the base is a checkpoint, of this state.
  bool IsBase(uint64_t incarnation, int64_t step) const;
  // See core::SetJournal. Of a set of whose steps not each is kept.
  bool WantsCheckpoint(const v1::Checkpoints& terms, uint64_t incarnation, int64_t step) const;
  std::optional<int64_t> CheckpointedStep(uint64_t incarnation) const;
  void Describe(v1::ParameterSet* set) const;

  // Whether the last record, if it is of this number, is a configuration.
  bool EndsWithConfiguration(int64_t number) const;
  // A record that is no base is about to be put into the catalog; and that was done, or has come to nothing, and it was
  // added here, if it is there. For each, from before it gets its number.
  void BeginChange();
  void EndChange();
  // A record is in the catalog, in the place of the one that had its number, if one had.
  void Add(KeptRecord record);
  // This write made the incarnation that the set has.
  void NoteWrite(const v1::WriteHeader& header);
  // The set has grown, by this.
  void NoteGrowth(const v1::AddTensorsRequest& request, std::shared_ptr<const core::Schema> schema);
  // Before anything has changed: a rollback, or the base once more, is the record of this number.
  void NoteFirstRecord(int64_t number, const StoredRecord& record);

  // The record of a new base, which is the checkpoint of this name, and the number of the first one of the records that
  // are to be kept then.
  StoredRecord MakeBase(const NewBase& base, const std::string& name, int64_t bytes, int64_t* first) const;
  // `record`, of this number, is the base, and records before `first` are no more. Returns the changes that it covers,
  // which had their elements until now, with their slots.
  std::vector<std::optional<ElementPlace>> Rebase(const NewBase& base, int64_t number, const StoredRecord& record,
                                                  int64_t first);

 private:
  // The last record of those that are part of a new base, as are all before it.
  int64_t LastCovered(const NewBase& base) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool has_checkpoint() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !base_.base().checkpoint().empty(); }

  mutable core::Mutex mutex_;
  // As the set is now.
  v1::ParameterSetSpec spec_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const core::Schema> schema_ ABSL_GUARDED_BY(mutex_);
  v1::WriteHeader write_ ABSL_GUARDED_BY(mutex_);
  StoredRecord base_ ABSL_GUARDED_BY(mutex_);
  int64_t base_number_ ABSL_GUARDED_BY(mutex_);
  int64_t under_way_ ABSL_GUARDED_BY(mutex_) = 0;  // changes that may be in the catalog already, and are not in `kept_`
  std::optional<v1::Checkpoint> restored_from_ ABSL_GUARDED_BY(mutex_);
  // By number. Those behind the base are all there.
  std::deque<KeptRecord> kept_ ABSL_GUARDED_BY(mutex_);
};

// Whether records of this kind are of steps or writes, which take room.
bool IsChange(StoredRecord::KindCase kind);
// What becomes of a configuration by an addition of tensors that brings these groups.
void AddGroups(const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& groups, v1::ParameterSet* configuration);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_SET_RECORDS_H_
