// A set whose server loses its power: what its client did to it and was told, by the disk's time; and so what it may be
// afterwards.
#ifndef ADAMANT_TESTS_POWER_SET_HISTORY_H_
#define ADAMANT_TESTS_POWER_SET_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "tests/e2e/test_client.h"
#include "tests/power/disk.h"

namespace adamant::power {

// What a set is after a change.
struct SetState {
  // Null: there is no set of that name.
  std::shared_ptr<const core::SequentialModel> model = nullptr;
  uint64_t incarnation = 0;
  int64_t config_revision = 0;
  int64_t applied = 0;
  std::string step_id = {};  // of the last step of this incarnation; empty: there was none
};

// One set with a client, which makes one change after the other. Thread-compatible.
class SetHistory {
 public:
  // Of a set as `spec` says, which is not there yet.
  SetHistory(v1::ParameterSetSpec spec, uint64_t seed);

  // Makes any change, or a checkpoint. What is wrong with the server's answer, or OK.
  absl::Status Act(e2e::TestClient* client, const Disk& disk);
  // The server has been shut down, from one position of the disk to the other, and nothing is lost.
  void NoteShutdown(int64_t begun, int64_t answered);

  int64_t changes() const { return static_cast<int64_t>(changes_.size()); }

  // What is wrong with the set at a server that was started on the disk as a power cut at `position` has left it, which
  // is then asked again for the set's last step, and for one more. OK if nothing is. The positions of all calls are
  // those of the disk's log.
  absl::Status CheckAfterCut(e2e::TestClient* client, int64_t position);

 private:
  // One that was not answered is not in the history: the client has waited for all of its calls.
  struct Change {
    int64_t begun;     // the disk's position when it was called for
    int64_t answered;  // and when it was answered
    SetState after;
    size_t safe;  // once it is answered, no change up to this one is lost
    // Of a step: what it was asked with.
    v1::StepHeader header = {};
    uint64_t seed = 0;
  };

  const SetState& now() const { return changes_.back().after; }
  bool keeps_steps() const { return spec_.durability().has_every_step(); }
  // Adds a change that has been answered at the disk's position of now.
  void Add(int64_t begun, const Disk& disk, SetState after, bool is_safe);

  absl::Status Create(e2e::TestClient* client, const Disk& disk);
  absl::Status Delete(e2e::TestClient* client, const Disk& disk);
  absl::Status Write(e2e::TestClient* client, const Disk& disk);
  absl::Status Configure(e2e::TestClient* client, const Disk& disk);
  absl::Status Checkpoint(e2e::TestClient* client, const Disk& disk);
  absl::Status Step(e2e::TestClient* client, const Disk& disk);

  const v1::ParameterSetSpec spec_;
  std::mt19937_64 random_;
  std::vector<Change> changes_;
  int64_t requests_ = 0;
};

}  // namespace adamant::power

#endif  // ADAMANT_TESTS_POWER_SET_HISTORY_H_
