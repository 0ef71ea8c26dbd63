// What every call has in common: messages as they are on the wire, one read and one write outstanding at most, one end.
//
// All are served as streams, through gRPC's generic service, because only so the server decides when a message is read:
// gRPC reads the request of a registered unary method before anybody is asked. 2,000 half-sent ones of 4 MiB held 7
// GiB, whatever its ResourceQuota said; with a limited number of places they held 0.1 GiB.
#ifndef ADAMANT_SERVER_RPC_CALL_H_
#define ADAMANT_SERVER_RPC_CALL_H_

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "adamant/v1/error.pb.h"
#include "google/protobuf/message.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/budget.h"
#include "server/rpc/live_calls.h"
#include "server/rpc/open_calls.h"

namespace adamant::rpc {

// Whether a method moves any number of messages, or one each way.
enum class CallShape { kStream, kOnce };

// What a call may carry of metadata, in bytes, each entry counted as HTTP/2 does (32 more than its key and its value).
inline constexpr int64_t kMaxMetadataBytes = int64_t{32} << 10;

// A call waits for a place, is let in, and is then idle or within an operation (a step, a write, a request and its
// answer) until it ends. The handlers (OnMessage and so on) run one at a time, since the Read or Write of one starts
// the next: OnMessage runs after Read, OnWritten after Write. A read and a write are never outstanding at the same
// time. OnDrain, OnOver and what the set reports may come at any time. No lock is held in any of them.
class Call : public grpc::ServerGenericBidiReactor, public std::enable_shared_from_this<Call> {
 public:
  // `context` is null in tests without a network.
  Call(OpenCalls* open_calls, grpc::GenericCallbackServerContext* context, CallShape shape);

  // Has the call let in and begins it, or ends it. Keeps it alive until gRPC is done with it.
  void Open();

  // For OpenCalls: the call has a place. Begins it, unless it has ended meanwhile.
  void LetIn(core::Grant place);
  // For OpenCalls: the call is to wait for a place, which `waiting` pays for. It reads nothing and answers nothing yet.
  void AwaitPlace(core::Grant waiting);
  // For WaitingRoom: ends the call with `status` if it still waits for a place.
  void Refuse(const absl::Status& status);

  // The server drains: ends the call if it waits, or if no message of it has come, and tells it so if it is between two
  // operations.
  void DrainIfIdle();
  // For OpenCalls: what the server says of itself may have changed. May come at any time, even before OnOpen.
  virtual void OnNews() {}
  // When a call is to give way to others that wait for what it holds: not yet; if its connection does not deserve
  // better (OpenCalls says when); or in any case.
  enum class GivesWay { kNever, kWhereUndeserved, kWhenWanted };
  // What a sweep finds.
  struct Standing {
    int64_t charge = 0;  // what is charged to the call, in bytes
    bool holds_memory = false;
    bool idle = false;
    bool leaving = false;  // it has ended, and its charge is about to be free
    absl::Duration silence = absl::ZeroDuration();
    GivesWay gives_way = GivesWay::kNever;
  };
  // Ends the call, DEADLINE_EXCEEDED (STALLED), if its client has kept it waiting for longer than it may. A message
  // under way to the client may end first, for as long again: a status that comes in the middle of a message is lost on
  // some clients (Go's reports `unexpected EOF`).
  Standing CheckPatience(const OpenCalls::Sweep& sweep);
  // Ends the call to the advantage of others, if its client is still silent: RESOURCE_EXHAUSTED (TOO_MANY_STREAMS, with
  // RetryInfo), or STALLED in the middle of a step or write. A reply under way is cut off, UNAVAILABLE.
  void GiveWay(const OpenCalls::Sweep& sweep);

  // Whether its end is decided.
  bool ended() const;
  // What gRPC takes for the metadata of the call, in bytes, at most.
  int64_t MetadataCost() const;
  // Tells the client's connection from others. All that come over Unix sockets are one.
  virtual std::string Connection() const;

 protected:
  // Called when the call was let in. Starts the first read: of an operation, unless the call may be idle for as long as
  // it likes.
  virtual void OnOpen();
  // Called when a message of at most wire::kMaxMessageBytes has come.
  virtual void OnMessage(const grpc::ByteBuffer& message) = 0;
  // Called when the client has said that it sends nothing more. Most calls have one message, and read nothing after it.
  virtual void OnHalfClose();
  // Called when the last write is on its way.
  virtual void OnWritten() = 0;
  // Called when the server drains and the call is idle.
  virtual void OnDrain() { End(DrainingError()); }
  // Called once, when the call has ended or was cancelled. Drops everything that the call holds.
  virtual void OnOver() {}

  // What the server waits for while a read is outstanding. `what` completes "the server waited 5s for ..."; `detail`
  // says where in the request that is.
  struct Expectation {
    std::string what;
    v1::ErrorDetail detail;
  };
  // Called while a read is outstanding and no handler runs.
  virtual Expectation Expected() const { return {"its request", {}}; }

  // These do nothing once the call has ended. Each starts a read or a write, while none is outstanding.
  void Read();
  void Write(const grpc::ByteBuffer& message);
  // Ends the call. The client gets `status`, after what was written.
  void End(const absl::Status& status);

  // The operation is about the set of this name: the detail of an error that ends it says so.
  void NameSet(absl::string_view name);

  // Gives back all of its charge but `bytes`, which is all that the call needs from here on.
  void ShrinkCharge(int64_t bytes);

  // The charge of the call, cut to `bytes`, for whoever holds its memory from here on.
  core::Grant TakeCharge(int64_t bytes);

  // How long a client may take over an operation.
  struct Operation {
    // The bytes that it sends and takes. They must move at `min_rate` or faster.
    int64_t bytes;
    // Whether the client may be silent between its messages for as long as nobody waits for what the call holds.
    bool may_think = false;
    // Whether the call holds memory that others may wait for, beside its place.
    bool holds_memory = false;
  };
  void BeginOperation(const Operation& operation);
  // The operation is over, or the call opens with none: the call is idle. It may stay so for as long as its client
  // likes, or for PatienceTerms::For(bytes); while others wait for its place, at most for `patience`.
  void EndOperation(std::optional<int64_t> bytes = std::nullopt);

  // Code that may start a read or a write runs between Enter and Leave, so that none is started after gRPC's Finish,
  // which the last Leave after an End calls. Enter returns whether the call still goes on; if it does not, there is
  // nothing to leave.
  bool Enter();
  void Leave();

  CallShape shape() const { return shape_; }

 private:
  enum class Phase { kWaiting, kIdle, kBusy };
  // What the client owes: nothing, its next message, or to take a reply.
  enum class Awaited { kNothing, kMessage, kWritten };

  // A client that has kept the server waiting for too long.
  struct Overdue {
    Phase phase;
    Awaited awaited;
    bool has_message;
    absl::Duration waited;
    bool gives_way;
  };

  void OnReadDone(bool ok) final;
  void OnWriteDone(bool ok) final;
  void OnCancel() final;
  void OnDone() final;

  absl::Status CheckMetadata() const;
  void Await(Awaited what, int64_t outgoing_bytes);
  // Whether the client owes the server something, or the call is idle.
  bool IsSilent() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return awaited_ != Awaited::kNothing || (phase_ == Phase::kIdle && entered_ == 0);
  }
  // Whether a client that has kept the server waiting for `waited` has done so for longer than it may.
  bool IsOverdue(const OpenCalls::Sweep& sweep, absl::Duration waited) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // How long the client may take over the message that is being written to it while others wait.
  absl::Duration ReplyTime() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return kReplyGrace + open_calls_->terms().AtMinRate(outgoing_bytes_);
  }
  // Whether it is to give way if it is not overdue.
  GivesWay Judge(const OpenCalls::Sweep& sweep, absl::Duration waited) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether a call that has ended has taken too long to leave.
  bool IsStuck(const OpenCalls::Sweep& sweep, absl::Duration waited) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Decides the end of a call whose client is overdue, from where no handler begins any more. The caller has entered.
  Overdue DecideEnd(const OpenCalls::Sweep& sweep, bool gives_way) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends a call whose client is overdue. Its last message may still leave. Requires: the caller has entered, and has
  // decided the end.
  void EndOverdue(const Overdue& overdue);
  // Takes what an ended call holds away from its client, whether or not that has taken the last message and the status.
  void CutOff();
  // Does what is left to do once the end is decided. Requires: the caller has entered.
  void FinishEnd();
  // "METHOD from PEER", for the log.
  std::string Description() const;

  const LiveCall live_;
  OpenCalls* const open_calls_;
  grpc::GenericCallbackServerContext* const context_;
  const CallShape shape_;
  std::shared_ptr<Call> self_;  // until OnDone
  // Held until the last Leave, and no longer: the client may call again before gRPC is done with the call. But until
  // OnDone or CutOff if the call was not over for its client, which may have sent more than was read: where the client
  // takes nothing, the end does not get through, and gRPC keeps what has come.
  core::Grant waiting_;
  core::Grant place_;
  std::atomic<int64_t> charge_ = 0;  // what was made of place_
  grpc::ByteBuffer incoming_;        // gRPC's between Read and OnReadDone
  grpc::ByteBuffer outgoing_;        // gRPC's between Write and OnWriteDone

  mutable core::Mutex mutex_;
  int entered_ ABSL_GUARDED_BY(mutex_) = 0;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool gave_way_ ABSL_GUARDED_BY(mutex_) = false;
  bool cut_off_ ABSL_GUARDED_BY(mutex_) = false;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kWaiting;
  // The set that the operation is about; empty where none is known.
  std::string set_name_ ABSL_GUARDED_BY(mutex_);
  // Whether a whole message has come.
  bool has_message_ ABSL_GUARDED_BY(mutex_) = false;
  // How the call ends, once that is decided.
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);

  Awaited awaited_ ABSL_GUARDED_BY(mutex_) = Awaited::kNothing;
  // When a sweep first found that it is awaited, or that the call has ended.
  std::optional<absl::Duration> awaited_since_ ABSL_GUARDED_BY(mutex_);
  int64_t outgoing_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of the message that is to be taken
  // These belong to the current operation.
  bool may_think_ ABSL_GUARDED_BY(mutex_) = false;
  bool holds_memory_ ABSL_GUARDED_BY(mutex_) = false;
  // The rest of the time that its bytes may take.
  absl::Duration allowance_ ABSL_GUARDED_BY(mutex_);
  // How long an idle call may stay so.
  absl::Duration idle_limit_ ABSL_GUARDED_BY(mutex_);
};

// Requests that move no tensors and create no set are small.
inline constexpr int64_t kMaxRequestBytes = int64_t{64} << 10;

// `message` as gRPC sends it.
grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);
// Parses a whole message of at most `max_bytes`. Errors, INVALID_ARGUMENT: MESSAGE_TOO_LARGE, MALFORMED_MESSAGE, and
// INVALID_FIELD for more elements than wire::kMaxRepeated, and then `message` is empty; UNKNOWN_FIELD, and then it
// holds what is known, unless the message is large.
absl::Status Parse(const grpc::ByteBuffer& buffer, google::protobuf::Message* message,
                   int64_t max_bytes = kMaxRequestBytes);

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_CALL_H_
