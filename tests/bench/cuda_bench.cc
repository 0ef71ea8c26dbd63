// What a step costs on a CUDA device, against the traffic that it cannot do without. Prints ratios of times that were
// taken in turn; "skipped: no CUDA device" where there is none. ADAMANT_BENCH_SMALL=1: sizes that say whether it works.
//   cuda_bench [--kernel=PARAMS]
// --kernel prints the time of the kernel alone, for so many parameters, as one line of JSON: for torch_adam.py.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda_update.h"
#include "kernels/dispatch.h"
#include "server/core/backend/cuda_backend.h"
#include "server/core/base/clock.h"
#include "server/core/base/compute_pool.h"
#include "server/core/memory/lender.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/parameter_group.h"
#include "server/core/spec/schema.h"
#include "server/core/spec/slots.h"
#include "tests/core/gate.h"

namespace adamant::core {
namespace {

constexpr int kRounds = 21;

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

double Seconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void PrintRatio(const char* name, const std::function<void()>& measured, const std::function<void()>& baseline,
                double target) {
  measured();
  baseline();
  std::vector<double> ratios, seconds;
  for (int round = 0; round < kRounds; ++round) {
    seconds.push_back(Seconds(measured));
    ratios.push_back(seconds.back() / Seconds(baseline));
  }
  std::sort(ratios.begin(), ratios.end());
  std::sort(seconds.begin(), seconds.end());
  std::printf("ratio %-52s median %.3f (at most %.2f)  quartiles %.3f-%.3f  time %.3f ms\n", name, ratios[kRounds / 2],
              target, ratios[kRounds / 4], ratios[kRounds * 3 / 4], seconds[kRounds / 2] * 1e3);
}

// The time of one call where many are enqueued behind one another, so that what a launch costs the host is hidden.
void PrintSeconds(int64_t params, const std::function<void()>& enqueue) {
  constexpr int kCalls = 10;
  const auto calls = [&] {
    for (int call = 0; call < kCalls; ++call) enqueue();
    Check(cudaDeviceSynchronize());
  };
  calls();
  std::vector<double> seconds;
  for (int round = 0; round < kRounds; ++round) seconds.push_back(Seconds(calls) / kCalls);
  std::sort(seconds.begin(), seconds.end());
  std::printf("{\"name\":\"kernel\",\"params\":%lld,\"median_seconds\":%.9f}\n", static_cast<long long>(params),
              seconds[kRounds / 2]);
}

float* DeviceArray(int64_t size) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, size * sizeof(float)));
  Check(cudaMemset(memory, 0, size * sizeof(float)));
  return static_cast<float*>(memory);
}

// The kernel alone, on arrays that stay in the device's memory: it reads four floats a parameter and writes three.
// Against a copy, or `alone`, as JSON.
void MeasureKernel(int64_t params, bool alone) {
  float* const g = DeviceArray(params);
  float* const p = DeviceArray(params);
  float* const m = DeviceArray(params);
  float* const v = DeviceArray(params);
  std::vector<kernels::CudaPiece> pieces;
  for (int64_t begin = 0; begin < params; begin += kernels::kCudaPieceElements) {
    const int64_t size = std::min<int64_t>(kernels::kCudaPieceElements, params - begin);
    pieces.push_back({begin, static_cast<int32_t>(size), 0});
  }
  void* table = nullptr;
  Check(cudaMalloc(&table, pieces.size() * sizeof(kernels::CudaPiece)));
  Check(cudaMemcpy(table, pieces.data(), pieces.size() * sizeof(kernels::CudaPiece), cudaMemcpyHostToDevice));
  const kernels::Recipe recipe = {
      kernels::kAdam,
      kernels::MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}, 1000, {})};
  const kernels::SlotSpan slots[kernels::kUpdates][kernels::kMaxSlots] = {{{m, m}, {v, v}}};
  const kernels::CudaSpan span = {.arrays = {.size = 0, .g = g, .p_in = p, .p_out = p, .slots = {}},
                                  .origin = 0,
                                  .pieces = static_cast<const kernels::CudaPiece*>(table),
                                  .piece_count = static_cast<int64_t>(pieces.size())};
  // As many bytes as the kernel reads and writes: a copy moves each twice.
  const int64_t copied = params * 7 * static_cast<int64_t>(sizeof(float)) / 2;
  float* const from = DeviceArray(copied / sizeof(float));
  float* const to = DeviceArray(copied / sizeof(float));
  const auto update = [&] { Check(kernels::EnqueueUpdates(&recipe, 0, 1, span, slots, nullptr)); };
  if (alone) {
    PrintSeconds(params, update);
  } else {
    PrintRatio(
        "kernel / device copy of the same traffic",
        [&] {
          update();
          Check(cudaDeviceSynchronize());
        },
        [&] {
          Check(cudaMemcpyAsync(to, from, copied, cudaMemcpyDeviceToDevice, nullptr));
          Check(cudaDeviceSynchronize());
        },
        1.10);
  }
  for (void* const memory : {static_cast<void*>(g), static_cast<void*>(p), static_cast<void*>(m), static_cast<void*>(v),
                             table, static_cast<void*>(from), static_cast<void*>(to)}) {
    Check(cudaFree(memory));
  }
}

// A set's arrays on the device, and the gradients of its steps in the host's registered memory.
class BenchSet {
 public:
  BenchSet(Backend* device, Lender* lender, ComputePool* compute, int64_t params) {
    v1::ParameterSetSpec spec;
    spec.set_name("bench");
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name("w");
    tensor->add_shape(params);
    const std::shared_ptr<const Configuration> configuration = *Configuration::Create(spec);
    const std::shared_ptr<const Schema> schema = *Schema::Create(spec, configuration->groups());
    arrays_ = *device->NewArrays({schema, OptimizerSlots(configuration->groups())}, lender, compute);
    plan_.work = std::make_shared<const StepWork>(std::make_shared<const TensorSelection>(schema),
                                                  [](int) { return int64_t{0}; });
    plan_.recipes = {MakeRecipe(configuration->groups()[0], /*learning_rate=*/1e-3, /*update_count=*/0, {})};
    plan_.after = std::make_shared<const Snapshot>(1, 1, *lender->TakeZeroed(schema->flat_size()));
  }

  void Begin(Gate* done) {
    arrays_->Apply(
        plan_, [](int64_t) {},
        [done](const absl::Status& status) {
          if (!status.ok()) std::exit(1);
          done->Open();
        });
  }
  void Step() {
    Gate done;
    Begin(&done);
    done.Pass();
  }

 private:
  std::unique_ptr<SlotArrays> arrays_;
  StepPlan plan_;
};

// Pinned memory up and down at the same time, in pieces of 4 MiB.
class BothWays {
 public:
  explicit BothWays(int64_t params) : bytes_(params * static_cast<int64_t>(sizeof(float))) {
    for (Way& way : ways_) {
      Check(cudaMallocHost(&way.host, bytes_));
      Check(cudaMalloc(&way.device, bytes_));
      Check(cudaStreamCreateWithFlags(&way.stream, cudaStreamNonBlocking));
    }
  }
  ~BothWays() {
    for (Way& way : ways_) {
      Check(cudaFreeHost(way.host));
      Check(cudaFree(way.device));
      Check(cudaStreamDestroy(way.stream));
    }
  }

  void Copy() {
    constexpr int64_t kPiece = int64_t{4} << 20;
    for (int64_t done = 0; done < bytes_; done += kPiece) {
      const int64_t size = std::min(kPiece, bytes_ - done);
      Check(cudaMemcpyAsync(static_cast<char*>(ways_[0].device) + done, static_cast<char*>(ways_[0].host) + done, size,
                            cudaMemcpyHostToDevice, ways_[0].stream));
      Check(cudaMemcpyAsync(static_cast<char*>(ways_[1].host) + done, static_cast<char*>(ways_[1].device) + done, size,
                            cudaMemcpyDeviceToHost, ways_[1].stream));
    }
    for (Way& way : ways_) Check(cudaStreamSynchronize(way.stream));
  }

 private:
  struct Way {
    void* host = nullptr;
    void* device = nullptr;
    cudaStream_t stream = nullptr;
  };
  const int64_t bytes_;
  Way ways_[2];
};

// `kernel_params` is 0 for all that there is to measure.
int Main(int64_t kernel_params) {
  const std::unique_ptr<Clock> clock = NewSteadyClock();
  const auto warn = [](absl::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  };
  const std::vector<std::unique_ptr<Backend>> devices =
      OpenCudaDevices({.clock = clock.get(), .host_kernels = &kernels::BestKernels(), .warn = warn});
  if (devices.empty()) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  Check(cudaSetDevice(0));
  if (kernel_params > 0) {
    MeasureKernel(kernel_params, true);
    return 0;
  }
  const int64_t params = std::getenv("ADAMANT_BENCH_SMALL") != nullptr ? 100'000 : int64_t{64} << 20;
  Backend* const device = devices.front().get();
  std::printf("%s, %lld parameters\n", device->Describe().description().c_str(), static_cast<long long>(params));
  MeasureKernel(params, false);

  const std::unique_ptr<MemoryRegistrar> registrar = NewCudaRegistrar(warn);
  BlockPool pool([] {}, registrar.get());
  ComputePool compute(1);
  Lender lender(&pool, &compute);
  {
    BenchSet set(device, &lender, &compute, params);
    BothWays both_ways(params);
    PrintRatio(
        "update / pinned copy both ways", [&] { set.Step(); }, [&] { both_ways.Copy(); }, 1.15);
  }
  // Steps of eight sets at the same time against as many of one, one after the other.
  constexpr int kSets = 8;
  std::vector<std::unique_ptr<BenchSet>> sets;
  for (int i = 0; i < kSets; ++i) sets.push_back(std::make_unique<BenchSet>(device, &lender, &compute, params / kSets));
  PrintRatio(
      "eight sets / one, the same steps",
      [&] {
        std::vector<std::unique_ptr<Gate>> done;
        for (const std::unique_ptr<BenchSet>& set : sets) {
          done.push_back(std::make_unique<Gate>());
          set->Begin(done.back().get());
        }
        for (const std::unique_ptr<Gate>& one : done) one->Pass();
      },
      [&] {
        for (int i = 0; i < kSets; ++i) sets.front()->Step();
      },
      1 / 0.95);
  return 0;
}

}  // namespace
}  // namespace adamant::core

int main(int argc, char** argv) {
  long long kernel_params = 0;
  if (argc > 2 || (argc == 2 && (std::sscanf(argv[1], "--kernel=%lld", &kernel_params) != 1 || kernel_params < 1))) {
    std::fprintf(stderr, "cuda_bench: expected no argument, or --kernel=PARAMS\n");
    return 2;
  }
  return adamant::core::Main(kernel_params);
}
