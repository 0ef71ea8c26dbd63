#include "server/core/backend/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda_update.h"
#include "proto/error/error.h"
#include "server/core/base/compute_pool.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/budget.h"
#include "server/core/spec/slots.h"

namespace adamant::core {
namespace {

// A job's item: a call that copies takes 2.3 us of the host's time, as long as the wire moves 128 KiB.
constexpr int64_t kItemBlocks = 16;
constexpr int64_t kItemBytes = kItemBlocks * kBlockElements * static_cast<int64_t>(sizeof(float));

int64_t ItemsFor(int64_t blocks) { return (blocks + kItemBlocks - 1) / kItemBlocks; }

// Calls `visit(element, address, count)` for each run of elements that consecutive blocks of `list`, of [first, end),
// hold without a gap between them, blocks that are null left out: CUDA refuses to copy what is registered in part, or
// in two pieces. `element` counts in the flat space.
template <typename Visit>
cudaError_t ForEachStretch(const BlockList& list, int64_t first, int64_t end, Visit visit) {
  for (int64_t block = first; block < end;) {
    if (!list[block]) {
      ++block;
      continue;
    }
    const float* const address = list[block].data();
    int64_t count = list[block].size();
    int64_t next = block + 1;
    for (; next < end && list[next] && list[next].Continues(list[next - 1]); ++next) count += list[next].size();
    if (const cudaError_t error = visit(block * kBlockElements, address, count); error != cudaSuccess) return error;
    block = next;
  }
  return cudaSuccess;
}

// Work as the device takes it: cut for its blocks of threads, and divided among its own threads.
struct Pieces {
  // Blocks [first, end), some of which are selected; their pieces [first_piece, end_piece), whose cohorts are in
  // [first_cohort, end_cohort).
  struct Item {
    int64_t first;
    int64_t end;
    int64_t first_piece;
    int64_t end_piece;
    int first_cohort;
    int end_cohort;
  };

  explicit Pieces(const StepWork& work);

  // How many there are at most for a set of this schema.
  static int64_t Most(const Schema& schema) {
    const int64_t blocks = (schema.flat_size() + kBlockElements - 1) / kBlockElements;
    return schema.flat_size() / kernels::kCudaPieceElements + 2 * blocks +
           absl::c_count_if(schema.tensors(), [](const Schema::Tensor& tensor) { return tensor.size() > 0; });
  }

  std::vector<kernels::CudaPiece> pieces;
  std::vector<Item> items;
};

Pieces::Pieces(const StepWork& work) {
  const absl::Span<const int64_t> blocks = work.selection().blocks();
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t first = blocks[i] / kItemBlocks * kItemBlocks;
    const auto begin = static_cast<int64_t>(pieces.size());
    if (items.empty() || items.back().first != first) {
      items.push_back({first, first + kItemBlocks, begin, begin, static_cast<int>(work.cohorts().size()), 0});
    }
    Item& item = items.back();
    item.end =
        std::min(first + kItemBlocks, (work.selection().schema().flat_size() + kBlockElements - 1) / kBlockElements);
    for (const WorkRange& range : work.ranges(i)) {
      if (range.cohort == WorkRange::kKept) continue;
      item.first_cohort = std::min(item.first_cohort, range.cohort);
      item.end_cohort = std::max(item.end_cohort, range.cohort + 1);
      for (int32_t piece = range.begin; piece < range.end; piece += kernels::kCudaPieceElements) {
        const int32_t size = std::min(kernels::kCudaPieceElements, range.end - piece);
        pieces.push_back({blocks[i] * kBlockElements + piece, size, range.cohort});
      }
    }
    item.end_piece = static_cast<int64_t>(pieces.size());
  }
}

// The rows of a step, as the device takes them: what lies in one block of their values is one item.
struct RowPieces {
  // Its pieces and their shifts are [first, end).
  struct Item {
    int64_t values_block;
    int64_t first;
    int64_t end;
  };

  explicit RowPieces(const RowWork& work);

  std::vector<kernels::CudaPiece> pieces;
  std::vector<int64_t> shifts;
  std::vector<Item> items;
};

// A block of gradients, and as many pieces as it may be divided into, have room in a lane's buffer.
static_assert(kBlockElements * (sizeof(float) + sizeof(kernels::CudaPiece) + sizeof(int64_t)) <= kItemBytes);

RowPieces::RowPieces(const RowWork& work) {
  struct Run {
    int64_t values_block;
    kernels::CudaPiece piece;
    int64_t shift;
  };
  std::vector<Run> runs;
  work.ForEachRow(0, work.rows.size(), [&](const RowWork::Place& place) {
    ForEachRun(place, [&](int64_t block, int64_t begin, int64_t values_block, int64_t values_begin, int64_t count) {
      for (int64_t done = 0; done < count; done += kernels::kCudaPieceElements) {
        const int64_t flat = block * kBlockElements + begin + done;
        const auto size = static_cast<int32_t>(std::min<int64_t>(kernels::kCudaPieceElements, count - done));
        runs.push_back({values_block, {flat, size, place.tensor->recipe}, values_begin + done - flat});
      }
    });
  });
  absl::c_sort(runs, [](const Run& a, const Run& b) { return a.values_block < b.values_block; });
  for (const Run& run : runs) {
    const auto next = static_cast<int64_t>(pieces.size());
    if (items.empty() || items.back().values_block != run.values_block) items.push_back({run.values_block, next, next});
    pieces.push_back(run.piece);
    shifts.push_back(run.shift);
    items.back().end = next + 1;
  }
}

// Has what `plan` says of rows in the blocks of its `after`, once their new parameters are in `values`.
void TakeRows(const StepPlan& plan) {
  for (const StepPlan::Copy& copy : plan.copies) {
    std::copy_n(copy.from.data(), copy.from.size(), plan.after->blocks()[copy.block].mutable_data());
  }
  plan.rows->ForEachRow(0, plan.rows->rows.size(), [&](const RowWork::Place& place) {
    ForEachRun(place, [&](int64_t block, int64_t begin, int64_t values_block, int64_t values_begin, int64_t count) {
      std::copy_n(plan.rows->values[values_block].data() + values_begin, count,
                  plan.after->blocks()[block].mutable_data() + begin);
    });
  });
}

// One device. Thread-safe.
class CudaBackend final : public Backend {
 public:
  // What a thread needs that drives the device.
  struct Lane {
    cudaStream_t stream = nullptr;
    float* buffer = nullptr;  // kItemBytes of the device's memory
  };

  static absl::StatusOr<std::unique_ptr<CudaBackend>> Open(int ordinal, const CudaOptions& options);
  ~CudaBackend() override;

  absl::StatusOr<std::unique_ptr<SlotArrays>> NewArrays(ArraysLayout layout, Lender* lender,
                                                        ComputePool* compute) override;
  bool on_host() const override { return false; }
  const kernels::KernelTable& host_kernels() const override { return *host_kernels_; }
  std::string name() const override { return name_; }
  v1::Device Describe() const override;
  absl::Status CheckWorking() const override;
  const Budget* budget() const override { return budget_.get(); }

  // Memory of the device's, all zero: for the parameters and each slot of a set of this layout, and for its pieces; and
  // what pays for it. Errors: RESOURCE_EXHAUSTED; DEVICE_LOST, DEVICE_FAILED. Then nothing is held.
  struct Memory {
    Grant grant;
    std::vector<void*> arrays;
  };
  absl::StatusOr<Memory> Allocate(const ArraysLayout& layout);
  // Gives memory back later, and then what paid for it: whoever lets go does not wait for the device.
  void FreeLater(std::vector<void*> memory, Grant grant);

  // Calls `work(lane, item)` for every item in [0, count), each on one of the device's threads, and waits there for
  // what it has enqueued on the lane's stream; then `done` with the first error. An item after an error is left out.
  using Work = absl::AnyInvocable<cudaError_t(const Lane& lane, int64_t item) const>;
  void Run(int64_t count, Work work, Then<absl::Status> done);

  // OK, or that error in the device's words; finds out whether the device is lost, and tells `warn`. Leaves the
  // calling thread's calls the device's.
  absl::Status Check(cudaError_t error);
  // Makes the calling thread's calls the device's.
  cudaError_t Use() const { return cudaSetDevice(ordinal_); }

 private:
  CudaBackend(int ordinal, const cudaDeviceProp& properties, const CudaOptions& options)
      : ordinal_(ordinal),
        name_(absl::StrCat("cuda:", ordinal)),
        properties_(properties),
        host_kernels_(options.host_kernels),
        warn_(options.warn) {}

  absl::StatusOr<void*> Allocate(int64_t bytes);
  Lane TakeLane();
  void PutBack(Lane lane);

  const int ordinal_;
  const std::string name_;
  const cudaDeviceProp properties_;
  const kernels::KernelTable* const host_kernels_;
  const std::function<void(absl::string_view line)> warn_;

  std::atomic<bool> lost_ = false;
  std::unique_ptr<Budget> budget_;

  Mutex mutex_;
  std::vector<Lane> lanes_ ABSL_GUARDED_BY(mutex_);  // that no thread has

  std::unique_ptr<ComputePool> threads_;  // last: they use the rest
};

// The slots of one set, and its parameters, as arrays of the device's.
class CudaArrays final : public SlotArrays {
 public:
  // `memory` has the parameters, each slot, and room for Pieces::Most pieces.
  CudaArrays(CudaBackend* backend, ArraysLayout layout, std::vector<void*> memory, Grant grant)
      : backend_(backend),
        layout_(std::move(layout)),
        slot_indices_(IndexSlots(layout_.slots)),
        memory_(std::move(memory)),
        grant_(std::move(grant)) {}
  ~CudaArrays() override { backend_->FreeLater(std::move(memory_), std::move(grant_)); }

  void Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
             Then<absl::Status> done) override;
  void View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
            Then<absl::StatusOr<std::unique_ptr<SlotView>>> done) override;
  void Load(const Snapshot& parameters, std::vector<BlockList> slots, Then<absl::Status> done) override;
  // Nobody calls these, since the backend is not on_host().
  void Copy(v1::Slot, int64_t, int64_t, float*) override {}
  std::vector<BlockList> BeginLoad() override { return {}; }
  void AbandonLoad(std::vector<BlockList>) override {}
  void Grow(std::shared_ptr<const Schema> schema, std::vector<BlockList> tails, Then<absl::Status> done) override;

 private:
  int64_t blocks() const { return (layout_.schema->flat_size() + kBlockElements - 1) / kBlockElements; }
  float* parameters() const { return static_cast<float*>(memory_[0]); }
  float* slot(size_t i) const { return static_cast<float*>(memory_[1 + i]); }
  kernels::CudaPiece* pieces() const { return static_cast<kernels::CudaPiece*>(memory_.back()); }

  // Has the device know the pieces of `work`, and calls `next` on one of its threads.
  void Prepare(std::shared_ptr<const StepWork> work, Then<absl::Status> next);
  // What Apply does once it does.
  void ApplyPrepared(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
                     Then<absl::Status> done);
  // An item of rows' way: up, through the kernel, and down over their gradients.
  cudaError_t UpdateRows(const CudaBackend::Lane& lane, const StepPlan& plan, const RowPieces& rows,
                         const RowPieces::Item& item) const;
  // Where the slots of each update are, from element `origin` on.
  void SlotsFrom(int64_t origin, kernels::SlotSpan (*slots)[kernels::kMaxSlots]) const;
  // One item's way: up, through the kernel, and down over the gradient, whose blocks are those selected.
  cudaError_t Update(const CudaBackend::Lane& lane, const StepPlan& plan, const BlockList& gradient,
                     const Pieces::Item& item) const;

  CudaBackend* const backend_;
  ArraysLayout layout_;
  const SlotIndices slot_indices_;
  std::vector<void*> memory_;
  Grant grant_;

  // Of whoever has the turn: the work whose pieces the device has, and they.
  std::shared_ptr<const StepWork> work_;
  std::unique_ptr<const Pieces> prepared_;
};

cudaError_t CopyUp(const BlockList& from, int64_t first, int64_t end, float* to, int64_t origin, cudaStream_t stream) {
  return ForEachStretch(from, first, end, [&](int64_t element, const float* address, int64_t count) {
    return cudaMemcpyAsync(to + (element - origin), address, count * sizeof(float), cudaMemcpyHostToDevice, stream);
  });
}

// Requires: nobody else holds the blocks, or all that do know.
cudaError_t CopyDown(const float* from, const BlockList& to, int64_t first, int64_t end, cudaStream_t stream) {
  return ForEachStretch(to, first, end, [&](int64_t element, const float* address, int64_t count) {
    return cudaMemcpyAsync(const_cast<float*>(address), from + element, count * sizeof(float), cudaMemcpyDeviceToHost,
                           stream);
  });
}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Open(int ordinal, const CudaOptions& options) {
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceProperties(&properties, ordinal);
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<CudaBackend> backend(error == cudaSuccess ? new CudaBackend(ordinal, properties, options) : nullptr);
  if (error == cudaSuccess) error = backend->Use();
  // Whoever waits for the device keeps its processor: where it leaves it, a remote step of 65 parameters takes 1.74
  // times as long as one on the processor, and 1.55 so (medians of ten, H100).
  if (error == cudaSuccess) error = cudaSetDeviceFlags(cudaDeviceScheduleSpin);
  // Loaded here, and not within somebody's step.
  if (error == cudaSuccess) error = kernels::PrepareUpdates();
  for (int i = 0; i < options.threads && error == cudaSuccess; ++i) {
    Lane lane;
    void* buffer = nullptr;
    error = cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaMalloc(&buffer, kItemBytes);
    lane.buffer = static_cast<float*>(buffer);
    backend->PutBack(lane);
  }
  size_t free_bytes = 0;
  size_t all_bytes = 0;
  if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &all_bytes);
  if (error != cudaSuccess) {
    return absl::InternalError(absl::StrCat("cuda:", ordinal, ": ", cudaGetErrorString(error)));
  }
  const int64_t bytes = options.device_bytes > 0 ? options.device_bytes : static_cast<int64_t>(free_bytes) / 16 * 15;
  backend->budget_ = std::make_unique<Budget>(backend->name_, bytes, options.clock);
  backend->threads_ = std::make_unique<ComputePool>(options.threads);
  return backend;
}

CudaBackend::~CudaBackend() {
  threads_.reset();
  MutexLock lock(&mutex_);
  if (lost_ || Use() != cudaSuccess) return;
  for (const Lane& lane : lanes_) {
    cudaFree(lane.buffer);
    if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
  }
}

v1::Device CudaBackend::Describe() const {
  v1::Device device;
  device.set_name(name_);
  device.set_description(properties_.name);
  device.set_threads(threads_->threads());
  device.set_memory_bytes(static_cast<int64_t>(properties_.totalGlobalMem));
  device.set_compute_capability(absl::StrCat(properties_.major, ".", properties_.minor));
  device.set_state(lost_ ? v1::DEVICE_STATE_LOST : v1::DEVICE_STATE_OK);
  return device;
}

absl::Status CudaBackend::CheckWorking() const {
  if (!lost_) return absl::OkStatus();
  return Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DEVICE_LOST,
               absl::StrCat(name_, " has failed, and cannot be used before the server is restarted"));
}

absl::Status CudaBackend::Check(cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  // An error that is over with this leaves the device working. Any other one is the answer to each call from here on.
  cudaGetLastError();
  const bool is_lost = Use() != cudaSuccess || cudaFree(nullptr) != cudaSuccess;
  if (is_lost && !lost_.exchange(true)) {
    warn_(absl::StrCat(name_, " is lost until the server is restarted: ", cudaGetErrorString(error)));
  } else if (!is_lost) {
    warn_(absl::StrCat(name_, " failed once: ", cudaGetErrorString(error)));
  }
  if (absl::Status working = CheckWorking(); !working.ok()) return working;
  return Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DEVICE_FAILED,
               absl::StrCat(name_, ": ", cudaGetErrorString(error)));
}

absl::StatusOr<void*> CudaBackend::Allocate(int64_t bytes) {
  void* memory = nullptr;
  cudaError_t error = Use();
  if (error == cudaSuccess) error = cudaMalloc(&memory, bytes);
  if (error == cudaSuccess) return memory;
  if (error != cudaErrorMemoryAllocation) return Check(error);
  cudaGetLastError();
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED,
                              absl::StrCat(name_, " has no memory for ", bytes, " bytes")),
                        absl::Milliseconds(200));
}

void CudaBackend::FreeLater(std::vector<void*> memory, Grant grant) {
  threads_->Post([this, memory = std::move(memory), grant = std::move(grant)]() mutable {
    if (!lost_ && Use() == cudaSuccess) {
      for (void* const one : memory) Check(cudaFree(one)).IgnoreError();
    }
    grant = Grant();
  });
}

CudaBackend::Lane CudaBackend::TakeLane() {
  MutexLock lock(&mutex_);
  const Lane lane = lanes_.back();
  lanes_.pop_back();
  return lane;
}

void CudaBackend::PutBack(Lane lane) {
  MutexLock lock(&mutex_);
  lanes_.push_back(lane);
}

void CudaBackend::Run(int64_t count, Work work, Then<absl::Status> done) {
  struct Outcome {
    std::atomic<bool> failed = false;
    Mutex mutex;
    absl::Status status ABSL_GUARDED_BY(mutex);
  };
  auto outcome = std::make_shared<Outcome>();
  auto work_on = [this, outcome, work = std::move(work)](int64_t item) {
    if (outcome->failed) return;
    absl::Status status = CheckWorking();
    if (status.ok()) {
      const Lane lane = TakeLane();
      cudaError_t error = Use();
      if (error == cudaSuccess) error = work(lane, item);
      // In any case: nothing of what was enqueued goes on after this.
      const cudaError_t waited = cudaStreamSynchronize(lane.stream);
      PutBack(lane);
      status = Check(error != cudaSuccess ? error : waited);
    }
    if (status.ok()) return;
    outcome->failed = true;
    MutexLock lock(&outcome->mutex);
    if (outcome->status.ok()) outcome->status = std::move(status);
  };
  auto end = [outcome, done = std::move(done)]() mutable {
    absl::Status status;
    {
      MutexLock lock(&outcome->mutex);
      status = std::move(outcome->status);
    }
    done(std::move(status));
  };
  if (count == 0) {
    threads_->Post(std::move(end));
  } else {
    threads_->Run(count, std::move(work_on), std::move(end));
  }
}

absl::StatusOr<CudaBackend::Memory> CudaBackend::Allocate(const ArraysLayout& layout) {
  if (absl::Status working = CheckWorking(); !working.ok()) return working;
  const int64_t array_bytes = layout.schema->flat_size() * static_cast<int64_t>(sizeof(float));
  const int64_t table_bytes = Pieces::Most(*layout.schema) * static_cast<int64_t>(sizeof(kernels::CudaPiece));
  const size_t arrays = 1 + layout.slots.size();
  absl::StatusOr<Grant> grant = budget_->TryReserve(array_bytes * static_cast<int64_t>(arrays) + table_bytes);
  if (!grant.ok()) return grant.status();

  Memory memory = {*std::move(grant), {}};
  absl::Status status;
  for (size_t i = 0; i < arrays + 1 && status.ok(); ++i) {
    const int64_t bytes = i < arrays ? array_bytes : table_bytes;
    // CUDA has no memory of no bytes.
    absl::StatusOr<void*> one = Allocate(std::max<int64_t>(bytes, 1));
    status = one.status();
    if (!one.ok()) break;
    memory.arrays.push_back(*one);
    // The default stream is nobody's else, and waited for below.
    status = Check(cudaMemsetAsync(*one, 0, bytes, nullptr));
  }
  const absl::Status waited = Check(cudaStreamSynchronize(nullptr));
  if (status.ok()) status = waited;
  if (!status.ok()) {
    for (void* const one : memory.arrays) {
      if (!lost_) Check(cudaFree(one)).IgnoreError();
    }
    return status;
  }
  return memory;
}

absl::StatusOr<std::unique_ptr<SlotArrays>> CudaBackend::NewArrays(ArraysLayout layout, Lender* /*lender*/,
                                                                   ComputePool* /*compute*/) {
  absl::StatusOr<Memory> memory = Allocate(layout);
  if (!memory.ok()) return memory.status();
  return std::make_unique<CudaArrays>(this, std::move(layout), std::move(memory->arrays), std::move(memory->grant));
}

void CudaArrays::Grow(std::shared_ptr<const Schema> schema, std::vector<BlockList> /*tails*/, Then<absl::Status> done) {
  struct Growth {
    ArraysLayout layout;
    CudaBackend::Memory memory;
  };
  auto growth = std::make_shared<Growth>();
  growth->layout = {std::move(schema), layout_.slots};
  absl::StatusOr<CudaBackend::Memory> memory = backend_->Allocate(growth->layout);
  if (!memory.ok()) {
    done(memory.status());
    return;
  }
  growth->memory = *std::move(memory);
  const int64_t bytes = layout_.schema->flat_size() * static_cast<int64_t>(sizeof(float));
  backend_->Run(
      1,
      [this, growth, bytes](const CudaBackend::Lane& lane, int64_t /*item*/) {
        cudaError_t error = cudaSuccess;
        for (size_t i = 0; i < 1 + layout_.slots.size() && error == cudaSuccess && bytes > 0; ++i) {
          error = cudaMemcpyAsync(growth->memory.arrays[i], memory_[i], bytes, cudaMemcpyDeviceToDevice, lane.stream);
        }
        return error;
      },
      [this, growth, done = std::move(done)](absl::Status status) mutable {
        if (status.ok()) {
          std::swap(memory_, growth->memory.arrays);
          std::swap(grant_, growth->memory.grant);
          layout_ = std::move(growth->layout);
          work_ = nullptr;
        }
        // What was there before, or what came to nothing.
        backend_->FreeLater(std::move(growth->memory.arrays), std::move(growth->memory.grant));
        done(std::move(status));
      });
}

cudaError_t CudaArrays::Update(const CudaBackend::Lane& lane, const StepPlan& plan, const BlockList& gradient,
                               const Pieces::Item& item) const {
  const int64_t origin = item.first * kBlockElements;
  cudaError_t error = CopyUp(gradient, item.first, item.end, lane.buffer, origin, lane.stream);
  if (error != cudaSuccess) return error;
  const kernels::CudaSpan span = {.arrays = {.size = 0,
                                             .g = lane.buffer,
                                             .p_in = parameters() + origin,
                                             .p_out = parameters() + origin,
                                             .slots = {}},
                                  .origin = origin,
                                  .pieces = pieces() + item.first_piece,
                                  .piece_count = item.end_piece - item.first_piece};
  kernels::SlotSpan slots[kernels::kUpdates][kernels::kMaxSlots] = {};
  SlotsFrom(origin, slots);
  error = kernels::EnqueueUpdates(plan.recipes.data(), item.first_cohort, item.end_cohort, span, slots, lane.stream);
  if (error != cudaSuccess) return error;
  return CopyDown(parameters(), gradient, item.first, item.end, lane.stream);
}

void CudaArrays::SlotsFrom(int64_t origin, kernels::SlotSpan (*slots)[kernels::kMaxSlots]) const {
  for (int update = 0; update < kernels::kUpdates; ++update) {
    for (int k = 0; k < kernels::kSlotCounts[update]; ++k) {
      const auto index = static_cast<size_t>(slot_indices_[update][k]);
      if (index < layout_.slots.size()) slots[update][k] = {slot(index) + origin, slot(index) + origin};
    }
  }
}

cudaError_t CudaArrays::UpdateRows(const CudaBackend::Lane& lane, const StepPlan& plan, const RowPieces& rows,
                                   const RowPieces::Item& item) const {
  const BlockRef& values = plan.rows->values[item.values_block];
  const int64_t bytes = values.size() * static_cast<int64_t>(sizeof(float));
  const int64_t count = item.end - item.first;
  // Behind the values, the pieces and their shifts.
  auto* const pieces = reinterpret_cast<kernels::CudaPiece*>(lane.buffer + kBlockElements);
  auto* const shifts = reinterpret_cast<int64_t*>(pieces + count);
  cudaError_t error = cudaMemcpyAsync(lane.buffer, values.data(), bytes, cudaMemcpyHostToDevice, lane.stream);
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(pieces, rows.pieces.data() + item.first, count * sizeof(kernels::CudaPiece),
                            cudaMemcpyHostToDevice, lane.stream);
  }
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(shifts, rows.shifts.data() + item.first, count * sizeof(int64_t), cudaMemcpyHostToDevice,
                            lane.stream);
  }
  const kernels::CudaSpan span = {
      .arrays = {.size = 0, .g = lane.buffer, .p_in = parameters(), .p_out = parameters(), .slots = {}},
      .origin = 0,
      .pieces = pieces,
      .piece_count = count,
      .shifts = shifts};
  kernels::SlotSpan slots[kernels::kUpdates][kernels::kMaxSlots] = {};
  SlotsFrom(0, slots);
  if (error == cudaSuccess) {
    error = kernels::EnqueueUpdates(plan.recipes.data(), static_cast<int>(plan.work->cohorts().size()),
                                    static_cast<int>(plan.recipes.size()), span, slots, lane.stream);
  }
  if (error == cudaSuccess) error = kernels::EnqueueCopies(span, lane.buffer, lane.stream);
  if (error != cudaSuccess) return error;
  return cudaMemcpyAsync(values.mutable_data(), lane.buffer, bytes, cudaMemcpyDeviceToHost, lane.stream);
}

void CudaArrays::Prepare(std::shared_ptr<const StepWork> work, Then<absl::Status> next) {
  auto pieces = std::make_shared<std::unique_ptr<const Pieces>>(std::make_unique<const Pieces>(*work));
  const Pieces& prepared = **pieces;
  backend_->Run(
      1,
      [this, &prepared](const CudaBackend::Lane& lane, int64_t /*item*/) {
        return cudaMemcpyAsync(this->pieces(), prepared.pieces.data(),
                               prepared.pieces.size() * sizeof(kernels::CudaPiece), cudaMemcpyHostToDevice,
                               lane.stream);
      },
      [this, work = std::move(work), pieces = std::move(pieces), next = std::move(next)](absl::Status status) mutable {
        work_ = status.ok() ? std::move(work) : nullptr;
        prepared_ = std::move(*pieces);
        next(std::move(status));
      });
}

void CudaArrays::Apply(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
                       Then<absl::Status> done) {
  if (work_ == plan.work) {
    ApplyPrepared(plan, std::move(computed), std::move(done));
    return;
  }
  Prepare(plan.work,
          [this, &plan, computed = std::move(computed), done = std::move(done)](absl::Status status) mutable {
            if (status.ok()) {
              ApplyPrepared(plan, std::move(computed), std::move(done));
            } else {
              done(std::move(status));
            }
          });
}

void CudaArrays::ApplyPrepared(const StepPlan& plan, absl::AnyInvocable<void(int64_t block) const> computed,
                               Then<absl::Status> done) {
  auto progress = std::make_shared<absl::AnyInvocable<void(int64_t block) const>>(std::move(computed));
  std::shared_ptr<const Snapshot> selected = plan.work->selection().Restrict(plan.after);
  const BlockList& gradient = selected->blocks();
  auto rows = plan.rows != nullptr ? std::make_shared<const RowPieces>(*plan.rows) : nullptr;
  const auto whole = static_cast<int64_t>(prepared_->items.size());
  const int64_t items = whole + (rows != nullptr ? static_cast<int64_t>(rows->items.size()) : 0);
  backend_->Run(
      items,
      [this, &plan, &gradient, progress, rows, whole](const CudaBackend::Lane& lane, int64_t index) {
        // No item changes what is another's on the device. What comes down of a block may have rows of before.
        if (index >= whole) return UpdateRows(lane, plan, *rows, rows->items[index - whole]);
        const Pieces::Item& item = prepared_->items[index];
        cudaError_t error = Update(lane, plan, gradient, item);
        if (error == cudaSuccess) error = cudaStreamSynchronize(lane.stream);
        for (int64_t block = item.first; block < item.end && error == cudaSuccess; ++block) {
          if (gradient[block]) (*progress)(block);
        }
        return error;
      },
      [&plan, selected = std::move(selected), done = std::move(done)](absl::Status status) mutable {
        if (status.ok() && plan.rows != nullptr) TakeRows(plan);
        // Before the next turn, or it would find its blocks held.
        selected.reset();
        done(std::move(status));
      });
}

void CudaArrays::View(absl::Span<const v1::Slot> slots, std::vector<BlockList> spares,
                      Then<absl::StatusOr<std::unique_ptr<SlotView>>> done) {
  auto view = std::make_shared<std::vector<BlockList>>(layout_.slots.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    (*view)[absl::c_find(layout_.slots, slots[i]) - layout_.slots.begin()] = std::move(spares[i]);
  }
  backend_->Run(
      ItemsFor(blocks()),
      [this, view = view.get()](const CudaBackend::Lane& lane, int64_t item) {
        const int64_t first = item * kItemBlocks;
        const int64_t end = std::min(first + kItemBlocks, blocks());
        cudaError_t error = cudaSuccess;
        for (size_t i = 0; i < view->size() && error == cudaSuccess; ++i) {
          if (!(*view)[i].empty()) error = CopyDown(slot(i), (*view)[i], first, end, lane.stream);
        }
        return error;
      },
      [view, done = std::move(done)](absl::Status status) mutable {
        if (status.ok()) {
          done(std::make_unique<CopiedSlotView>(std::move(*view)));
        } else {
          view.reset();
          done(std::move(status));
        }
      });
}

void CudaArrays::Load(const Snapshot& parameters, std::vector<BlockList> slots, Then<absl::Status> done) {
  backend_->Run(
      ItemsFor(blocks()),
      [this, &parameters, slots = std::move(slots)](const CudaBackend::Lane& lane, int64_t item) {
        const int64_t first = item * kItemBlocks;
        const int64_t end = std::min(first + kItemBlocks, blocks());
        cudaError_t error = CopyUp(parameters.blocks(), first, end, this->parameters(), 0, lane.stream);
        for (size_t i = 0; i < slots.size() && error == cudaSuccess; ++i) {
          error = CopyUp(slots[i], first, end, slot(i), 0, lane.stream);
        }
        return error;
      },
      std::move(done));
}

class CudaRegistrar final : public MemoryRegistrar {
 public:
  explicit CudaRegistrar(std::function<void(absl::string_view)> warn) : warn_(std::move(warn)) {}

  bool Register(void* address, size_t bytes) override {
    const cudaError_t error = cudaHostRegister(address, bytes, cudaHostRegisterPortable);
    if (error == cudaSuccess) return true;
    cudaGetLastError();
    if (!warned_.exchange(true)) {
      warn_(absl::StrCat("memory of the host cannot be registered with CUDA, and is copied more slowly: ",
                         cudaGetErrorString(error)));
    }
    return false;
  }
  void Unregister(void* address) override {
    cudaHostUnregister(address);
    cudaGetLastError();
  }

 private:
  const std::function<void(absl::string_view)> warn_;
  std::atomic<bool> warned_ = false;
};

}  // namespace

std::vector<std::unique_ptr<Backend>> OpenCudaDevices(const CudaOptions& options) {
  std::vector<std::unique_ptr<Backend>> devices;
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    int driver = 0;
    const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
    // No driver, or none of its devices: a machine like any other.
    if (error != cudaErrorNoDevice && (error != cudaErrorInsufficientDriver || has_driver)) {
      options.warn(absl::StrCat("no CUDA device can be used: ", cudaGetErrorString(error), " (the driver is CUDA ",
                                driver / 1000, ".", driver % 1000 / 10, "'s, this build needs ", CUDART_VERSION / 1000,
                                "'s)"));
    }
    return devices;
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    absl::StatusOr<std::unique_ptr<CudaBackend>> device = CudaBackend::Open(ordinal, options);
    if (device.ok()) {
      devices.push_back(*std::move(device));
    } else {
      options.warn(absl::StrCat(device.status().message(), "; the server goes on without it"));
    }
  }
  return devices;
}

std::unique_ptr<MemoryRegistrar> NewCudaRegistrar(std::function<void(absl::string_view line)> warn) {
  return std::make_unique<CudaRegistrar>(std::move(warn));
}

}  // namespace adamant::core
