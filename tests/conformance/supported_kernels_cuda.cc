// A CUDA device's kernels as a table, whose spans lie in the host's memory: every call copies them to the device, each
// array to memory that ends where the array does, and back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda_update.h"
#include "tests/conformance/supported_kernels.h"

namespace adamant::kernels {
namespace {

// Whoever calls a table takes it for granted that nothing fails.
void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  ADD_FAILURE() << cudaGetErrorString(error);
  std::abort();
}

// A copy of one of the host's arrays, as many floats behind a boundary of 16 as that. The floats between are guarded.
class DeviceArray {
 public:
  DeviceArray(const float* host, int64_t size)
      : host_(host),
        size_(size),
        offset_(static_cast<int64_t>(reinterpret_cast<uintptr_t>(host) / sizeof(float) % 16)) {
    if (size == 0) return;
    std::vector<float> copy(offset_, kGuard);
    copy.insert(copy.end(), host, host + size);
    void* memory;
    Check(cudaMalloc(&memory, copy.size() * sizeof(float)));
    memory_ = static_cast<float*>(memory);
    Check(cudaMemcpy(memory_, copy.data(), copy.size() * sizeof(float), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { Check(cudaFree(memory_)); }

  const float* host() const { return host_; }
  float* data() const { return memory_ + offset_; }
  void CopyTo(float* host) const {
    if (size_ == 0) return;
    std::vector<float> copy(offset_ + size_);
    Check(cudaMemcpy(copy.data(), memory_, copy.size() * sizeof(float), cudaMemcpyDeviceToHost));
    for (int64_t i = 0; i < offset_; ++i) EXPECT_EQ(copy[i], kGuard) << "before the array";
    std::copy(copy.begin() + offset_, copy.end(), host);
  }

 private:
  static constexpr float kGuard = 42;

  const float* const host_;
  const int64_t size_;
  const int64_t offset_;
  float* memory_ = nullptr;
};

// The device's copies of a span's arrays: one for each that is not the same as another.
class DeviceArrays {
 public:
  explicit DeviceArrays(int64_t size) : size_(size) {}

  float* Copy(const float* host) {
    for (const auto& array : arrays_) {
      if (array->host() == host) return array->data();
    }
    arrays_.push_back(std::make_unique<DeviceArray>(host, size_));
    return arrays_.back()->data();
  }
  void CopyBack(float* host) const {
    for (const auto& array : arrays_) {
      if (array->host() == host) array->CopyTo(host);
    }
  }

 private:
  const int64_t size_;
  std::vector<std::unique_ptr<DeviceArray>> arrays_;
};

// Elements [0, size) as pieces of any sizes, all of one recipe, behind others that are not to be used.
constexpr int kRecipe = 70;
std::vector<CudaPiece> Cut(int64_t size) {
  std::vector<CudaPiece> pieces;
  int64_t odd = 1;
  for (int64_t begin = 0; begin < size; begin += pieces.back().size) {
    odd = odd * 7 % 1021;
    const int64_t most = pieces.size() % 2 == 0 ? kCudaPieceElements : odd;
    pieces.push_back({begin, static_cast<int32_t>(std::min(most, size - begin)), kRecipe});
  }
  return pieces;
}

// Has this thread compute as a new one does: a driver's own arithmetic traps where the caller's exceptions are not
// masked (seen: an H100's), and raises its flags. The device knows nothing of either.
class DefaultEnvironment {
 public:
  DefaultEnvironment() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultEnvironment() { std::fesetenv(&callers_); }
  DefaultEnvironment(const DefaultEnvironment&) = delete;
  DefaultEnvironment& operator=(const DefaultEnvironment&) = delete;

 private:
  std::fenv_t callers_;
};

template <Update update>
void UpdateOnDevice(const UpdateScalars& scalars, const UpdateSpan& span) {
  const DefaultEnvironment environment;
  // Indices for which 32 bits are too few, in the flat space and, every second time, in arrays that seem to begin so
  // much before their memory.
  constexpr int64_t kBegin = (int64_t{1} << 33) + 5;
  static bool far = false;
  far = !far;
  DeviceArrays arrays(span.size);
  const auto copy = [&](const float* host) {
    const auto address = reinterpret_cast<uintptr_t>(arrays.Copy(host));
    return reinterpret_cast<float*>(far ? address - kBegin * sizeof(float) : address);
  };
  const UpdateSpan on_device = {
      .size = 0, .g = copy(span.g), .p_in = copy(span.p_in), .p_out = copy(span.p_out), .slots = {}};
  // The other updates', which are not to be used, are null.
  SlotSpan slots[kUpdates][kMaxSlots] = {};
  for (int k = 0; k < kSlotCounts[update]; ++k) {
    slots[update][k] = {copy(span.slots[k].in), copy(span.slots[k].out)};
  }
  std::vector<CudaPiece> pieces = Cut(span.size);
  for (CudaPiece& piece : pieces) piece.begin += kBegin;
  void* table = nullptr;
  if (!pieces.empty()) {
    Check(cudaMalloc(&table, pieces.size() * sizeof(CudaPiece)));
    Check(cudaMemcpy(table, pieces.data(), pieces.size() * sizeof(CudaPiece), cudaMemcpyHostToDevice));
  }
  // Others of this update and of another; every second time in the launch that is meant and in one before it.
  std::vector<Recipe> recipes(kRecipe + 1);
  for (int i = 0; i < kRecipe; ++i) recipes[i].update = static_cast<Update>((update + i % 2) % kUpdates);
  recipes[kRecipe] = {update, scalars};
  Check(EnqueueUpdates(recipes.data(), /*first=*/far ? 3 : kRecipe, /*end=*/kRecipe + 1,
                       {.arrays = on_device,
                        .origin = far ? 0 : kBegin,
                        .pieces = static_cast<const CudaPiece*>(table),
                        .piece_count = static_cast<int64_t>(pieces.size())},
                       slots, /*stream=*/nullptr));
  Check(cudaDeviceSynchronize());
  Check(cudaFree(table));
  arrays.CopyBack(span.p_out);
  for (int k = 0; k < kSlotCounts[update]; ++k) arrays.CopyBack(span.slots[k].out);
}

bool HasDevice() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

template <int... updates>
constexpr KernelTable CudaTable(std::integer_sequence<int, updates...>) {
  return {.name = "cuda",
          .supported = &HasDevice,
          .update = {&UpdateOnDevice<static_cast<Update>(updates)>...},
          .measure = nullptr};
}
constexpr KernelTable kCudaKernels = CudaTable(std::make_integer_sequence<int, kUpdates>());

}  // namespace

std::vector<const KernelTable*> SupportedKernels() {
  if (HasDevice()) return {&kCudaKernels};
  std::puts("skipped: no CUDA device");
  return {};
}

}  // namespace adamant::kernels
