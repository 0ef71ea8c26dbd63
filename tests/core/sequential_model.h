// What a parameter set is to be: one step after the other, on one thread and in whole arrays.
#ifndef ADAMANT_TESTS_CORE_SEQUENTIAL_MODEL_H_
#define ADAMANT_TESTS_CORE_SEQUENTIAL_MODEL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "kernels/dispatch.h"
#include "kernels/norm.h"
#include "kernels/scalars.h"

namespace adamant::core {

// Elements of all tensors of a set, one after the other, without padding.
using Values = std::vector<float>;

inline bool SameBits(const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  // Where there is nothing, data() may be null, which memcmp does not take.
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// All that steps change. Arrays that a set does not have are empty.
struct Arrays {
  int64_t step = 0;
  Values parameters = {};
  Values exp_avg = {};
  Values exp_avg_sq = {};
  Values max_exp_avg_sq = {};
  Values momentum_buffer = {};
  // How many updates each tensor has had. Empty: all as many as `step`.
  std::vector<int64_t> update_counts = {};
};

inline bool operator==(const Arrays& a, const Arrays& b) {
  return a.step == b.step && SameBits(a.parameters, b.parameters) && SameBits(a.exp_avg, b.exp_avg) &&
         SameBits(a.exp_avg_sq, b.exp_avg_sq) && SameBits(a.max_exp_avg_sq, b.max_exp_avg_sq) &&
         SameBits(a.momentum_buffer, b.momentum_buffer) && a.update_counts == b.update_counts;
}

// Rows of a tensor as a step brings them: `values` has the elements of each of `rows`, which may come more than once.
struct BroughtRows {
  int tensor;
  std::vector<int64_t> rows;
  Values values;
};

// The optimizers of a set's groups over its tensors, by the scalar reference kernels. Knows clipping, overrides, frozen
// groups and steps that bring some tensors only; no schedules. Thread-compatible.
class SequentialModel {
 public:
  // At zero.
  explicit SequentialModel(const v1::ParameterSetSpec& spec) : spec_(spec) {
    if (spec_.groups().empty()) spec_.add_groups();
    for (const v1::TensorSpec& tensor : spec.tensors()) Append(tensor);
    SizeArrays();
  }

  const Arrays& arrays() const { return arrays_; }
  Arrays* mutable_arrays() { return &arrays_; }
  // Changes what later steps do: groups in the same order, and what holds for all of them.
  v1::ParameterSetSpec* mutable_spec() { return &spec_; }
  int64_t parameter_count() const { return parameter_count_; }

  // Appends tensors, which are zero, and their groups. Those that were there have had as many updates as before.
  void Grow(const v1::AddTensorsRequest& request) {
    std::vector<int64_t> counts = arrays_.update_counts;
    if (counts.empty()) counts.assign(tensors_.size(), arrays_.step);
    counts.resize(tensors_.size() + request.tensors_size());
    if (arrays_.step > 0) arrays_.update_counts = counts;
    spec_.mutable_groups()->MergeFrom(request.groups());
    spec_.mutable_tensors()->MergeFrom(request.tensors());
    for (const v1::TensorSpec& tensor : request.tensors()) Append(tensor);
    SizeArrays();
  }

  // One step as `header` asks for it. `gradient` has elements of all tensors; those that are not brought are ignored.
  // `rows` are of the tensors that the header calls sparse.
  void Apply(const Values& gradient, const v1::StepHeader& header = {}, const std::vector<BroughtRows>& rows = {}) {
    kernels::GradientTransform transform = {.scale = static_cast<float>(Scale(gradient, header, rows))};
    if (spec_.clipping().has_max_value()) transform.clip = static_cast<float>(spec_.clipping().max_value());

    std::vector<int64_t> counts = arrays_.update_counts;
    if (counts.empty()) counts.assign(tensors_.size(), arrays_.step);
    ++arrays_.step;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (!IsBrought(static_cast<int>(i), header)) continue;
      ++counts[i];
      Update(tensors_[i], gradient.data() + tensors_[i].begin, Overridden(tensors_[i].group, header), counts[i],
             transform);
    }
    for (const BroughtRows& brought : rows) {
      const Tensor& tensor = tensors_[brought.tensor];
      ++counts[brought.tensor];
      for (const auto& [row, sum] : SumRows(brought)) {
        Tensor place = tensor;
        place.size = static_cast<int64_t>(sum.size());
        place.begin += row * place.size;
        Update(place, sum.data(), Overridden(tensor.group, header), counts[brought.tensor], transform);
      }
    }
    const bool equal = std::all_of(counts.begin(), counts.end(), [&](int64_t n) { return n == arrays_.step; });
    arrays_.update_counts = equal ? std::vector<int64_t>() : counts;
  }

  // What is reported of such a step: without grad_scale, and before clipping.
  double GradNorm(const Values& gradient, const v1::StepHeader& header,
                  const std::vector<BroughtRows>& rows = {}) const {
    return Norm(Brought(gradient, header), rows) / GradScale(header);
  }

  // What the gradient of such a step is multiplied with. One whose norm is not finite is not clipped.
  double Scale(const Values& gradient, const v1::StepHeader& header, const std::vector<BroughtRows>& rows = {}) const {
    const double scale = 1 / GradScale(header);
    if (!spec_.clipping().has_max_norm()) return scale;
    const double norm = GradNorm(gradient, header, rows);
    return std::isfinite(norm) ? scale * std::min(1.0, spec_.clipping().max_norm() / (norm + 1e-6)) : scale;
  }

  // The learning rates that the groups use in such a step.
  std::vector<double> LearningRates(const v1::StepHeader& header) const {
    std::vector<double> rates;
    for (int i = 0; i < spec_.groups_size(); ++i) rates.push_back(LearningRate(Overridden(i, header)));
    return rates;
  }

  const v1::ParameterSetSpec& spec() const { return spec_; }
  int tensors() const { return static_cast<int>(tensors_.size()); }
  int GroupOf(int tensor) const { return tensors_[tensor].group; }
  // Whether the tensor has rows, how many, and of how many elements each.
  bool HasRows(int tensor) const { return tensors_[tensor].has_rows; }
  int64_t RowsOf(int tensor) const { return tensors_[tensor].rows; }
  int64_t RowWidthOf(int tensor) const { return tensors_[tensor].row_width; }

  // The parameters of rows that were brought, ascending and each once.
  std::vector<BroughtRows> ParametersOf(const std::vector<BroughtRows>& brought) const {
    std::vector<BroughtRows> rows;
    for (const BroughtRows& one : brought) {
      BroughtRows now = {.tensor = one.tensor, .rows = {}, .values = {}};
      for (const auto& [row, sum] : SumRows(one)) {
        const auto first =
            arrays_.parameters.begin() + tensors_[one.tensor].begin + row * static_cast<int64_t>(sum.size());
        now.rows.push_back(row);
        now.values.insert(now.values.end(), first, first + static_cast<int64_t>(sum.size()));
      }
      rows.push_back(std::move(now));
    }
    return rows;
  }

  // Whether such a step brings the whole tensor.
  bool IsBrought(int tensor, const v1::StepHeader& header) const {
    for (const v1::SparseRows& sparse : header.sparse()) {
      if (sparse.tensor() == tensor) return false;
    }
    if (header.tensors().empty()) return !spec_.groups(tensors_[tensor].group).frozen();
    return std::find(header.tensors().begin(), header.tensors().end(), tensor) != header.tensors().end();
  }

  // `gradient` with zeros for the tensors that a step with this header does not bring.
  Values Brought(Values gradient, const v1::StepHeader& header) const {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (IsBrought(static_cast<int>(i), header)) continue;
      std::fill_n(gradient.begin() + tensors_[i].begin, tensors_[i].size, 0.0f);
    }
    return gradient;
  }

  // What came for each row, added up in order, by row.
  static std::map<int64_t, Values> SumRows(const BroughtRows& brought) {
    std::map<int64_t, Values> sums;
    const size_t width = brought.rows.empty() ? 0 : brought.values.size() / brought.rows.size();
    for (size_t i = 0; i < brought.rows.size(); ++i) {
      const Values row(brought.values.begin() + i * width, brought.values.begin() + (i + 1) * width);
      const auto [sum, is_new] = sums.try_emplace(brought.rows[i], row);
      for (size_t k = 0; k < width && !is_new; ++k) sum->second[k] += row[k];
    }
    return sums;
  }

  // The norm in the order that the design fixes: over blocks of 65,536 elements of the padded space, then over rows.
  double Norm(const Values& gradient, const std::vector<BroughtRows>& rows = {}) const {
    constexpr int64_t kBlock = 65536;
    std::vector<float> flat(flat_size_);
    for (const Tensor& tensor : tensors_) {
      std::copy_n(gradient.begin() + tensor.begin, tensor.size, flat.begin() + tensor.flat_begin);
    }
    double sum = 0;
    for (int64_t begin = 0; begin < flat_size_; begin += kBlock) {
      sum += Scalar().measure(flat.data() + begin, std::min(kBlock, flat_size_ - begin)).sum_of_squares;
    }
    for (const BroughtRows& brought : rows) {
      for (const auto& [row, values] : SumRows(brought)) {
        sum += Scalar().measure(values.data(), static_cast<int64_t>(values.size())).sum_of_squares;
      }
    }
    return std::sqrt(sum);
  }

 private:
  struct Tensor {
    int64_t begin;  // in Values
    int64_t size;
    int64_t flat_begin;
    int group;
    bool has_rows;
    int64_t rows;
    int64_t row_width;
  };

  void Append(const v1::TensorSpec& tensor) {
    int64_t size = 1;
    int64_t row_width = 1;
    for (const int64_t extent : tensor.shape()) size *= extent;
    for (int i = 1; i < tensor.shape_size(); ++i) row_width *= tensor.shape(i);
    Tensor added = {.begin = parameter_count_,
                    .size = size,
                    .flat_begin = flat_size_,
                    .group = 0,
                    .has_rows = !tensor.shape().empty(),
                    .rows = tensor.shape().empty() ? 0 : tensor.shape(0),
                    .row_width = row_width};
    for (int i = 0; i < spec_.groups_size(); ++i) {
      if (spec_.groups(i).name() == tensor.group()) added.group = i;
    }
    tensors_.push_back(added);
    parameter_count_ += size;
    flat_size_ += (size + 15) / 16 * 16;
  }

  // Zeros for the elements that the arrays of the groups' optimizers do not have yet.
  void SizeArrays() {
    bool adam = false;
    bool amsgrad = false;
    bool momentum = false;
    for (const v1::ParameterGroup& group : spec_.groups()) {
      adam = adam || !group.has_sgd();
      amsgrad = amsgrad || group.adam().amsgrad();
      momentum = momentum || group.sgd().momentum() != 0;
    }
    arrays_.parameters.resize(parameter_count_);
    if (adam) arrays_.exp_avg.resize(parameter_count_);
    if (adam) arrays_.exp_avg_sq.resize(parameter_count_);
    if (amsgrad) arrays_.max_exp_avg_sq.resize(parameter_count_);
    if (momentum) arrays_.momentum_buffer.resize(parameter_count_);
  }

  static double GradScale(const v1::StepHeader& header) { return header.has_grad_scale() ? header.grad_scale() : 1; }

  static double LearningRate(const v1::ParameterGroup& group) {
    return group.has_learning_rate() ? group.learning_rate() : 1e-3;
  }

  v1::ParameterGroup Overridden(int index, const v1::StepHeader& header) const {
    v1::ParameterGroup group = spec_.groups(index);
    for (const v1::GroupOverride& given : header.overrides()) {
      if (given.group() != group.name() && !(given.group().empty() && index == 0)) continue;
      if (given.has_learning_rate()) group.set_learning_rate(given.learning_rate());
      if (group.has_sgd()) {
        if (given.has_momentum()) group.mutable_sgd()->set_momentum(given.momentum());
        if (given.has_weight_decay()) group.mutable_sgd()->set_weight_decay(given.weight_decay());
      } else {
        if (given.has_beta1()) group.mutable_adam()->set_beta1(given.beta1());
        if (given.has_beta2()) group.mutable_adam()->set_beta2(given.beta2());
        if (given.has_eps()) group.mutable_adam()->set_eps(given.eps());
        if (given.has_weight_decay()) group.mutable_adam()->set_weight_decay(given.weight_decay());
      }
    }
    return group;
  }

  // `gradient` is the tensor's.
  void Update(const Tensor& tensor, const float* gradient, const v1::ParameterGroup& group, int64_t t,
              kernels::GradientTransform transform) {
    const double learning_rate = LearningRate(group);
    float* const p = arrays_.parameters.data() + tensor.begin;
    kernels::UpdateSpan span = {.size = tensor.size, .g = gradient, .p_in = p, .p_out = p, .slots = {}};
    const auto slot = [&tensor](Values* values) {
      float* const elements = values->data() + tensor.begin;
      return kernels::SlotSpan{elements, elements};
    };
    if (group.has_sgd()) {
      const v1::Sgd& sgd = group.sgd();
      if (sgd.maximize()) transform.scale = -transform.scale;
      if (sgd.momentum() != 0) span.slots[0] = slot(&arrays_.momentum_buffer);
      const int first = sgd.nesterov() ? kernels::kNesterov : sgd.momentum() != 0 ? kernels::kMomentum : kernels::kSgd;
      Scalar().update[first + (sgd.weight_decay() != 0 ? 1 : 0)](
          kernels::MakeSgdScalars({.learning_rate = learning_rate,
                                   .momentum = sgd.momentum(),
                                   .dampening = sgd.dampening(),
                                   .weight_decay = sgd.weight_decay()},
                                  t, transform),
          span);
      return;
    }
    const v1::Adam& adam = group.adam();
    if (adam.maximize()) transform.scale = -transform.scale;
    span.slots[0] = slot(&arrays_.exp_avg);
    span.slots[1] = slot(&arrays_.exp_avg_sq);
    if (adam.amsgrad()) span.slots[2] = slot(&arrays_.max_exp_avg_sq);
    int update = adam.amsgrad() ? kernels::kAdamAmsgrad : kernels::kAdam;
    if (adam.weight_decay() != 0) update += adam.decoupled_weight_decay() ? 2 : 1;
    Scalar().update[update](kernels::MakeAdamScalars({.learning_rate = learning_rate,
                                                      .beta1 = adam.has_beta1() ? adam.beta1() : 0.9,
                                                      .beta2 = adam.has_beta2() ? adam.beta2() : 0.999,
                                                      .eps = adam.has_eps() ? adam.eps() : 1e-8,
                                                      .weight_decay = adam.weight_decay()},
                                                     t, transform),
                            span);
  }

  static const kernels::KernelTable& Scalar() { return **kernels::AllKernels().begin(); }

  v1::ParameterSetSpec spec_;
  std::vector<Tensor> tensors_;
  int64_t parameter_count_ = 0;
  int64_t flat_size_ = 0;
  Arrays arrays_;
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SEQUENTIAL_MODEL_H_
