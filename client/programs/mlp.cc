// Forward and backward passes, layer by layer.
#include "client/programs/mlp.h"

#include <cfloat>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant::programs {

static_assert(FLT_EVAL_METHOD == 0, "an intermediate wider than float is rounded twice");

Mlp::Mlp(std::vector<int> widths) {
  for (size_t layer = 0; layer + 1 < widths.size(); ++layer) {
    const int inputs = widths[layer];
    const int outputs = widths[layer + 1];
    const int64_t weights = parameter_count_;
    const int64_t biases = weights + int64_t{outputs} * inputs;
    layers_.push_back({.inputs = inputs, .outputs = outputs, .weights = weights, .biases = biases});
    parameter_count_ = biases + outputs;
  }
  activations_.resize(widths.size());
}

std::vector<Mlp::Tensor> Mlp::Tensors() const {
  std::vector<Tensor> tensors;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const auto& [inputs, outputs, weights, biases] = layers_[layer];
    tensors.push_back({.name = absl::StrCat("layers.", layer, ".weight"), .shape = {outputs, inputs}});
    tensors.push_back({.name = absl::StrCat("layers.", layer, ".bias"), .shape = {outputs}});
  }
  return tensors;
}

float Mlp::LossAndGradient(absl::Span<const float> parameters, const Batch& batch, absl::Span<float> gradient) {
  activations_.front() = batch.inputs;
  for (size_t layer = 0; layer < layers_.size(); ++layer) Forward(layer, parameters, batch.samples);

  const std::vector<float>& outputs = activations_.back();
  const float count = static_cast<float>(outputs.size());
  float sum = 0;
  delta_.resize(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const float error = outputs[i] - batch.targets[i];
    sum += error * error;
    delta_[i] = 2 * error / count;
  }

  for (size_t layer = layers_.size(); layer-- > 0;) Backward(layer, parameters, batch.samples, gradient);
  return sum / count;
}

void Mlp::Forward(size_t layer, absl::Span<const float> parameters, int samples) {
  const auto& [inputs, outputs, weights, biases] = layers_[layer];
  const bool hidden = layer + 1 < layers_.size();
  const float* in = activations_[layer].data();
  activations_[layer + 1].resize(size_t{static_cast<unsigned>(outputs)} * samples);
  for (int unit = 0; unit < outputs; ++unit) {
    float* out = activations_[layer + 1].data() + int64_t{unit} * samples;
    for (int s = 0; s < samples; ++s) out[s] = parameters[biases + unit];
    for (int j = 0; j < inputs; ++j) {
      const float weight = parameters[weights + int64_t{unit} * inputs + j];
      for (int s = 0; s < samples; ++s) out[s] += weight * in[int64_t{j} * samples + s];
    }
    for (int s = 0; hidden && s < samples; ++s) out[s] = out[s] > 0 ? out[s] : 0;
  }
}

void Mlp::Backward(size_t layer, absl::Span<const float> parameters, int samples, absl::Span<float> gradient) {
  const auto& [inputs, outputs, weights, biases] = layers_[layer];
  const float* in = activations_[layer].data();
  for (int unit = 0; unit < outputs; ++unit) {
    const float* delta = delta_.data() + int64_t{unit} * samples;
    for (int j = 0; j < inputs; ++j) {
      float sum = 0;
      for (int s = 0; s < samples; ++s) sum += delta[s] * in[int64_t{j} * samples + s];
      gradient[weights + int64_t{unit} * inputs + j] = sum;
    }
    float sum = 0;
    for (int s = 0; s < samples; ++s) sum += delta[s];
    gradient[biases + unit] = sum;
  }
  if (layer == 0) return;

  previous_delta_.assign(size_t{static_cast<unsigned>(inputs)} * samples, 0);
  for (int unit = 0; unit < outputs; ++unit) {
    const float* delta = delta_.data() + int64_t{unit} * samples;
    for (int j = 0; j < inputs; ++j) {
      const float weight = parameters[weights + int64_t{unit} * inputs + j];
      float* out = previous_delta_.data() + int64_t{j} * samples;
      for (int s = 0; s < samples; ++s) out[s] += weight * delta[s];
    }
  }
  // ReLU's derivative: what it let through is positive.
  for (size_t i = 0; i < previous_delta_.size(); ++i) {
    if (!(in[i] > 0)) previous_delta_[i] = 0;
  }
  std::swap(delta_, previous_delta_);
}

}  // namespace adamant::programs
