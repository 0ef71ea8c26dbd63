// The conversions of formats.h, over any lanes.
#ifndef ADAMANT_KERNELS_CONVERT_H_
#define ADAMANT_KERNELS_CONVERT_H_

#include <cstdint>

#include "kernels/formats.h"

namespace adamant::kernels {
namespace {  // NOLINT(google-build-namespaces): a copy for each instruction set

// A vector of 16-bit elements in memory that holds its first `count` only. Requires: 0 < count < V::kWidth.
template <typename V>
class PartOfHalves {
 public:
  explicit PartOfHalves(int64_t count) : bytes_(2 * count) {}

  typename V::Halves Load(const char* from) {
    __builtin_memcpy(whole_, from, bytes_);
    return V::LoadHalves(whole_);
  }
  void Store(char* to, typename V::Halves x) {
    V::StoreHalves(whole_, x);
    __builtin_memcpy(to, whole_, bytes_);
  }

 private:
  const int64_t bytes_;
  char whole_[2 * V::kWidth] = {};
};

// A WidenFunction.
template <typename V, Format16 format>
void Widen(const void* caller_from, float* to, int64_t n) {
  const char* const from = static_cast<const char*>(caller_from);
  const auto widened = [](typename V::Halves x) {
    return format == kBfloat16 ? V::FromBfloat16(x) : V::FromFloat16(x);
  };
  const int64_t whole = n / V::kWidth * V::kWidth;
  for (int64_t i = 0; i < whole; i += V::kWidth) V::Store(to + i, widened(V::LoadHalves(from + 2 * i)));
  if (const int64_t rest = n - whole; rest > 0) {
    V::Store(to + whole, widened(PartOfHalves<V>(rest).Load(from + 2 * whole)), V::First(static_cast<int>(rest)));
  }
}

// A NarrowFunction.
template <typename V, Format16 format>
int64_t Narrow(const float* from, void* caller_to, int64_t n) {
  char* const to = static_cast<char*>(caller_to);
  const typename V::Floats least_too_large = V::Broadcast(format == kBfloat16 ? 0x1.FFp127f : 0x1.FFEp15f);
  const typename V::Floats infinity = V::Broadcast(__builtin_inff());
  typename V::Words too_large = {}, infinite = {};
  const auto narrowed = [&](typename V::Floats x) {
    too_large = V::Count(too_large, V::AtLeast(V::Abs(x), least_too_large));
    infinite = V::Count(infinite, V::AtLeast(V::Abs(x), infinity));
    return format == kBfloat16 ? V::ToBfloat16(V::QuietNans(x)) : V::ToFloat16(V::QuietNans(x));
  };
  const int64_t whole = n / V::kWidth * V::kWidth;
  for (int64_t i = 0; i < whole; i += V::kWidth) V::StoreHalves(to + 2 * i, narrowed(V::Load(from + i)));
  if (const int64_t rest = n - whole; rest > 0) {
    const typename V::Floats x = V::Load(from + whole, V::First(static_cast<int>(rest)));
    PartOfHalves<V>(rest).Store(to + 2 * whole, narrowed(x));
  }
  return int64_t{V::Total(too_large)} - V::Total(infinite);
}

}  // namespace
}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_CONVERT_H_
