// A multilayer perceptron in plain fp32: Linear layers with ReLU between them, and mean squared error.
//
// The arithmetic is pinned, so that a training run gives the same losses on every machine: every product and every sum
// is rounded to float, nothing is fused, and sums run in the order that the functions below name.
#ifndef ADAMANT_CLIENT_PROGRAMS_MLP_H_
#define ADAMANT_CLIENT_PROGRAMS_MLP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace adamant::programs {

// Samples, each value by row: row i of `inputs` holds input i of every sample, and likewise `targets`.
struct Batch {
  int samples;
  std::vector<float> inputs;
  std::vector<float> targets;
};

// Thread-compatible. Holds activations, no parameters: those are the caller's, in one array, for each layer the weights
// (outputs x inputs, row-major) and then the biases.
class Mlp {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };

  // `widths` are the numbers of inputs, of each hidden layer's units, and of outputs. Requires: at least two, each
  // positive.
  explicit Mlp(std::vector<int> widths);

  // What the parameters are made of, in order.
  std::vector<Tensor> Tensors() const;
  int64_t parameter_count() const { return parameter_count_; }

  // Returns the mean over samples and outputs of (output - target)^2, and sets `gradient` to its derivative by each
  // parameter. A unit's sum starts with its bias and adds weight times input in ascending order; sums over units,
  // samples and losses start with the first and ascend as well. Requires: `parameters` and `gradient` of
  // parameter_count() elements, a batch of at least one sample and of this network's widths.
  float LossAndGradient(absl::Span<const float> parameters, const Batch& batch, absl::Span<float> gradient);

 private:
  struct Layer {
    int inputs;
    int outputs;
    int64_t weights;  // where they start in the parameters
    int64_t biases;
  };

  // activations_[layer + 1] = weights * activations_[layer] + biases, through ReLU unless it is the last layer.
  void Forward(size_t layer, absl::Span<const float> parameters, int samples);
  // From `delta_`, the derivative by the layer's sums, to that by its parameters and, for all layers but the first, by
  // the sums of the layer before.
  void Backward(size_t layer, absl::Span<const float> parameters, int samples, absl::Span<float> gradient);

  std::vector<Layer> layers_;
  int64_t parameter_count_ = 0;
  // A row of samples for each unit: the inner loops run over samples, which keeps every sample's order of sums.
  std::vector<std::vector<float>> activations_;
  std::vector<float> delta_;
  std::vector<float> previous_delta_;
};

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_MLP_H_
