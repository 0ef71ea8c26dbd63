// What the sanity trainer learns: the reference's single sample, or a made-up regression of any size.
#ifndef ADAMANT_CLIENT_PROGRAMS_REGRESSION_H_
#define ADAMANT_CLIENT_PROGRAMS_REGRESSION_H_

#include <cstdint>
#include <vector>

#include "client/programs/mlp.h"

namespace adamant::programs {

// One sample: x = (1, 2), y = 1.
Batch ReferenceSample();

// Inputs uniform in [-1, 1); each output is a random quadratic function of them, without noise. The same arguments give
// the same bits on every machine. Requires: all counts positive.
Batch MakeRegression(int inputs, int outputs, int samples, uint32_t seed);

// `data` in batches of `batch_size` consecutive samples; the last may be smaller. Requires: 0 < batch_size <= 2^30.
std::vector<Batch> SplitIntoBatches(const Batch& data, int batch_size);

// `data` in `count` parts of consecutive samples, whose sizes differ by one at most. Requires: 0 < count <=
// data.samples.
std::vector<Batch> SplitEvenly(const Batch& data, int count);

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_REGRESSION_H_
