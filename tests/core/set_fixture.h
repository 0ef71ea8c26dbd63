// A server without a network, and what a client does to its sets: for tests of the parameter set. Knows no test
// framework.
#ifndef ADAMANT_TESTS_CORE_SET_FIXTURE_H_
#define ADAMANT_TESTS_CORE_SET_FIXTURE_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/error.pb.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "kernels/dispatch.h"
#include "proto/error/error.h"
#include "server/core/backend/cpu_backend.h"
#include "server/core/registry.h"
#include "server/core/set/parameter_set.h"
#include "server/core/spec/slots.h"
#include "tests/core/gate.h"
#include "tests/core/manual_clock.h"
#include "tests/core/sequential_model.h"

namespace adamant::core {

struct ServerOptions {
  int64_t state_bytes = int64_t{256} << 20;
  int64_t inflight_bytes = int64_t{64} << 20;
  int64_t read_bytes = int64_t{64} << 20;
  int compute_threads = 1;
  Backend* backend = nullptr;  // none: the fastest one that there is
  MemoryRegistrar* registrar = nullptr;
  // Arrays of each set that lie idle when it is there: what takes one of them is answered at once.
  int idle_arrays = 8;
};

struct UsedBytes {
  int64_t state;
  int64_t inflight;
  int64_t read;
};

inline bool operator==(const UsedBytes& a, const UsedBytes& b) {
  return a.state == b.state && a.inflight == b.inflight && a.read == b.read;
}

inline std::ostream& operator<<(std::ostream& out, const UsedBytes& used) {
  return out << "state " << used.state << ", inflight " << used.inflight << ", read " << used.read;
}

// Everything that sets share. Outlives them, and all that is under way.
class TestServer {
 public:
  explicit TestServer(const ServerOptions& options = {})
      : state_("state", options.state_bytes, &clock_),
        inflight_("inflight", options.inflight_bytes, &clock_),
        read_("read", options.read_bytes, &clock_),
        pool_([] {}, options.registrar),
        cpu_(kernels::BestKernels()),
        compute_(std::make_unique<ComputePool>(options.compute_threads)),
        backend_(options.backend != nullptr ? options.backend : &cpu_),
        idle_arrays_(options.idle_arrays) {}

  Resources resources() {
    return {.clock = &clock_,
            .state = &state_,
            .inflight = &inflight_,
            .read = &read_,
            .lender = &lender_,
            .compute = compute_.get(),
            .backend = backend_,
            .admission_wait = absl::Seconds(1)};
  }

  // A set that `spec` is right for.
  std::shared_ptr<ParameterSet> MakeSet(const v1::ParameterSetSpec& spec) {
    std::shared_ptr<ParameterSet> set = *ParameterSet::Create(resources(), spec);
    LayReady(*set);
    return set;
  }

  // Has as many arrays of the set's size as options say lie idle.
  void LayReady(const ParameterSet& set) {
    std::vector<BlockList> idle;
    for (int i = 0; i < idle_arrays_; ++i) idle.push_back(*pool_.Take(set.schema().flat_size()));
  }

  // Waits until the compute thread, which must be the only one, has let go of all that it had.
  void AwaitIdle() {
    Gate idle;
    compute_->Run(
        1, [](int64_t) {}, [&idle] { idle.Open(); });
    idle.Pass();
  }

  // Waits until nobody holds a set, or anything of one, any more, on whatever thread.
  void AwaitUnused() {
    for (Budget* const budget : {&state_, &inflight_, &read_}) budget->AwaitUnused();
  }

  // Waits until the compute threads have let go of all that they had. Nothing can be computed after this.
  void StopComputing() { compute_.reset(); }

  ManualClock& clock() { return clock_; }
  Budget& inflight() { return inflight_; }
  Budget& read() { return read_; }
  UsedBytes used() const { return {state_.used(), inflight_.used(), read_.used()}; }

 private:
  ManualClock clock_;
  Budget state_;
  Budget inflight_;
  Budget read_;
  BlockPool pool_;
  CpuBackend cpu_;
  std::unique_ptr<ComputePool> compute_;
  Lender lender_{&pool_, compute_.get()};
  Backend* const backend_;
  const int idle_arrays_;
};

// Four tensors in two groups; 65 parameters: small, one block.
inline v1::ParameterSetSpec SmallSpec(absl::string_view name = "small",
                                      v1::Initialization initialization = v1::INITIALIZATION_ZEROS) {
  v1::ParameterSetSpec spec;
  spec.set_name(std::string(name));
  spec.set_initialization(initialization);
  v1::ParameterGroup* group = spec.add_groups();
  group->set_name("slow");
  group->set_learning_rate(1e-3);
  group = spec.add_groups();
  group->set_name("fast");
  group->set_learning_rate(1e-2);
  const auto add = [&](absl::string_view tensor_name, std::vector<int64_t> shape, absl::string_view group_name) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(std::string(tensor_name));
    tensor->mutable_shape()->Add(shape.begin(), shape.end());
    tensor->set_group(std::string(group_name));
  };
  add("w1", {16, 2}, "slow");
  add("b1", {16}, "fast");
  add("w2", {1, 16}, "slow");
  add("b2", {}, "fast");
  return spec;
}

// 329,997 parameters in three tensors: six blocks, more than 1 MiB, so admitted by the budget and computed on the pool.
// Tensors begin and end inside of blocks.
inline v1::ParameterSetSpec LargeSpec(absl::string_view name = "large",
                                      v1::Initialization initialization = v1::INITIALIZATION_ZEROS) {
  v1::ParameterSetSpec spec = SmallSpec(name, initialization);
  spec.clear_tensors();
  const auto add = [&](absl::string_view tensor_name, int64_t size, absl::string_view group_name) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(std::string(tensor_name));
    tensor->add_shape(size);
    tensor->set_group(std::string(group_name));
  };
  add("head", 100001, "slow");
  add("body", 229993, "fast");
  add("tail", 3, "slow");
  return spec;
}

// `spec` with a tensor without elements before each of its own, and one behind them.
inline v1::ParameterSetSpec WithEmptyTensors(const v1::ParameterSetSpec& spec) {
  v1::ParameterSetSpec with = spec;
  with.clear_tensors();
  const auto add_empty = [&with](const std::vector<int64_t>& shape) {
    v1::TensorSpec* tensor = with.add_tensors();
    tensor->set_name(absl::StrCat("empty", with.tensors_size()));
    tensor->mutable_shape()->Add(shape.begin(), shape.end());
    tensor->set_group(with.groups(0).name());
  };
  for (const v1::TensorSpec& tensor : spec.tensors()) {
    add_empty({8, 0});
    *with.add_tensors() = tensor;
  }
  add_empty({0});
  return with;
}

// A set that has none but tensors without elements.
inline v1::ParameterSetSpec EmptySpec(absl::string_view name = "empty",
                                      v1::Initialization initialization = v1::INITIALIZATION_ZEROS) {
  v1::ParameterSetSpec spec = SmallSpec(name, initialization);
  for (v1::TensorSpec& tensor : *spec.mutable_tensors()) tensor.add_shape(0);
  return spec;
}

inline int64_t ArrayBytes(const ParameterSet& set) { return BlockPool::ChargedBytes(set.schema().flat_size()); }

// Part of one tensor.
struct Piece {
  int32_t tensor;
  int64_t offset;
  int64_t count;
  int64_t begin;  // in Values
};

// All tensors in order, or those that `tensors` names, in pieces of at most `most` elements.
inline std::vector<Piece> Cut(const Schema& schema, int64_t most,
                              const google::protobuf::RepeatedField<int32_t>& tensors = {}) {
  std::vector<Piece> pieces;
  int64_t begin = 0;
  for (size_t tensor = 0; tensor < schema.tensors().size(); ++tensor) {
    const int64_t size = schema.sizes()[tensor];
    if (!tensors.empty() && !absl::c_linear_search(tensors, static_cast<int32_t>(tensor))) {
      begin += size;
      continue;
    }
    for (int64_t offset = 0; offset < size; offset += most) {
      pieces.push_back({static_cast<int32_t>(tensor), offset, std::min(most, size - offset), begin + offset});
    }
    begin += size;
  }
  return pieces;
}

// Seeded gradients: mostly of moderate size, some zero.
inline Values Gradient(int64_t parameter_count, uint64_t seed) {
  Values gradient(parameter_count);
  uint64_t state = seed * 0x9E3779B97F4A7C15 + 1;
  for (float& g : gradient) {
    state = state * 6364136223846793005 + 1442695040888963407;
    const int32_t random = static_cast<int32_t>(state >> 32);
    g = random % 8 == 0 ? 0.0f : static_cast<float>(random) * 0x1p-31f;
  }
  return gradient;
}

// What a listener has heard, and a way to wait for it. Thread-safe.
template <typename Attempt, typename Reply>
class Recorder final : public Attempt::Listener {
 public:
  void OnAdmitted() override {
    MutexLock lock(&mutex_);
    ++admissions_;
    changed_.NotifyAll();
  }

  void OnOutcome(absl::StatusOr<Reply> reply) override {
    MutexLock lock(&mutex_);
    if (reply_.has_value()) std::abort();
    reply_ = std::move(reply);
    changed_.NotifyAll();
  }

  int admissions() const {
    MutexLock lock(&mutex_);
    return admissions_;
  }

  bool done() const {
    MutexLock lock(&mutex_);
    return reply_.has_value();
  }

  // Returns once something was heard: a direct write may have to wait for the end of the turn before it.
  void Await() {
    MutexLock lock(&mutex_);
    while (admissions_ == 0 && !reply_.has_value()) changed_.Wait(&mutex_);
  }

  // What OnOutcome brought. Waits for it.
  absl::StatusOr<Reply> Take() {
    MutexLock lock(&mutex_);
    while (!reply_.has_value()) changed_.Wait(&mutex_);
    return *std::exchange(reply_, absl::StatusOr<Reply>(absl::CancelledError("the reply was taken")));
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  int admissions_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<absl::StatusOr<Reply>> reply_ ABSL_GUARDED_BY(mutex_);
};

// What a step's listener heard of its blocks while they were computed. Thread-safe.
class ComputedRecorder final : public StepListener {
 public:
  void OnAdmitted() override {}
  void OnOutcome(absl::StatusOr<StepReply> reply) override { reply_ = std::move(reply); }
  void OnComputed(const StepAttempt* attempt, const std::shared_ptr<const StepParameters>& parameters,
                  int64_t blocks) override {
    MutexLock lock(&mutex_);
    attempt_ = attempt;
    parameters_ = parameters;
    values_.clear();
    for (int64_t block = 0; block < blocks; ++block) {
      const BlockRef& told = parameters->snapshot->blocks()[block];
      values_.insert(values_.end(), told.data(), told.data() + told.size());
    }
  }

  // After the server has stopped computing.
  const absl::StatusOr<StepReply>& reply() const { return reply_; }
  // Of the last call: what was told, and the elements of its blocks as they were then.
  const StepAttempt* attempt() const {
    MutexLock lock(&mutex_);
    return attempt_;
  }
  std::shared_ptr<const StepParameters> parameters() const {
    MutexLock lock(&mutex_);
    return parameters_;
  }
  Values values() const {
    MutexLock lock(&mutex_);
    return values_;
  }

 private:
  absl::StatusOr<StepReply> reply_;
  mutable Mutex mutex_;
  const StepAttempt* attempt_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::shared_ptr<const StepParameters> parameters_ ABSL_GUARDED_BY(mutex_);
  Values values_ ABSL_GUARDED_BY(mutex_);
};

template <typename Attempt>
absl::Status AddPiece(Attempt* attempt, const Piece& piece, const Values& values, v1::Slot slot) {
  const float* from = values.data() + piece.begin;
  return attempt->Add(slot, piece.tensor, piece.offset, piece.count, [&from](float* to, int64_t n) {
    std::copy_n(from, n, to);
    from += n;
  });
}

// All of a step after its header, for a listener of the caller's.
inline absl::Status Deliver(StepAttempt* attempt, const Schema& schema, const Values& gradient) {
  for (const Piece& piece : Cut(schema, kBlockElements)) {
    absl::Status status = AddPiece(attempt, piece, gradient, v1::SLOT_UNSPECIFIED);
    if (!status.ok()) return status;
  }
  return attempt->Complete();
}

// A step or a write under way. Destroying it is what the end of a call is: it cancels and lets go.
template <typename Attempt, typename Reply>
class Delivery {
 public:
  Delivery(std::shared_ptr<Attempt> attempt, std::shared_ptr<Recorder<Attempt, Reply>> recorder)
      : attempt_(std::move(attempt)), recorder_(std::move(recorder)) {
    attempt_->Start();
  }
  Delivery(Delivery&&) noexcept = default;
  Delivery& operator=(Delivery&& other) noexcept {
    End();
    attempt_ = std::move(other.attempt_);
    recorder_ = std::move(other.recorder_);
    return *this;
  }
  ~Delivery() { End(); }

  absl::Status Send(const Piece& piece, const Values& values, v1::Slot slot = v1::SLOT_UNSPECIFIED) {
    return AddPiece(attempt_.get(), piece, values, slot);
  }

  absl::Status Send(const std::vector<Piece>& pieces, const Values& values, v1::Slot slot = v1::SLOT_UNSPECIFIED) {
    for (const Piece& piece : pieces) {
      if (absl::Status status = Send(piece, values, slot); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // A chunk of rows of a tensor.
  absl::Status SendRows(int32_t tensor, const std::vector<int64_t>& rows, const Values& values) {
    const int64_t* row = rows.data();
    const float* value = values.data();
    return attempt_->AddRows(
        v1::SLOT_UNSPECIFIED, tensor, /*offset=*/0, static_cast<int64_t>(rows.size()),
        [&row](int64_t* to, int64_t n) { row = std::copy_n(row, n, to) - to + row; },
        static_cast<int64_t>(values.size()),
        [&value](float* to, int64_t n) { value = std::copy_n(value, n, to) - to + value; });
  }

  absl::Status Complete() { return attempt_->Complete(); }
  void Cancel() { attempt_->Cancel(); }
  void Await() { recorder_->Await(); }
  bool admitted() const { return recorder_->admissions() > 0; }
  bool done() const { return recorder_->done(); }
  absl::StatusOr<Reply> Take() { return recorder_->Take(); }

 private:
  void End() {
    if (attempt_ != nullptr) attempt_->Cancel();
  }

  std::shared_ptr<Attempt> attempt_;
  std::shared_ptr<Recorder<Attempt, Reply>> recorder_;
};

using StepDelivery = Delivery<StepAttempt, StepReply>;
using WriteDelivery = Delivery<WriteAttempt, v1::WriteTensorsResponse>;

inline v1::StepHeader Header(absl::string_view request_id = "", std::optional<int64_t> expected_step = {},
                             std::optional<int32_t> attempt = {}) {
  v1::StepHeader header;
  header.set_request_id(std::string(request_id));
  if (expected_step.has_value()) header.set_expected_step(*expected_step);
  if (attempt.has_value()) header.set_attempt(*attempt);
  return header;
}

inline v1::WriteHeader ParametersHeader(absl::string_view request_id = "") {
  v1::WriteHeader header;
  header.set_request_id(std::string(request_id));
  header.set_mode(v1::WRITE_MODE_PARAMETERS);
  return header;
}

inline v1::WriteHeader FullHeader(int64_t step, absl::string_view request_id = "") {
  v1::WriteHeader header;
  header.set_request_id(std::string(request_id));
  header.set_mode(v1::WRITE_MODE_FULL);
  header.set_step(step);
  return header;
}

inline StepDelivery BeginStep(ParameterSet* set, const v1::StepHeader& header) {
  auto recorder = std::make_shared<Recorder<StepAttempt, StepReply>>();
  return StepDelivery(set->NewStep(header, recorder), recorder);
}

inline WriteDelivery BeginWrite(ParameterSet* set, const v1::WriteHeader& header) {
  auto recorder = std::make_shared<Recorder<WriteAttempt, v1::WriteTensorsResponse>>();
  return WriteDelivery(set->NewWrite(header, recorder), recorder);
}

// All of a step after its header.
inline absl::StatusOr<StepReply> Finish(ParameterSet* set, StepDelivery* delivery, const Values& gradient,
                                        int64_t most = kBlockElements,
                                        const google::protobuf::RepeatedField<int32_t>& tensors = {}) {
  delivery->Await();
  if (delivery->done()) return delivery->Take();
  if (absl::Status status = delivery->Send(Cut(set->schema(), most, tensors), gradient); !status.ok()) return status;
  if (absl::Status status = delivery->Complete(); !status.ok()) return status;
  return delivery->Take();
}

// A whole step, and a whole write.
inline absl::StatusOr<StepReply> Step(ParameterSet* set, const v1::StepHeader& header, const Values& gradient) {
  StepDelivery delivery = BeginStep(set, header);
  return Finish(set, &delivery, gradient, kBlockElements, header.tensors());
}

inline absl::Status SendAll(ParameterSet* set, WriteDelivery* delivery, const v1::WriteHeader& header,
                            const Arrays& arrays) {
  const std::vector<Piece> pieces = Cut(set->schema(), kBlockElements, header.tensors());
  absl::Status status = delivery->Send(pieces, arrays.parameters, v1::SLOT_PARAMETER);
  if (header.mode() == v1::WRITE_MODE_FULL) {
    const std::pair<v1::Slot, const Values*> slots[] = {{v1::SLOT_EXP_AVG, &arrays.exp_avg},
                                                        {v1::SLOT_EXP_AVG_SQ, &arrays.exp_avg_sq},
                                                        {v1::SLOT_MAX_EXP_AVG_SQ, &arrays.max_exp_avg_sq},
                                                        {v1::SLOT_MOMENTUM_BUFFER, &arrays.momentum_buffer}};
    for (const auto& [slot, values] : slots) {
      if (status.ok() && !values->empty()) status = delivery->Send(pieces, *values, slot);
    }
  }
  return status;
}

inline absl::StatusOr<v1::WriteTensorsResponse> Write(ParameterSet* set, const v1::WriteHeader& header,
                                                      const Arrays& arrays) {
  WriteDelivery delivery = BeginWrite(set, header);
  delivery.Await();
  if (delivery.done()) return delivery.Take();
  if (absl::Status status = SendAll(set, &delivery, header, arrays); !status.ok()) return status;
  if (absl::Status status = delivery.Complete(); !status.ok()) return status;
  return delivery.Take();
}

// The elements of a set without padding, of those with.
inline Values Unpad(const Schema& schema, const Values& padded) {
  Values values;
  values.reserve(schema.parameter_count());
  for (const Schema::Tensor& tensor : schema.tensors()) {
    values.insert(values.end(), padded.begin() + tensor.begin, padded.begin() + tensor.end);
  }
  return values;
}

inline Values Parameters(const StepReply& reply) {
  const Schema& schema = reply.parameters->selection->schema();
  Values padded(schema.flat_size());
  CopyRuns(reply.parameters->snapshot->blocks(), 0, schema.flat_size(), padded.data());
  return Unpad(schema, padded);
}

// A read that may have to wait for its beginning.
class PendingRead {
 public:
  PendingRead(ParameterSet* set, const v1::ReadTensorsRequest& request) : outcome_(std::make_shared<Outcome>()) {
    set->BeginRead(request, [outcome = outcome_](absl::StatusOr<std::unique_ptr<Reading>> reading) {
      MutexLock lock(&outcome->mutex);
      outcome->reading = std::move(reading);
      outcome->changed.NotifyAll();
    });
  }

  bool begun() const {
    MutexLock lock(&outcome_->mutex);
    return outcome_->reading.has_value();
  }

  absl::StatusOr<std::unique_ptr<Reading>> Take() {
    MutexLock lock(&outcome_->mutex);
    while (!outcome_->reading.has_value()) outcome_->changed.Wait(&outcome_->mutex);
    return *std::move(outcome_->reading);
  }

 private:
  struct Outcome {
    Mutex mutex;
    CondVar changed;
    std::optional<absl::StatusOr<std::unique_ptr<Reading>>> reading ABSL_GUARDED_BY(mutex);
  };
  std::shared_ptr<Outcome> outcome_;
};

inline v1::ReadTensorsRequest ReadRequest(const std::vector<v1::Slot>& slots = {}) {
  v1::ReadTensorsRequest request;
  for (const v1::Slot slot : slots) request.add_slots(slot);
  return request;
}

inline v1::ReadTensorsRequest FullReadRequest() {
  return ReadRequest({v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ});
}

inline absl::StatusOr<std::unique_ptr<Reading>> Read(ParameterSet* set, const v1::ReadTensorsRequest& request) {
  return PendingRead(set, request).Take();
}

// One slot of a read.
inline absl::StatusOr<Values> Fetch(const Reading& reading, v1::Slot slot) {
  Values padded(reading.schema().flat_size());
  if (absl::Status status = reading.Copy(slot, 0, reading.schema().flat_size(), padded.data()); !status.ok()) {
    return status;
  }
  return Unpad(reading.schema(), padded);
}

// Everything that a read has.
inline absl::StatusOr<Arrays> Fetch(const Reading& reading) {
  Arrays arrays;
  arrays.step = reading.header().step();
  arrays.update_counts.assign(reading.header().update_counts().begin(), reading.header().update_counts().end());
  const std::pair<v1::Slot, Values*> slots[] = {{v1::SLOT_PARAMETER, &arrays.parameters},
                                                {v1::SLOT_EXP_AVG, &arrays.exp_avg},
                                                {v1::SLOT_EXP_AVG_SQ, &arrays.exp_avg_sq},
                                                {v1::SLOT_MAX_EXP_AVG_SQ, &arrays.max_exp_avg_sq},
                                                {v1::SLOT_MOMENTUM_BUFFER, &arrays.momentum_buffer}};
  for (const auto& [slot, values] : slots) {
    if (!absl::c_linear_search(reading.slots(), slot)) continue;
    absl::StatusOr<Values> fetched = Fetch(reading, slot);
    if (!fetched.ok()) return fetched.status();
    *values = *std::move(fetched);
  }
  return arrays;
}

// The whole state now.
inline absl::StatusOr<Arrays> FetchState(ParameterSet* set) {
  std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER};
  for (const v1::Slot slot : OptimizerSlots(set->configuration()->groups())) slots.push_back(slot);
  absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set, ReadRequest(slots));
  if (!reading.ok()) return reading.status();
  return Fetch(**reading);
}

inline absl::StatusOr<v1::GetStepResultResponse> StepResultOf(const ParameterSet& set, absl::string_view request_id) {
  v1::GetStepResultRequest request;
  request.set_request_id(std::string(request_id));
  return set.FindStepResult(request);
}

// Waits for its turn, too.
inline absl::Status Delete(ParameterSet* set, std::optional<uint64_t> incarnation = {}) {
  struct Outcome {
    Mutex mutex;
    CondVar changed;
    std::optional<absl::Status> status;
  };
  auto outcome = std::make_shared<Outcome>();
  set->Delete(
      incarnation, [] {},
      [outcome](absl::Status status) {
        MutexLock lock(&outcome->mutex);
        outcome->status = std::move(status);
        outcome->changed.NotifyAll();
      });
  MutexLock lock(&outcome->mutex);
  while (!outcome->status.has_value()) outcome->changed.Wait(&outcome->mutex);
  return *outcome->status;
}

// What the detail of an error says; UNSPECIFIED for OK.
inline v1::ErrorReason ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason(); }

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SET_FIXTURE_H_
