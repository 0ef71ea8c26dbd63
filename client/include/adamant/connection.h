// The calls of a server, each with its retries: what Client and StepStream are written on, and what a test of a program
// that uses them replaces (adamant/mocks/mock_connection.h).
#ifndef ADAMANT_CONNECTION_H_
#define ADAMANT_CONNECTION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "adamant/options.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"

namespace adamant {

// One array of floats a tensor, in order of the tensors' index, each of the tensor's element count.
using ConstTensors = absl::Span<const absl::Span<const float>>;
using MutableTensors = absl::Span<const absl::Span<float>>;

// How far a transfer has come: `done` of `total` elements, 0 < done <= total. Called from the thread of the call, after
// each message and with `done` ascending; an attempt that follows a failed one begins anew. What has been sent is under
// way, and no more. For a progress bar; it should return soon.
using Progress = std::function<void(int64_t done, int64_t total)>;

// Elements that are not in memory but come from elsewhere, such as a file: fills `to` with those of a tensor in `slot`,
// UNSPECIFIED for a gradient, from `begin` on. Called from the thread of the call, a message at a time; an attempt that
// follows a failed one asks for them again. An error ends the call before anything is applied, and is what that
// returns; it should be none that RetryPolicy repeats.
using ElementReader = std::function<absl::Status(v1::Slot slot, int32_t tensor, int64_t begin, absl::Span<float> to)>;

// The gradient of some rows of a tensor, for a step that brings no more of it (StepOptions::rows).
struct RowsGradient {
  // Index of the tensor, which has at least one extent.
  int32_t tensor;
  // Indices into that extent, in any order. What comes for a row more than once is added up in this order.
  absl::Span<const int64_t> rows;
  // The elements of each of these rows, one row after the other.
  absl::Span<const float> values;
};

// One step: a gradient up, parameters back. No part of `gradients` and `rows` overlaps one of `parameters`.
struct StepCall {
  // `attempt` is the connection's to set, and `request_id` where it is empty.
  v1::StepHeader header;
  // The spans of tensors that the step does not bring are empty.
  ConstTensors gradients;
  // So are these here; those of tensors that come in rows are there. With header.omit_parameters() or
  // header.ack_when_folded() there is none at all.
  MutableTensors parameters;
  // How the gradient travels; it is rounded to that on the way.
  v1::Dtype gradient_dtype = v1::DTYPE_FLOAT32;
  // Of the tensors that header.sparse() announces, in its order.
  absl::Span<const RowsGradient> rows = {};
  // Of a contribution: how long it may wait for the others, beside the time of a step.
  absl::Duration round_timeout = absl::ZeroDuration();
  // Where `gradients` come from: then of their spans the size counts alone. Empty: from the spans.
  ElementReader read = nullptr;
  // Empty: nobody is told. First the gradient goes, then the parameters come; rows do not count.
  Progress progress = nullptr;
};

// One write: every tensor of each slot that header.mode() writes. The spans of tensors that it does not bring are
// empty.
struct WriteCall {
  struct Source {
    v1::Slot slot;
    ConstTensors tensors;
  };
  // `request_id` is the connection's to set where it is empty.
  v1::WriteHeader header;
  std::vector<Source> sources;
  // Empty: nobody is told.
  Progress progress = nullptr;
  // Where they come from: then of their spans the size counts alone. Empty: from the spans.
  ElementReader read = nullptr;
};

// One read: of each slot that it names every tensor, or those of request.tensors().
struct ReadCall {
  struct Target {
    v1::Slot slot;
    MutableTensors tensors;
  };
  // `slots` is the connection's to set, from `targets`.
  v1::ReadTensorsRequest request;
  // The spans of tensors that are not to come are empty.
  std::vector<Target> targets;
  // Empty: nobody is told.
  Progress progress = nullptr;
};

// What happens to one set (see Client::Watch). Next is for one thread at a time. Its destructor ends it.
class EventStream {
 public:
  virtual ~EventStream() = default;

  // Blocks until there is an event, and returns it. Nothing once the set has been deleted, which was the event before.
  // CANCELLED after Cancel; another error when the server is lost: no event will follow any of these.
  virtual absl::StatusOr<std::optional<v1::WatchParameterSetResponse>> Next() = 0;
  // Ends the stream, and a Next that waits. From any thread.
  virtual void Cancel() = 0;
};

// Thread-safe. Every function blocks until its call has succeeded, has failed for good, or has used up its retries;
// then the error is that of the last attempt. Spans in arguments are no longer referred to once a function has
// returned, whatever it returned.
class Connection {
 public:
  virtual ~Connection() = default;

  virtual absl::StatusOr<v1::CreateParameterSetResponse> CreateParameterSet(
      const v1::CreateParameterSetRequest& request) = 0;
  virtual absl::StatusOr<v1::GetParameterSetResponse> GetParameterSet(const v1::GetParameterSetRequest& request) = 0;
  virtual absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(
      const v1::ListParameterSetsRequest& request) = 0;
  virtual absl::StatusOr<v1::ListTensorsResponse> ListTensors(const v1::ListTensorsRequest& request) = 0;
  // OK also when an attempt after the first finds no such set: an earlier one has deleted it.
  virtual absl::StatusOr<v1::DeleteParameterSetResponse> DeleteParameterSet(
      const v1::DeleteParameterSetRequest& request) = 0;
  virtual absl::StatusOr<v1::AddTensorsResponse> AddTensors(const v1::AddTensorsRequest& request) = 0;
  virtual absl::StatusOr<v1::UpdateParameterGroupResponse> UpdateParameterGroup(
      const v1::UpdateParameterGroupRequest& request) = 0;
  virtual absl::StatusOr<v1::UpdateParameterSetResponse> UpdateParameterSet(
      const v1::UpdateParameterSetRequest& request) = 0;
  // These may take as long as a read or write of the whole set (ClientOptions::transfer_timeout). What an attempt whose
  // reply was lost means for the next one is in adamant/client.h.
  virtual absl::StatusOr<v1::CheckpointResponse> Checkpoint(const v1::CheckpointRequest& request) = 0;
  virtual absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const v1::ListCheckpointsRequest& request) = 0;
  virtual absl::StatusOr<v1::RestoreCheckpointResponse> RestoreCheckpoint(
      const v1::RestoreCheckpointRequest& request) = 0;
  virtual absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request) = 0;
  virtual absl::StatusOr<v1::GetStepResultResponse> GetStepResult(const v1::GetStepResultRequest& request) = 0;
  virtual absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const v1::GetServerInfoRequest& request) = 0;

  // Applies one step, exactly once. On OK every element of `parameters` is of the step `parameters_step` of the result,
  // whatever its outcome, and rounded as header.reply_dtype() says; on error they are indeterminate. Of a tensor that
  // comes in rows that holds for those rows, and the others are not touched, or are of that step, too.
  virtual absl::StatusOr<v1::StepResult> Step(const StepCall& call) = 0;
  // On OK everything was written, once. What holds after an error is in service.proto (WriteTensors).
  virtual absl::StatusOr<v1::WriteTensorsResponse> Write(const WriteCall& call) = 0;
  // On OK every element is of the header's one step, or, with `not_modified`, untouched; on error indeterminate.
  virtual absl::StatusOr<v1::ReadHeader> Read(const ReadCall& call) = 0;

  // On OK the watch has begun. What ends it later is not repeated: who asks for another learns from its first event
  // where the set stands by then.
  virtual absl::StatusOr<std::unique_ptr<EventStream>> Watch(const v1::WatchParameterSetRequest& request) = 0;
};

// The real one, to a server at `target`: host:port, unix:path, or any name that gRPC resolves. Connects when the first
// call needs it, which waits for a server that is not there yet. INVALID_ARGUMENT when `target` is empty or an option
// is out of its range.
absl::StatusOr<std::shared_ptr<Connection>> MakeConnection(const std::string& target,
                                                           const ClientOptions& options = {});

}  // namespace adamant

#endif  // ADAMANT_CONNECTION_H_
