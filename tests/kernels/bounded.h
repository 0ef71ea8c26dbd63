// Real numbers with a bound on how far a float computation may be from them.
#ifndef ADAMANT_TESTS_KERNELS_BOUNDED_H_
#define ADAMANT_TESTS_KERNELS_BOUNDED_H_

#include <algorithm>
#include <cmath>

namespace adamant::kernels {

using Real = long double;

// `value` is what the equations say, and what a kernel computes for it is at most `error` away. The operators are those
// of real numbers, which round nothing; Round stands where a kernel rounds.
struct Bounded {
  Real value = 0;
  Real error = 0;

  Real Largest() const { return std::fabs(value) + error; }
  Real Least() const { return std::max<Real>(std::fabs(value) - error, 0); }
};

inline Bounded Exactly(Real value) { return {value, 0}; }

// To float: half a unit of the last place, or of the smallest denormal's.
inline Bounded Round(Bounded x) { return {x.value, x.error + x.Largest() * 0x1p-24l + 0x1p-150l}; }
inline Bounded Round(Real value) { return Round(Exactly(value)); }

inline Bounded operator+(Bounded a, Bounded b) { return {a.value + b.value, a.error + b.error}; }
inline Bounded operator-(Bounded a, Bounded b) { return {a.value - b.value, a.error + b.error}; }
inline Bounded operator*(Bounded a, Bounded b) {
  return {a.value * b.value, std::fabs(a.value) * b.error + a.error * b.Largest()};
}
// Requires: what the kernel divides by is at least `least`, which is positive.
inline Bounded Quotient(Bounded a, Bounded b, Real least) {
  const Real quotient = a.value / b.value;
  return {quotient, (a.error + std::fabs(quotient) * b.error) / std::max(b.Least(), least)};
}
inline Bounded SquareRoot(Bounded x) {
  const Real root = std::sqrt(x.value);
  return {root, root > 0 ? std::min(x.error / root, std::sqrt(x.error)) : std::sqrt(x.error)};
}
// A minimum, a maximum or a clamp of what is known exactly or as well as this brings nothing closer, nor further away.
inline Bounded Max(Bounded a, Bounded b) { return {std::max(a.value, b.value), std::max(a.error, b.error)}; }
inline Bounded Clamp(Bounded x, Real limit) { return {std::clamp(x.value, -limit, limit), x.error}; }
// The kernel takes zero for what is below `least`; real numbers stay.
inline Bounded ZeroBelow(Bounded x, Real least) {
  return {x.value, x.Least() < least ? std::max(x.error, std::fabs(x.value)) : x.error};
}
inline Bounded Flush(Bounded x) { return ZeroBelow(x, 0x1p-126l); }

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_KERNELS_BOUNDED_H_
