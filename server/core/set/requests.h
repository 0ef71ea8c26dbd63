// Exactly-once: what a set knows of the requests that it applied and of those under way.
#ifndef ADAMANT_SERVER_CORE_SET_REQUESTS_H_
#define ADAMANT_SERVER_CORE_SET_REQUESTS_H_

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "server/core/set/lifecycle.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

class StepAttempt;

// Steps that are remembered, and how far behind a request may be before its outcome is unknown.
inline constexpr int64_t kRememberedSteps = 64;
inline constexpr int kMaxRequestIdBytes = 64;

// Thread-compatible: guarded by the set's mutex. Knows requests and attempts, and nothing of what they bring.
class Requests {
 public:
  // What names a request; two with one id and different hashes are not the same.
  struct Key {
    std::string request_id;  // empty: it is never found
    uint64_t header_hash;    // see HashHeader
  };
  // A committed step.
  struct Entry {
    std::vector<Key> keys;                             // of all requests that it was made of
    v1::StepResult result;                             // with `replayed` unset
    std::shared_ptr<const TensorSelection> selection;  // that it brought: a retry is answered with the same
  };
  // Holds one entry.
  using Remembrance = std::list<Entry>;

  // `lifecycle` is the set's, and guarded by the same mutex.
  explicit Requests(const Lifecycle* lifecycle) : lifecycle_(lifecycle) {}

  // The result of the step that `header` asks for, if it is remembered; null if not. Valid until the next call that is
  // not const. Error: ALREADY_EXISTS (REQUEST_ID_REUSED) if that step was asked for with another header.
  absl::StatusOr<const v1::StepResult*> FindResult(const v1::StepHeader& header, uint64_t header_hash) const;
  // The same, whatever the header was.
  const v1::StepResult* FindResult(absl::string_view request_id) const;
  // The tensors that the step brought; null if it is not remembered.
  std::shared_ptr<const TensorSelection> SelectionOf(absl::string_view request_id) const;

  // Whether a step with this header may begin, as far as what is under way is concerned: ABORTED (SUPERSEDED) if a
  // higher attempt of its request is.
  absl::Status CheckAttempt(const v1::StepHeader& header) const;
  // Whether the step that `header` expects, or is based on, allows it to be the set's next, or, if it `may_be_early`,
  // one after that: ABORTED (STEP_MISMATCH, or OUTCOME_UNKNOWN if it would not be remembered any more whether an
  // earlier attempt was applied). FAILED_PRECONDITION (TOO_LARGE) in a set that is at kMaxStep. That a step is stale is
  // no error.
  absl::Status CheckStep(const v1::StepHeader& header, bool may_be_early) const;

  // Whether an earlier attempt of the step would be remembered still if it had been applied: else ABORTED
  // (OUTCOME_UNKNOWN).
  absl::Status CheckRemembered(const v1::StepHeader& header) const;
  // What becomes of a request whose id was used with another header: ALREADY_EXISTS (REQUEST_ID_REUSED).
  absl::Status Reused(absl::string_view request_id) const;

  // `attempt` is under way until it leaves. Returns those attempts of its request that it supersedes: with the same
  // number, or a lower one.
  std::vector<std::shared_ptr<StepAttempt>> Enter(StepAttempt* attempt);
  void Leave(StepAttempt* attempt);
  // Whether an attempt of this request is under way and not over.
  bool IsUnderWay(absl::string_view request_id) const;
  // The attempts that began before the set was written last; all, if it was deleted.
  std::vector<std::shared_ptr<StepAttempt>> FindOutdated() const;

  // The steps that are remembered, the newest last.
  const Remembrance& remembered() const { return steps_; }

  // Makes ready what Remember takes: a step that answers the requests of these keys with `result`, and with the tensors
  // of `selection`.
  static Remembrance Prepare(std::vector<Key> keys, const v1::StepResult& result,
                             std::shared_ptr<const TensorSelection> selection);
  // Remembers a step that is committed. Allocates nothing. Beyond kRememberedSteps the oldest is forgotten.
  void Remember(Remembrance step);

  // Whether `header` is of the write that made the incarnation, and was not lost again. Error: ALREADY_EXISTS
  // (REQUEST_ID_REUSED) if that write had another header.
  absl::StatusOr<bool> IsApplied(const v1::WriteHeader& header) const;
  // Whether the request of this id made the incarnation.
  bool MadeIncarnation(absl::string_view request_id) const { return request_id == write_.request_id; }
  // The set was written: forgets all steps, and remembers the write.
  void Rewrite(const v1::WriteHeader& header);
  // The set is of an incarnation that no request has made: forgets all.
  void Forget() {
    steps_.clear();
    write_ = {};
  }

 private:
  const Entry* Find(absl::string_view request_id) const;
  // What is wrong with the step that `header` names, and `more` about it.
  absl::Status StepMismatch(const v1::StepHeader& header, v1::ErrorReason reason, absl::string_view more) const;

  const Lifecycle* const lifecycle_;

  Remembrance steps_;  // newest last
  Key write_{};        // that made the incarnation; without an id if it had none
  absl::flat_hash_set<StepAttempt*> attempts_;
  absl::flat_hash_map<std::string, std::vector<StepAttempt*>> attempts_by_id_;
};

// Hash of what makes two attempts the same request: every field of the header but `attempt`, and how to reply.
uint64_t HashHeader(const v1::StepHeader& header);
uint64_t HashHeader(const v1::WriteHeader& header);

// Checks a request_id. Error: INVALID_ARGUMENT (INVALID_FIELD) naming `field`.
absl::Status ValidateRequestId(absl::string_view request_id, absl::string_view field);

// The number of this attempt, counted from 1.
inline int32_t AttemptNumber(const v1::StepHeader& header) { return header.has_attempt() ? header.attempt() : 1; }

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_REQUESTS_H_
