// What every call has in common: messages as they are on the wire, one read and one write outstanding at most, one end.
//
// All are served as streams, through gRPC's generic service, because only so the server decides when a message is read:
// gRPC reads the request of a registered unary method before anybody is asked. 2,000 half-sent ones of 4 MiB held 7
// GiB, whatever its ResourceQuota said; with slots for them, 0.1.
#ifndef ADAMANT_SERVER_RPC_CALL_H_
#define ADAMANT_SERVER_RPC_CALL_H_

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "google/protobuf/message.h"
#include "server/core/budget.h"
#include "server/core/mutex.h"
#include "server/rpc/open_calls.h"

namespace adamant::rpc {

// Whether a method moves any number of messages, or one each way.
enum class CallShape { kStream, kOnce };

// The call's handlers (OnMessage and so on) run one at a time, as a consequence of what they start: OnMessage after
// Read, OnWritten after Write. OnDrain, OnOver and what the set reports may come at any time. No lock is held in any of
// them.
class Call : public grpc::ServerGenericBidiReactor, public std::enable_shared_from_this<Call> {
 public:
  Call(OpenCalls* open_calls, grpc::CallbackServerContext* context);

  // Lets the call in and begins it, or ends it. Keeps it alive until gRPC is done with it.
  void Open();

  // The server drains: tells the call so if it is between two operations.
  void DrainIfIdle();
  // Ends the call, DEADLINE_EXCEEDED (STALLED), if its client has kept it waiting for longer than it may.
  void CheckPatience();

 protected:
  // The call was let in. Starts the first read: of an operation, unless the call may be idle for as long as it likes.
  virtual void OnOpen();
  // A message has come.
  virtual void OnMessage(const grpc::ByteBuffer& message) = 0;
  // The client sends no more. Of most calls the first message is the last one, behind which nothing is read.
  virtual void OnHalfClose();
  // The last write is on its way.
  virtual void OnWritten() = 0;
  // The server drains, and the call is idle.
  virtual void OnDrain() { End(DrainingError()); }
  // The call has ended or was cancelled: drop everything. Once.
  virtual void OnOver() {}

  // These do nothing once the call has ended. Read and Write start one operation each, which must not be outstanding.
  void Read();
  void Write(const grpc::ByteBuffer& message);
  // Ends the call. The client gets `status`, after what was written if it is OK; a write that is outstanding is cut
  // off.
  void End(const absl::Status& status);

  // The operation is about the set of this name: the detail of an error that ends it says so.
  void NameSet(absl::string_view name);

  // The call needs no more than `bytes` of its charge from here on.
  void ShrinkCharge(int64_t bytes) { grant_.ShrinkTo(bytes); }

  // An operation begins, for which the client may keep the server waiting as long as `bytes` bytes allow.
  void BeginOperation(int64_t bytes);
  // It is over, or the call opens with none: the call is idle, for as long as its client likes, or as `bytes` bytes
  // allow.
  void EndOperation(absl::optional<int64_t> bytes = absl::nullopt);

  // Whatever may start an operation of gRPC's happens between these two, so that none is started after Finish: a call
  // that has ended is over when everybody has left. Enter says whether it is still going on; if not, there is nothing
  // to leave.
  bool Enter();
  void Leave();

  bool ended() const;
  OpenCalls* open_calls() const { return open_calls_; }

 private:
  void OnReadDone(bool ok) final;
  void OnWriteDone(bool ok) final;
  void OnCancel() final;
  void OnDone() final;

  void StartWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  OpenCalls* const open_calls_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<Call> self_;  // until OnDone
  core::Grant grant_;           // until everybody has left: the client may call again before gRPC is done with the call
  grpc::ByteBuffer incoming_;   // gRPC's between Read and OnReadDone
  grpc::ByteBuffer outgoing_;   // gRPC's between Write and OnWriteDone

  mutable core::Mutex mutex_;
  int entered_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  // Whether the call is between two operations.
  bool idle_ ABSL_GUARDED_BY(mutex_) = false;
  // The set that the operation is about; empty where none is known.
  std::string set_name_ ABSL_GUARDED_BY(mutex_);
  // How the call ends, once that is decided.
  absl::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  // What is left of the time that the client has; nothing if it has all the time that it likes.
  absl::optional<absl::Duration> allowance_ ABSL_GUARDED_BY(mutex_);
  // Since when the server waits for the client.
  absl::optional<absl::Duration> waiting_since_ ABSL_GUARDED_BY(mutex_);
};

// `message` as gRPC sends it.
grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);
// Parses a whole message. Errors, INVALID_ARGUMENT: MALFORMED_MESSAGE, and then `message` is empty; UNKNOWN_FIELD, and
// then it holds what is known.
absl::Status Parse(const grpc::ByteBuffer& buffer, google::protobuf::Message* message);

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_CALL_H_
