// Floats as their upper halves, which is what bfloat16 is, where the lower ones are zero.
#ifndef ADAMANT_SERVER_STORE_HALVES_H_
#define ADAMANT_SERVER_STORE_HALVES_H_

#include <cstddef>

#include "absl/types/span.h"

namespace adamant::store {

// Writes the upper halves of `floats` to `halves`, half as long, and returns true; or returns false where a lower half
// is not zero, and then what is in `halves` is arbitrary.
bool Halve(absl::Span<const std::byte> floats, absl::Span<std::byte> halves);

// Makes floats of the halves that the first half of `bytes` has, in place.
void Unhalve(absl::Span<std::byte> bytes);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_HALVES_H_
