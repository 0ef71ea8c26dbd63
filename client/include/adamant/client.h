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
};

struct WriteOptions {
  // Demands this incarnation; another one is ABORTED.
  std::optional<uint64_t> incarnation = std::nullopt;
  // Names the write, so that a program that was restarted may repeat it: 1 to 64 printable ASCII characters. Empty: a
  // random one.
  std::string request_id = {};
};

// The whole state of a set: everything that a checkpoint needs.
struct ConstState {
  // In [0, 2^53].
  int64_t step = 0;
  ConstTensors parameters = {};
  ConstTensors exp_avg = {};
  ConstTensors exp_avg_sq = {};
};

// Where to put it.
struct MutableState {
  MutableTensors parameters = {};
  MutableTensors exp_avg = {};
  MutableTensors exp_avg_sq = {};
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
  // What became of the step that was sent with this request_id.
  absl::StatusOr<v1::GetStepResultResponse> GetStepResult(absl::string_view set, absl::string_view request_id);
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo();

  // Replaces all parameters. Moments and step are kept, and are zero in a new set.
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
