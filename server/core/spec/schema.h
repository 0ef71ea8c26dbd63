// The tensors of a set and where they lie.
//
// A set is one flat index space of fp32 elements. Tensors lie in it in the order of the specification, each starting at
// a multiple of 16 elements; what is between them is padding, and zero. So each tensor takes a multiple of 16 elements
// (64 bytes) of every array: one of a single element as many as one of 16, one without elements none. The wire speaks
// (tensor, offset); everything inside speaks flat ranges [begin, end).
#ifndef ADAMANT_SERVER_CORE_SPEC_SCHEMA_H_
#define ADAMANT_SERVER_CORE_SPEC_SCHEMA_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant::core {

inline constexpr int kMaxTensors = 65536;
inline constexpr int kMaxRank = 8;
inline constexpr int kMaxTensorNameBytes = 512;
// Tensors start at multiples of this, in elements: a cache line.
inline constexpr int64_t kTensorAlignment = 16;

// Immutable and thread-safe.
class Schema {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    int group;      // position in the configuration's groups
    int64_t begin;  // flat, a multiple of kTensorAlignment
    int64_t end;    // begin + elements of the tensor: begin if an extent is 0
    int64_t size() const { return end - begin; }
  };

  // Of `spec.tensors()`, which name groups of `groups` (resolved, in order). Errors: INVALID_ARGUMENT (INVALID_FIELD)
  // with a field such as `spec.tensors[2].shape`.
  static absl::StatusOr<std::shared_ptr<const Schema>> Create(const v1::ParameterSetSpec& spec,
                                                              absl::Span<const v1::ParameterGroup> groups);

  // These tensors, and behind them `added`, which name groups of `groups`. Errors: as of Create, in a field such as
  // `tensors[2].shape`.
  absl::StatusOr<std::shared_ptr<const Schema>> Add(const google::protobuf::RepeatedPtrField<v1::TensorSpec>& added,
                                                    absl::Span<const v1::ParameterGroup> groups) const;

  absl::Span<const Tensor> tensors() const { return tensors_; }
  // Elements of each tensor.
  absl::Span<const int64_t> sizes() const { return sizes_; }
  // Length of the flat space, padding included: a multiple of kTensorAlignment, 0 if no tensor has elements.
  int64_t flat_size() const { return flat_size_; }
  // Elements of all tensors, without padding.
  int64_t parameter_count() const { return parameter_count_; }
  // Of names, shapes and order, not of groups; the same in every process and version. In [1, 2^53), so that a client
  // whose numbers are doubles keeps it exactly.
  uint64_t fingerprint() const { return fingerprint_; }

  // The tensor whose range, padding behind it included, has the flat index: one that has elements. Requires: index in
  // [0, flat_size()).
  int TensorAt(int64_t index) const;

  // Memory that the schema takes, in bytes: names and shapes with what the allocator adds to each.
  int64_t MemoryBytes() const;

 private:
  Schema() = default;

  // Appends `added`, which stand at `path`, and takes the fingerprint of all.
  absl::Status Append(const google::protobuf::RepeatedPtrField<v1::TensorSpec>& added,
                      absl::Span<const v1::ParameterGroup> groups, absl::string_view path);

  std::vector<Tensor> tensors_;
  std::vector<int64_t> sizes_;
  int64_t flat_size_ = 0;
  int64_t parameter_count_ = 0;
  uint64_t fingerprint_ = 0;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_SCHEMA_H_
