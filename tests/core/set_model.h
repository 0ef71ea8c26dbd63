// What a parameter set is to know and to say, written again in the plainest way, for schedules to compare with. Knows
// no test framework.
#ifndef ADAMANT_TESTS_CORE_SET_MODEL_H_
#define ADAMANT_TESTS_CORE_SET_MODEL_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "adamant/v1/error.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_schedule.h"

namespace adamant::core {

inline constexpr int64_t kRemembered = 64;
// No reason to refuse anything.
inline constexpr v1::ErrorReason kNone = v1::ERROR_REASON_UNSPECIFIED;

inline int32_t AttemptOf(const v1::StepHeader& header) { return header.has_attempt() ? header.attempt() : 1; }

// Which tensors a step or a write brings, one entry a tensor.
using BroughtTensors = std::vector<bool>;

// Which elements of the tensors that are brought have come.
class Arrival {
 public:
  Arrival(const Schema& schema, BroughtTensors brought)
      : sizes_(schema.sizes().begin(), schema.sizes().end()),
        brought_(std::move(brought)),
        received_(sizes_.size(), 0) {}

  // Takes a chunk, or says what is wrong with it.
  v1::ErrorReason Take(const Piece& piece) {
    if (piece.tensor < 0 || piece.tensor >= static_cast<int32_t>(sizes_.size())) return v1::ERROR_REASON_UNKNOWN_TENSOR;
    if (!brought_[piece.tensor]) return v1::ERROR_REASON_TENSOR_NOT_CARRIED;
    const int64_t size = sizes_[piece.tensor];
    if (piece.count < 0 || (piece.count == 0 && size > 0)) return v1::ERROR_REASON_MALFORMED_CHUNK;
    if (piece.offset < 0 || piece.offset + piece.count > size) return v1::ERROR_REASON_CHUNK_OUT_OF_RANGE;
    if (piece.offset != received_[piece.tensor]) return v1::ERROR_REASON_CHUNK_OUT_OF_ORDER;
    received_[piece.tensor] += piece.count;
    return kNone;
  }

  bool complete() const { return Open().empty(); }
  int64_t received(int32_t tensor) const { return received_[tensor]; }

  int32_t tensors() const { return static_cast<int32_t>(sizes_.size()); }

  // Some of what is missing next.
  Piece Next(Choices* choices) const {
    const std::vector<int32_t> open = Open();
    const int32_t tensor = open[choices->Choose(open.size())];
    const int64_t rest = sizes_[tensor] - received_[tensor];
    const int64_t count = choices->Choose(2) == 0 ? rest : 1 + rest * choices->Choose(100) / 101;
    return {tensor, received_[tensor], count, BeginOf(tensor) + received_[tensor]};
  }

  // All that is missing.
  std::vector<Piece> Rest() const {
    std::vector<Piece> pieces;
    for (const int32_t i : Open()) {
      pieces.push_back({i, received_[i], sizes_[i] - received_[i], BeginOf(i) + received_[i]});
    }
    return pieces;
  }

  int64_t BeginOf(int32_t tensor) const {
    int64_t begin = 0;
    for (int32_t i = 0; i < tensor; ++i) begin += sizes_[i];
    return begin;
  }

 private:
  // Tensors of which something is missing.
  std::vector<int32_t> Open() const {
    std::vector<int32_t> open;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      if (brought_[i] && received_[i] < sizes_[i]) open.push_back(static_cast<int32_t>(i));
    }
    return open;
  }

  std::vector<int64_t> sizes_;
  BroughtTensors brought_;
  std::vector<int64_t> received_;
};

// Which rows have come of those that are announced.
class RowsArrival {
 public:
  RowsArrival(const Schema& schema, std::vector<BroughtRows> announced)
      : announced_(std::move(announced)), received_(announced_.size(), 0) {
    for (const BroughtRows& rows : announced_) {
      const Schema::Tensor& tensor = schema.tensors()[rows.tensor];
      extents_.push_back(tensor.shape.empty() ? 0 : tensor.shape[0]);
      widths_.push_back(tensor.shape.empty() ? 0 : SizeWithoutFirst(tensor.shape));
    }
  }

  bool Has(int32_t tensor) const { return IndexOf(tensor) < announced_.size(); }

  // Takes a chunk of these rows, or of elements alone, as `piece` says. Requires: Has(rows.tensor).
  v1::ErrorReason Take(const BroughtRows& rows, const Piece& piece) {
    const size_t i = IndexOf(rows.tensor);
    const auto count = static_cast<int64_t>(rows.rows.size());
    const int64_t elements = static_cast<int64_t>(rows.values.size()) + piece.count;
    const auto expected = static_cast<int64_t>(announced_[i].rows.size());
    if (piece.offset != 0 || elements != count * widths_[i] || (count == 0 && expected > 0)) {
      return v1::ERROR_REASON_MALFORMED_CHUNK;
    }
    if (received_[i] + count > expected) return v1::ERROR_REASON_CHUNK_OUT_OF_RANGE;
    for (const int64_t row : rows.rows) {
      if (row < 0 || row >= extents_[i]) return v1::ERROR_REASON_CHUNK_OUT_OF_RANGE;
    }
    // The client sends what is its own from where it left off, and has now sent others in their place.
    std::copy(rows.rows.begin(), rows.rows.end(), announced_[i].rows.begin() + received_[i]);
    std::copy(rows.values.begin(), rows.values.end(), announced_[i].values.begin() + received_[i] * widths_[i]);
    received_[i] += count;
    return kNone;
  }

  bool complete() const { return Rest().empty(); }
  // The rows as they have come, or are to come.
  const std::vector<BroughtRows>& rows() const { return announced_; }

  // Some of what is missing next. Requires: something is.
  BroughtRows Next(Choices* choices) const {
    const std::vector<BroughtRows> rest = Rest();
    BroughtRows rows = rest[choices->Choose(rest.size())];
    const size_t width = rows.values.size() / rows.rows.size();
    rows.rows.resize(1 + choices->Choose(rows.rows.size()));
    rows.values.resize(rows.rows.size() * width);
    return rows;
  }

  // All that is missing, by tensor.
  std::vector<BroughtRows> Rest() const {
    std::vector<BroughtRows> rest;
    for (size_t i = 0; i < announced_.size(); ++i) {
      const BroughtRows& all = announced_[i];
      if (received_[i] == static_cast<int64_t>(all.rows.size())) continue;
      rest.push_back({.tensor = all.tensor,
                      .rows = {all.rows.begin() + received_[i], all.rows.end()},
                      .values = {all.values.begin() + received_[i] * widths_[i], all.values.end()}});
    }
    return rest;
  }

 private:
  static int64_t SizeWithoutFirst(const std::vector<int64_t>& shape) {
    int64_t size = 1;
    for (size_t i = 1; i < shape.size(); ++i) size *= shape[i];
    return size;
  }

  size_t IndexOf(int32_t tensor) const {
    size_t i = 0;
    while (i < announced_.size() && announced_[i].tensor != tensor) ++i;
    return i;
  }

  std::vector<BroughtRows> announced_;
  std::vector<int64_t> received_;
  std::vector<int64_t> extents_;
  std::vector<int64_t> widths_;
};

// What somebody who watches a set is to be told: all that has happened, but the oldest where there is much of it.
class WatchModel {
 public:
  void Add(v1::WatchParameterSetResponse event) {
    if (events_.size() == kMost) {
      events_.pop_front();
      ++missed_;
    }
    events_.push_back(std::move(event));
  }

  // Nothing where there is nothing to be told.
  std::optional<v1::WatchParameterSetResponse> Next() {
    if (events_.empty()) return std::nullopt;
    v1::WatchParameterSetResponse event = std::move(events_.front());
    events_.pop_front();
    event.set_missed(std::exchange(missed_, 0));
    return event;
  }

 private:
  static constexpr size_t kMost = 8;

  std::deque<v1::WatchParameterSetResponse> events_;
  int64_t missed_ = 0;
};

// What the set is to know.
struct Model {
  enum class State { kReady, kUninitialized, kDeleted };
  struct Remembered {
    std::string request_id;
    std::string header;
    v1::StepResult result;
    BroughtTensors brought;
  };

  const Remembered* Find(const std::string& request_id) const {
    if (request_id.empty()) return nullptr;
    const auto found = absl::c_find_if(memory, [&](const Remembered& r) { return r.request_id == request_id; });
    return found != memory.end() ? &*found : nullptr;
  }

  int64_t step() const { return optimizer.arrays().step; }

  // Why a set in this state refuses whatever needs parameters.
  v1::ErrorReason NotReady() const {
    switch (state) {
      case State::kReady:
        return kNone;
      case State::kUninitialized:
        return v1::ERROR_REASON_UNINITIALIZED;
      case State::kDeleted:
        return v1::ERROR_REASON_SET_NOT_FOUND;
    }
    return kNone;
  }

  // What is wrong with the step that a header expects, or is based on, if it may not come `early`.
  v1::ErrorReason StepFault(const v1::StepHeader& header, bool may_be_early) const {
    if (!header.has_expected_step() && !header.has_base_step()) return kNone;
    const int64_t named = header.has_expected_step() ? header.expected_step() : header.base_step();
    if (!header.request_id().empty() && AttemptOf(header) > 1 && step() - named > kRemembered) {
      return v1::ERROR_REASON_OUTCOME_UNKNOWN;
    }
    const bool late = header.has_expected_step() && named < step();
    const bool early = named > step() && !(header.has_expected_step() && may_be_early);
    return late || early ? v1::ERROR_REASON_STEP_MISMATCH : kNone;
  }

  // Whether the groups allow what the header asks for: overrides of theirs that stay finite, and tensors of theirs that
  // are not frozen. One that was made for a set that had grown may name others.
  bool Fits(const v1::StepHeader& header) const {
    for (const v1::GroupOverride& given : header.overrides()) {
      const auto has_name = [&](const v1::ParameterGroup& group) { return group.name() == given.group(); };
      if (absl::c_none_of(optimizer.spec().groups(), has_name)) return false;
      for (const v1::ParameterGroup& group : optimizer.spec().groups()) {
        if (given.group() != group.name() || group.has_sgd()) continue;
        const double rate = given.has_learning_rate() ? given.learning_rate() : group.learning_rate();
        const double eps = given.has_eps() ? given.eps() : group.adam().has_eps() ? group.adam().eps() : 1e-8;
        const double beta1 = given.has_beta1() ? given.beta1() : group.adam().has_beta1() ? group.adam().beta1() : 0.9;
        if (rate > 0x1p58 * (1 - beta1) * eps) return false;
      }
    }
    for (const int32_t tensor : header.tensors()) {
      if (tensor >= optimizer.tensors() || optimizer.spec().groups(optimizer.GroupOf(tensor)).frozen()) return false;
    }
    for (const v1::SparseRows& sparse : header.sparse()) {
      const int32_t tensor = sparse.tensor();
      if (tensor >= optimizer.tensors() || !optimizer.HasRows(tensor)) return false;
      if (optimizer.spec().groups(optimizer.GroupOf(tensor)).frozen()) return false;
      if (!header.tensors().empty() && !absl::c_linear_search(header.tensors(), tensor)) return false;
    }
    return true;
  }

  // Those that a step with this header brings.
  BroughtTensors Brought(const v1::StepHeader& header) const {
    BroughtTensors brought;
    for (int i = 0; i < optimizer.tensors(); ++i) brought.push_back(optimizer.IsBrought(i, header));
    return brought;
  }

  // Something has happened: whoever watches is to be told.
  v1::WatchParameterSetResponse Event() const {
    v1::WatchParameterSetResponse event;
    event.set_incarnation(incarnation);
    event.set_step(step());
    return event;
  }

  SequentialModel optimizer;
  State state;
  bool moments_lost = false;
  uint64_t incarnation;
  std::deque<Remembered> memory;
  int64_t config_revision = 1;
  v1::SetStatistics statistics = {};
  std::string write_request_id = {};
  std::string write_header = {};
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SET_MODEL_H_
