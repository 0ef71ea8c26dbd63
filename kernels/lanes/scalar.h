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
  // a * b in the lanes of `mask`, +0 in the others. These are not multiplied: a product with a denormal takes a hundred
  // cycles.
  static Floats MulOrZero(Floats a, Floats b, Mask mask) { return mask ? a * b : 0.0f; }
  // +0 where |x| < least, else x: a NaN stays one.
  static Floats ZeroBelow(Floats x, Floats least) { return Abs(x) < least ? 0.0f : x; }
  static Floats Flush(Floats x) { return ZeroBelow(x, 0x1p-126f); }
  // `b` where they are equal or one is a NaN.
  static Floats Max(Floats a, Floats b) { return a > b ? a : b; }
  static Floats Min(Floats a, Floats b) { return a < b ? a : b; }

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

  // The elements of formats.h, one for every lane.
  using Halves = uint16_t;

  // kWidth elements at an address of any alignment.
  static Halves LoadHalves(const void* from) {
    Halves x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  static void StoreHalves(void* to, Halves x) { __builtin_memcpy(to, &x, sizeof x); }

  // The same values; of a NaN a NaN of its sign.
  static Floats FromBfloat16(Halves x) { return __builtin_bit_cast(float, uint32_t{x} << 16); }
  static Floats FromFloat16(Halves x) {
    const uint32_t sign = (x & 0x8000u) << 16, magnitude = x & 0x7FFFu;
    if (magnitude < 0x0400) {  // zero and denormals
      const float value = static_cast<float>(magnitude) * 0x1p-24f;
      return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, value));
    }
    // Exponents are 112 larger than before, and that of infinities and NaN is 224 larger.
    const uint32_t bias = magnitude < 0x7C00 ? 112u << 23 : 224u << 23;
    return __builtin_bit_cast(float, sign | ((magnitude << 13) + bias));
  }

  // To the nearest, of two to the even one; what is too large becomes infinite. A NaN as QuietNans makes it has no
  // other bit set afterwards, of others it does not matter what becomes of them.
  static Halves ToBfloat16(Floats x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return static_cast<Halves>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
  static Halves ToFloat16(Floats x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude >= 0x7F800000) return static_cast<Halves>(sign | ((magnitude >> 13) & 0x7E00));  // infinity, NaN
    if (magnitude >= 0x477FF000) return static_cast<Halves>(sign | 0x7C00);
    if (magnitude >= 0x38800000) {  // 2^-14, the least that is not denormal
      return static_cast<Halves>(sign | ((magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13));
    }
    // The mantissa in units of 2^-24. Below 2^-25 nothing is left of it.
    const uint32_t shift = 126 - (magnitude >> 23);
    if (shift > 24) return static_cast<Halves>(sign);
    const uint32_t mantissa = (magnitude & 0x7FFFFF) | 0x800000;
    const uint32_t odd = (mantissa >> shift) & 1;
    return static_cast<Halves>(sign | ((mantissa + (1u << (shift - 1)) - 1 + odd) >> shift));
  }
  // `x`; where that is a NaN, the one of its sign whose mantissa has the first bit alone.
  static Floats QuietNans(Floats x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? __builtin_bit_cast(float, (bits & 0x80000000) | 0x7FC00000) : x;
  }

  // One more in the lanes of `mask`; and the sum of all lanes.
  static Words Count(Words counts, Mask mask) { return counts + mask; }
  static uint32_t Total(Words counts) { return counts; }
};

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_LANES_SCALAR_H_
