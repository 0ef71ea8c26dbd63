// What a parameter set is to know and to say, written again in the plainest way, for schedules to compare with. Knows
// no test framework.
#ifndef ADAMANT_TESTS_CORE_SET_MODEL_H_
#define ADAMANT_TESTS_CORE_SET_MODEL_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "adamant/v1/error.pb.h"
#include "adamant/v1/step.pb.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_schedule.h"

namespace adamant::core {

inline constexpr int64_t kRemembered = 64;
// No reason to refuse anything.
inline constexpr v1::ErrorReason kNone = v1::ERROR_REASON_UNSPECIFIED;

inline int32_t AttemptOf(const v1::StepHeader& header) { return header.has_attempt() ? header.attempt() : 1; }

// Which elements of each tensor have come.
class Arrival {
 public:
  explicit Arrival(const Schema& schema)
      : sizes_(schema.sizes().begin(), schema.sizes().end()), received_(sizes_.size(), 0) {}

  // Takes a chunk, or says what is wrong with it.
  v1::ErrorReason Take(const Piece& piece) {
    if (piece.tensor < 0 || piece.tensor >= static_cast<int32_t>(sizes_.size())) return v1::ERROR_REASON_UNKNOWN_TENSOR;
    const int64_t size = sizes_[piece.tensor];
    if (piece.count < 0 || (piece.count == 0 && size > 0)) return v1::ERROR_REASON_MALFORMED_CHUNK;
    if (piece.offset < 0 || piece.offset + piece.count > size) return v1::ERROR_REASON_CHUNK_OUT_OF_RANGE;
    if (piece.offset != received_[piece.tensor]) return v1::ERROR_REASON_CHUNK_OUT_OF_ORDER;
    received_[piece.tensor] += piece.count;
    return kNone;
  }

  bool complete() const { return received_ == sizes_; }
  int64_t received(int32_t tensor) const { return received_[tensor]; }

  int32_t tensors() const { return static_cast<int32_t>(sizes_.size()); }

  // Some of what is missing next.
  Piece Next(Choices* choices) const {
    std::vector<int32_t> open;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      if (received_[i] < sizes_[i]) open.push_back(static_cast<int32_t>(i));
    }
    const int32_t tensor = open[choices->Choose(open.size())];
    const int64_t rest = sizes_[tensor] - received_[tensor];
    const int64_t count = choices->Choose(2) == 0 ? rest : 1 + rest * choices->Choose(100) / 101;
    return {tensor, received_[tensor], count, BeginOf(tensor) + received_[tensor]};
  }

  // All that is missing.
  std::vector<Piece> Rest() const {
    std::vector<Piece> pieces;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      if (received_[i] == sizes_[i]) continue;
      pieces.push_back({static_cast<int32_t>(i), received_[i], sizes_[i] - received_[i], BeginOf(i) + received_[i]});
    }
    return pieces;
  }

  int64_t BeginOf(int32_t tensor) const {
    int64_t begin = 0;
    for (int32_t i = 0; i < tensor; ++i) begin += sizes_[i];
    return begin;
  }

 private:
  std::vector<int64_t> sizes_;
  std::vector<int64_t> received_;
};

// What the set is to know.
struct Model {
  enum class State { kReady, kUninitialized, kDeleted };
  struct Remembered {
    std::string request_id;
    std::string header;
    v1::StepResult result;
  };

  const Remembered* Find(const std::string& request_id) const {
    if (request_id.empty()) return nullptr;
    const auto found = absl::c_find_if(memory, [&](const Remembered& r) { return r.request_id == request_id; });
    return found != memory.end() ? &*found : nullptr;
  }

  int64_t step() const { return adam.arrays().step; }

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

  v1::ErrorReason Mismatch(const v1::StepHeader& header) const {
    return !header.request_id().empty() && AttemptOf(header) > 1 && step() - header.expected_step() > kRemembered
               ? v1::ERROR_REASON_OUTCOME_UNKNOWN
               : v1::ERROR_REASON_STEP_MISMATCH;
  }

  SequentialAdam adam;
  State state;
  bool moments_lost = false;
  uint64_t incarnation;
  std::deque<Remembered> memory;
  std::string write_request_id = {};
  std::string write_header = {};
};

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SET_MODEL_H_
