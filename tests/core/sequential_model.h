// What a parameter set is to be: plain Adam, one step after the other, on one thread and in whole arrays.
#ifndef ADAMANT_TESTS_CORE_SEQUENTIAL_MODEL_H_
#define ADAMANT_TESTS_CORE_SEQUENTIAL_MODEL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "adamant/v1/parameter_set.pb.h"
#include "kernels/adam_scalars.h"
#include "kernels/dispatch.h"
#include "kernels/norm.h"

namespace adamant::core {

// Elements of all tensors of a set, one after the other, without padding.
using Values = std::vector<float>;

inline bool SameBits(const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  // Where there is nothing, data() may be null, which memcmp does not take.
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// All that steps change.
struct Arrays {
  int64_t step = 0;
  Values parameters;
  Values exp_avg;
  Values exp_avg_sq;
};

inline bool operator==(const Arrays& a, const Arrays& b) {
  return a.step == b.step && SameBits(a.parameters, b.parameters) && SameBits(a.exp_avg, b.exp_avg) &&
         SameBits(a.exp_avg_sq, b.exp_avg_sq);
}

// Adam over a set's tensors, by the scalar reference kernel. Thread-compatible.
class SequentialAdam {
 public:
  // At zero. `spec` gives each hyperparameter explicitly, or leaves it out in all groups.
  explicit SequentialAdam(const v1::ParameterSetSpec& spec) {
    for (const v1::TensorSpec& tensor : spec.tensors()) {
      int64_t size = 1;
      for (const int64_t extent : tensor.shape()) size *= extent;
      Tensor added = {.begin = parameter_count_, .size = size, .flat_begin = flat_size_, .hyperparameters = {}};
      added.hyperparameters = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
      for (const v1::ParameterGroup& group : spec.groups()) {
        if (group.name() != tensor.group()) continue;
        if (group.has_learning_rate()) added.hyperparameters.learning_rate = group.learning_rate();
        if (group.adam().has_beta1()) added.hyperparameters.beta1 = group.adam().beta1();
        if (group.adam().has_beta2()) added.hyperparameters.beta2 = group.adam().beta2();
        if (group.adam().has_eps()) added.hyperparameters.eps = group.adam().eps();
      }
      tensors_.push_back(added);
      parameter_count_ += size;
      flat_size_ += (size + 15) / 16 * 16;
    }
    arrays_.parameters.resize(parameter_count_);
    arrays_.exp_avg.resize(parameter_count_);
    arrays_.exp_avg_sq.resize(parameter_count_);
  }

  const Arrays& arrays() const { return arrays_; }
  Arrays* mutable_arrays() { return &arrays_; }
  int64_t parameter_count() const { return parameter_count_; }

  void Apply(const Values& gradient) {
    ++arrays_.step;
    for (const Tensor& tensor : tensors_) {
      float* const p = arrays_.parameters.data() + tensor.begin;
      float* const m = arrays_.exp_avg.data() + tensor.begin;
      float* const v = arrays_.exp_avg_sq.data() + tensor.begin;
      Scalar().update[kernels::kAdam](
          kernels::MakeAdamScalars(tensor.hyperparameters, arrays_.step, 1.0f),
          {.size = tensor.size, .g = gradient.data() + tensor.begin, .p_in = p, .p_out = p, .slots = {{m, m}, {v, v}}});
    }
  }

  // The norm in the order that the design fixes: over blocks of 65,536 elements of the padded space.
  double Norm(const Values& gradient) const {
    constexpr int64_t kBlock = 65536;
    std::vector<float> flat(flat_size_);
    for (const Tensor& tensor : tensors_) {
      std::copy_n(gradient.begin() + tensor.begin, tensor.size, flat.begin() + tensor.flat_begin);
    }
    double sum = 0;
    for (int64_t begin = 0; begin < flat_size_; begin += kBlock) {
      sum += Scalar().measure(flat.data() + begin, std::min(kBlock, flat_size_ - begin)).sum_of_squares;
    }
    return std::sqrt(sum);
  }

 private:
  struct Tensor {
    int64_t begin;  // in Values
    int64_t size;
    int64_t flat_begin;
    kernels::AdamHyperparameters hyperparameters;
  };

  static const kernels::KernelTable& Scalar() { return **kernels::AllKernels().begin(); }

  std::vector<Tensor> tensors_;
  int64_t parameter_count_ = 0;
  int64_t flat_size_ = 0;
  Arrays arrays_;
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SEQUENTIAL_MODEL_H_
