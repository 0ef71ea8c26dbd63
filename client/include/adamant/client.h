// A client of an Adamant server: parameter sets that live there, and the gradients that move them.
//
//   absl::StatusOr<adamant::Client> client = adamant::Client::Connect("localhost:50051");
//   ...
//   client->CreateParameterSet(spec, adamant::v1::IF_EXISTS_USE_IF_SAME_SPEC);
//   absl::StatusOr<adamant::StepStream> stream = client->OpenStepStream("mlp");
//   while (training) {
//     ...                                              // compute gradients from parameters
//     stream->Step(gradients, parameters);             // updated parameters are back in `parameters`
//   }
//
// A step can bring some of the tensors, travel in 16 bits, override hyperparameters, or come from one of many workers:
// StepOptions. Groups change between steps: UpdateParameterGroup.
//
// The messages are those of proto/adamant/v1, where every field is described. Errors: adamant/error.h.
#ifndef ADAMANT_CLIENT_H_
#define ADAMANT_CLIENT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/connection.h"
#include "adamant/options.h"
#include "adamant/step_stream.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"

namespace adamant {

struct ReadOptions {
  // Demands this incarnation; another one is ABORTED.
  std::optional<uint64_t> incarnation = std::nullopt;
  // Reads nothing (`not_modified`) unless the set is beyond this step.
  std::optional<int64_t> if_newer_than_step = std::nullopt;
  // When the server has no room to keep the snapshot: read on until the next step, and only then fail, ABORTED.
  bool may_abort = false;
  // Indices of the tensors to read, ascending; the spans of the others are not looked at. Empty: all.
  std::vector<int32_t> tensors = {};
  // Is told how far the read has come; empty: nobody is.
  Progress progress = nullptr;
};

struct WriteOptions {
  // Demands this incarnation; another one is ABORTED.
  std::optional<uint64_t> incarnation = std::nullopt;
  // Names the write, so that a program that was restarted may repeat it: 1 to 64 printable ASCII characters. Empty: a
  // random one.
  std::string request_id = {};
  // Of WriteParameters: indices of the tensors to replace, ascending; the others stay as they are, and their spans are
  // not looked at. Empty: all.
  std::vector<int32_t> tensors = {};
  // Where what is written comes from, with the size of each span: its memory is not looked at. Empty: from the spans.
  ElementReader read = nullptr;
  // Is told how far the write has come; empty: nobody is.
  Progress progress = nullptr;
};

struct UpdateOptions {
  // Demands this incarnation; another one is ABORTED.
  std::optional<uint64_t> incarnation = std::nullopt;
  // Demands that nobody has changed the configuration since this ParameterSet.config_revision; otherwise ABORTED. An
  // attempt whose reply was lost may have changed it, and then the next one is ABORTED, too.
  std::optional<int64_t> config_revision = std::nullopt;
};

struct ForkOptions {
  // Demands this incarnation of the set that is forked; another one is ABORTED.
  std::optional<uint64_t> incarnation = std::nullopt;
  // Where the new set lives; empty: where the other one does.
  std::string device = {};
  // What of the new set is kept on disk; none: the server's default.
  std::optional<v1::Durability> durability = std::nullopt;
};

// The arrays that the set has beside its parameters, as its groups' optimizers need them: with Adam EXP_AVG and
// EXP_AVG_SQ, with amsgrad MAX_EXP_AVG_SQ, too; with Sgd MOMENTUM_BUFFER if there is momentum. Each of them has all
// tensors, also those of groups that make no use of it.
std::vector<v1::Slot> OptimizerSlots(const v1::ParameterSet& set);

// The whole state of a set: everything that a checkpoint needs. An array that the set does not have (see
// OptimizerSlots) is left empty; one that it has is needed.
struct ConstState {
  // In [0, 2^53].
  int64_t step = 0;
  // How many updates each tensor has had, where they are not `step` for all of them: ReadHeader.update_counts.
  absl::Span<const int64_t> update_counts = {};
  ConstTensors parameters = {};
  ConstTensors exp_avg = {};
  ConstTensors exp_avg_sq = {};
  ConstTensors max_exp_avg_sq = {};
  ConstTensors momentum_buffer = {};
};

// Where to put it. What is left empty is not read.
struct MutableState {
  MutableTensors parameters = {};
  MutableTensors exp_avg = {};
  MutableTensors exp_avg_sq = {};
  MutableTensors max_exp_avg_sq = {};
  MutableTensors momentum_buffer = {};
};

// Thread-safe, and cheap to copy: copies share one connection. All functions block, and repeat failed attempts as
// RetryPolicy says. None throws.
class Client {
 public:
  // A client of the server at `target`: host:port, unix:path, or any name that gRPC resolves. Connects when the first
  // call needs it, which waits for a server that is not there yet. INVALID_ARGUMENT when an argument is not valid.
  static absl::StatusOr<Client> Connect(const std::string& target, const ClientOptions& options = {});

  // A client on a connection of the caller's choice, such as a mock.
  explicit Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

  // Creates a set. An attempt whose reply was lost may have created it, and with IF_EXISTS_FAIL the next one then says
  // ALREADY_EXISTS: use IF_EXISTS_USE_IF_SAME_SPEC where that matters.
  absl::StatusOr<v1::CreateParameterSetResponse> CreateParameterSet(const v1::ParameterSetSpec& spec,
                                                                    v1::IfExists if_exists = v1::IF_EXISTS_FAIL);
  absl::StatusOr<v1::ParameterSet> GetParameterSet(absl::string_view name);
  // One page, which is the last one only if it has no next_page_token: with labels it may have no set and one.
  absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(const v1::ListParameterSetsRequest& request);
  // All pages, of the sets whose name starts with `name_prefix`, in order of name.
  absl::StatusOr<std::vector<v1::ParameterSet>> ListAllParameterSets(absl::string_view name_prefix = {});
  // All of a set's tensors, in order of index.
  absl::StatusOr<std::vector<v1::Tensor>> ListTensors(absl::string_view set);
  // Deletes this very incarnation; if the set is another one by now: ABORTED.
  absl::Status DeleteParameterSet(absl::string_view name, uint64_t incarnation);

  // Adds tensors to a set, behind those that it has, and groups for them, and returns the set as it is then: another
  // incarnation, which open step streams do not move to. What is added is zero: WriteParameters with
  // WriteOptions::tensors brings it. An attempt whose reply was lost may have added it: then the next one says that the
  // names are taken.
  absl::StatusOr<v1::ParameterSet> AddTensors(absl::string_view set, const std::vector<v1::TensorSpec>& tensors,
                                              const std::vector<v1::ParameterGroup>& groups = {});
  // Changes `fields` of a group, such as "learning_rate" or "adam.weight_decay"
  // (UpdateParameterGroupRequest.update_mask), to what `group`, which names it, has there, and returns the set as it is
  // then. Between two steps, and all at once.
  absl::StatusOr<v1::ParameterSet> UpdateParameterGroup(absl::string_view set, const v1::ParameterGroup& group,
                                                        const std::vector<std::string>& fields,
                                                        const UpdateOptions& options = {});
  // The same for what a set has beside its groups: "labels", "clipping", "non_finite_policy", "max_staleness",
  // "workers". `values` names the set.
  absl::StatusOr<v1::ParameterSet> UpdateParameterSet(const v1::ParameterSetSpec& values,
                                                      const std::vector<std::string>& fields,
                                                      const UpdateOptions& options = {});

  // What happens to the set, as it happens; the first event is how it stands. Of one that is too slow events are
  // dropped, and counted (`missed`). It ends with the set, by EventStream::Cancel, or with the server: it does not
  // connect again by itself. It holds a call of its connection open.
  absl::StatusOr<std::unique_ptr<EventStream>> Watch(absl::string_view set);

  // Has the server put all of the set on its disk, as it is at some time during the call, while steps go on. An attempt
  // whose reply was lost is repeated: that makes another checkpoint, if the set has moved on.
  absl::StatusOr<v1::Checkpoint> Checkpoint(absl::string_view set, std::optional<uint64_t> incarnation = std::nullopt);
  // What the set can be taken back to, the newest first.
  absl::StatusOr<std::vector<v1::Checkpoint>> ListCheckpoints(absl::string_view set);
  // Takes the set back to one of its checkpoints, and returns it as it is then: another incarnation. An attempt whose
  // reply was lost may have done so. Repeated, it does so again, and steps that came in between are undone: demand the
  // set's incarnation where others step it; then the next attempt is ABORTED, and the set shows where it stands.
  absl::StatusOr<v1::ParameterSet> RestoreCheckpoint(absl::string_view set, const v1::Checkpoint& checkpoint,
                                                     std::optional<uint64_t> incarnation = std::nullopt);
  // Makes a new set, called `name`, that is what the set is now, and returns it. An attempt whose reply was lost may
  // have made it: then the next one says ALREADY_EXISTS.
  absl::StatusOr<v1::ParameterSet> Fork(absl::string_view set, absl::string_view name, const ForkOptions& options = {});

  // What became of the step that was sent with this request_id.
  absl::StatusOr<v1::GetStepResultResponse> GetStepResult(absl::string_view set, absl::string_view request_id);
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo();

  // Replaces all parameters, or those of `options.tensors`. Moments and step are kept, and are zero in a new set.
  absl::StatusOr<v1::WriteTensorsResponse> WriteParameters(absl::string_view set, ConstTensors parameters,
                                                           const WriteOptions& options = {});
  // Replaces everything: restores what ReadState returned, bit for bit.
  absl::StatusOr<v1::WriteTensorsResponse> WriteState(absl::string_view set, const ConstState& state,
                                                      const WriteOptions& options = {});

  // The parameters, or everything, of one step, which the header names. Steps of others go on meanwhile. On error the
  // content of the spans is indeterminate.
  absl::StatusOr<v1::ReadHeader> ReadParameters(absl::string_view set, MutableTensors parameters,
                                                const ReadOptions& options = {});
  absl::StatusOr<v1::ReadHeader> ReadState(absl::string_view set, const MutableState& state,
                                           const ReadOptions& options = {});

  // A stream of steps that starts at the set's current state. Write a new set's parameters before: a write moves the
  // set to another incarnation.
  absl::StatusOr<StepStream> OpenStepStream(absl::string_view set);

 private:
  std::shared_ptr<Connection> connection_;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_H_
