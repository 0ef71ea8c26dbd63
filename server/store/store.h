// A data directory: what makes sets outlive the process.
//
//   LOCK                  held by the server that uses the directory
//   catalog, ...          see catalog.h
//   reserve               see reserve.h
//   lost/                 folders of sets that a catalog has lost
//   sets/NUMBER/          one set's: elements-N (see gradient_slots.h), checkpoints/STEP-INCARNATION/ (see
//   checkpoint.h)
//
// Files that no row of the catalog refers to are of changes that came to nothing, and are removed at the start.
#ifndef ADAMANT_SERVER_STORE_STORE_H_
#define ADAMANT_SERVER_STORE_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/base/clock.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"
#include "server/core/journal.h"
#include "server/core/registry.h"
#include "server/store/catalog.h"
#include "server/store/commit_thread.h"
#include "server/store/file_system.h"
#include "server/store/rate_limit.h"
#include "server/store/reserve.h"

namespace adamant::store {

class DurableSet;

// A set's records, in order, with their numbers.
using Records = std::vector<std::pair<int64_t, StoredRecord>>;

// A step that was made again.
struct ReplayedStep {
  int64_t step;
  std::string digest;  // of the state after it; empty if it did not ask for one
  bool is_checked;     // whether that is what it was the first time, which the next step's record has, if there is one
};

// What was put down of a set, and what that has led to. After an error, DATA_LOSS where something is missing, damaged,
// or has not led to what it led to, `steps` has those before it.
struct SetReplay {
  std::string set;
  absl::Status status;
  int64_t base_step = 0;  // of the state that it began with
  std::vector<ReplayedStep> steps = {};
  v1::ParameterSet now = {};
  std::string last_digest = {};  // of the last step that has one; empty if none has
};

struct StoreOptions {
  std::string directory;
  // Of sets whose specification says none.
  v1::Durability default_durability;
  // Comes back with what there is where the catalog is behind its fence, or a set is damaged: with other incarnations.
  bool accept_data_loss = false;
  // Of all checkpoints together. 0: as fast as the disk.
  int64_t checkpoint_bytes_per_second = 0;
  // Kept for the catalog, see reserve.h: its log takes half of it at most, before it begins anew.
  int64_t reserve_bytes = int64_t{8} << 20;
  // See Catalog::Open.
  const char* sqlite_vfs = nullptr;
  // What waiting goes by; null: a steady one of the store's own.
  core::Clock* clock = nullptr;
  // Whom to tell how it goes, and what is wrong; from any thread.
  std::function<void(absl::string_view)> log = [](absl::string_view /*line*/) {};
  std::function<void(absl::string_view)> warn = [](absl::string_view /*line*/) {};
};

// What the durable sets of a store share. Outlives them.
struct StoreParts {
  FileSystem* file_system;
  std::string directory;
  CommitThread* commits;
  core::ComputePool* io;  // writes elements
  // Write checkpoints, each one at a time: those of small sets, see core::IsSmall, and of all others. A small set's
  // journal is full in moments, and a large set's checkpoint may take minutes.
  core::ComputePool* small_checkpoints;
  core::ComputePool* large_checkpoints;
  core::ComputePool* executor;  // goes on when something is on disk
  core::Clock* clock;
  std::function<absl::Status(int64_t bytes)> pace;
  std::function<void(absl::string_view)> warn;
  // Says that it is not known what is on disk; and OK, or that this was said, or that the catalog has failed.
  std::function<void(const absl::Status& status)> fail;
  std::function<absl::Status()> check;
  // OK, or DISK_EXHAUSTED where there is room for work that has begun only.
  std::function<absl::Status()> check_room;
};

// Thread-safe. Outlives the sets that it has journals for.
class Store final : public core::Journal {
 public:
  // Opens the directory, or makes one if there is none; nobody else may have it open. Errors: FAILED_PRECONDITION where
  // somebody has, or it is of a later format; DATA_LOSS, naming what is missing or damaged; what the system says.
  static absl::StatusOr<std::unique_ptr<Store>> Open(FileSystem* file_system, StoreOptions options);
  ~Store() override;

  // Brings all sets back into `registry`, which nobody else knows yet; once, before anything else. A set that is
  // damaged is POISONED, and told of. Folders that the catalog knows nothing of are put aside into the folder `lost`,
  // and told of, but for what creates and deletes have left that were cut off. Errors: DATA_LOSS, naming it, where it
  // is not known what a set is, unless `accept_data_loss`: then it is left out; what the system says;
  // RESOURCE_EXHAUSTED where the budgets have no room. Whether OK or not, the catalog is as it was before.
  absl::Status Restore(core::Registry* registry);
  // Once, between Restore and the first change of any set: puts down what later starts have to know once there may be
  // some, such as which sets are of another incarnation now. Errors: as of commits.
  absl::Status BeginChanges();

  // Instead of Restore, for those who only look: makes all again that was put down, one set after the other, on the
  // device of `resources`, and reports each. Changes nothing on disk. Errors: what keeps all sets from being found.
  using ReportReplay = absl::FunctionRef<void(const SetReplay& replay)>;
  absl::Status Replay(const core::Resources& resources, ReportReplay report);

  // Makes last checkpoints of those sets of `registry` whose steps are not all kept, and that do not change any more,
  // so that they come back as they are. Those for which `rest` is too short are told of, and come back as of their
  // checkpoints before.
  void Finish(core::Registry* registry, absl::Duration rest);

  absl::StatusOr<v1::Durability> Resolve(const v1::Durability* durability, absl::string_view field) const override;
  absl::StatusOr<std::unique_ptr<core::SetJournal>> CreateSet(const v1::ParameterSetSpec& spec,
                                                              std::shared_ptr<const core::Schema> schema,
                                                              const v1::ParameterSet& set) override;
  absl::Status CheckWorking() const override;

 private:
  Store(FileSystem* file_system, StoreOptions options, std::unique_ptr<FileSystem::Lock> lock,
        std::unique_ptr<Catalog> catalog);

  // A record that a set gets before it changes, and its number then.
  struct FirstRecord {
    int64_t set;
    StoredRecord record;
    DurableSet* journal;
    int64_t number = 0;
  };
  // A set as the catalog has it: its records up to the first that is damaged, if `status` is not OK.
  struct Found {
    int64_t number;
    absl::StatusOr<StoredSet> stored;
    absl::Status status;
    Records records;
  };

  absl::StatusOr<std::vector<Found>> FindSets();
  // Brings one set back. Error: DATA_LOSS where it is damaged.
  absl::Status RestoreSet(int64_t number, const StoredSet& stored, const Records& records, core::Registry* registry);
  // Brings it back POISONED.
  absl::Status RestoreDamaged(int64_t number, const StoredSet& stored, const Records& records,
                              core::Registry* registry);
  // Removes, or puts aside, the folders of sets that the catalog does not know.
  absl::Status ClearUnknown(const std::set<std::string>& known);
  // From now on no checkpoint is made, and what is under way comes to nothing.
  void EndCheckpoints();
  absl::StatusOr<const core::Resources*> FindDevice(const StoredSet& stored, const core::Registry& registry) const;

  FileSystem* const file_system_;
  const StoreOptions options_;
  const std::unique_ptr<FileSystem::Lock> lock_;

  // Of Restore only: until then nothing is committed.
  std::unique_ptr<Catalog> restored_catalog_;

  // Of Restore and BeginChanges.
  bool lost_data_ = false;
  std::vector<FirstRecord> first_records_;
  std::vector<int64_t> left_out_;  // sets of which nothing is known but their numbers

  std::atomic<bool> is_ending_ = false;

  mutable core::Mutex mutex_;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);

  const std::unique_ptr<core::Clock> own_clock_;  // null: there is another
  core::Clock* const clock_;
  std::unique_ptr<RateLimit> rate_limit_;  // null: as fast as the disk
  std::unique_ptr<Reserve> reserve_;       // from Restore on
  // Those that use what is above and below are gone before it: the thread that commits, those of checkpoints and
  // elements, and whom they tell.
  core::ComputePool executor_;
  std::unique_ptr<CommitThread> commits_;
  core::ComputePool io_;
  core::ComputePool small_checkpoints_;
  core::ComputePool large_checkpoints_;
  StoreParts parts_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_STORE_H_
