// A streaming call over gRPC, driven by the thread that uses it.
//
// The call has a completion queue of its own, polled by whoever waits: a small step's reply is taken off the socket by
// the thread that wants it, without a thread switch, and a wait ends at its deadline although the call, which carries
// many steps, has none.
//
// Thread-compatible but for Cancel.
#ifndef ADAMANT_CLIENT_SRC_GRPC_BYTE_STREAM_H_
#define ADAMANT_CLIENT_SRC_GRPC_BYTE_STREAM_H_

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/src/stub.h"

namespace adamant {

class GrpcByteStream : public ByteStream {
 public:
  // Begins a call of `method`, "/adamant.v1.OptimizerService/Step". Functions that wait ask `interrupted`, if there is
  // one, whether to cancel it; they then return CANCELLED.
  GrpcByteStream(grpc::GenericStub* stub, const std::string& method, std::function<bool()> interrupted = nullptr);
  ~GrpcByteStream() override;

  void SetTimeout(absl::Duration timeout) override;
  absl::Status Write(grpc::ByteBuffer message) override;
  absl::Status WritesDone() override;
  absl::StatusOr<std::optional<grpc::ByteBuffer>> Read() override;
  void Cancel() override;
  void Close() override;
  void DriveUntil(absl::FunctionRef<bool()> done) override;
  bool alive() override;

 private:
  // What may be outstanding: each at most once, and write and writes-done not both. A read always is, from the start of
  // the call until one fails, except while a message waits in `messages_`: so the end of an idle call is seen.
  enum Operation { kStart, kRead, kWrite, kFinish, kOperationCount };

  // Operations complete as tags: the operation's number.
  void* Begin(Operation operation);
  // Takes in one completed operation, waiting no longer than until `deadline`. Returns whether there was one.
  bool Poll(gpr_timespec deadline);
  // Polls until `done()`. When the timeout is over, or the wait is interrupted, cancels the call first, so `done` must
  // come true by the call's end.
  void Wait(absl::FunctionRef<bool()> done);
  void StartRead();
  // Waits for the end of a call that has failed, or that the server has ended, and says how it ended.
  absl::Status End();

  const std::function<bool()> interrupted_;
  grpc::CompletionQueue queue_;
  // Null once closed: the context owns the call, and the call the message that it was sending when it broke.
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;

  gpr_timespec deadline_;
  absl::Duration timeout_ = absl::InfiniteDuration();
  // Why it was cancelled. OK: it was not.
  absl::Status given_up_;

  bool outstanding_[kOperationCount] = {};
  // An operation has failed: the call is over, and all that is left is to learn its status.
  bool broken_ = false;
  bool finished_ = false;
  grpc::Status status_;
  grpc::ByteBuffer incoming_;
  std::deque<grpc::ByteBuffer> messages_;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_GRPC_BYTE_STREAM_H_
