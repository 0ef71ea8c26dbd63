// Lanes of a CUDA thread: one float, or four that it loads and stores together. scalar.h says what each function means.
#ifndef ADAMANT_KERNELS_LANES_CUDA_H_
#define ADAMANT_KERNELS_LANES_CUDA_H_

#include <cstdint>

namespace adamant::kernels {
namespace {

// Every operation is an intrinsic that rounds to nearest and that the compiler does not fuse with another.
template <int width>
struct CudaLanes {
  static constexpr int kWidth = width;
  struct Floats {
    float x[kWidth];
  };
  struct Mask {
    bool x[kWidth];
  };

  static __device__ Floats Broadcast(float x) {
    return Make([&](int) { return x; });
  }

  // Requires: `x`, and `to`, are aligned to kWidth floats.
  static __device__ Floats Load(const float* x) {
    if constexpr (kWidth == 4) {
      const float4 loaded = *reinterpret_cast<const float4*>(x);
      return {loaded.x, loaded.y, loaded.z, loaded.w};
    } else {
      return {*x};
    }
  }
  static __device__ void Store(float* to, Floats a) {
    if constexpr (kWidth == 4) {
      *reinterpret_cast<float4*>(to) = make_float4(a.x[0], a.x[1], a.x[2], a.x[3]);
    } else {
      *to = a.x[0];
    }
  }

  static __device__ Floats Fma(Floats a, Floats b, Floats c) {
    return Make([&](int i) { return __fmaf_rn(a.x[i], b.x[i], c.x[i]); });
  }
  static __device__ Floats Fnma(Floats a, Floats b, Floats c) {
    return Make([&](int i) { return __fmaf_rn(-a.x[i], b.x[i], c.x[i]); });
  }
  static __device__ Floats Sqrt(Floats a) {
    return Make([&](int i) { return __fsqrt_rn(a.x[i]); });
  }
  static __device__ Floats Abs(Floats a) {
    return Make([&](int i) { return fabsf(a.x[i]); });
  }
  static __device__ Mask AtLeast(Floats a, Floats least) {
    Mask mask;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) mask.x[i] = a.x[i] >= least.x[i];
    return mask;
  }
  static __device__ Floats MulOrZero(Floats a, Floats b, Mask mask) {
    return Make([&](int i) { return mask.x[i] ? __fmul_rn(a.x[i], b.x[i]) : 0.0f; });
  }
  static __device__ Floats ZeroBelow(Floats a, Floats least) {
    return Make([&](int i) { return fabsf(a.x[i]) < least.x[i] ? 0.0f : a.x[i]; });
  }
  static __device__ Floats Flush(Floats a) { return ZeroBelow(a, Broadcast(0x1p-126f)); }
  // Not fmaxf and fminf, which make a number of a NaN.
  static __device__ Floats Max(Floats a, Floats b) {
    return Make([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
  }
  static __device__ Floats Min(Floats a, Floats b) {
    return Make([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
  }

  friend __device__ Floats operator*(Floats a, Floats b) {
    return Make([&](int i) { return __fmul_rn(a.x[i], b.x[i]); });
  }
  friend __device__ Floats operator/(Floats a, Floats b) {
    return Make([&](int i) { return __fdiv_rn(a.x[i], b.x[i]); });
  }

 private:
  // What `make` returns for each lane.
  template <typename MakeLane>
  static __device__ Floats Make(MakeLane make) {
    Floats result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.x[i] = make(i);
    return result;
  }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LANES_CUDA_H_
