#include "tests/core/set_schedule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "tests/core/cuda_device.h"
#include "tests/core/late_backend.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_model.h"

namespace adamant::core {
namespace {

constexpr int kClients = 3;
constexpr size_t kMostKept = 4;  // readings, and replies

std::string WithoutAttempt(v1::StepHeader header) {
  header.clear_attempt();
  return header.SerializeAsString();
}

struct Request {
  v1::StepHeader header;
  Values gradient;
};

struct StepCall {
  StepDelivery delivery;
  Request request;
  Arrival arrival;
  bool live;     // admitted, and neither over nor cancelled
  bool dropped;  // remembered when it began: its gradient goes nowhere
};

struct WriteCall {
  WriteDelivery delivery;
  v1::WriteHeader header;
  Arrays arrays;
  std::vector<std::pair<v1::Slot, Arrival>> slots;
  bool live;
  bool replay;
};

struct KeptReading {
  std::unique_ptr<Reading> reading;
  Arrays arrays;
};

struct KeptReply {
  StepReply reply;
  Values parameters;
};

// One for all schedules of a program.
CudaDevices& CudaDeviceOfAll() {
  static CudaDevices* const devices = new CudaDevices(/*threads=*/1);
  return *devices;
}

class Schedule {
 public:
  Schedule(SetSize size, Device device, Choices* choices)
      : choices_(*choices),
        size_(size),
        spec_(size == SetSize::kSmall ? SmallSpec() : LargeSpec()),
        late_(device == Device::kLate || device == Device::kApart
                  ? std::make_unique<LateBackend>(device == Device::kLate ? LateBackend::Slots::kOnHost
                                                                          : LateBackend::Slots::kApart)
                  : nullptr),
        device_(device == Device::kCuda ? CudaDeviceOfAll().device() : late_.get()),
        // More arrays than all readings, replies and deliveries together hold: each begins at once.
        server_({.backend = device_,
                 .registrar = device == Device::kCuda ? CudaDeviceOfAll().registrar() : nullptr,
                 .idle_arrays = 24}) {
    switch (choices_.Choose(6)) {
      case 1:
        spec_ = WithEmptyTensors(spec_);
        break;
      case 2:
        spec_ = EmptySpec();
        break;
      default:
        break;
    }
  }

  std::string Run() {
    Create();
    while (difference_.empty() && choices_.more()) {
      if (asynchronous()) AwaitIdle();
      Act();
      if (size_ == SetSize::kSmall || choices_.Choose(8) == 0) CheckState();
      ++actions_;
    }
    if (difference_.empty()) CheckAll();
    return difference_;
  }

 private:
  void Act() {
    switch (choices_.Choose(20)) {
      case 0:
      case 1:
      case 2:
        return BeginAStep();
      case 3:
      case 4:
      case 5:
        return SendAChunk();
      case 6:
      case 7:
      case 8:
      case 9:
        return SendTheRest();
      case 10:
        return SendAnyChunk();
      case 11:
        return CompleteAStep();
      case 12:
        return CancelAStep();
      case 13:
        steps_[choices_.Choose(kClients)].reset();  // the client is gone
        return;
      case 14:
        return ReadSomething();
      case 15:
        return LetGoOfSomething();
      case 16:
        return AskForAResult();
      case 17:
        return Write();
      case 18:
        return TakeSeveralSteps();
      case 19:
        return DeleteOrCreate();
    }
  }

  // Whether steps are computed by other threads.
  bool asynchronous() const { return size_ == SetSize::kLarge || device_ != nullptr; }

  // Returns once nothing is under way, and all that was is let go of. What ends on the device may have a compute thread
  // begin the next turn, and that the device once more; no action begins more than that.
  void AwaitIdle() {
    for (int i = 0; i < 3; ++i) {
      AwaitDevice();
      server_.AwaitIdle();
    }
  }

  void AwaitDevice() {
    if (late_ != nullptr) {
      late_->AwaitIdle();
    } else if (device_ != nullptr) {
      CudaDeviceOfAll().AwaitIdle();
    }
  }

  // Notes the first difference.
  template <typename A, typename B>
  bool Expect(const A& actual, const B& expected, absl::string_view what) {
    if (actual == expected) return true;
    if (difference_.empty()) {
      difference_ = absl::StrCat("action ", actions_, ": ", what, " is ", actual, ", and should be ", expected);
    }
    return false;
  }

  bool ExpectReason(v1::ErrorReason actual, v1::ErrorReason expected, absl::string_view what) {
    return Expect(v1::ErrorReason_Name(actual), v1::ErrorReason_Name(expected), what);
  }

  void Create() {
    spec_.set_initialization(choices_.Choose(4) == 0 ? v1::INITIALIZATION_WRITTEN : v1::INITIALIZATION_ZEROS);
    set_ = server_.MakeSet(spec_);
    model_ = std::make_unique<Model>(Model{.adam = SequentialAdam(spec_),
                                           .state = spec_.initialization() == v1::INITIALIZATION_ZEROS
                                                        ? Model::State::kReady
                                                        : Model::State::kUninitialized,
                                           .incarnation = set_->Describe().incarnation(),
                                           .memory = {}});
  }

  // ---- steps

  Values AGradient() {
    const uint64_t seed = choices_.Choose(1000);
    Values gradient = Gradient(model_->adam.parameter_count(), seed);
    if (!gradient.empty() && choices_.Choose(8) == 0) {
      constexpr float kBad[] = {std::numeric_limits<float>::infinity(), -0x1p63f,
                                std::numeric_limits<float>::quiet_NaN()};
      gradient[choices_.Choose(gradient.size())] = kBad[choices_.Choose(3)];
    }
    return gradient;
  }

  Request ARequest() {
    // A retry brings what the first attempt brought.
    if (!requests_.empty() && choices_.Choose(3) == 0) {
      Request request = requests_[requests_.size() - 1 - choices_.Choose(std::min<size_t>(requests_.size(), 4))];
      if (choices_.Choose(4) > 0) request.header.set_attempt(1 + choices_.Choose(3));
      if (choices_.Choose(8) == 0) request.header.set_expected_step(std::max<int64_t>(0, model_->step()));
      return request;
    }
    Request request;
    int64_t expected = model_->step();
    if (choices_.Choose(4) == 0) expected = std::max<int64_t>(0, expected + choices_.Choose(4) - 2);
    if (choices_.Choose(16) == 0) expected = std::max<int64_t>(0, expected - 63 - choices_.Choose(3));
    if (choices_.Choose(4) > 0) {
      request.header.set_request_id(absl::StrCat("r", requests_.size()));
      request.header.set_expected_step(expected);
      if (choices_.Choose(2) == 0) request.header.set_attempt(1 + choices_.Choose(3));
    } else if (choices_.Choose(2) == 0) {
      request.header.set_expected_step(expected);
    }
    if (choices_.Choose(4) == 0) request.header.set_incarnation(model_->incarnation + choices_.Choose(4) / 3);
    if (choices_.Choose(8) == 0) {
      request.header.set_schema_fingerprint(set_->schema().fingerprint() + choices_.Choose(2));
    }
    request.gradient = AGradient();
    if (!request.header.request_id().empty()) requests_.push_back(request);
    return request;
  }

  v1::ErrorReason HeaderRefusal(const v1::StepHeader& header) const {
    if (model_->NotReady() != kNone) return model_->NotReady();
    if (const Model::Remembered* remembered = model_->Find(header.request_id()); remembered != nullptr) {
      return remembered->header == WithoutAttempt(header) ? kNone : v1::ERROR_REASON_REQUEST_ID_REUSED;
    }
    if (header.has_incarnation() && header.incarnation() != model_->incarnation) {
      return v1::ERROR_REASON_INCARNATION_MISMATCH;
    }
    if (header.has_schema_fingerprint() && header.schema_fingerprint() != set_->schema().fingerprint()) {
      return v1::ERROR_REASON_SCHEMA_MISMATCH;
    }
    if (header.has_expected_step() && header.expected_step() < model_->step()) return model_->Mismatch(header);
    for (const std::optional<StepCall>& other : steps_) {
      if (!header.request_id().empty() && other.has_value() && other->live &&
          other->request.header.request_id() == header.request_id() &&
          AttemptOf(other->request.header) > AttemptOf(header)) {
        return v1::ERROR_REASON_SUPERSEDED;
      }
    }
    return kNone;
  }

  void BeginAStep() {
    std::optional<StepCall>& call = steps_[choices_.Choose(kClients)];
    call.reset();
    Request request = ARequest();
    const std::string& request_id = request.header.request_id();
    const v1::ErrorReason refusal = HeaderRefusal(request.header);
    const bool dropped = model_->Find(request_id) != nullptr;
    StepDelivery delivery = BeginStep(set_.get(), request.header);
    if (refusal != kNone) {
      if (!Expect(delivery.done(), true, "refused")) return;
      ExpectReason(ReasonOf(delivery.Take().status()), refusal, "what is said of a header");
      return;
    }
    if (!Expect(delivery.done(), false, "refused") || !Expect(delivery.admitted(), true, "admitted")) return;
    if (!request_id.empty()) {
      for (std::optional<StepCall>& other : steps_) {
        if (other.has_value() && other->request.header.request_id() == request_id &&
            AttemptOf(other->request.header) <= AttemptOf(request.header)) {
          ExpectEnd(&*other, v1::ERROR_REASON_SUPERSEDED);
        }
      }
    }
    call.emplace(StepCall{.delivery = std::move(delivery),
                          .request = std::move(request),
                          .arrival = Arrival(set_->schema()),
                          .live = true,
                          .dropped = dropped});
  }

  // A step that was live has ended because of what somebody else did.
  void ExpectEnd(StepCall* call, v1::ErrorReason reason) {
    if (!call->live) return;
    call->live = false;
    if (Expect(call->delivery.done(), true, "ended")) {
      ExpectReason(ReasonOf(call->delivery.Take().status()), reason, "why a step ended");
    }
  }

  void EndSteps(v1::ErrorReason reason) {
    for (std::optional<StepCall>& call : steps_) {
      if (call.has_value()) ExpectEnd(&*call, reason);
    }
  }

  // A step under way. Null if the client that is chosen has none.
  StepCall* AStep() {
    std::optional<StepCall>& call = steps_[choices_.Choose(kClients)];
    return call.has_value() && call->live ? &*call : nullptr;
  }

  void SendAChunk() {
    StepCall* call = AStep();
    if (call != nullptr && !call->arrival.complete()) Send(call, call->arrival.Next(&choices_));
  }

  void SendTheRest() {
    StepCall* call = AStep();
    if (call == nullptr) return;
    for (const Piece& piece : call->arrival.Rest()) Send(call, piece);
    if (choices_.Choose(4) > 0) Complete(call);
  }

  void SendAnyChunk() {
    StepCall* call = AStep();
    if (call == nullptr) return;
    const int32_t tensor = static_cast<int32_t>(choices_.Choose(call->arrival.tensors() + 2)) - 1;
    Piece piece = {tensor, static_cast<int64_t>(choices_.Choose(36)) - 2, static_cast<int64_t>(choices_.Choose(36)) - 1,
                   0};
    if (Arrival(call->arrival).Take(piece) == kNone) piece.begin = call->arrival.BeginOf(tensor) + piece.offset;
    Send(call, piece);
  }

  void Send(StepCall* call, const Piece& piece) {
    const v1::ErrorReason wrong = call->arrival.Take(piece);
    const absl::Status status = call->delivery.Send(piece, call->request.gradient);
    if (call->dropped) {
      Expect(status.ok(), true, "a chunk that goes nowhere being taken");
      return;
    }
    ExpectReason(ReasonOf(status), wrong, "what is said of a chunk");
    if (wrong == kNone) return;
    Expect(GetErrorDetail(status).tensor(), piece.tensor, "the tensor named");
    Expect(GetErrorDetail(status).offset(), piece.offset, "the offset named");
    if (wrong == v1::ERROR_REASON_CHUNK_OUT_OF_ORDER) {
      Expect(GetErrorDetail(status).expected_offset(), call->arrival.received(piece.tensor), "the offset expected");
    }
    call->live = false;
  }

  void CompleteAStep() {
    if (StepCall* call = AStep(); call != nullptr) Complete(call);
  }

  void Complete(StepCall* call) {
    if (!call->live) return;
    const absl::Status status = call->delivery.Complete();
    call->live = false;
    if (!call->dropped && !call->arrival.complete()) {
      ExpectReason(ReasonOf(status), v1::ERROR_REASON_INCOMPLETE, "what is said of an end");
      Expect(GetErrorDetail(status).tensor(), call->arrival.Rest()[0].tensor, "the tensor missing");
      Expect(GetErrorDetail(status).offset(), call->arrival.Rest()[0].offset, "the offset missing");
      return;
    }
    if (!Expect(status.ok(), true, "completed")) return;
    const bool heard = choices_.Choose(8) > 0;
    if (!heard && !asynchronous()) {
      // The client is gone before it hears; elsewhere this may be before the turn.
      v1::StepResult unheard;
      Turn(call->request, call->dropped, &unheard);
      return;
    }
    absl::StatusOr<StepReply> reply = call->delivery.Take();
    AwaitIdle();
    v1::StepResult result;
    const v1::ErrorReason refusal = Turn(call->request, call->dropped, &result);
    if (!ExpectReason(ReasonOf(reply.status()), refusal, "what became of a step") || refusal != kNone) return;
    if (std::isnan(result.grad_norm()) && std::isnan(reply->result.grad_norm())) {
      result.set_grad_norm(0);
      reply->result.set_grad_norm(0);
    }
    Expect(reply->result.ShortDebugString(), result.ShortDebugString(), "the result");
    Expect(reply->result.grad_norm(), result.grad_norm(), "the norm");
    Expect(SameBits(Parameters(*reply), model_->adam.arrays().parameters), true, "the reply's being the model's");
    if (replies_.size() < kMostKept) replies_.push_back({*std::move(reply), model_->adam.arrays().parameters});
  }

  // What a step does at its turn.
  v1::ErrorReason Turn(const Request& request, bool dropped, v1::StepResult* result) {
    const v1::StepHeader& header = request.header;
    if (model_->NotReady() != kNone) return model_->NotReady();
    if (const Model::Remembered* remembered = model_->Find(header.request_id()); remembered != nullptr) {
      if (remembered->header != WithoutAttempt(header)) return v1::ERROR_REASON_REQUEST_ID_REUSED;
      *result = remembered->result;
      result->set_replayed(true);
      result->set_parameters_step(model_->step());
      return kNone;
    }
    if (dropped) return v1::ERROR_REASON_OUTCOME_UNKNOWN;
    if (header.has_expected_step() && header.expected_step() != model_->step()) return model_->Mismatch(header);
    result->set_incarnation(model_->incarnation);
    result->set_grad_norm(model_->adam.Norm(request.gradient));
    result->set_config_revision(1);
    const auto bad = absl::c_find_if(request.gradient, [](float g) { return !(std::fabs(g) < 0x1p63f); });
    if (bad != request.gradient.end()) {
      const int64_t place = bad - request.gradient.begin();
      int32_t tensor = 0;
      while (tensor + 1 < static_cast<int32_t>(set_->schema().sizes().size()) &&
             Arrival(set_->schema()).BeginOf(tensor + 1) <= place) {
        ++tensor;
      }
      result->set_outcome(v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
      result->set_step(model_->step());
      result->set_non_finite_tensor(tensor);
      result->set_non_finite_offset(place - Arrival(set_->schema()).BeginOf(tensor));
    } else {
      model_->adam.Apply(request.gradient);
      result->set_outcome(v1::STEP_OUTCOME_APPLIED);
      result->set_step(model_->step());
      for (const v1::ParameterGroup& group : spec_.groups()) result->add_learning_rates(group.learning_rate());
      model_->memory.push_back({header.request_id(), WithoutAttempt(header), *result});
      if (model_->memory.size() > kRemembered) model_->memory.pop_front();
    }
    result->set_parameters_step(model_->step());
    return kNone;
  }

  void CancelAStep() {
    StepCall* call = AStep();
    if (call == nullptr) return;
    call->delivery.Cancel();
    call->live = false;
    // Nothing that still comes changes anything.
    for (const Piece& piece : call->arrival.Rest()) call->delivery.Send(piece, call->request.gradient).IgnoreError();
    call->delivery.Complete().IgnoreError();
    Expect(call->delivery.done(), false, "answered");
  }

  // So that requests grow old.
  void TakeSeveralSteps() {
    if (model_->NotReady() != kNone) return;
    const int count = size_ == SetSize::kSmall ? 1 + 8 * choices_.Choose(9) : 1 + choices_.Choose(2);
    for (int i = 0; i < count; ++i) {
      const Request request = {.header = {}, .gradient = Gradient(model_->adam.parameter_count(), i)};
      v1::StepResult result;
      Turn(request, false, &result);
      const absl::StatusOr<StepReply> reply = Step(set_.get(), request.header, request.gradient);
      if (!Expect(reply.ok(), true, "applied")) return;
      Expect(reply->result.ShortDebugString(), result.ShortDebugString(), "the result");
    }
    AwaitIdle();
  }

  void AskForAResult() {
    if (!requests_.empty()) CheckResult(requests_[choices_.Choose(requests_.size())].header.request_id());
  }

  void CheckResult(const std::string& request_id) {
    const absl::StatusOr<v1::GetStepResultResponse> response = StepResultOf(*set_, request_id);
    if (model_->state == Model::State::kDeleted) {
      ExpectReason(ReasonOf(response.status()), v1::ERROR_REASON_SET_NOT_FOUND, "what became of a step");
      return;
    }
    if (!Expect(response.ok(), true, "answered")) return;
    v1::GetStepResultResponse expected;
    expected.set_step(model_->step());
    expected.set_incarnation(model_->incarnation);
    expected.set_state(v1::STEP_STATE_UNKNOWN);
    if (const Model::Remembered* remembered = model_->Find(request_id); remembered != nullptr) {
      expected.set_state(v1::STEP_STATE_COMMITTED);
      *expected.mutable_result() = remembered->result;
      expected.mutable_result()->set_replayed(true);
      expected.mutable_result()->clear_parameters_step();
    } else if (absl::c_any_of(steps_, [&](const std::optional<StepCall>& call) {
                 return call.has_value() && call->live && call->request.header.request_id() == request_id;
               })) {
      expected.set_state(v1::STEP_STATE_IN_FLIGHT);
    }
    Expect(response->ShortDebugString(), expected.ShortDebugString(), "what became of a step");
  }

  // ---- reads

  void ReadSomething() {
    if (readings_.size() == kMostKept) return;
    const bool full = choices_.Choose(2) == 0;
    v1::ReadTensorsRequest request = full ? FullReadRequest() : ReadRequest();
    if (choices_.Choose(4) == 0) request.set_if_newer_than_step(model_->step() - choices_.Choose(2));
    absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
    if (!ExpectReason(ReasonOf(reading.status()), model_->NotReady(), "what became of a read") || !reading.ok()) return;
    const bool unmodified = request.has_if_newer_than_step() && request.if_newer_than_step() == model_->step();
    Expect((*reading)->header().step(), model_->step(), "the step read");
    Expect((*reading)->header().incarnation(), model_->incarnation, "the incarnation read");
    Expect((*reading)->header().not_modified(), unmodified, "not modified");
    if (!unmodified) readings_.push_back({*std::move(reading), model_->adam.arrays()});
  }

  void LetGoOfSomething() {
    if (!readings_.empty() && choices_.Choose(2) == 0) {
      const size_t i = choices_.Choose(readings_.size());
      CheckReading(readings_[i]);
      readings_.erase(readings_.begin() + i);
    } else if (!replies_.empty()) {
      const size_t i = choices_.Choose(replies_.size());
      CheckReply(replies_[i]);
      replies_.erase(replies_.begin() + i);
    }
  }

  void CheckReading(const KeptReading& kept) {
    if (kept.reading->slots().size() == 1) {
      Expect(SameBits(*Fetch(*kept.reading, v1::SLOT_PARAMETER), kept.arrays.parameters), true,
             "a reader's having the parameters that it began with");
    } else {
      Expect(*Fetch(*kept.reading) == kept.arrays, true, "a reader's having the state that it began with");
    }
  }

  void CheckReply(const KeptReply& kept) {
    Expect(SameBits(Parameters(kept.reply), kept.parameters), true,
           "a reply's having the parameters that it came with");
  }

  // ---- writes

  void Write() {
    if (!write_.has_value()) {
      BeginAWrite(&write_);
      return;
    }
    switch (choices_.Choose(8)) {
      case 0:
        write_.reset();  // the client is gone
        return;
      case 1: {
        // There is one write at a time.
        std::optional<WriteCall> other;
        BeginAWrite(&other);
        return;
      }
      case 2:
        return RepeatTheWrite();
      default:
        return FinishTheWrite();
    }
  }

  Arrays SomeArrays() {
    const uint64_t seed = choices_.Choose(1000);
    const int64_t count = model_->adam.parameter_count();
    Arrays arrays = {.step = static_cast<int64_t>(choices_.Choose(100)),
                     .parameters = Gradient(count, seed),
                     .exp_avg = Gradient(count, seed + 1),
                     .exp_avg_sq = Gradient(count, seed + 2)};
    for (float& v : arrays.exp_avg_sq) v = v * v;
    return arrays;
  }

  void BeginAWrite(std::optional<WriteCall>* call) {
    Arrays arrays = SomeArrays();
    std::string request_id =
        choices_.Choose(3) == 0 ? model_->write_request_id : absl::StrCat("w", choices_.Choose(1000));
    if (write_.has_value() && request_id == write_->header.request_id()) request_id.append("'");
    const bool full = choices_.Choose(2) == 0;
    v1::WriteHeader header = full ? FullHeader(arrays.step, request_id) : ParametersHeader(request_id);
    if (request_id == model_->write_request_id && choices_.Choose(2) == 0) {
      header.ParseFromString(model_->write_header);
      if (header.mode() == v1::WRITE_MODE_UNSPECIFIED) header = FullHeader(arrays.step);
      arrays.step = header.step();
    }
    if (choices_.Choose(8) == 0) header.set_incarnation(model_->incarnation + choices_.Choose(2));

    v1::ErrorReason refusal = kNone;
    // What is lost is to be written again.
    const bool known = !header.request_id().empty() && header.request_id() == model_->write_request_id &&
                       model_->state == Model::State::kReady;
    if (model_->state == Model::State::kDeleted) {
      refusal = v1::ERROR_REASON_SET_NOT_FOUND;
    } else if (known) {
      if (header.SerializeAsString() != model_->write_header) refusal = v1::ERROR_REASON_REQUEST_ID_REUSED;
    } else if (header.has_incarnation() && header.incarnation() != model_->incarnation) {
      refusal = v1::ERROR_REASON_INCARNATION_MISMATCH;
    } else if (write_.has_value() && write_->live && !write_->replay) {
      refusal = v1::ERROR_REASON_WRITE_IN_PROGRESS;
    } else if (header.mode() == v1::WRITE_MODE_PARAMETERS && model_->moments_lost) {
      refusal = v1::ERROR_REASON_UNINITIALIZED;
    }
    WriteDelivery delivery = BeginWrite(set_.get(), header);
    if (refusal != kNone) {
      if (!Expect(delivery.done(), true, "refused")) return;
      ExpectReason(ReasonOf(delivery.Take().status()), refusal, "what is said of a write");
      return;
    }
    if (delivery.done()) {
      ExpectReason(ReasonOf(delivery.Take().status()), kNone, "what is said of a write");
      return;
    }
    if (!Expect(delivery.admitted(), true, "admitted")) return;
    call->emplace(WriteCall{.delivery = std::move(delivery),
                            .header = header,
                            .arrays = arrays,
                            .slots = NothingWritten(header),
                            .live = true,
                            .replay = known});
    if (known) return;
    // It writes over the set's own slots as it comes.
    if (header.mode() == v1::WRITE_MODE_FULL && (device_ == nullptr || device_->on_host())) {
      model_->state = Model::State::kUninitialized;
      model_->moments_lost = true;
    }
  }

  std::vector<std::pair<v1::Slot, Arrival>> NothingWritten(const v1::WriteHeader& header) const {
    std::vector<std::pair<v1::Slot, Arrival>> slots = {{v1::SLOT_PARAMETER, Arrival(set_->schema())}};
    if (header.mode() == v1::WRITE_MODE_FULL) {
      slots.emplace_back(v1::SLOT_EXP_AVG, Arrival(set_->schema()));
      slots.emplace_back(v1::SLOT_EXP_AVG_SQ, Arrival(set_->schema()));
    }
    return slots;
  }

  // The client has lost its connection, and the set does not know.
  void RepeatTheWrite() {
    if (write_->replay || write_->header.request_id().empty()) return FinishTheWrite();
    WriteCall again = {.delivery = BeginWrite(set_.get(), write_->header),
                       .header = write_->header,
                       .arrays = write_->arrays,
                       .slots = NothingWritten(write_->header),
                       .live = true,
                       .replay = false};
    if (!Expect(write_->delivery.done(), true, "ended")) return;
    ExpectReason(ReasonOf(write_->delivery.Take().status()), v1::ERROR_REASON_SUPERSEDED, "why a write ended");
    Expect(again.delivery.admitted() || again.delivery.done(), false, "admitted beside its older attempt");
    write_.reset();
    server_.clock().RunDue();
    AwaitIdle();
    again.delivery.Await();
    if (Expect(again.delivery.admitted(), true, "admitted")) write_ = std::move(again);
  }

  void FinishTheWrite() {
    const bool early = choices_.Choose(8) == 0 && model_->adam.parameter_count() > 0;
    for (auto& [slot, arrival] : write_->slots) {
      const Values& values = slot == v1::SLOT_PARAMETER ? write_->arrays.parameters
                             : slot == v1::SLOT_EXP_AVG ? write_->arrays.exp_avg
                                                        : write_->arrays.exp_avg_sq;
      if (early && slot == write_->slots.back().first) continue;
      Expect(write_->delivery.Send(arrival.Rest(), values, slot).ok(), true, "taken");
    }
    const absl::Status status = write_->delivery.Complete();
    WriteCall call = *std::move(write_);
    write_.reset();
    if (!call.live) return;
    if (early && !call.replay) {
      ExpectReason(ReasonOf(status), v1::ERROR_REASON_INCOMPLETE, "what is said of a write's end");
      return;
    }
    const absl::StatusOr<v1::WriteTensorsResponse> response = call.delivery.Take();
    if (call.replay && model_->NotReady() != kNone) {
      ExpectReason(ReasonOf(response.status()), model_->NotReady(), "what became of a write");
      return;
    }
    if (call.replay && call.header.request_id() != model_->write_request_id) {
      ExpectReason(ReasonOf(response.status()), v1::ERROR_REASON_INCARNATION_MISMATCH, "what became of a write");
      return;
    }
    if (!Expect(response.ok(), true, "written")) return;
    Expect(response->replayed(), call.replay, "replayed");
    if (!call.replay) {
      Expect(response->incarnation() == model_->incarnation, false, "the incarnation's being the old one");
      model_->incarnation = response->incarnation();
      model_->adam.mutable_arrays()->parameters = call.arrays.parameters;
      if (call.header.mode() == v1::WRITE_MODE_FULL) {
        *model_->adam.mutable_arrays() = call.arrays;
        model_->moments_lost = false;
      }
      model_->state = Model::State::kReady;
      model_->memory.clear();
      model_->write_request_id = call.header.request_id();
      model_->write_header = call.header.SerializeAsString();
      EndSteps(v1::ERROR_REASON_INCARNATION_MISMATCH);
    }
    Expect(response->incarnation(), model_->incarnation, "the incarnation written");
    Expect(response->step(), model_->step(), "the step written");
  }

  // ---- deletes

  void DeleteOrCreate() {
    if (model_->state == Model::State::kDeleted) {
      write_.reset();
      Create();
      return;
    }
    if (choices_.Choose(4) > 0) return;
    ExpectReason(ReasonOf(Delete(set_.get(), model_->incarnation + 1)), v1::ERROR_REASON_INCARNATION_MISMATCH,
                 "a delete of another incarnation");
    Expect(Delete(set_.get(), model_->incarnation).ok(), true, "deleted");
    model_->state = Model::State::kDeleted;
    EndSteps(v1::ERROR_REASON_SET_NOT_FOUND);
    if (write_.has_value() && Expect(write_->delivery.done(), true, "ended")) {
      ExpectReason(ReasonOf(write_->delivery.Take().status()), v1::ERROR_REASON_SET_NOT_FOUND, "why a write ended");
    }
    write_.reset();
  }

  // ---- what must hold at any time

  void CheckState() {
    const v1::ParameterSet description = set_->Describe();
    Expect(description.incarnation(), model_->incarnation, "the incarnation");
    if (model_->state != Model::State::kReady) return;
    Expect(description.step(), model_->step(), "the step");
    const absl::StatusOr<Arrays> arrays = FetchState(set_.get());
    if (!Expect(arrays.ok(), true, "read")) return;
    Expect(*arrays == model_->adam.arrays(), true, "the state's being the model's");
  }

  void CheckAll() {
    CheckState();
    for (const KeptReading& kept : readings_) CheckReading(kept);
    for (const KeptReply& kept : replies_) CheckReply(kept);
    for (const Request& request : requests_) CheckResult(request.header.request_id());
    // What is charged, once all have gone.
    for (std::optional<StepCall>& call : steps_) call.reset();
    write_.reset();
    readings_.clear();
    replies_.clear();
    AwaitIdle();
    CheckUsed({.state = set_->Describe().state_bytes(), .inflight = 0, .read = 0});
    set_.reset();
    CheckUsed({.state = 0, .inflight = 0, .read = 0});
    AwaitDevice();
    if (device_ != nullptr && device_->budget() != nullptr)
      Expect(device_->budget()->used(), 0, "the device's bytes used");
    Expect(server_.clock().pending(), 0, "timers left");
  }

  void CheckUsed(const UsedBytes& expected) {
    const UsedBytes used = server_.used();
    Expect(used.state, expected.state, "state bytes used");
    Expect(used.inflight, expected.inflight, "inflight bytes used");
    Expect(used.read, expected.read, "read bytes used");
  }

  Choices& choices_;
  const SetSize size_;
  int actions_ = 0;
  std::string difference_;

  v1::ParameterSetSpec spec_;
  const std::unique_ptr<LateBackend> late_;  // where the set lives there
  Backend* const device_;                    // null: the set lives on the processor
  TestServer server_;
  std::shared_ptr<ParameterSet> set_;
  std::unique_ptr<Model> model_;
  std::vector<Request> requests_;  // those with a request_id
  std::array<std::optional<StepCall>, kClients> steps_;
  std::optional<WriteCall> write_;
  std::vector<KeptReading> readings_;
  std::vector<KeptReply> replies_;
};

}  // namespace

std::string RunSchedule(SetSize size, Device device, Choices* choices) { return Schedule(size, device, choices).Run(); }

}  // namespace adamant::core
