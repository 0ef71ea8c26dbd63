#include "tests/core/set_schedule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "tests/core/cuda_device.h"
#include "tests/core/every_optimizer.h"
#include "tests/core/gate.h"
#include "tests/core/late_backend.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_model.h"
#include "tests/core/sparse_steps.h"

namespace adamant::core {
namespace {

constexpr int kClients = 3;
constexpr size_t kMostKept = 4;  // readings, and replies
constexpr int kMostGrowths = 3;  // of one set

// What makes two headers one request.
std::string KeyOf(v1::StepHeader header) {
  header.clear_attempt();
  header.clear_reply_dtype();
  header.clear_omit_parameters();
  return header.SerializeAsString();
}

// `values`, of all tensors, with zeros for those that are not `brought`.
Values Only(const BroughtTensors& brought, const Schema& schema, Values values) {
  int64_t begin = 0;
  for (size_t i = 0; i < brought.size(); ++i) {
    if (!brought[i]) std::fill_n(values.begin() + begin, schema.sizes()[i], 0.0f);
    begin += schema.sizes()[i];
  }
  return values;
}

struct Request {
  v1::StepHeader header;
  Values gradient;
  std::vector<BroughtRows> rows = {};  // of the tensors that the header calls sparse
};

// What was found out of a step when it began.
struct Begun {
  Request request;
  BroughtTensors brought;
  int64_t config_revision;
  bool dropped;  // remembered when it began: its gradient goes nowhere
};

struct StepCall {
  StepDelivery delivery;
  Begun begun;
  Arrival arrival;
  RowsArrival rows;
  bool live;  // admitted, and neither over nor cancelled
};

struct WriteCall {
  WriteDelivery delivery;
  v1::WriteHeader header;
  Arrays arrays;
  std::vector<std::pair<v1::Slot, Arrival>> slots;
  bool live;
  bool replay;
  bool outdated;  // the set has grown since it began
};

struct KeptReading {
  std::unique_ptr<Reading> reading;
  Arrays arrays;
};

struct KeptReply {
  StepReply reply;
  Values parameters;              // of the tensors that it has
  std::vector<BroughtRows> rows;  // and of rows
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
    spec_ = WithGroups(spec_, kEveryOptimizer[choices_.Choose(std::size(kEveryOptimizer))]);
    for (v1::ParameterGroup& group : *spec_.mutable_groups()) {
      if (!group.has_learning_rate()) group.set_learning_rate(1e-3);
    }
    ChooseClipping(&spec_);
    ChoosePolicies(&spec_);
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
    switch (choices_.Choose(25)) {
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
      case 20:
      case 21:
        return ChangeConfiguration();
      case 22:
      case 23:
        return WatchTheSet();
      case 24:
        return GrowTheSet();
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

  void ChooseClipping(v1::ParameterSetSpec* spec) {
    spec->clear_clipping();
    const uint32_t kind = choices_.Choose(4);
    if (kind == 1) spec->mutable_clipping()->set_max_value(0.25);
    if (kind == 2) spec->mutable_clipping()->set_max_norm(0.5);
  }

  void ChoosePolicies(v1::ParameterSetSpec* spec) {
    constexpr int32_t kStaleness[] = {0, 2, 64};
    spec->set_max_staleness(kStaleness[choices_.Choose(3)]);
    spec->set_non_finite_policy(choices_.Choose(4) == 1 ? v1::NON_FINITE_POLICY_REJECT : v1::NON_FINITE_POLICY_SKIP);
  }

  void Create() {
    // Who watches a set does not see the next one of its name.
    TakeEvents(std::numeric_limits<int>::max());
    watch_.reset();
    spec_.set_initialization(choices_.Choose(4) == 0 ? v1::INITIALIZATION_WRITTEN : v1::INITIALIZATION_ZEROS);
    set_ = server_.MakeSet(spec_);
    growths_ = 0;
    model_ = std::make_unique<Model>(Model{.optimizer = SequentialModel(spec_),
                                           .state = spec_.initialization() == v1::INITIALIZATION_ZEROS
                                                        ? Model::State::kReady
                                                        : Model::State::kUninitialized,
                                           .incarnation = set_->Describe().incarnation(),
                                           .memory = {}});
  }

  // ---- steps

  Values AGradient() {
    const uint64_t seed = choices_.Choose(1000);
    Values gradient = Gradient(model_->optimizer.parameter_count(), seed);
    if (!gradient.empty() && choices_.Choose(8) == 0) {
      constexpr float kBad[] = {std::numeric_limits<float>::infinity(), -0x1p63f,
                                std::numeric_limits<float>::quiet_NaN()};
      gradient[choices_.Choose(gradient.size())] = kBad[choices_.Choose(3)];
    }
    return gradient;
  }

  Request ARequest() {
    // A retry brings what the first attempt brought, as far as the set has the same tensors still.
    if (choices_.Choose(3) == 0 && !requests_.empty()) {
      Request request = requests_[requests_.size() - 1 - choices_.Choose(std::min<size_t>(requests_.size(), 4))];
      if (choices_.Choose(4) > 0) request.header.set_attempt(1 + choices_.Choose(3));
      if (choices_.Choose(8) == 0) {
        request.header.clear_base_step();
        request.header.set_expected_step(model_->step());
      }
      if (choices_.Choose(8) == 0) request.header.set_omit_parameters(!request.header.omit_parameters());
      request.gradient.resize(model_->optimizer.parameter_count());
      return request;
    }
    Request request;
    int64_t expected = model_->step();
    if (choices_.Choose(4) == 0) expected = std::max<int64_t>(0, expected + choices_.Choose(4) - 2);
    if (choices_.Choose(16) == 0) expected = std::max<int64_t>(0, expected - 63 - choices_.Choose(3));
    const bool has_id = choices_.Choose(4) > 0;
    if (has_id) {
      request.header.set_request_id(absl::StrCat("r", requests_.size()));
      if (choices_.Choose(2) == 0) request.header.set_attempt(1 + choices_.Choose(3));
    }
    if (choices_.Choose(3) == 0) {
      request.header.set_base_step(expected);
    } else if (has_id || choices_.Choose(2) == 0) {
      request.header.set_expected_step(expected);
    }
    if (choices_.Choose(4) == 0) request.header.set_incarnation(model_->incarnation + choices_.Choose(4) / 3);
    if (choices_.Choose(8) == 0) {
      request.header.set_schema_fingerprint(set_->schema().fingerprint() + choices_.Choose(2));
    }
    AddWishes(&request);
    request.gradient = AGradient();
    if (!request.header.request_id().empty()) requests_.push_back(request);
    return request;
  }

  // What a header may say of its step alone.
  void AddWishes(Request* request) {
    v1::StepHeader* const header = &request->header;
    const uint32_t wishes = choices_.Choose(2) == 0 ? choices_.Choose(64) : 0;
    if ((wishes & 1) != 0) ChooseTensors(header->mutable_tensors());
    if ((wishes & 2) != 0) {
      for (const v1::ParameterGroup& group : model_->optimizer.spec().groups()) {
        if (choices_.Choose(2) == 0) AddOverride(group, header);
      }
    }
    constexpr double kGradScales[] = {1024, 0x1p-20, 3};
    if ((wishes & 4) != 0) header->set_grad_scale(kGradScales[choices_.Choose(3)]);
    if ((wishes & 8) != 0) (*header->mutable_metrics())["loss"] = choices_.Choose(100);
    if ((wishes & 16) != 0) header->set_omit_parameters(true);
    if ((wishes & 32) != 0) ChooseRows(request);
  }

  // Of some of the tensors that the step brings, or hardly ever of another: none, one, or a few, some more than once.
  void ChooseRows(Request* request) {
    const auto& tensors = request->header.tensors();
    for (int i = 0; i < model_->optimizer.tensors(); ++i) {
      const bool is_brought = tensors.empty() ? model_->optimizer.IsBrought(i, {}) : absl::c_linear_search(tensors, i);
      if (choices_.Choose(is_brought ? 2 : 64) != 0) continue;
      BroughtRows rows = {.tensor = i, .rows = {}, .values = {}};
      const int64_t extent = model_->optimizer.RowsOf(i);
      for (uint32_t more = extent > 0 ? choices_.Choose(5) : 0; more > 0; --more) {
        rows.rows.push_back(choices_.Choose(static_cast<uint32_t>(extent)));
      }
      rows.values =
          Gradient(static_cast<int64_t>(rows.rows.size()) * model_->optimizer.RowWidthOf(i), choices_.Choose(1000));
      if (!rows.values.empty() && choices_.Choose(16) == 1)
        rows.values.back() = -std::numeric_limits<float>::infinity();
      v1::SparseRows* const sparse = request->header.add_sparse();
      sparse->set_tensor(i);
      sparse->set_rows(static_cast<int64_t>(rows.rows.size()));
      request->rows.push_back(std::move(rows));
    }
  }

  // Some in order, or none, which stands for all.
  void ChooseTensors(google::protobuf::RepeatedField<int32_t>* tensors) {
    for (int i = 0; i < model_->optimizer.tensors(); ++i) {
      if (choices_.Choose(2) == 0) tensors->Add(i);
    }
  }

  void AddOverride(const v1::ParameterGroup& group, v1::StepHeader* header) {
    v1::GroupOverride* const override = header->add_overrides();
    override->set_group(group.name());
    constexpr double kLearningRates[] = {5e-4, 0.25, 3};
    if (choices_.Choose(4) > 0) override->set_learning_rate(kLearningRates[choices_.Choose(3)]);
    if (choices_.Choose(2) == 0) override->set_weight_decay(0.125);
    if (!group.has_sgd()) {
      if (choices_.Choose(2) == 0) override->set_beta1(0.5);
      if (choices_.Choose(2) == 0) override->set_eps(choices_.Choose(4) == 0 ? 1e-16 : 1e-6);
    } else if (group.sgd().momentum() != 0) {
      if (choices_.Choose(2) == 0) override->set_momentum(0.75);
    }
  }

  v1::ErrorReason HeaderRefusal(const v1::StepHeader& header) const {
    if (model_->NotReady() != kNone) return model_->NotReady();
    if (const Model::Remembered* remembered = model_->Find(header.request_id()); remembered != nullptr) {
      return remembered->header == KeyOf(header) ? kNone : v1::ERROR_REASON_REQUEST_ID_REUSED;
    }
    if (header.has_incarnation() && header.incarnation() != model_->incarnation) {
      return v1::ERROR_REASON_INCARNATION_MISMATCH;
    }
    if (header.has_schema_fingerprint() && header.schema_fingerprint() != set_->schema().fingerprint()) {
      return v1::ERROR_REASON_SCHEMA_MISMATCH;
    }
    if (const v1::ErrorReason fault = model_->StepFault(header, /*may_be_early=*/true); fault != kNone) return fault;
    for (const std::optional<StepCall>& other : steps_) {
      if (!header.request_id().empty() && other.has_value() && other->live &&
          other->begun.request.header.request_id() == header.request_id() &&
          AttemptOf(other->begun.request.header) > AttemptOf(header)) {
        return v1::ERROR_REASON_SUPERSEDED;
      }
    }
    return model_->Fits(header) ? kNone : v1::ERROR_REASON_INVALID_FIELD;
  }

  void BeginAStep() {
    std::optional<StepCall>& call = steps_[choices_.Choose(kClients)];
    call.reset();
    const Request request = ARequest();
    const std::string& request_id = request.header.request_id();
    const v1::ErrorReason refusal = HeaderRefusal(request.header);
    StepDelivery delivery = BeginStep(set_.get(), request.header);
    // Memory for rows is not laid ready.
    if (!request.rows.empty()) delivery.Await();
    if (refusal != kNone) {
      if (!Expect(delivery.done(), true, "refused")) return;
      ExpectReason(ReasonOf(delivery.Take().status()), refusal, "what is said of a header");
      return;
    }
    if (delivery.done()) {
      ExpectReason(ReasonOf(delivery.Take().status()), kNone, "what is said of a header");
      return;
    }
    if (!Expect(delivery.admitted(), true, "admitted")) return;
    if (!request_id.empty()) {
      for (std::optional<StepCall>& other : steps_) {
        if (other.has_value() && other->begun.request.header.request_id() == request_id &&
            AttemptOf(other->begun.request.header) <= AttemptOf(request.header)) {
          ExpectEnd(&*other, v1::ERROR_REASON_SUPERSEDED);
        }
      }
    }
    Begun begun = BegunNow(request);
    Arrival arrival(set_->schema(), begun.brought);
    RowsArrival rows(set_->schema(), begun.request.rows);
    call.emplace(StepCall{std::move(delivery), std::move(begun), std::move(arrival), std::move(rows), /*live=*/true});
  }

  Begun BegunNow(const Request& request) const {
    // A retry of what was applied is answered with what that brought, however the set is configured now.
    const Model::Remembered* const remembered = model_->Find(request.header.request_id());
    return {request, remembered != nullptr ? remembered->brought : model_->Brought(request.header),
            model_->config_revision, remembered != nullptr};
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
    if (call == nullptr) return;
    if (!call->rows.complete() && (call->arrival.complete() || choices_.Choose(2) == 0)) {
      SendRows(call, call->rows.Next(&choices_));
    } else if (!call->arrival.complete()) {
      Send(call, call->arrival.Next(&choices_));
    }
  }

  void SendTheRest() {
    StepCall* call = AStep();
    if (call == nullptr) return;
    for (const Piece& piece : call->arrival.Rest()) Send(call, piece);
    for (const BroughtRows& rows : call->rows.Rest()) {
      if (call->live) SendRows(call, rows);
    }
    if (choices_.Choose(4) > 0) Complete(call);
  }

  void SendAnyChunk() {
    StepCall* call = AStep();
    if (call == nullptr) return;
    const int32_t tensor = static_cast<int32_t>(choices_.Choose(call->arrival.tensors() + 2)) - 1;
    if (choices_.Choose(4) == 1) {
      BroughtRows rows = {.tensor = tensor, .rows = {}, .values = Values(choices_.Choose(9))};
      for (uint32_t more = choices_.Choose(4); more > 0; --more) rows.rows.push_back(int64_t{choices_.Choose(40)} - 1);
      return SendRows(call, rows);
    }
    Piece piece = {tensor, static_cast<int64_t>(choices_.Choose(36)) - 2, static_cast<int64_t>(choices_.Choose(36)) - 1,
                   0};
    if (Arrival(call->arrival).Take(piece) == kNone) piece.begin = call->arrival.BeginOf(tensor) + piece.offset;
    Send(call, piece);
  }

  void Send(StepCall* call, const Piece& piece) {
    const v1::ErrorReason wrong = call->rows.Has(piece.tensor)
                                      ? call->rows.Take({.tensor = piece.tensor, .rows = {}, .values = {}}, piece)
                                      : call->arrival.Take(piece);
    const absl::Status status = call->delivery.Send(piece, call->begun.request.gradient);
    if (call->begun.dropped) {
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

  void SendRows(StepCall* call, const BroughtRows& rows) {
    const v1::ErrorReason wrong = call->rows.Has(rows.tensor)
                                      ? call->rows.Take(rows, {.tensor = 0, .offset = 0, .count = 0, .begin = 0})
                                      : v1::ERROR_REASON_MALFORMED_CHUNK;
    const absl::Status status = call->delivery.SendRows(rows.tensor, rows.rows, rows.values);
    if (call->begun.dropped) {
      Expect(status.ok(), true, "a chunk that goes nowhere being taken");
      return;
    }
    ExpectReason(ReasonOf(status), wrong, "what is said of a chunk of rows");
    if (wrong == kNone) return;
    Expect(GetErrorDetail(status).tensor(), rows.tensor, "the tensor named");
    call->live = false;
  }

  void CompleteAStep() {
    if (StepCall* call = AStep(); call != nullptr) Complete(call);
  }

  void Complete(StepCall* call) {
    if (!call->live) return;
    const absl::Status status = call->delivery.Complete();
    call->live = false;
    if (!call->begun.dropped && !(call->arrival.complete() && call->rows.complete())) {
      ExpectReason(ReasonOf(status), v1::ERROR_REASON_INCOMPLETE, "what is said of an end");
      const std::vector<Piece> rest = call->arrival.Rest();
      Expect(GetErrorDetail(status).tensor(), rest.empty() ? call->rows.Rest()[0].tensor : rest[0].tensor,
             "the tensor missing");
      Expect(GetErrorDetail(status).offset(), rest.empty() ? 0 : rest[0].offset, "the offset missing");
      return;
    }
    if (!Expect(status.ok(), true, "completed")) return;
    call->begun.request.rows = call->rows.rows();
    const bool heard = choices_.Choose(8) > 0;
    if (!heard && !asynchronous()) {
      // The client is gone before it hears; elsewhere this may be before the turn.
      v1::StepResult unheard;
      Turn(call->begun, &unheard);
      return;
    }
    absl::StatusOr<StepReply> reply = call->delivery.Take();
    AwaitIdle();
    v1::StepResult result;
    const v1::ErrorReason refusal = Turn(call->begun, &result);
    if (!ExpectReason(ReasonOf(reply.status()), refusal, "what became of a step") || refusal != kNone) return;
    if (std::isnan(result.grad_norm()) && std::isnan(reply->result.grad_norm())) {
      result.set_grad_norm(0);
      reply->result.set_grad_norm(0);
    }
    Expect(reply->result.ShortDebugString(), result.ShortDebugString(), "the result");
    Expect(reply->result.grad_norm(), result.grad_norm(), "the norm");
    const bool omitted = call->begun.request.header.omit_parameters();
    if (!Expect(reply->parameters->snapshot == nullptr, omitted, "the reply's having no parameters") || omitted) return;
    // Which rows a replayed step brought the set does not remember.
    KeptReply kept = {
        *std::move(reply), Only(call->begun.brought, set_->schema(), model_->optimizer.arrays().parameters),
        result.replayed() ? std::vector<BroughtRows>() : model_->optimizer.ParametersOf(call->begun.request.rows)};
    CheckReply(kept);
    if (replies_.size() < kMostKept) replies_.push_back(std::move(kept));
  }

  // What a step does at its turn.
  v1::ErrorReason Turn(const Begun& step, v1::StepResult* result) {
    const v1::StepHeader& header = step.request.header;
    if (model_->NotReady() != kNone) return model_->NotReady();
    if (const Model::Remembered* remembered = model_->Find(header.request_id()); remembered != nullptr) {
      if (remembered->header != KeyOf(header)) return v1::ERROR_REASON_REQUEST_ID_REUSED;
      *result = remembered->result;
      result->set_replayed(true);
      result->set_parameters_step(model_->step());
      model_->statistics.set_replayed(model_->statistics.replayed() + 1);
      return kNone;
    }
    if (step.dropped) return v1::ERROR_REASON_OUTCOME_UNKNOWN;
    if (const v1::ErrorReason fault = model_->StepFault(header, /*may_be_early=*/false); fault != kNone) return fault;
    if (step.config_revision != model_->config_revision &&
        (!model_->Fits(header) || model_->Brought(header) != step.brought)) {
      return v1::ERROR_REASON_CONFIG_CHANGED;
    }
    const v1::ParameterSetSpec& spec = model_->optimizer.spec();
    const int64_t staleness = header.has_base_step() ? model_->step() - header.base_step() : 0;
    result->set_incarnation(model_->incarnation);
    result->set_grad_norm(model_->optimizer.GradNorm(step.request.gradient, header, step.request.rows));
    result->set_config_revision(model_->config_revision);
    result->set_staleness(staleness);
    result->set_step(model_->step());
    if (header.has_base_step() && staleness > spec.max_staleness()) {
      result->set_outcome(v1::STEP_OUTCOME_REFUSED_STALE);
      model_->statistics.set_refused(model_->statistics.refused() + 1);
    } else if (const std::optional<std::pair<int, int64_t>> bad = FindNonFinite(step); bad.has_value()) {
      model_->statistics.set_non_finite(model_->statistics.non_finite() + 1);
      result->set_outcome(v1::STEP_OUTCOME_SKIPPED_NON_FINITE);
      result->set_non_finite_tensor(bad->first);
      result->set_non_finite_offset(bad->second);
      // Whoever watches is told so, also where the client gets an error.
      v1::WatchParameterSetResponse event = model_->Event();
      event.mutable_skipped()->set_non_finite_tensor(bad->first);
      event.mutable_skipped()->set_non_finite_offset(bad->second);
      Happened(std::move(event));
      if (spec.non_finite_policy() == v1::NON_FINITE_POLICY_REJECT) return v1::ERROR_REASON_NON_FINITE_GRADIENT;
    } else {
      Apply(step, result);
    }
    result->set_parameters_step(model_->step());
    return kNone;
  }

  // The first element that a step brings, and that is not finite or would be too large once it is scaled.
  std::optional<std::pair<int, int64_t>> FindNonFinite(const Begun& step) const {
    const double limit =
        0x1p63 / model_->optimizer.Scale(step.request.gradient, step.request.header, step.request.rows);
    const auto is_bad = [limit](float g) { return !(std::fabs(static_cast<double>(g)) < limit); };
    auto element = step.request.gradient.begin();
    for (size_t tensor = 0; tensor < step.brought.size(); ++tensor) {
      const auto begin = element;
      element += set_->schema().sizes()[tensor];
      for (const BroughtRows& rows : step.request.rows) {
        if (rows.tensor != static_cast<int>(tensor)) continue;
        for (const auto& [row, sum] : SequentialModel::SumRows(rows)) {
          const auto bad = absl::c_find_if(sum, is_bad);
          if (bad != sum.end()) {
            return std::make_pair(rows.tensor, row * static_cast<int64_t>(sum.size()) + (bad - sum.begin()));
          }
        }
      }
      if (!step.brought[tensor]) continue;
      const auto bad = std::find_if(begin, element, is_bad);
      if (bad != element) return std::make_pair(static_cast<int>(tensor), bad - begin);
    }
    return std::nullopt;
  }

  void Apply(const Begun& step, v1::StepResult* result) {
    const v1::StepHeader& header = step.request.header;
    model_->optimizer.Apply(step.request.gradient, header, step.request.rows);
    result->set_outcome(v1::STEP_OUTCOME_APPLIED);
    result->set_step(model_->step());
    for (const double rate : model_->optimizer.LearningRates(header)) result->add_learning_rates(rate);
    model_->memory.push_back({header.request_id(), KeyOf(header), *result, step.brought});
    if (model_->memory.size() > kRemembered) model_->memory.pop_front();

    model_->statistics.set_applied(model_->statistics.applied() + 1);
    model_->statistics.set_last_grad_norm(result->grad_norm());
    if (!header.metrics().empty()) *model_->statistics.mutable_last_metrics() = header.metrics();
    v1::WatchParameterSetResponse event = model_->Event();
    event.mutable_committed()->set_grad_norm(result->grad_norm());
    *event.mutable_committed()->mutable_learning_rates() = result->learning_rates();
    event.mutable_committed()->set_staleness(result->staleness());
    *event.mutable_committed()->mutable_metrics() = header.metrics();
    Happened(std::move(event));
  }

  void CancelAStep() {
    StepCall* call = AStep();
    if (call == nullptr) return;
    call->delivery.Cancel();
    call->live = false;
    // Nothing that still comes changes anything.
    for (const Piece& piece : call->arrival.Rest())
      call->delivery.Send(piece, call->begun.request.gradient).IgnoreError();
    for (const BroughtRows& rows : call->rows.Rest()) {
      call->delivery.SendRows(rows.tensor, rows.rows, rows.values).IgnoreError();
    }
    call->delivery.Complete().IgnoreError();
    Expect(call->delivery.done(), false, "answered");
  }

  // So that requests grow old.
  void TakeSeveralSteps() {
    if (model_->NotReady() != kNone) return;
    const int count = size_ == SetSize::kSmall ? 1 + 8 * choices_.Choose(9) : 1 + choices_.Choose(2);
    for (int i = 0; i < count; ++i) {
      const Begun begun = BegunNow({.header = {}, .gradient = Gradient(model_->optimizer.parameter_count(), i)});
      StepDelivery step = BeginStep(set_.get(), {});
      for (const Piece& piece : Arrival(set_->schema(), begun.brought).Rest()) {
        Expect(step.Send(piece, begun.request.gradient).ok(), true, "taken");
      }
      if (!Expect(step.Complete().ok(), true, "completed")) return;
      const absl::StatusOr<StepReply> reply = step.Take();
      v1::StepResult result;
      Turn(begun, &result);
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
                 return call.has_value() && call->live && call->begun.request.header.request_id() == request_id;
               })) {
      expected.set_state(v1::STEP_STATE_IN_FLIGHT);
    }
    Expect(response->ShortDebugString(), expected.ShortDebugString(), "what became of a step");
  }

  // ---- reads

  void ReadSomething() {
    if (readings_.size() == kMostKept) return;
    const bool full = choices_.Choose(2) == 0;
    v1::ReadTensorsRequest request = ReadRequest({v1::SLOT_PARAMETER});
    if (full) {
      for (const v1::Slot slot : OptimizerSlots(set_->configuration()->groups())) request.add_slots(slot);
    }
    if (choices_.Choose(4) == 0) request.set_if_newer_than_step(model_->step() - choices_.Choose(2));
    absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), request);
    if (!ExpectReason(ReasonOf(reading.status()), model_->NotReady(), "what became of a read") || !reading.ok()) return;
    const bool unmodified = request.has_if_newer_than_step() && request.if_newer_than_step() == model_->step();
    Expect((*reading)->header().step(), model_->step(), "the step read");
    Expect((*reading)->header().incarnation(), model_->incarnation, "the incarnation read");
    Expect((*reading)->header().not_modified(), unmodified, "not modified");
    if (!unmodified) readings_.push_back({*std::move(reading), model_->optimizer.arrays()});
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

  // It has the tensors that were brought, and holds no block but theirs: nobody has paid for others.
  void CheckReply(const KeptReply& kept) {
    const TensorSelection& selection = *kept.reply.parameters->selection;
    const BlockList& blocks = kept.reply.parameters->snapshot->blocks();
    Values padded(selection.schema().flat_size());
    for (size_t block = 0; block < blocks.size(); ++block) {
      const bool has_block = absl::c_linear_search(selection.blocks(), static_cast<int64_t>(block));
      Expect(static_cast<bool>(blocks[block]), has_block, "a reply's holding a block");
      if (blocks[block]) {
        std::copy_n(blocks[block].data(), blocks[block].size(), padded.begin() + block * kBlockElements);
      }
    }
    BroughtTensors brought;
    for (size_t i = 0; i < selection.sizes().size(); ++i) brought.push_back(selection.has(static_cast<int>(i)));
    Expect(SameBits(Only(brought, selection.schema(), Unpad(selection.schema(), padded)), kept.parameters), true,
           "a reply's having the parameters that it came with");
    const std::vector<BroughtRows> rows = RowsOf(kept.reply);
    if (!Expect(rows.size(), kept.rows.size(), "how many tensors have rows in a reply")) return;
    for (size_t i = 0; i < rows.size(); ++i) {
      Expect(rows[i].tensor, kept.rows[i].tensor, "the tensor of a reply's rows");
      Expect(rows[i].rows == kept.rows[i].rows, true, "a reply's having the rows that came, each once");
      Expect(SameBits(rows[i].values, kept.rows[i].values), true, "a reply's having the parameters of its rows");
    }
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

  // What a full write may bring.
  Arrays SomeArrays() {
    const uint64_t seed = choices_.Choose(1000);
    Arrays arrays = model_->optimizer.arrays();
    arrays.step = static_cast<int64_t>(choices_.Choose(100));
    arrays.update_counts.clear();
    uint64_t number = 0;
    for (const v1::Slot slot : kEverySlot) {
      Values* const values = ValuesOf(slot, &arrays);
      *values = Gradient(static_cast<int64_t>(values->size()), seed + number++);
      if (slot != v1::SLOT_EXP_AVG_SQ && slot != v1::SLOT_MAX_EXP_AVG_SQ) continue;
      for (float& v : *values) v = v * v;
    }
    return arrays;
  }

  static constexpr v1::Slot kEverySlot[] = {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ,
                                            v1::SLOT_MAX_EXP_AVG_SQ, v1::SLOT_MOMENTUM_BUFFER};

  static Values* ValuesOf(v1::Slot slot, Arrays* arrays) {
    switch (slot) {
      case v1::SLOT_EXP_AVG:
        return &arrays->exp_avg;
      case v1::SLOT_EXP_AVG_SQ:
        return &arrays->exp_avg_sq;
      case v1::SLOT_MAX_EXP_AVG_SQ:
        return &arrays->max_exp_avg_sq;
      case v1::SLOT_MOMENTUM_BUFFER:
        return &arrays->momentum_buffer;
      default:
        return &arrays->parameters;
    }
  }

  // Which a write brings: a partial one those that it names.
  BroughtTensors BroughtBy(const v1::WriteHeader& header) const {
    BroughtTensors brought;
    for (int i = 0; i < model_->optimizer.tensors(); ++i) {
      brought.push_back(header.tensors().empty() || absl::c_linear_search(header.tensors(), i));
    }
    return brought;
  }

  void BeginAWrite(std::optional<WriteCall>* call) {
    Arrays arrays = SomeArrays();
    std::string request_id =
        choices_.Choose(3) == 0 ? model_->write_request_id : absl::StrCat("w", choices_.Choose(1000));
    if (write_.has_value() && request_id == write_->header.request_id()) request_id.append("'");
    const bool full = choices_.Choose(2) == 0;
    v1::WriteHeader header = full ? FullHeader(arrays.step, request_id) : ParametersHeader(request_id);
    if (full && choices_.Choose(3) == 0) {
      for (int i = 0; i < model_->optimizer.tensors(); ++i) {
        header.add_update_counts(arrays.step * choices_.Choose(4) / 3);
      }
    }
    if (!full && choices_.Choose(3) == 0) ChooseTensors(header.mutable_tensors());
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
    } else if (model_->state == Model::State::kUninitialized && absl::c_linear_search(BroughtBy(header), false)) {
      refusal = v1::ERROR_REASON_INVALID_FIELD;
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
                            .replay = known,
                            .outdated = false});
    if (known) return;
    // It writes over the set's own slots as it comes.
    if (header.mode() == v1::WRITE_MODE_FULL && (device_ == nullptr || device_->on_host())) {
      model_->state = Model::State::kUninitialized;
      model_->moments_lost = true;
    }
  }

  std::vector<std::pair<v1::Slot, Arrival>> NothingWritten(const v1::WriteHeader& header) const {
    std::vector<std::pair<v1::Slot, Arrival>> slots = {
        {v1::SLOT_PARAMETER, Arrival(set_->schema(), BroughtBy(header))}};
    if (header.mode() == v1::WRITE_MODE_FULL) {
      for (const v1::Slot slot : OptimizerSlots(set_->configuration()->groups())) {
        slots.emplace_back(slot, Arrival(set_->schema(), BroughtBy(header)));
      }
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
                       .replay = false,
                       .outdated = false};
    if (const v1::ErrorReason refusal = RepetitionRefusal(); refusal != kNone) {
      if (!Expect(again.delivery.done(), true, "refused")) return;
      ExpectReason(ReasonOf(again.delivery.Take().status()), refusal, "what is said of a repeated write");
      return;
    }
    for (const v1::Slot slot : kEverySlot) {
      ValuesOf(slot, &again.arrays)->resize(ValuesOf(slot, model_->optimizer.mutable_arrays())->size());
    }
    if (!Expect(write_->delivery.done(), true, "ended")) return;
    ExpectReason(ReasonOf(write_->delivery.Take().status()), v1::ERROR_REASON_SUPERSEDED, "why a write ended");
    Expect(again.delivery.admitted() || again.delivery.done(), false, "admitted beside its older attempt");
    write_.reset();
    server_.clock().RunDue();
    AwaitIdle();
    again.delivery.Await();
    if (Expect(again.delivery.admitted(), true, "admitted")) write_ = std::move(again);
  }

  // Why the write under way may not begin once more: it was begun for a set that has grown since.
  v1::ErrorReason RepetitionRefusal() const {
    const v1::WriteHeader& header = write_->header;
    if (!header.update_counts().empty() && header.update_counts_size() != model_->optimizer.tensors()) {
      return v1::ERROR_REASON_INVALID_FIELD;
    }
    return header.has_incarnation() && header.incarnation() != model_->incarnation
               ? v1::ERROR_REASON_INCARNATION_MISMATCH
               : kNone;
  }

  void FinishTheWrite() {
    const bool early = choices_.Choose(8) == 0 && !write_->slots.back().second.complete();
    for (auto& [slot, arrival] : write_->slots) {
      if (early && slot == write_->slots.back().first) continue;
      const Values& values = *ValuesOf(slot, &write_->arrays);
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
    if (call.outdated || (call.replay && call.header.request_id() != model_->write_request_id)) {
      ExpectReason(ReasonOf(response.status()), v1::ERROR_REASON_INCARNATION_MISMATCH, "what became of a write");
      return;
    }
    if (!Expect(response.ok(), true, "written")) return;
    Expect(response->replayed(), call.replay, "replayed");
    if (!call.replay) {
      Expect(response->incarnation() == model_->incarnation, false, "the incarnation's being the old one");
      model_->incarnation = response->incarnation();
      if (call.header.mode() == v1::WRITE_MODE_FULL) {
        const auto& counts = call.header.update_counts();
        call.arrays.update_counts.clear();
        // As they are told: not at all where each is the step.
        if (absl::c_any_of(counts, [&](int64_t count) { return count != call.arrays.step; })) {
          call.arrays.update_counts.assign(counts.begin(), counts.end());
        }
        *model_->optimizer.mutable_arrays() = call.arrays;
        model_->moments_lost = false;
      } else {
        WriteParameters(BroughtBy(call.header), call.arrays.parameters);
      }
      model_->state = Model::State::kReady;
      model_->memory.clear();
      model_->write_request_id = call.header.request_id();
      model_->write_header = call.header.SerializeAsString();
      EndSteps(v1::ERROR_REASON_INCARNATION_MISMATCH);
      v1::WatchParameterSetResponse event = model_->Event();
      event.mutable_written()->set_mode(call.header.mode());
      Happened(std::move(event));
    }
    Expect(response->incarnation(), model_->incarnation, "the incarnation written");
    Expect(response->step(), model_->step(), "the step written");
  }

  void WriteParameters(const BroughtTensors& brought, const Values& values) {
    Values* const parameters = &model_->optimizer.mutable_arrays()->parameters;
    int64_t begin = 0;
    for (size_t i = 0; i < brought.size(); ++i) {
      const int64_t size = set_->schema().sizes()[i];
      if (brought[i]) std::copy_n(values.begin() + begin, size, parameters->begin() + begin);
      begin += size;
    }
  }

  // ---- changes of the configuration

  void ChangeConfiguration() {
    v1::ParameterSetSpec* const spec = model_->optimizer.mutable_spec();
    const v1::ParameterSetSpec before = *spec;
    // What stands in both requests.
    const auto demand = [this](auto* request) {
      if (choices_.Choose(4) == 0) request->set_config_revision(model_->config_revision - choices_.Choose(2));
      if (choices_.Choose(8) == 0) request->set_incarnation(model_->incarnation + choices_.Choose(2));
      return ChangeRefusal(*request);
    };
    const uint32_t kind = choices_.Choose(5);
    if (kind < 3) {
      v1::ParameterGroup* const group = spec->mutable_groups(static_cast<int>(choices_.Choose(spec->groups_size())));
      v1::UpdateParameterGroupRequest request;
      constexpr double kLearningRates[] = {1e-3, 0.05, 0};
      if (kind == 0) {
        group->set_frozen(!group->frozen());
        request.mutable_update_mask()->add_paths("frozen");
      } else if (kind == 1 || group->has_sgd()) {
        group->set_learning_rate(kLearningRates[choices_.Choose(3)]);
        request.mutable_update_mask()->add_paths("learning_rate");
      } else {
        group->mutable_adam()->set_eps(choices_.Choose(2) == 0 ? 1e-16 : 1e-8);
        request.mutable_update_mask()->add_paths("adam.eps");
      }
      *request.mutable_group() = *group;
      const v1::ErrorReason refusal = demand(&request);
      if (!Change(request, refusal)) *spec = before;
    } else {
      v1::UpdateParameterSetRequest request;
      if (kind == 3) {
        ChooseClipping(spec);
        request.mutable_update_mask()->add_paths("clipping");
      } else {
        ChoosePolicies(spec);
        request.mutable_update_mask()->add_paths("max_staleness");
        request.mutable_update_mask()->add_paths("non_finite_policy");
      }
      *request.mutable_spec() = *spec;
      const v1::ErrorReason refusal = demand(&request);
      if (!Change(request, refusal)) *spec = before;
    }
  }

  template <typename UpdateRequest>
  v1::ErrorReason ChangeRefusal(const UpdateRequest& request) const {
    if (model_->state == Model::State::kDeleted) return v1::ERROR_REASON_SET_NOT_FOUND;
    if (request.has_incarnation() && request.incarnation() != model_->incarnation) {
      return v1::ERROR_REASON_INCARNATION_MISMATCH;
    }
    if (request.has_config_revision() && request.config_revision() != model_->config_revision) {
      return v1::ERROR_REASON_CONFIG_CHANGED;
    }
    return kNone;
  }

  // Returns whether the configuration is another one from here on.
  template <typename UpdateRequest>
  bool Change(const UpdateRequest& request, v1::ErrorReason refusal) {
    struct Outcome {
      Gate gate;
      absl::StatusOr<v1::ParameterSet> set;
    };
    auto outcome = std::make_shared<Outcome>();
    set_->Update(request, [outcome](absl::StatusOr<v1::ParameterSet> changed) {
      outcome->set = std::move(changed);
      outcome->gate.Open();
    });
    outcome->gate.Pass();
    if (!ExpectReason(ReasonOf(outcome->set.status()), refusal, "what became of a change") || refusal != kNone) {
      return false;
    }
    ++model_->config_revision;
    v1::WatchParameterSetResponse event = model_->Event();
    *event.mutable_config_changed() = set_->Describe();
    Expect(outcome->set->ShortDebugString(), event.config_changed().ShortDebugString(), "what was changed");
    Happened(std::move(event));
    return true;
  }

  // ---- growth

  void GrowTheSet() {
    if (growths_ == kMostGrowths) return;
    const v1::AddTensorsRequest request = AnAddition();
    const v1::ErrorReason refusal = AdditionRefusal(request);
    const absl::StatusOr<v1::ParameterSet> grown = AddTensors(set_.get(), request);
    if (!ExpectReason(ReasonOf(grown.status()), refusal, "what became of an addition") || refusal != kNone) return;
    ++growths_;
    // So that what begins is admitted at once, as before.
    server_.LayReady(*set_);
    model_->optimizer.Grow(request);
    Expect(grown->incarnation() == model_->incarnation, false, "the incarnation's being the old one");
    model_->incarnation = grown->incarnation();
    if (!request.groups().empty()) ++model_->config_revision;
    model_->memory.clear();
    model_->write_request_id.clear();
    model_->write_header.clear();
    EndSteps(v1::ERROR_REASON_INCARNATION_MISMATCH);
    if (write_.has_value()) write_->outdated = true;
    v1::WatchParameterSetResponse event = model_->Event();
    *event.mutable_config_changed() = set_->Describe();
    Expect(grown->ShortDebugString(), event.config_changed().ShortDebugString(), "what has grown");
    Happened(std::move(event));
  }

  // One to three tensors, of groups that there are or of a new one.
  v1::AddTensorsRequest AnAddition() {
    v1::AddTensorsRequest request;
    const v1::ParameterSetSpec& spec = model_->optimizer.spec();
    std::string group = spec.groups(static_cast<int>(choices_.Choose(spec.groups_size()))).name();
    if (choices_.Choose(3) == 1) {
      v1::ParameterGroup* const added = request.add_groups();
      *added = spec.groups(static_cast<int>(choices_.Choose(spec.groups_size())));
      // Groups of one name have one optimizer, also where the set is created again: retries may override them.
      added->set_name(absl::StrCat(added->name(), spec.tensors_size()));
      added->set_learning_rate(0.125);
      group = added->name();
    }
    constexpr int64_t kSizes[2][5] = {{3, 0, 1, 16, 1100}, {3, 0, 40'000, 16, 21'001}};
    for (uint32_t more = choices_.Choose(3); request.tensors_size() <= static_cast<int>(more);) {
      v1::TensorSpec* const tensor = request.add_tensors();
      tensor->set_name(absl::StrCat("added", spec.tensors_size() + request.tensors_size()));
      tensor->add_shape(kSizes[size_ == SetSize::kSmall ? 0 : 1][choices_.Choose(5)]);
      tensor->set_group(request.tensors_size() == 1 ? group : spec.groups(0).name());
    }
    if (choices_.Choose(8) == 1) request.mutable_tensors(0)->set_name(spec.tensors(0).name());
    if (choices_.Choose(4) == 1) request.set_incarnation(model_->incarnation + choices_.Choose(3) / 2);
    if (choices_.Choose(4) == 1) request.set_schema_fingerprint(set_->schema().fingerprint() + choices_.Choose(3) / 2);
    return request;
  }

  v1::ErrorReason AdditionRefusal(const v1::AddTensorsRequest& request) const {
    if (model_->NotReady() != kNone) return model_->NotReady();
    if (request.has_incarnation() && request.incarnation() != model_->incarnation) {
      return v1::ERROR_REASON_INCARNATION_MISMATCH;
    }
    if (request.has_schema_fingerprint() && request.schema_fingerprint() != set_->schema().fingerprint()) {
      return v1::ERROR_REASON_SCHEMA_MISMATCH;
    }
    return request.tensors(0).name() == model_->optimizer.spec().tensors(0).name() ? v1::ERROR_REASON_INVALID_FIELD
                                                                                   : kNone;
  }

  // ---- watching

  void Happened(v1::WatchParameterSetResponse event) {
    if (watch_ != nullptr) told_.Add(std::move(event));
  }

  void WatchTheSet() {
    if (watch_ == nullptr) {
      absl::StatusOr<std::shared_ptr<Watch>> watch = set_->BeginWatch([] {});
      const bool deleted = model_->state == Model::State::kDeleted;
      ExpectReason(ReasonOf(watch.status()), deleted ? v1::ERROR_REASON_SET_NOT_FOUND : kNone,
                   "what became of a watch");
      if (!watch.ok()) return;
      watch_ = *std::move(watch);
      told_ = {};
      v1::WatchParameterSetResponse event = model_->Event();
      *event.mutable_current() = set_->Describe();
      Happened(std::move(event));
      return;
    }
    switch (choices_.Choose(4)) {
      case 0:
        return TakeEvents(1);
      case 1:
        watch_.reset();
        return;
      default:
        return TakeEvents(std::numeric_limits<int>::max());
    }
  }

  // So many, or as many as there are.
  void TakeEvents(int most) {
    for (; most > 0 && watch_ != nullptr; --most) {
      const std::optional<v1::WatchParameterSetResponse> event = watch_->Next();
      const std::optional<v1::WatchParameterSetResponse> expected = told_.Next();
      if (!Expect(event.has_value(), expected.has_value(), "there being something to tell") || !event.has_value())
        return;
      if (!Expect(event->ShortDebugString(), expected->ShortDebugString(), "what was told")) return;
    }
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
    v1::WatchParameterSetResponse event = model_->Event();
    event.mutable_deleted();
    Happened(std::move(event));
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
    Expect(description.config_revision(), model_->config_revision, "the revision of the configuration");
    const v1::ParameterSetSpec& spec = model_->optimizer.spec();
    Expect(description.parameter_count(), model_->optimizer.parameter_count(), "the number of parameters");
    Expect(description.groups_size(), spec.groups_size(), "the number of groups");
    Expect(description.max_staleness(), spec.max_staleness(), "how stale a step may be");
    for (int i = 0; i < spec.groups_size(); ++i) {
      Expect(description.groups(i).learning_rate(), spec.groups(i).learning_rate(), "a learning rate");
      Expect(description.groups(i).frozen(), spec.groups(i).frozen(), "a group's being frozen");
    }
    CheckStatistics(description.statistics());
    if (model_->state != Model::State::kReady) return;
    Expect(description.step(), model_->step(), "the step");
    const absl::StatusOr<Arrays> arrays = FetchState(set_.get());
    if (!Expect(arrays.ok(), true, "read")) return;
    Expect(*arrays == model_->optimizer.arrays(), true, "the state's being the model's");
  }

  void CheckStatistics(const v1::SetStatistics& statistics) {
    const v1::SetStatistics& expected = model_->statistics;
    Expect(statistics.applied(), expected.applied(), "the steps applied");
    Expect(statistics.non_finite(), expected.non_finite(), "the steps that were not finite");
    Expect(statistics.replayed(), expected.replayed(), "the steps replayed");
    Expect(statistics.refused(), expected.refused(), "the steps refused");
    Expect(statistics.last_grad_norm(), expected.last_grad_norm(), "the last norm");
    if (Expect(statistics.last_metrics().size(), expected.last_metrics().size(), "the last metrics' number") &&
        !expected.last_metrics().empty()) {
      Expect(statistics.last_metrics().at("loss"), expected.last_metrics().at("loss"), "the last loss");
    }
  }

  void CheckAll() {
    CheckState();
    TakeEvents(std::numeric_limits<int>::max());
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
  int growths_ = 0;                // of this set
  std::vector<Request> requests_;  // those with a request_id
  std::array<std::optional<StepCall>, kClients> steps_;
  std::optional<WriteCall> write_;
  std::shared_ptr<Watch> watch_;  // null: nobody watches
  WatchModel told_;               // what is to come of it
  std::vector<KeptReading> readings_;
  std::vector<KeptReply> replies_;
};

}  // namespace

std::string RunSchedule(SetSize size, Device device, Choices* choices) { return Schedule(size, device, choices).Run(); }

}  // namespace adamant::core
