// Lanes of one float, in C++ alone: the reference, whose bits every other kind of lanes gives.
//
// A kind of lanes is a struct of functions over vectors of `kWidth` floats, `Floats`, which have * and / as float has.
// This file says what each function means; the others say how it is done. They stand in an unnamed namespace, and so
// does all that is written over them: instruction_sets.h says why.
#ifndef ADAMANT_KERNELS_LANES_SCALAR_H_
#define ADAMANT_KERNELS_LANES_SCALAR_H_

#include <cfloat>
#include <cstdint>

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

static_assert(FLT_EVAL_METHOD == 0, "an intermediate wider than float is rounded twice");

struct ScalarLanes {
  static constexpr int kWidth = 1;
  using Floats = float;
  using Mask = bool;       // yes or no for every lane
  using Sums = double;     // of squares, one for every lane
  using Words = uint32_t;  // an unsigned integer for every lane

  static Floats Broadcast(float x) { return x; }

  // The first `count` lanes. `count` may lie outside of [0, kWidth].
  static Mask First(int count) { return count > 0; }
  // Reads and writes kWidth floats, or those of `mask` only: touches no memory of the others, and loads +0 for them.
  static Floats Load(const float* x) { return *x; }
  static Floats Load(const float* x, Mask mask) { return mask ? *x : 0.0f; }
  static void Store(float* to, Floats x) { *to = x; }
  static void Store(float* to, Floats x, Mask mask) { *to = mask ? x : *to; }
  // A hint that the cache line there will be read. The address need not be valid.
  static void Prefetch(const void*) {}

  static Floats Fma(Floats a, Floats b, Floats c) { return __builtin_fmaf(a, b, c); }    // a * b + c, rounded once
  static Floats Fnma(Floats a, Floats b, Floats c) { return __builtin_fmaf(-a, b, c); }  // c - a * b, rounded once
  static Floats Sqrt(Floats x) { return __builtin_sqrtf(x); }
  static Floats Abs(Floats x) { return __builtin_fabsf(x); }
  static Mask AtLeast(Floats x, Floats least) { return x >= least; }  // no for a NaN
  // a * b in the lanes of `mask`, a zero of either sign in the others. These are not multiplied: a product with a
  // denormal takes a hundred cycles.
  static Floats MulOrZero(Floats a, Floats b, Mask mask) { return mask ? a * b : 0.0f; }
  // +0 where |x| < 2^-126, else x: a NaN stays one.
  static Floats Flush(Floats x) { return Abs(x) < 0x1p-126f ? 0.0f : x; }

  // Adds the squares of `x`. A float's square is exact in double: fused or not, the sum has the same bits.
  static Sums AddSquares(Sums sums, Floats x) { return sums + static_cast<double>(x) * x; }
  static Sums Add(Sums a, Sums b) { return a + b; }
  // The upper half of the lanes is added to the lower, and so on until one is left.
  static double Fold(Sums sums) { return sums; }

  // The larger of `a` and the bits of |x|, lane by lane; and the largest of all lanes.
  static Words LargerMagnitude(Words a, Floats x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x) & 0x7FFFFFFF;
    return a < bits ? bits : a;
  }
  static uint32_t Largest(Words x) { return x; }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LANES_SCALAR_H_
