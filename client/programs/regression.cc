// Samples are drawn and combined with exact or singly rounded operations only: no distribution of the standard library,
// no function of libm, since those differ between machines.
#include "client/programs/regression.h"

#include <algorithm>
#include <random>

namespace adamant::programs {
namespace {

// Uniform in [-1, 1), with 24 random bits.
float Uniform(std::mt19937* random) { return static_cast<float>((*random)() >> 8) * 0x1p-23f - 1; }

std::vector<float> Uniforms(int64_t count, std::mt19937* random) {
  std::vector<float> values(count);
  for (float& value : values) value = Uniform(random);
  return values;
}

// Those in [begin, end).
Batch Samples(const Batch& data, int begin, int end) {
  const auto columns = [&](const std::vector<float>& rows) {
    std::vector<float> part;
    for (size_t row = 0; row < rows.size(); row += data.samples) {
      part.insert(part.end(), rows.begin() + row + begin, rows.begin() + row + end);
    }
    return part;
  };
  return {.samples = end - begin, .inputs = columns(data.inputs), .targets = columns(data.targets)};
}

}  // namespace

Batch ReferenceSample() { return {.samples = 1, .inputs = {1, 2}, .targets = {1}}; }

Batch MakeRegression(int inputs, int outputs, int samples, uint32_t seed) {
  std::mt19937 random(seed);
  Batch data = {.samples = samples,
                .inputs = Uniforms(int64_t{inputs} * samples, &random),
                .targets = std::vector<float>(int64_t{outputs} * samples)};
  for (int k = 0; k < outputs; ++k) {
    const std::vector<float> linear = Uniforms(inputs, &random);
    const std::vector<float> quadratic = Uniforms(inputs, &random);
    for (int i = 0; i < inputs; ++i) {
      const float* x = &data.inputs[int64_t{i} * samples];
      const float* next = &data.inputs[int64_t{(i + 1) % inputs} * samples];
      float* y = &data.targets[int64_t{k} * samples];
      for (int s = 0; s < samples; ++s) y[s] += (linear[i] + quadratic[i] * next[s]) * x[s];
    }
  }
  return data;
}

std::vector<Batch> SplitIntoBatches(const Batch& data, int batch_size) {
  std::vector<Batch> batches;
  for (int begin = 0; begin < data.samples; begin += batch_size) {
    batches.push_back(Samples(data, begin, begin + std::min(batch_size, data.samples - begin)));
  }
  return batches;
}

std::vector<Batch> SplitEvenly(const Batch& data, int count) {
  const auto begin = [&](int64_t part) { return static_cast<int>(part * data.samples / count); };
  std::vector<Batch> parts;
  for (int part = 0; part < count; ++part) parts.push_back(Samples(data, begin(part), begin(part + 1)));
  return parts;
}

}  // namespace adamant::programs
