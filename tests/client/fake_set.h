// A server in miniature for tests of the connection: one parameter set whose step adds the gradient, streams that fail
// where a test wants them to, and a record of all that was asked.
#ifndef ADAMANT_TESTS_CLIENT_FAKE_SET_H_
#define ADAMANT_TESTS_CLIENT_FAKE_SET_H_

#include <grpcpp/support/proto_buffer_reader.h>

#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/src/formats.h"
#include "client/src/stub.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/wire/tensor_message.h"
#include "proto/wire/tensor_message_builder.h"

namespace adamant {

// Where a stream breaks: after so many messages of the request, or so many of the reply; and how.
struct Fault {
  int request_messages = std::numeric_limits<int>::max();
  int reply_messages = std::numeric_limits<int>::max();
  absl::Status status;
};

inline grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

class FakeSet {
 public:
  explicit FakeSet(std::vector<int64_t> sizes) : sizes_(std::move(sizes)) {
    for (int64_t size : sizes_) parameters.emplace_back(size);
  }

  // What was asked, in order: "Open", "Step a#1", "GetStepResult a", "Read", "Write a".
  std::vector<std::string> log;
  // What becomes of the next streams' requests; afterwards they go well.
  std::deque<Fault> faults;
  // Messages that clients sent and that are held, as gRPC may hold them after a call is over.
  std::vector<grpc::ByteBuffer> held;
  std::vector<std::vector<float>> parameters;
  int64_t step = 0;
  std::map<std::string, v1::StepResult> committed;
  // What GetStepResult says of a request that has not been committed.
  v1::StepState not_committed = v1::STEP_STATE_UNKNOWN;

  // The type of the elements that the last step came in.
  v1::Dtype gradient_dtype = v1::DTYPE_UNSPECIFIED;

  v1::StepResult Commit(const std::string& request_id, const std::vector<std::vector<float>>& gradients) {
    if (committed.contains(request_id)) return committed[request_id];
    for (size_t tensor = 0; tensor < parameters.size(); ++tensor) {
      for (size_t i = 0; i < parameters[tensor].size(); ++i) parameters[tensor][i] += gradients[tensor][i];
    }
    v1::StepResult& result = committed[request_id];
    result.set_outcome(v1::STEP_OUTCOME_APPLIED);
    result.set_step(++step);
    result.set_parameters_step(step);
    result.set_incarnation(7);
    return result;
  }

  absl::StatusOr<v1::GetStepResultResponse> GetStepResult(const v1::GetStepResultRequest& request) {
    log.push_back(absl::StrCat("GetStepResult ", request.request_id()));
    v1::GetStepResultResponse response;
    response.set_step(step);
    response.set_state(committed.contains(request.request_id()) ? v1::STEP_STATE_COMMITTED : not_committed);
    if (committed.contains(request.request_id())) *response.mutable_result() = committed[request.request_id()];
    return response;
  }

  Fault NextFault() {
    if (faults.empty()) return Fault();
    Fault fault = faults.front();
    faults.pop_front();
    return fault;
  }

  // The parameters, a message for each tensor, with `header` in the first or in the last.
  std::deque<grpc::ByteBuffer> Messages(const google::protobuf::MessageLite& header, bool header_first) const {
    return Messages(header, header_first, AllTensors());
  }
  // Those of some.
  std::deque<grpc::ByteBuffer> Messages(const google::protobuf::MessageLite& header, bool header_first,
                                        const std::vector<int32_t>& tensors,
                                        v1::Dtype dtype = v1::DTYPE_FLOAT32) const {
    std::deque<grpc::ByteBuffer> messages;
    for (const int32_t tensor : tensors) {
      const auto elements = std::make_shared<const std::vector<float>>(parameters[tensor]);
      const auto count = static_cast<int64_t>(elements->size());
      wire::TensorMessageBuilder builder(elements);
      if (tensor == (header_first ? tensors.front() : tensors.back())) builder.SetHeader(header);
      const auto form = Is16Bit(dtype) ? wire::ChunkForm::kData : wire::ChunkForm::kValues;
      builder.BeginChunk(tensor, 0, v1::SLOT_UNSPECIFIED, form, count, dtype);
      if (Is16Bit(dtype)) {
        Narrow(dtype, elements->data(), count, builder.AddNarrowed(count));
      } else {
        builder.AddElements(elements->data(), count);
      }
      messages.push_back(builder.Finish());
    }
    return messages;
  }

  const std::vector<int64_t>& sizes() const { return sizes_; }
  std::vector<int32_t> AllTensors() const {
    std::vector<int32_t> all(sizes_.size());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

 private:
  std::vector<int64_t> sizes_;
};

// What the three kinds of stream have in common: the script.
class FakeStream : public ByteStream {
 public:
  explicit FakeStream(FakeSet* set) : set_(set) {}

  void SetTimeout(absl::Duration) override {}

  absl::Status Write(grpc::ByteBuffer message) override {
    if (requests_ == 0) fault_ = set_->NextFault();
    set_->held.push_back(message);
    if (requests_++ >= fault_.request_messages) return Break();
    Take(message);
    return absl::OkStatus();
  }

  absl::Status WritesDone() override { return absl::OkStatus(); }

  absl::StatusOr<std::optional<grpc::ByteBuffer>> Read() override {
    if (replies_++ >= fault_.reply_messages) return Break();
    if (outgoing_.empty()) return std::optional<grpc::ByteBuffer>();
    std::optional<grpc::ByteBuffer> message = std::move(outgoing_.front());
    outgoing_.pop_front();
    return message;
  }

  void Cancel() override { alive_ = false; }
  void Close() override { alive_ = false; }
  void DriveUntil(absl::FunctionRef<bool()> done) override {
    set_->held.clear();
    ASSERT_TRUE(done()) << "waits for what will not come";
  }
  bool alive() override { return alive_; }

  void Kill() { alive_ = false; }

 protected:
  virtual void Take(const grpc::ByteBuffer& message) = 0;

  // The next request on this stream begins.
  void Begin() { requests_ = replies_ = 0; }

  FakeSet* const set_;
  std::deque<grpc::ByteBuffer> outgoing_;

 private:
  absl::Status Break() {
    alive_ = false;
    return fault_.status;
  }

  Fault fault_;
  int requests_ = 0;
  int replies_ = 0;
  bool alive_ = true;
};

class FakeStepStream : public FakeStream {
 public:
  using FakeStream::FakeStream;

 private:
  void Take(const grpc::ByteBuffer& buffer) override {
    absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(buffer);
    ASSERT_TRUE(message.ok()) << message.status();
    if (message->has_header()) {
      ASSERT_TRUE(message->ParseHeader(&header_).ok());
      const int attempt = header_.has_attempt() ? header_.attempt() : 1;
      set_->log.push_back(absl::StrCat("Step ", header_.request_id(), "#", attempt));
      gradients_.clear();
      rows_.clear();
      for (int64_t size : set_->sizes()) gradients_.emplace_back(size);
    }
    for (wire::TensorMessage::Chunk& chunk : message->chunks()) {
      set_->gradient_dtype = chunk.dtype();
      if (chunk.row_count() > 0) {
        TakeRows(&chunk);
        continue;
      }
      float* to = gradients_[chunk.tensor()].data() + chunk.offset();
      if (!Is16Bit(chunk.dtype())) {
        chunk.Read(to, chunk.count());
        continue;
      }
      chunk.Visit(chunk.count(), [&](const uint8_t* bytes, int64_t count) {
        Widen(chunk.dtype(), bytes, count, to);
        to += count;
      });
    }
    if (!message->last()) return;
    const bool replayed = set_->committed.contains(header_.request_id());
    v1::StepResult result = set_->Commit(header_.request_id(), gradients_);
    if (!header_.sparse().empty()) {
      result.set_replayed(replayed);
      outgoing_ = {RowsReply(result)};
    } else if (header_.omit_parameters()) {
      wire::TensorMessageBuilder builder(nullptr);
      builder.SetHeader(result);
      outgoing_ = {builder.Finish()};
    } else {
      std::vector<int32_t> tensors(header_.tensors().begin(), header_.tensors().end());
      if (tensors.empty()) tensors = set_->AllTensors();
      outgoing_ = set_->Messages(result, /*header_first=*/false, tensors, header_.reply_dtype());
    }
    Begin();
  }

  void TakeRows(wire::TensorMessage::Chunk* chunk) {
    const int64_t width = chunk->count() / chunk->row_count();
    std::vector<float> row(width);
    for (int64_t i = 0; i < chunk->row_count(); ++i) {
      int64_t index;
      chunk->ReadRows(&index, 1);
      chunk->Read(row.data(), width);
      rows_[chunk->tensor()].insert(index);
      for (int64_t k = 0; k < width; ++k) gradients_[chunk->tensor()][index * width + k] += row[k];
    }
  }

  // A step of rows alone: those that came, unless it is a replay; all tensors have two elements a row.
  grpc::ByteBuffer RowsReply(const v1::StepResult& result) const {
    wire::TensorMessageBuilder builder(nullptr);
    builder.SetHeader(result);
    for (const auto& [tensor, rows] : rows_) {
      if (result.replayed()) continue;
      const std::vector<int64_t> ascending(rows.begin(), rows.end());
      builder.BeginRows(tensor, ascending, wire::ChunkForm::kData, 2 * static_cast<int64_t>(rows.size()));
      for (const int64_t row : ascending) builder.AddElements(set_->parameters[tensor].data() + 2 * row, 2);
    }
    return builder.Finish();
  }

  v1::StepHeader header_;
  std::vector<std::vector<float>> gradients_;
  std::map<int32_t, std::set<int64_t>> rows_;
};

class FakeWriteStream : public FakeStream {
 public:
  using FakeStream::FakeStream;

 private:
  void Take(const grpc::ByteBuffer& buffer) override {
    absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(buffer);
    ASSERT_TRUE(message.ok()) << message.status();
    if (message->has_header()) {
      ASSERT_TRUE(message->ParseHeader(&header_).ok());
      set_->log.push_back(absl::StrCat("Write ", header_.request_id()));
    }
    for (wire::TensorMessage::Chunk& chunk : message->chunks()) {
      chunk.Read(set_->parameters[chunk.tensor()].data() + chunk.offset(), chunk.count());
    }
    if (!message->last()) return;
    v1::WriteTensorsResponse response;
    response.set_incarnation(8);
    response.set_step(set_->step);
    outgoing_ = {Serialize(response)};
  }

  v1::WriteHeader header_;
};

class FakeReadStream : public FakeStream {
 public:
  using FakeStream::FakeStream;

 private:
  void Take(const grpc::ByteBuffer& buffer) override {
    v1::ReadTensorsRequest request;
    grpc::ByteBuffer bytes = buffer;
    grpc::ProtoBufferReader reader(&bytes);
    ASSERT_TRUE(request.ParseFromZeroCopyStream(&reader));
    set_->log.emplace_back("Read");
    v1::ReadHeader header;
    header.set_incarnation(7);
    header.set_step(set_->step);
    header.set_state(v1::PARAMETER_SET_STATE_READY);
    header.set_not_modified(request.has_if_newer_than_step() && request.if_newer_than_step() >= set_->step);
    if (header.not_modified()) {
      wire::TensorMessageBuilder builder(nullptr);
      builder.SetHeader(header);
      outgoing_ = {builder.Finish()};
    } else {
      const std::vector<int32_t> asked(request.tensors().begin(), request.tensors().end());
      outgoing_ = set_->Messages(header, /*header_first=*/true, asked.empty() ? set_->AllTensors() : asked);
    }
  }
};

// Tells of two events, and that the set has gone.
class FakeWatchStream : public FakeStream {
 public:
  using FakeStream::FakeStream;

 private:
  void Take(const grpc::ByteBuffer&) override {
    set_->log.emplace_back("Watch");
    v1::WatchParameterSetResponse current;
    current.set_step(set_->step);
    current.mutable_current();
    v1::WatchParameterSetResponse deleted;
    deleted.mutable_deleted();
    outgoing_ = {Serialize(current), Serialize(deleted)};
  }
};

// A stub of that server. Unary calls other than GetStepResult are for the test to expect.
class FakeStub : public Stub {
 public:
  explicit FakeStub(FakeSet* set) : set_(set) {
    ON_CALL(*this, GetStepResult).WillByDefault([set](const v1::GetStepResultRequest& request, absl::Duration) {
      return set->GetStepResult(request);
    });
  }

  // There is a connection, unless a test says otherwise.
  MOCK_METHOD(absl::Status, Connect, (absl::Duration), (override));
  MOCK_METHOD(bool, AwaitDisconnect, (absl::Duration), (override));

  MOCK_METHOD(absl::StatusOr<v1::CreateParameterSetResponse>, CreateParameterSet,
              (const v1::CreateParameterSetRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::GetParameterSetResponse>, GetParameterSet,
              (const v1::GetParameterSetRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::ListParameterSetsResponse>, ListParameterSets,
              (const v1::ListParameterSetsRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::ListTensorsResponse>, ListTensors, (const v1::ListTensorsRequest&, absl::Duration),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::DeleteParameterSetResponse>, DeleteParameterSet,
              (const v1::DeleteParameterSetRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::AddTensorsResponse>, AddTensors, (const v1::AddTensorsRequest&, absl::Duration),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::UpdateParameterGroupResponse>, UpdateParameterGroup,
              (const v1::UpdateParameterGroupRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::UpdateParameterSetResponse>, UpdateParameterSet,
              (const v1::UpdateParameterSetRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::CheckpointResponse>, Checkpoint, (const v1::CheckpointRequest&, absl::Duration),
              (override));
  MOCK_METHOD(absl::StatusOr<v1::ListCheckpointsResponse>, ListCheckpoints,
              (const v1::ListCheckpointsRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::RestoreCheckpointResponse>, RestoreCheckpoint,
              (const v1::RestoreCheckpointRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::ForkResponse>, Fork, (const v1::ForkRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::GetStepResultResponse>, GetStepResult,
              (const v1::GetStepResultRequest&, absl::Duration), (override));
  MOCK_METHOD(absl::StatusOr<v1::GetServerInfoResponse>, GetServerInfo,
              (const v1::GetServerInfoRequest&, absl::Duration), (override));

  std::unique_ptr<ByteStream> OpenStep() override {
    set_->log.emplace_back("Open");
    auto stream = std::make_unique<FakeStepStream>(set_);
    last_step_stream = stream.get();
    return stream;
  }
  std::unique_ptr<ByteStream> OpenWriteTensors() override { return std::make_unique<FakeWriteStream>(set_); }
  std::unique_ptr<ByteStream> OpenReadTensors() override { return std::make_unique<FakeReadStream>(set_); }
  std::unique_ptr<ByteStream> OpenWatchParameterSet() override { return std::make_unique<FakeWatchStream>(set_); }

  FakeStepStream* last_step_stream = nullptr;

 private:
  FakeSet* const set_;
};

}  // namespace adamant

#endif  // ADAMANT_TESTS_CLIENT_FAKE_SET_H_
