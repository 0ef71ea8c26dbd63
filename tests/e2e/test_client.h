// What a client does to a server, with the generated stubs.
#ifndef ADAMANT_TESTS_E2E_TEST_CLIENT_H_
#define ADAMANT_TESTS_E2E_TEST_CLIENT_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "adamant/v1/service.grpc.pb.h"
#include "google/protobuf/util/message_differencer.h"
#include "proto/error/error.h"
#include "proto/wire/status.h"
#include "proto/wire/target.h"
#include "tests/core/sequential_model.h"
#include "tests/e2e/tensor_messages.h"

namespace adamant::e2e {

// Within which every call and every wait must be over: long, so that only what hangs meets it.
inline constexpr absl::Duration kHang = absl::Seconds(30);

struct StepReply {
  v1::StepResult result;
  Values parameters;
  ChunkForm form;
  std::vector<uint16_t> halves = {};  // instead of `parameters`, where they travel in 16 bits
};

// One call of Step. Cancelled when it is destroyed before its end.
class StepStream {
 public:
  explicit StepStream(v1::OptimizerService::Stub* stub, absl::Duration deadline = kHang) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    stream_ = stub->Step(&context_);
  }
  ~StepStream() {
    if (finished_) return;
    Cancel();
    Finish().IgnoreError();
  }
  StepStream(const StepStream&) = delete;
  StepStream& operator=(const StepStream&) = delete;

  // False if the stream has ended.
  bool Send(const v1::StepRequest& message) { return stream_->Write(message); }
  bool Send(const std::vector<v1::StepRequest>& messages) {
    return std::all_of(messages.begin(), messages.end(), [this](const auto& message) { return Send(message); });
  }

  // The next message of a reply. False if the stream has ended.
  bool Receive(v1::StepResponse* message) { return stream_->Read(message); }
  // The next reply, whole. The stream's status if it ends before.
  absl::StatusOr<StepReply> ReadReply(const v1::ParameterSetSpec& spec) { return ReadReply(TensorSizes(spec)); }
  // The same, of so many elements of each tensor: none of those that the step does not bring.
  absl::StatusOr<StepReply> ReadReply(std::vector<int64_t> sizes) {
    ChunkCollector collector(std::move(sizes));
    for (v1::StepResponse response; stream_->Read(&response);) {
      for (const v1::TensorChunk& chunk : response.chunks()) {
        if (!collector.Add(chunk)) return absl::InternalError("an unexpected chunk: " + chunk.ShortDebugString());
      }
      if (!response.has_result()) continue;
      if (!collector.done()) return absl::InternalError("a result before all parameters");
      return StepReply{response.result(), collector.values(), collector.form(), collector.halves()};
    }
    const absl::Status status = Finish();
    return status.ok() ? absl::OutOfRangeError("the stream ended in good order") : status;
  }

  void HalfClose() { stream_->WritesDone(); }
  void Cancel() { context_.TryCancel(); }

  // The stream's end, waiting for it; what is left of replies is thrown away.
  absl::Status Finish() {
    if (!finished_) {
      v1::StepResponse response;
      while (stream_->Read(&response)) {
      }
      status_ = wire::FromGrpcStatus(stream_->Finish());
      finished_ = true;
    }
    return status_;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepRequest, v1::StepResponse>> stream_;
  bool finished_ = false;
  absl::Status status_;
};

// What a client can see of a set, but for its checkpoints: the server makes one whenever it is due.
struct SetState {
  v1::ParameterSet description;  // without the last checkpoint
  Arrays arrays;                 // empty if the set cannot be read
};

inline bool operator==(const SetState& a, const SetState& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a.description, b.description) && a.arrays == b.arrays;
}

// One connection to a server, and plain calls on it.
class TestClient {
 public:
  explicit TestClient(const std::string& address) {
    grpc::ChannelArguments arguments = wire::ArgumentsForTarget(address);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection that nobody shares
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::OptimizerService::NewStub(channel_);
  }

  v1::OptimizerService::Stub* stub() { return stub_.get(); }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  absl::StatusOr<v1::CreateParameterSetResponse> Create(const v1::ParameterSetSpec& spec,
                                                        v1::IfExists if_exists = v1::IF_EXISTS_FAIL) {
    v1::CreateParameterSetRequest request;
    *request.mutable_spec() = spec;
    request.set_if_exists(if_exists);
    return Call(&v1::OptimizerService::Stub::CreateParameterSet, request);
  }

  absl::StatusOr<v1::ParameterSet> Get(absl::string_view set) {
    v1::GetParameterSetRequest request;
    request.set_name(std::string(set));
    absl::StatusOr<v1::GetParameterSetResponse> response = Call(&v1::OptimizerService::Stub::GetParameterSet, request);
    if (!response.ok()) return response.status();
    return response->parameter_set();
  }

  absl::Status Delete(absl::string_view set) {
    v1::DeleteParameterSetRequest request;
    request.set_name(std::string(set));
    return Call(&v1::OptimizerService::Stub::DeleteParameterSet, request).status();
  }

  absl::StatusOr<v1::GetStepResultResponse> GetStepResult(absl::string_view set, absl::string_view request_id) {
    v1::GetStepResultRequest request;
    request.set_set(std::string(set));
    request.set_request_id(std::string(request_id));
    return Call(&v1::OptimizerService::Stub::GetStepResult, request);
  }

  absl::StatusOr<v1::StepOnceResponse> StepOnce(const v1::StepOnceRequest& request) {
    return Call(&v1::OptimizerService::Stub::StepOnce, request);
  }

  // A whole step on a stream of its own.
  absl::StatusOr<StepReply> Step(const v1::ParameterSetSpec& spec, const v1::StepHeader& header, const Values& gradient,
                                 int64_t most = 65536, ChunkForm form = ChunkForm::kData) {
    StepStream stream(stub_.get());
    stream.Send(StepMessages(header, Chunks(spec, gradient, most, form)));
    absl::StatusOr<StepReply> reply = stream.ReadReply(spec);
    if (!reply.ok()) return reply;
    stream.HalfClose();
    if (absl::Status status = stream.Finish(); !status.ok()) return status;
    return reply;
  }

  // Writes the parameters; or, with a header of mode FULL, everything but the step and the counts of updates, which the
  // header has.
  absl::StatusOr<v1::WriteTensorsResponse> Write(const v1::ParameterSetSpec& spec, v1::WriteHeader header,
                                                 const Arrays& arrays) {
    header.set_set(spec.name());
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    v1::WriteTensorsResponse response;
    auto stream = stub_->WriteTensors(&context, &response);
    v1::WriteTensorsRequest first;
    *first.mutable_header() = header;
    stream->Write(first);
    const auto send = [&](const Values& values, v1::Slot slot) {
      for (v1::TensorChunk& chunk : Chunks(spec, values, 65536, ChunkForm::kData, slot)) {
        v1::WriteTensorsRequest message;
        *message.add_chunks() = std::move(chunk);
        if (!stream->Write(message)) return;
      }
    };
    for (const v1::Slot slot : SlotsOf(spec)) {
      if (slot == v1::SLOT_PARAMETER || header.mode() == v1::WRITE_MODE_FULL) send(ArrayOf(slot, &arrays), slot);
    }
    v1::WriteTensorsRequest last;
    last.set_last(true);
    stream->Write(last);
    stream->WritesDone();
    if (absl::Status status = wire::FromGrpcStatus(stream->Finish()); !status.ok()) return status;
    return response;
  }

  // Every slot of a set, in one read.
  absl::StatusOr<Arrays> ReadArrays(const v1::ParameterSetSpec& spec, bool as_values = false) {
    const std::vector<v1::Slot> slots = SlotsOf(spec);
    v1::ReadTensorsRequest request;
    request.set_set(spec.name());
    for (const v1::Slot slot : slots) request.add_slots(slot);
    request.set_as_values(as_values);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    auto stream = stub_->ReadTensors(&context, request);
    std::vector<ChunkCollector> collectors;
    for (const v1::Slot slot : slots) collectors.emplace_back(TensorSizes(spec), slot);
    Arrays arrays;
    size_t current = 0;
    for (v1::ReadTensorsResponse response; stream->Read(&response);) {
      if (response.has_header()) {
        arrays.step = response.header().step();
        arrays.update_counts.assign(response.header().update_counts().begin(), response.header().update_counts().end());
      }
      for (const v1::TensorChunk& chunk : response.chunks()) {
        if (collectors[current].done()) ++current;
        if (current == slots.size() || !collectors[current].Add(chunk)) {
          context.TryCancel();
          return absl::InternalError("an unexpected chunk of tensor " + std::to_string(chunk.tensor()));
        }
      }
    }
    if (absl::Status status = wire::FromGrpcStatus(stream->Finish()); !status.ok()) return status;
    if (!collectors.back().done()) return absl::InternalError("elements are missing");
    for (size_t i = 0; i < slots.size(); ++i) ArrayOf(slots[i], &arrays) = collectors[i].values();
    return arrays;
  }

  absl::StatusOr<SetState> ReadState(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<v1::ParameterSet> description = Get(spec.name());
    if (!description.ok()) return description.status();
    SetState state{*std::move(description), {}};
    state.description.clear_last_checkpoint();
    if (state.description.state() != v1::PARAMETER_SET_STATE_READY) return state;
    absl::StatusOr<Arrays> arrays = ReadArrays(spec);
    if (!arrays.ok()) return arrays.status();
    state.arrays = *std::move(arrays);
    return state;
  }

  // Bytes in use, by budget.
  std::map<std::string, int64_t> UsedBudgets() {
    std::map<std::string, int64_t> used;
    absl::StatusOr<v1::GetServerInfoResponse> info =
        Call(&v1::OptimizerService::Stub::GetServerInfo, v1::GetServerInfoRequest());
    if (!info.ok()) {
      ADD_FAILURE() << info.status();
      return used;
    }
    for (const v1::MemoryBudget& budget : info->budgets()) used[budget.name()] = budget.used_bytes();
    return used;
  }

  // Asks until `holds()` does. Calls end, and give back what they held, a little after their clients know of it.
  template <typename Condition>
  static bool Until(Condition holds) {
    const absl::Time deadline = absl::Now() + kHang;
    while (!holds()) {
      if (absl::Now() > deadline) return false;
    }
    return true;
  }

  ::testing::AssertionResult ReturnsTo(const std::map<std::string, int64_t>& budgets) {
    std::map<std::string, int64_t> used;
    if (Until([&] { return (used = UsedBudgets()) == budgets; })) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "in use: " << ::testing::PrintToString(used) << ", expected "
                                         << ::testing::PrintToString(budgets);
  }

  // Waits until the request is in this state.
  ::testing::AssertionResult Reaches(absl::string_view set, absl::string_view request_id, v1::StepState state) {
    absl::StatusOr<v1::GetStepResultResponse> result;
    const bool reached = Until([&] {
      result = GetStepResult(set, request_id);
      return !result.ok() || result->state() == state;
    });
    if (reached && result.ok()) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << (result.ok() ? result->ShortDebugString() : result.status().ToString());
  }

  // A unary call.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::OptimizerService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                   Response*),
                                const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
    Response response;
    absl::Status status = wire::FromGrpcStatus((stub_.get()->*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::OptimizerService::Stub> stub_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_TEST_CLIENT_H_
