// A server in this process, behind a real socket, and what a client does to it with the generated stubs.
#ifndef ADAMANT_TESTS_E2E_SERVER_FIXTURE_H_
#define ADAMANT_TESTS_E2E_SERVER_FIXTURE_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
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
#include "absl/types/optional.h"
#include "adamant/v1/error.pb.h"
#include "adamant/v1/service.grpc.pb.h"
#include "kernels/dispatch.h"
#include "proto/error/error.h"
#include "proto/wire/status.h"
#include "proto/wire/tensor_message.h"
#include "server/rpc/server.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"

namespace adamant::e2e {

using core::Arrays;
using core::Gradient;
using core::LargeSpec;
using core::ReasonOf;
using core::SameBits;
using core::SequentialAdam;
using core::SmallSpec;
using core::Values;
using wire::ChunkForm;

// Within which every call and every wait must be over: long, so that only what hangs meets it.
inline constexpr absl::Duration kHang = absl::Seconds(30);

// A small server on a port of its own.
inline rpc::ServerOptions SmallServer() {
  return {.addresses = {"127.0.0.1:0"},
          .state_bytes = int64_t{64} << 20,
          .inflight_bytes = int64_t{16} << 20,
          .read_bytes = int64_t{16} << 20,
          .max_streams = 64,
          .compute_threads = 1,
          .kernels = &kernels::BestKernels(),
          .admission_wait = absl::Seconds(10),
          .patience = absl::Seconds(30),
          .min_rate = 256 * 1024};
}

// Elements of each tensor.
inline std::vector<int64_t> TensorSizes(const v1::ParameterSetSpec& spec) {
  std::vector<int64_t> sizes;
  for (const v1::TensorSpec& tensor : spec.tensors()) {
    int64_t size = 1;
    for (const int64_t extent : tensor.shape()) size *= extent;
    sizes.push_back(size);
  }
  return sizes;
}

inline int64_t ParameterCount(const v1::ParameterSetSpec& spec) {
  int64_t count = 0;
  for (const int64_t size : TensorSizes(spec)) count += size;
  return count;
}

inline void SetElements(const float* elements, int64_t n, ChunkForm form, v1::TensorChunk* chunk) {
  if (form == ChunkForm::kData) {
    chunk->set_data(elements, n * sizeof(float));
  } else {
    chunk->mutable_values()->Add(elements, elements + n);
  }
}

// One slot of a set, all tensors in order, in chunks of at most `most` elements.
inline std::vector<v1::TensorChunk> Chunks(const v1::ParameterSetSpec& spec, const Values& values, int64_t most,
                                           ChunkForm form = ChunkForm::kData, v1::Slot slot = v1::SLOT_UNSPECIFIED) {
  std::vector<v1::TensorChunk> chunks;
  const float* next = values.data();
  const std::vector<int64_t> sizes = TensorSizes(spec);
  for (size_t tensor = 0; tensor < sizes.size(); ++tensor) {
    for (int64_t offset = 0; offset < sizes[tensor]; offset += most) {
      v1::TensorChunk& chunk = chunks.emplace_back();
      chunk.set_tensor(static_cast<int32_t>(tensor));
      chunk.set_offset(offset);
      chunk.set_slot(slot);
      const int64_t n = std::min(most, sizes[tensor] - offset);
      SetElements(next, n, form, &chunk);
      next += n;
    }
  }
  return chunks;
}

inline v1::StepHeader StepHeader(absl::string_view set, absl::string_view request_id = "",
                                 absl::optional<int64_t> expected_step = {}, absl::optional<int32_t> attempt = {}) {
  v1::StepHeader header;
  header.set_set(std::string(set));
  header.set_request_id(std::string(request_id));
  if (expected_step.has_value()) header.set_expected_step(*expected_step);
  if (attempt.has_value()) header.set_attempt(*attempt);
  return header;
}

// A step as its header alone, and a message for each chunk; and as one message.
inline std::vector<v1::StepRequest> StepMessages(const v1::StepHeader& header,
                                                 const std::vector<v1::TensorChunk>& chunks) {
  std::vector<v1::StepRequest> messages(1);
  *messages.front().mutable_header() = header;
  for (const v1::TensorChunk& chunk : chunks) *messages.emplace_back().add_chunks() = chunk;
  messages.back().set_last(true);
  return messages;
}

inline v1::StepRequest StepMessage(const v1::StepHeader& header, const std::vector<v1::TensorChunk>& chunks) {
  v1::StepRequest message;
  *message.mutable_header() = header;
  for (const v1::TensorChunk& chunk : chunks) *message.add_chunks() = chunk;
  message.set_last(true);
  return message;
}

// The elements of one array as its chunks bring them, tensors ascending.
class ChunkCollector {
 public:
  explicit ChunkCollector(std::vector<int64_t> sizes, v1::Slot slot = v1::SLOT_UNSPECIFIED)
      : sizes_(std::move(sizes)), slot_(slot) {}

  // Takes the next chunk; false if it is not the one that must come.
  bool Add(const v1::TensorChunk& chunk) {
    if (done() || chunk.slot() != slot_ || chunk.tensor() != static_cast<int32_t>(tensor_) ||
        chunk.offset() != offset_) {
      return false;
    }
    const bool data = !chunk.data().empty();
    form_ = data ? ChunkForm::kData : ChunkForm::kValues;
    const int64_t n = data ? chunk.data().size() / sizeof(float) : chunk.values_size();
    if (n == 0 || n > sizes_[tensor_] - offset_) return false;
    values_.resize(values_.size() + n);
    std::memcpy(values_.data() + values_.size() - n,
                data ? static_cast<const void*>(chunk.data().data()) : chunk.values().data(), n * sizeof(float));
    offset_ += n;
    if (offset_ == sizes_[tensor_]) {
      ++tensor_;
      offset_ = 0;
    }
    return true;
  }

  bool done() const { return tensor_ == sizes_.size(); }
  const Values& values() const { return values_; }
  // Of the last chunk.
  ChunkForm form() const { return form_; }

 private:
  const std::vector<int64_t> sizes_;
  const v1::Slot slot_;
  size_t tensor_ = 0;
  int64_t offset_ = 0;
  Values values_;
  ChunkForm form_ = ChunkForm::kData;
};

struct StepReply {
  v1::StepResult result;
  Values parameters;
  ChunkForm form;
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

  // The next reply, whole. The stream's status if it ends before.
  absl::StatusOr<StepReply> ReadReply(const v1::ParameterSetSpec& spec) {
    ChunkCollector collector(TensorSizes(spec));
    for (v1::StepResponse response; stream_->Read(&response);) {
      for (const v1::TensorChunk& chunk : response.chunks()) {
        if (!collector.Add(chunk)) return absl::InternalError("an unexpected chunk: " + chunk.ShortDebugString());
      }
      if (!response.has_result()) continue;
      if (!collector.done()) return absl::InternalError("a result before all parameters");
      return StepReply{response.result(), collector.values(), collector.form()};
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

// Everything that a client can see of a set.
struct SetState {
  v1::ParameterSet description;
  Arrays arrays;  // empty if the set cannot be read
};

inline bool operator==(const SetState& a, const SetState& b) {
  return a.description.SerializeAsString() == b.description.SerializeAsString() && a.arrays == b.arrays;
}

// One connection to a server, and plain calls on it.
class TestClient {
 public:
  explicit TestClient(const std::string& address) {
    grpc::ChannelArguments arguments;
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

  // Writes the parameters; or, with a header of mode FULL, everything but the step, which the header has.
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
    send(arrays.parameters, v1::SLOT_PARAMETER);
    if (header.mode() == v1::WRITE_MODE_FULL) {
      send(arrays.exp_avg, v1::SLOT_EXP_AVG);
      send(arrays.exp_avg_sq, v1::SLOT_EXP_AVG_SQ);
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
    const std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ};
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
      if (response.has_header()) arrays.step = response.header().step();
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
    arrays.parameters = collectors[0].values();
    arrays.exp_avg = collectors[1].values();
    arrays.exp_avg_sq = collectors[2].values();
    return arrays;
  }

  absl::StatusOr<SetState> ReadState(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<v1::ParameterSet> description = Get(spec.name());
    if (!description.ok()) return description.status();
    SetState state{*std::move(description), {}};
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

// Serves from construction to Drain, which its destruction calls if nobody else did.
class TestServer {
 public:
  explicit TestServer(const rpc::ServerOptions& options = SmallServer()) {
    absl::StatusOr<std::unique_ptr<rpc::Server>> server = rpc::Server::Start(options);
    if (!server.ok()) {
      ADD_FAILURE() << server.status();
      std::abort();
    }
    server_ = *std::move(server);
  }
  ~TestServer() { Drain(absl::Seconds(10)); }

  const std::string& address() const { return server_->addresses().front(); }
  void Drain(absl::Duration timeout) {
    if (!std::exchange(drained_, true)) server_->Drain(timeout);
  }

 private:
  std::unique_ptr<rpc::Server> server_;
  bool drained_ = false;
};

// Each test has a server and a client of its own.
class ServerTest : public ::testing::Test {
 protected:
  explicit ServerTest(const rpc::ServerOptions& options = SmallServer())
      : server_(options), client_(server_.address()) {}

  // A set that `spec` is right for.
  v1::ParameterSet MakeSet(const v1::ParameterSetSpec& spec) {
    absl::StatusOr<v1::CreateParameterSetResponse> created = client_.Create(spec);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->parameter_set() : v1::ParameterSet();
  }

  TestServer server_;
  TestClient client_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_SERVER_FIXTURE_H_
