// What steps and writes have in common: a header, then tensors in any number of messages, then an answer.
#ifndef ADAMANT_SERVER_RPC_UPLOAD_CALL_H_
#define ADAMANT_SERVER_RPC_UPLOAD_CALL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "server/core/base/mutex.h"
#include "server/core/set/listener.h"
#include "server/rpc/call.h"
#include "server/rpc/element_format.h"

namespace adamant::rpc {

// Reads uploads, one after the other, and delivers each to an attempt (core::StepAttempt or core::WriteAttempt). While
// the set decides whether it admits the attempt, no read is posted. From its last message on the upload is the set's,
// until OnReply.
template <typename Attempt, typename Reply>
class UploadCall : public Call, public Attempt::Listener {
 protected:
  using Header = typename Attempt::Header;

  // `thing` is what error messages call an upload, `type` its messages.
  UploadCall(absl::string_view thing, absl::string_view type, OpenCalls* open_calls,
             grpc::GenericCallbackServerContext* context, CallShape shape)
      : Call(open_calls, context, shape), thing_(thing), type_(type) {}

  void OnOpen() override {
    BeginOperation({.bytes = wire::kMaxMessageBytes, .may_think = shape() == CallShape::kStream});
    Read();
  }

  // What `header` begins; yet to be started. Begins the operation, too.
  virtual absl::StatusOr<std::shared_ptr<Attempt>> NewAttempt(const Header& header) = 0;
  // How a stream ends whose client sends no more before its first upload or between two.
  virtual absl::Status EndBetweenUploads() const = 0;
  // The upload was applied. The answer is to be written.
  virtual void OnReply(Reply reply) = 0;

  // What the client sent its elements as, for an answer in kind.
  wire::ChunkForm form() const { return form_.value_or(wire::ChunkForm::kData); }

  absl::Status EndedEarly() const { return UnexpectedMessage("the stream ended before the last message of the "); }

 private:
  absl::Status UnexpectedMessage(absl::string_view what) const {
    return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNEXPECTED_MESSAGE, absl::StrCat(what, thing_));
  }

  void OnMessage(const grpc::ByteBuffer& buffer) final {
    wire::TensorMessage message;
    absl::Status status = wire::TensorMessage::Decode(buffer, type_, &message);
    const std::shared_ptr<Attempt> attempt = this->attempt();
    if (status.ok()) {
      status = attempt == nullptr ? Begin(buffer, std::move(message)) : Continue(attempt.get(), std::move(message));
    } else if (attempt == nullptr && message.has_header()) {
      // What is wrong is known; which set it was for is not.
      Header header;
      ParseHeader(message, &header).IgnoreError();
    }
    if (!status.ok()) End(status);
  }

  Expectation Expected() const final {
    const std::shared_ptr<Attempt> attempt = this->attempt();
    if (attempt == nullptr) return {absl::StrCat("the first message of a ", thing_), {}};
    const absl::Status missing = attempt->CheckComplete();
    Expectation expected = {absl::StrCat("the rest of the ", thing_, ": ", missing.message()), GetErrorDetail(missing)};
    if (missing.ok()) expected.what = absl::StrCat("the ", thing_, "'s `last`: every element has come");
    return expected;
  }

  void OnHalfClose() final {
    if (shape() == CallShape::kOnce) {
      Call::OnHalfClose();
    } else {
      End(attempt() == nullptr ? EndBetweenUploads() : EndedEarly());
    }
  }

  absl::Status Begin(const grpc::ByteBuffer& buffer, wire::TensorMessage message) {
    if (!message.has_header()) return UnexpectedMessage("no header in the first message of a ");
    form_.reset();
    Header header;
    if (absl::Status status = ParseHeader(message, &header); !status.ok()) return status;
    absl::StatusOr<std::shared_ptr<Attempt>> attempt = NewAttempt(header);
    if (!attempt.ok()) return attempt.status();
    {
      core::MutexLock lock(&upload_mutex_);
      if (ended()) return absl::OkStatus();
      attempt_ = *attempt;
      message_ = std::move(message);
    }
    (*attempt)->Start();
    // An attempt that has to wait keeps the bytes alone: decoded, a message of small chunks takes half as much again.
    // By now the next upload may have begun.
    std::optional<wire::TensorMessage> decoded;
    core::MutexLock lock(&upload_mutex_);
    if (attempt_ == *attempt && message_.has_value()) {
      decoded = std::exchange(message_, std::nullopt);
      undecoded_ = buffer;
    }
    return absl::OkStatus();
  }

  // Errors name the header's set from here on.
  absl::Status ParseHeader(const wire::TensorMessage& message, Header* header) {
    absl::Status status = message.ParseHeader(header);
    NameSet(header->set());
    return status;
  }

  void OnAdmitted() final {
    std::shared_ptr<Attempt> attempt;
    std::optional<wire::TensorMessage> message;
    grpc::ByteBuffer undecoded;
    {
      core::MutexLock lock(&upload_mutex_);
      if (attempt_ == nullptr) return;
      attempt = attempt_;
      message = std::exchange(message_, std::nullopt);
      undecoded.Swap(&undecoded_);
    }
    absl::Status status;
    if (!message.has_value()) status = wire::TensorMessage::Decode(undecoded, type_, &message.emplace());
    undecoded.Clear();
    if (status.ok()) status = Take(attempt.get(), *std::move(message));
    if (!status.ok()) End(status);
  }

  absl::Status Continue(Attempt* attempt, wire::TensorMessage message) {
    if (message.has_header()) return UnexpectedMessage("a header before the last message of the ");
    return Take(attempt, std::move(message));
  }

  absl::Status Take(Attempt* attempt, wire::TensorMessage message) {
    for (size_t i = 0; i < message.chunks().size(); ++i) {
      wire::TensorMessage::Chunk& chunk = message.chunks()[i];
      if (!form_.has_value() && chunk.count() > 0) form_ = chunk.form();
      const std::optional<kernels::Format16> format = FormatOf(chunk.dtype());
      const auto read = [&](float* to, int64_t n) {
        if (!format.has_value()) {
          chunk.Read(to, n);
          return;
        }
        const kernels::WidenFunction widen = attempt->host_kernels().widen[*format];
        chunk.Visit(n, [&](const uint8_t* bytes, int64_t count) {
          widen(bytes, to, count);
          to += count;
        });
      };
      const auto read_rows = [&](int64_t* to, int64_t n) { chunk.ReadRows(to, n); };
      absl::Status status = chunk.row_count() == 0
                                ? attempt->Add(chunk.slot(), chunk.tensor(), chunk.offset(), chunk.count(), read)
                                : attempt->AddRows(chunk.slot(), chunk.tensor(), chunk.offset(), chunk.row_count(),
                                                   read_rows, chunk.count(), read);
      if (!status.ok()) return Within(absl::StrCat("chunks[", i, "]"), status);
    }
    if (message.last() || shape() == CallShape::kOnce) return attempt->Complete();
    Read();
    return absl::OkStatus();
  }

  void OnOutcome(absl::StatusOr<Reply> reply) final {
    if (!reply.ok()) {
      End(reply.status());
      return;
    }
    DropAttempt();
    OnReply(*std::move(reply));
  }

  void OnOver() final {
    if (const std::shared_ptr<Attempt> attempt = DropAttempt()) attempt->Cancel();
  }

  std::shared_ptr<Attempt> attempt() const {
    core::MutexLock lock(&upload_mutex_);
    return attempt_;
  }

  // Attempts take locks of their set's when they are destroyed, and messages let go of much memory: not under the
  // mutex.
  std::shared_ptr<Attempt> DropAttempt() {
    std::optional<wire::TensorMessage> message;
    grpc::ByteBuffer undecoded;
    core::MutexLock lock(&upload_mutex_);
    message = std::exchange(message_, std::nullopt);
    undecoded.Swap(&undecoded_);
    return std::exchange(attempt_, nullptr);
  }

  const absl::string_view thing_;
  const absl::string_view type_;

  // Of the handlers, which run one at a time.
  std::optional<wire::ChunkForm> form_;  // of the upload's first chunk that has elements

  mutable core::Mutex upload_mutex_;
  // The upload under way; null between two, and from its outcome on.
  std::shared_ptr<Attempt> attempt_ ABSL_GUARDED_BY(upload_mutex_);
  // Its first message, until it is admitted: decoded at first, and as it came once the attempt has to wait.
  std::optional<wire::TensorMessage> message_ ABSL_GUARDED_BY(upload_mutex_);
  grpc::ByteBuffer undecoded_ ABSL_GUARDED_BY(upload_mutex_);
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_UPLOAD_CALL_H_
