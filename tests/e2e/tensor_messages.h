// Values as the messages of steps and writes bring them.
#ifndef ADAMANT_TESTS_E2E_TENSOR_MESSAGES_H_
#define ADAMANT_TESTS_E2E_TENSOR_MESSAGES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "proto/wire/tensor_message.h"
#include "tests/core/set_fixture.h"

namespace adamant::e2e {

using core::Arrays;
using core::Gradient;
using core::LargeSpec;
using core::ReasonOf;
using core::SameBits;
using core::SequentialModel;
using core::SmallSpec;
using core::Values;
using wire::ChunkForm;

// Elements of each tensor.
inline std::vector<int64_t> TensorSizes(const v1::ParameterSetSpec& spec) {
  std::vector<int64_t> sizes;
  for (const v1::TensorSpec& tensor : spec.tensors()) {
    int64_t size = 1;
    for (const int64_t extent : tensor.shape()) size *= extent;
    sizes.push_back(size);
  }
  return sizes;
}

inline int64_t ParameterCount(const v1::ParameterSetSpec& spec) {
  int64_t count = 0;
  for (const int64_t size : TensorSizes(spec)) count += size;
  return count;
}

// The slots that a set has, in the order of their numbers.
inline std::vector<v1::Slot> SlotsOf(const v1::ParameterSetSpec& spec) {
  bool adam = spec.groups().empty();
  bool amsgrad = false;
  bool momentum = false;
  for (const v1::ParameterGroup& group : spec.groups()) {
    adam = adam || !group.has_sgd();
    amsgrad = amsgrad || group.adam().amsgrad();
    momentum = momentum || group.sgd().momentum() != 0;
  }
  std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER};
  if (adam) slots.insert(slots.end(), {v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ});
  if (amsgrad) slots.push_back(v1::SLOT_MAX_EXP_AVG_SQ);
  if (momentum) slots.push_back(v1::SLOT_MOMENTUM_BUFFER);
  return slots;
}

// Where `arrays`, const or not, has a slot.
template <typename ArraysOfSet>
auto& ArrayOf(v1::Slot slot, ArraysOfSet* arrays) {
  switch (slot) {
    case v1::SLOT_EXP_AVG:
      return arrays->exp_avg;
    case v1::SLOT_EXP_AVG_SQ:
      return arrays->exp_avg_sq;
    case v1::SLOT_MAX_EXP_AVG_SQ:
      return arrays->max_exp_avg_sq;
    case v1::SLOT_MOMENTUM_BUFFER:
      return arrays->momentum_buffer;
    default:
      return arrays->parameters;
  }
}

inline void SetElements(const float* elements, int64_t n, ChunkForm form, v1::TensorChunk* chunk) {
  if (form == ChunkForm::kData) {
    chunk->set_data(elements, n * sizeof(float));
  } else {
    chunk->mutable_values()->Add(elements, elements + n);
  }
}

// One slot of a set, all tensors in order, in chunks of at most `most` elements.
inline std::vector<v1::TensorChunk> Chunks(const v1::ParameterSetSpec& spec, const Values& values, int64_t most,
                                           ChunkForm form = ChunkForm::kData, v1::Slot slot = v1::SLOT_UNSPECIFIED) {
  std::vector<v1::TensorChunk> chunks;
  const float* next = values.data();
  const std::vector<int64_t> sizes = TensorSizes(spec);
  for (size_t tensor = 0; tensor < sizes.size(); ++tensor) {
    for (int64_t offset = 0; offset < sizes[tensor]; offset += most) {
      v1::TensorChunk& chunk = chunks.emplace_back();
      chunk.set_tensor(static_cast<int32_t>(tensor));
      chunk.set_offset(offset);
      chunk.set_slot(slot);
      const int64_t n = std::min(most, sizes[tensor] - offset);
      SetElements(next, n, form, &chunk);
      next += n;
    }
  }
  return chunks;
}

// Those of `chunks` whose tensors are among these.
inline std::vector<v1::TensorChunk> Only(std::vector<v1::TensorChunk> chunks, const std::vector<int32_t>& tensors) {
  std::erase_if(chunks, [&tensors](const v1::TensorChunk& chunk) {
    return std::find(tensors.begin(), tensors.end(), chunk.tensor()) == tensors.end();
  });
  return chunks;
}

inline v1::StepHeader StepHeader(absl::string_view set, absl::string_view request_id = "",
                                 std::optional<int64_t> expected_step = {}, std::optional<int32_t> attempt = {}) {
  v1::StepHeader header;
  header.set_set(std::string(set));
  header.set_request_id(std::string(request_id));
  if (expected_step.has_value()) header.set_expected_step(*expected_step);
  if (attempt.has_value()) header.set_attempt(*attempt);
  return header;
}

// A step as its header alone, and a message for each chunk; and as one message.
inline std::vector<v1::StepRequest> StepMessages(const v1::StepHeader& header,
                                                 const std::vector<v1::TensorChunk>& chunks) {
  std::vector<v1::StepRequest> messages(1);
  *messages.front().mutable_header() = header;
  for (const v1::TensorChunk& chunk : chunks) *messages.emplace_back().add_chunks() = chunk;
  messages.back().set_last(true);
  return messages;
}

inline v1::StepRequest StepMessage(const v1::StepHeader& header, const std::vector<v1::TensorChunk>& chunks) {
  v1::StepRequest message;
  *message.mutable_header() = header;
  for (const v1::TensorChunk& chunk : chunks) *message.add_chunks() = chunk;
  message.set_last(true);
  return message;
}

// The elements of one array as its chunks bring them, tensors ascending.
class ChunkCollector {
 public:
  explicit ChunkCollector(std::vector<int64_t> sizes, v1::Slot slot = v1::SLOT_UNSPECIFIED)
      : sizes_(std::move(sizes)), slot_(slot) {
    PassOverEmpty();
  }

  // Takes the next chunk; false if it is not the one that must come.
  bool Add(const v1::TensorChunk& chunk) {
    if (done() || chunk.slot() != slot_ || chunk.tensor() != static_cast<int32_t>(tensor_) ||
        chunk.offset() != offset_) {
      return false;
    }
    const bool data = !chunk.data().empty();
    form_ = data ? ChunkForm::kData : ChunkForm::kValues;
    const bool half = chunk.dtype() == v1::DTYPE_BFLOAT16 || chunk.dtype() == v1::DTYPE_FLOAT16;
    const int64_t bytes = half ? sizeof(uint16_t) : sizeof(float);
    const int64_t n = data ? chunk.data().size() / bytes : chunk.values_size();
    if (n == 0 || n > sizes_[tensor_] - offset_) return false;
    if (half) {
      halves_.resize(halves_.size() + n);
      std::memcpy(halves_.data() + halves_.size() - n, chunk.data().data(), n * bytes);
    } else {
      values_.resize(values_.size() + n);
      std::memcpy(values_.data() + values_.size() - n,
                  data ? static_cast<const void*>(chunk.data().data()) : chunk.values().data(), n * bytes);
    }
    offset_ += n;
    if (offset_ == sizes_[tensor_]) {
      ++tensor_;
      offset_ = 0;
      PassOverEmpty();
    }
    return true;
  }

  bool done() const { return tensor_ == sizes_.size(); }
  // Of chunks of fp32, and of those of 16 bits, as they came.
  const Values& values() const { return values_; }
  const std::vector<uint16_t>& halves() const { return halves_; }
  // Of the last chunk.
  ChunkForm form() const { return form_; }

 private:
  // Tensors without elements have no chunk.
  void PassOverEmpty() {
    while (!done() && sizes_[tensor_] == 0) ++tensor_;
  }

  const std::vector<int64_t> sizes_;
  const v1::Slot slot_;
  size_t tensor_ = 0;
  int64_t offset_ = 0;
  Values values_;
  std::vector<uint16_t> halves_;
  ChunkForm form_ = ChunkForm::kData;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_TENSOR_MESSAGES_H_
