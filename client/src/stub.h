// The server's calls as they are: one attempt each, no retries, no waiting for a connection, tensors as raw messages.
// What the connection is written on, and what its tests replace.
#ifndef ADAMANT_CLIENT_SRC_STUB_H_
#define ADAMANT_CLIENT_SRC_STUB_H_

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "adamant/v1/service.pb.h"

namespace adamant {

// One streaming call. Thread-compatible but for Cancel: its caller's thread drives it, and while no function runs
// nothing happens. Its destructor closes it.
class ByteStream {
 public:
  virtual ~ByteStream() = default;

  // From now on the functions below together may take `timeout`. When it is over the call is cancelled, and they return
  // DEADLINE_EXCEEDED.
  virtual void SetTimeout(absl::Duration timeout) = 0;

  // Sends a message; returns when another may be sent, which is before this one has left. On error the call has ended,
  // and the error says why.
  virtual absl::Status Write(grpc::ByteBuffer message) = 0;
  // Says that no message will follow. The same on error.
  virtual absl::Status WritesDone() = 0;
  // The next message, or nothing if the call has ended OK. On error the call has ended.
  virtual absl::StatusOr<std::optional<grpc::ByteBuffer>> Read() = 0;

  // Cancels the call if it has not ended, so that the functions above end, too. From any thread, but not while or after
  // Close runs.
  virtual void Cancel() = 0;
  // Cancels the call if it has not ended, and lets go of it. Only DriveUntil may follow.
  virtual void Close() = 0;
  // Lets gRPC work until `done()`, which must come true by that. Not bound by the timeout.
  virtual void DriveUntil(absl::FunctionRef<bool()> done) = 0;
  // Whether the call has not ended, as far as is known. Does not wait.
  virtual bool alive() = 0;
};

// Thread-safe.
class Stub {
 public:
  virtual ~Stub() = default;

  // Waits until there is a connection to the server, for at most `timeout`; makes one where there is none. On error,
  // UNAVAILABLE, there is still none, and the error says why.
  virtual absl::Status Connect(absl::Duration timeout) = 0;
  // Waits for `timeout`, or only until there is no connection. Returns whether there is none.
  virtual bool AwaitDisconnect(absl::Duration timeout) = 0;

  // Unary calls end DEADLINE_EXCEEDED after `timeout`.
  virtual absl::StatusOr<v1::CreateParameterSetResponse> CreateParameterSet(
      const v1::CreateParameterSetRequest& request, absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::GetParameterSetResponse> GetParameterSet(const v1::GetParameterSetRequest& request,
                                                                      absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(const v1::ListParameterSetsRequest& request,
                                                                          absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::ListTensorsResponse> ListTensors(const v1::ListTensorsRequest& request,
                                                              absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::DeleteParameterSetResponse> DeleteParameterSet(
      const v1::DeleteParameterSetRequest& request, absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::AddTensorsResponse> AddTensors(const v1::AddTensorsRequest& request,
                                                            absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::UpdateParameterGroupResponse> UpdateParameterGroup(
      const v1::UpdateParameterGroupRequest& request, absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::UpdateParameterSetResponse> UpdateParameterSet(
      const v1::UpdateParameterSetRequest& request, absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::CheckpointResponse> Checkpoint(const v1::CheckpointRequest& request,
                                                            absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const v1::ListCheckpointsRequest& request,
                                                                      absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::RestoreCheckpointResponse> RestoreCheckpoint(const v1::RestoreCheckpointRequest& request,
                                                                          absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request, absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::GetStepResultResponse> GetStepResult(const v1::GetStepResultRequest& request,
                                                                  absl::Duration timeout) = 0;
  virtual absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const v1::GetServerInfoRequest& request,
                                                                  absl::Duration timeout) = 0;

  // Begins a call. Errors show in its first function.
  virtual std::unique_ptr<ByteStream> OpenStep() = 0;
  virtual std::unique_ptr<ByteStream> OpenWriteTensors() = 0;
  virtual std::unique_ptr<ByteStream> OpenReadTensors() = 0;
  virtual std::unique_ptr<ByteStream> OpenWatchParameterSet() = 0;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_STUB_H_
