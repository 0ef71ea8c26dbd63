// Where a set stands: whether it answers, which incarnation and step it is at, and the errors that say so.
#ifndef ADAMANT_SERVER_CORE_SET_LIFECYCLE_H_
#define ADAMANT_SERVER_CORE_SET_LIFECYCLE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/error.pb.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant::core {

// The last step that is counted: a double keeps every number up to it.
inline constexpr int64_t kMaxStep = int64_t{1} << 53;

// Thread-compatible: guarded by the set's mutex. Changes only for whoever has the set's turn.
class Lifecycle {
 public:
  // A set that awaits its first write.
  Lifecycle(std::string name, uint64_t fingerprint, uint64_t incarnation)
      : name_(std::move(name)), fingerprint_(fingerprint), incarnation_(incarnation) {}

  const std::string& name() const { return name_; }
  uint64_t incarnation() const { return incarnation_; }
  int64_t step() const { return step_; }
  v1::ParameterSetState state() const { return state_; }
  bool deleted() const { return deleted_; }
  // Whether the optimizer's slots mean something: a full write that broke, or a commit that failed, leaves them lost.
  bool slots_valid() const { return slots_valid_; }

  // Whether the set is there: NOT_FOUND (SET_NOT_FOUND) once it is deleted.
  absl::Status CheckExists() const;
  // Whether the set answers steps: NOT_FOUND, DATA_LOSS (POISONED), FAILED_PRECONDITION (UNINITIALIZED).
  absl::Status CheckReady() const;
  // Whether the set is there and whole: NOT_FOUND, DATA_LOSS (POISONED).
  absl::Status CheckNotPoisoned() const;
  // Whether the set is what `header` demands, if it demands anything: this incarnation, ABORTED (INCARNATION_MISMATCH),
  // and this schema, FAILED_PRECONDITION (SCHEMA_MISMATCH). Fields are named relative to a `header`.
  template <typename Header>
  absl::Status CheckDemands(const Header& header) const {
    absl::Status status;
    if (header.has_incarnation()) status = CheckIncarnation(header.incarnation(), "header.incarnation");
    if (status.ok() && header.has_schema_fingerprint()) {
      status = CheckFingerprint(header.schema_fingerprint(), "header.schema_fingerprint");
    }
    return status;
  }
  absl::Status CheckIncarnation(uint64_t demanded, absl::string_view field) const;
  absl::Status CheckFingerprint(uint64_t demanded, absl::string_view field) const;

  // An error that says where the set stands, and which field of the request it is about, if one.
  absl::Status MakeError(absl::StatusCode code, v1::ErrorReason reason, absl::string_view message,
                         absl::string_view field = "") const;
  // What becomes of what began before the set was written: ABORTED (INCARNATION_MISMATCH).
  absl::Status Rewritten() const;

  // A step was committed.
  void Commit(int64_t step) { step_ = step; }
  // The slots are lost, because of `why`: a commit failed half way, and the parameters that were published before are
  // whole still; or what was kept of the set is damaged.
  void Poison(std::string why = "a commit failed half way");
  // A write has taken the set's own memory, that of the slots too if `full`: it is UNINITIALIZED.
  void BeginRewrite(bool full);
  // A write was committed, with the slots of `step` if it was full: it is READY, as another incarnation.
  void Rewrite(uint64_t incarnation, std::optional<int64_t> step);
  // Tensors were added: the set is of another schema, and so another incarnation.
  void Grow(uint64_t incarnation, uint64_t fingerprint) {
    incarnation_ = incarnation;
    fingerprint_ = fingerprint;
  }
  void Delete() { deleted_ = true; }

 private:
  std::string name_;
  uint64_t fingerprint_;
  uint64_t incarnation_;
  int64_t step_ = 0;
  v1::ParameterSetState state_ = v1::PARAMETER_SET_STATE_UNINITIALIZED;
  bool deleted_ = false;
  bool slots_valid_ = true;
  std::string poison_;  // why it is POISONED, if it is
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_LIFECYCLE_H_
