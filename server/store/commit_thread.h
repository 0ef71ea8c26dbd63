// The one thread that changes the catalog: what many ask for at the same time becomes one commit, and one sync.
#ifndef ADAMANT_SERVER_STORE_COMMIT_THREAD_H_
#define ADAMANT_SERVER_STORE_COMMIT_THREAD_H_

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"
#include "server/core/base/then.h"
#include "server/store/catalog.h"

namespace adamant::store {

// Thread-safe.
class CommitThread {
 public:
  using Change = absl::AnyInvocable<absl::Status(Catalog* catalog)>;

  // `executor` runs what is told of commits, and outlives this. Nobody else uses the catalog from here on. Where there
  // is no room for a commit `make_room` is called, and the commit tried again if it says that there is more.
  CommitThread(
      std::unique_ptr<Catalog> catalog, core::ComputePool* executor,
      std::function<bool()> make_room = [] { return false; });
  // Commits what it was given, then ends.
  ~CommitThread();
  CommitThread(const CommitThread&) = delete;
  CommitThread& operator=(const CommitThread&) = delete;

  // Has `change` made, in the order of these calls, and tells `done`, on the executor, what became of it: OK once it
  // survives a power cut. `change` is called on the commit thread, and again where it was rolled back.
  // Where it returns an error that IsUndone, or there is no room, nothing of it has been made: it fails alone, whatever
  // else was to be committed with it. UNAVAILABLE (STORE_FAILED) where it has another error, which is the catalog's, or
  // it is not known whether it was made; and for all that come after that: only a restart tells.
  void Commit(Change change, core::Then<absl::Status> done);

  // OK, or why nothing is committed any more.
  absl::Status CheckWorking() const;

 private:
  struct Request {
    Change change;
    core::Then<absl::Status> done;
  };

  void Loop();
  // Commits them together; if that fails for want of room or because of one of them, one by one. Tells all of them.
  void CommitAll(std::vector<Request> requests);
  // In one commit, or not at all, or it is not known.
  absl::Status CommitTogether(absl::Span<Request> requests);
  // The same with the room that there is.
  absl::Status TryCommit(absl::Span<Request> requests);
  // After this nothing is committed. Returns what those are told who wanted something to be.
  absl::Status Fail(const absl::Status& status);
  void Tell(core::Then<absl::Status> done, const absl::Status& status);

  const std::unique_ptr<Catalog> catalog_;  // of the thread
  core::ComputePool* const executor_;
  const std::function<bool()> make_room_;

  mutable core::Mutex mutex_;
  core::CondVar ready_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  std::vector<Request> requests_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_COMMIT_THREAD_H_
